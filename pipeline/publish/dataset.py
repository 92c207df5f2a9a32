"""An output folder -> a BIDS derivatives dataset of ours, or a refusal: what stands at its top."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pipeline
from pipeline.errors import ChironError
from pipeline.publish.sidecars import RESEARCH_USE, as_json
from pipeline.publish.swap import locked, write_in_place
from pipeline.work import disk_error

IGNORED_BY_BIDS = (
    "failed/",
    "set-aside/",
    "CITATION.md",
    "summary.html",
    "**/manifest.json",
    "*_qc.json",
    "*_qsm.html",
    "*_fieldmap.*",
    "*_swi.*",
    "*_minIP.*",
)
CITATION = ("# How to cite", "", "Sources of the steps that made these results; each manifest.json lists its own.", "")


def prepare(output: Path) -> None:
    """Make `output` a dataset of ours, before anything is computed; a second call changes nothing.

    S002 where it cannot be written or is another program's dataset, S001 where the disk is full.
    """
    refuse_foreign(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        private(output).mkdir(mode=0o700, exist_ok=True)
        if not os.access(output, os.W_OK | os.X_OK) or not os.access(private(output), os.W_OK | os.X_OK):
            raise ChironError("S002", "an output folder that may not be written to", "write access")
        for name, content in _top().items():
            write_in_place(output / name, content, private(output))
    except OSError as error:
        raise disk_error(error) from error


def private(output: Path) -> Path:
    """The folder for locks and unfinished work: on the output's file system, its owner's alone."""
    return output / ".chiron"


def cite(output: Path, papers: Iterable[str]) -> None:
    """Add the papers of the steps that were used to the dataset's CITATION.md; those that it has already stay."""
    path = output / "CITATION.md"
    with locked(private(output) / "locks" / "CITATION.lock"):
        known = path.read_text().splitlines() if path.exists() else []
        lines = {line for line in known if line.startswith("- ")} | {f"- {paper}" for paper in papers}
        text = "\n".join([*CITATION, *sorted(lines), ""])
        write_in_place(path, text.encode(), private(output))


def refuse_foreign(output: Path) -> None:
    """S002 where another program's dataset stands in `output`."""
    path = output / "dataset_description.json"
    if not path.exists():
        return
    try:
        makers = json.loads(path.read_text()).get("GeneratedBy", [])
        ours = any(maker.get("Name") == "Chiron" for maker in makers)
    except (OSError, ValueError, AttributeError, TypeError):
        ours = False
    if not ours:
        raise ChironError("S002", "an output folder with another program's dataset", "an empty folder or one of ours")


def _top() -> dict[str, bytes]:
    description = {
        "Name": "Chiron: quantitative susceptibility maps",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "Chiron", "Version": pipeline.__version__, "Description": RESEARCH_USE}],
        "HowToAcknowledge": "See CITATION.md.",
    }
    return {
        ".bidsignore": "".join(f"{line}\n" for line in IGNORED_BY_BIDS).encode(),
        "dataset_description.json": as_json(description),
    }
