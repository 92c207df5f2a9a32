"""One scan to reconstruct, and what a stage of it may read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.find import Scan
from pipeline.settings import Settings
from pipeline.volumes import Echoes, Field, Grid
from pipeline.work import Result, Work

Progress = Callable[[float, str], None]  # share of the stage that is done (0 to 1), and a short word on it


@dataclass(frozen=True)
class Job:
    """One scan to reconstruct, with its settings and the folder that its stages are kept in."""

    scan: Scan
    settings: Settings
    folder: Path
    truth: Path | None = None  # the true susceptibility (NIfTI, ppm) of a simulated scan, to be compared with

    @property
    def work(self) -> Work:
        return Work(self.folder)

    def save(self) -> None:
        """Write the job into its folder, where `Job.load` finds it; the folder is private to its owner."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        job = {
            "scan": self.scan.json(),
            "settings": self.settings.model_dump(mode="json"),
            "truth": str(self.truth) if self.truth else None,
        }
        aside = self.folder / ".job.json"
        aside.write_text(json.dumps(job, indent=1))
        aside.rename(self.folder / "job.json")

    @classmethod
    def load(cls, folder: Path) -> Job:
        job = json.loads((folder / "job.json").read_text())
        truth = Path(job["truth"]) if job["truth"] else None
        return cls(Scan.from_json(job["scan"]), Settings.model_validate(job["settings"]), folder, truth)


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
