"""What a hospital set up once for an output folder -> what every scheduled run reads there, on any of its machines.

It lies in the output's private folder, so that Prefect knows neither where exports lie nor whose they are.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline.errors import ChironError
from pipeline.publish.dataset import private
from pipeline.publish.swap import write_in_place
from pipeline.settings import Settings, parse

OUTPUT_VARIABLE = "CHIRON_OUTPUT"
INPUT_VARIABLE = "CHIRON_INPUT"
NAME = "site.json"


@dataclass(frozen=True)
class Site:
    """One input folder, one output folder, and how they are worked on."""

    input: Path
    output: Path
    settings: dict[str, Any] = field(default_factory=dict)  # as `Settings.model_dump(mode="json")` gives them
    key_file: str = ""  # of the pseudonyms; empty for this user's own
    labels_file: str = ""  # table of patients and labels; empty for pseudonyms
    workers: int = 0  # processes on a machine; 0 chooses by its cores and cards
    time_limit_s: float = 7200.0  # of one scan
    quiet_s: float = 120.0  # a study is taken when nothing of it has changed for so long
    patience_s: float = 3600.0  # an incomplete study is set aside after so long
    keep_days: float = 30.0  # of old versions, unfinished work and Prefect's history
    webhook: str = ""  # told counts and codes after each batch
    mail_to: str = ""
    mail_from: str = ""
    mail_host: str = ""

    def save(self) -> None:
        """Write it to the output's private folder, for its owner only."""
        plain = {**asdict(self), "input": str(self.input), "output": str(self.output)}
        write_in_place(private(self.output) / NAME, json.dumps(plain, indent=1).encode(), private(self.output))
        (private(self.output) / NAME).chmod(0o600)

    @classmethod
    def load(cls, output: Path) -> Site:
        """The site of `output`, with the input at $CHIRON_INPUT where that is set; S002 where none was set up."""
        try:
            plain = json.loads((private(output) / NAME).read_text())
        except (OSError, ValueError):
            raise ChironError(
                "S002", "an output folder that no site was set up for", "one of `chiron serve` or `chiron deploy`"
            ) from None
        known = {each.name for each in fields(cls)}
        given = {name: value for name, value in plain.items() if name in known}
        given["input"] = Path(os.environ.get(INPUT_VARIABLE) or plain["input"])
        return cls(**{**given, "output": output})

    @classmethod
    def here(cls) -> Site:
        """The site of the folder at $CHIRON_OUTPUT, which a worker's environment names."""
        folder = os.environ.get(OUTPUT_VARIABLE)
        if not folder:
            raise ChironError(
                "S002", f"no output folder in ${OUTPUT_VARIABLE}", "the folder that the site was set up for"
            )
        return cls.load(Path(folder))

    def parsed_settings(self) -> Settings:
        return parse(self.settings)
