"""One scan to reconstruct, and what a stage of it may read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.find import Scan
from pipeline.ledger import NEXT, TAKEN
from pipeline.override import Override
from pipeline.settings import Settings
from pipeline.volumes import Echoes, Field, Grid
from pipeline.work import Result, Work

TRACE = "trace.txt"

Progress = Callable[[float, str], None]  # share of the stage that is done (0 to 1), and a short word on it


@dataclass(frozen=True)
class Job:
    """One scan to reconstruct, with its settings and the folder that its stages are kept in."""

    scan: Scan
    settings: Settings
    folder: Path
    truth: Path | None = None  # the true susceptibility (NIfTI, ppm) of a simulated scan, to be compared with
    again: bool = False  # to be done though the same result is published
    expects: str = ""  # digest of the input that this label stands for; other files there are not taken for it
    override: Override | None = None  # what a person decided for this scan

    @property
    def work(self) -> Work:
        return Work(self.folder)

    def save(self) -> None:
        """Write the job into its folder, private to its owner, as the next that is to be done there.

        Whoever holds the scan's claim goes by the job it has taken, whatever is saved meanwhile.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        job = {
            "scan": self.scan.json(),
            "settings": self.settings.model_dump(mode="json"),
            "truth": str(self.truth) if self.truth else None,
            "again": self.again,
            "expects": self.expects,
            "override": self.override.json() if self.override else None,
        }
        aside = self.folder / f".{NEXT}.{os.getpid()}"
        try:
            aside.write_text(json.dumps(job))
            aside.rename(self.folder / NEXT)
        finally:
            aside.unlink(missing_ok=True)

    @staticmethod
    def take(folder: Path) -> bool:
        """Make the next job of a folder the one that `load` gives; False if there is none. For the claim's holder."""
        try:
            (folder / NEXT).rename(folder / TAKEN)
        except FileNotFoundError:
            return False
        return True

    @classmethod
    def load(cls, folder: Path, next: bool = False) -> Job:
        """The job that was taken in a folder, or saved where none was; with `next`, the other way round."""
        names = (NEXT, TAKEN) if next else (TAKEN, NEXT)
        file = folder / (names[0] if (folder / names[0]).exists() else names[1])
        job = json.loads(file.read_text())
        truth = Path(job["truth"]) if job["truth"] else None
        settings = Settings.model_validate(job["settings"])
        override = Override.from_json(job["override"]) if job.get("override") else None
        scan, again, expects = Scan.from_json(job["scan"]), job.get("again", False), job.get("expects", "")
        return cls(scan, settings, folder, truth, again, expects, override)

    def tidy(self) -> None:
        """Remove what the stages made; the job stays, for whoever wants the scan done again."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
        (self.folder / TRACE).unlink(missing_ok=True)


@dataclass(frozen=True)
class Inputs:
    """What a stage may read: the job, the stages before it, the device, and where to say how far it is."""

    job: Job
    done: Mapping[str, Result]
    device: torch.device
    progress: Progress

    @property
    def settings(self) -> Settings:
        return self.job.settings

    def array(self, stage: str, name: str) -> Tensor:
        return self.done[stage].array(name, self.device)

    @property
    def grid(self) -> Grid:
        return Grid.from_json(self.done["convert"].facts["grid"])

    def echoes(self, phase: tuple[str, str] = ("convert", "phase_rad")) -> Echoes:
        facts = self.done["convert"].facts
        return Echoes(
            self.array("convert", "magnitude"),
            self.array(*phase),
            tuple(facts["echo_times_s"]),
            facts["b0_tesla"],
            self.grid,
        )

    def total_field(self) -> Field:
        ppm, sd, mask = (self.array("field", name) for name in ("total_ppm", "sd_ppm", "mask"))
        return Field(ppm, sd, mask.bool(), self.grid)

    def local_field(self) -> Field:
        ppm, sd, mask = (self.array("background", name) for name in ("local_ppm", "sd_ppm", "mask"))
        return Field(ppm, sd, mask.bool(), self.grid)
