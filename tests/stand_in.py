"""Stages that take no time in place of the true ones, for tests of what goes on around them.

Variables make them take some: CHIRON_TEST_HANG seconds for unwrapping, CHIRON_TEST_CORES for reading, CHIRON_TEST_CARD
for the field, which is then thought to be computed on a GPU. With CHIRON_TEST_DEAF no interrupt ends the unwrapping.

Run as a script, this file is the command `chiron`, or with the word `worker` one of its workers, with these stages.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

import flows.batch
import flows.crew
import flows.crew.process
import flows.crew.worker
import pipeline.card
import pipeline.publish
import pipeline.recipe
import pipeline.recipe.stages
from pipeline.child import program
from pipeline.errors import ChironError
from pipeline.find import Export, Scan, SetAside
from pipeline.recipe import Inputs
from pipeline.settings import load
from pipeline.volumes import Grid
from pipeline.work import Made

SENTINEL = "Zebedee^Quixotic"
SHAPE = (5, 4, 3)
KEY = b"k" * 32
SETTINGS = load(method="tkd", device="cpu")


def find(folder: Path, key: bytes, subject: str | None = None, **_: Any) -> Export:
    """Every file is a scan; the one called `aside` is set aside."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    scans = tuple(scan_of(path) for path in files if path.name != "aside")
    aside = tuple(SetAside("sub-aside", "P001", "no phase", 1) for path in files if path.name == "aside")
    return Export(scans, aside, (), len(files))


def scan_of(path: Path) -> Scan:
    label = path.read_text().split()[0]
    name = label.encode().hex().ljust(12, "0")[:12]
    return Scan(name, label, "", "", "dicom", "Siemens", (1,), (0.004, 0.008), ("magnitude", "phase"), (path,))


def _convert(inputs: Inputs) -> Made:
    _note(inputs, "convert")
    time.sleep(float(os.environ.get("CHIRON_TEST_CORES", 0)))
    facts = {"grid": Grid.simple(SHAPE, (1, 1, 1)).json(), "echo_times_s": [0.004, 0.008], "b0_tesla": 3.0}
    facts |= {"vendor": "Siemens", "content_digest": inputs.job.scan.content_digest(), "acquisition": {}}
    echoes = torch.ones(2, *SHAPE)
    return Made({"magnitude": echoes, "phase_rad": echoes}, facts=facts)


def _mask(inputs: Inputs) -> Made:
    return Made({"mask": torch.ones(SHAPE, dtype=torch.uint8), "quality": torch.ones(SHAPE)})


def _unwrap(inputs: Inputs) -> Made:
    """Does what the scan's file says: fail, be surprised, hang, die, or die once."""
    _note(inputs, "unwrap")
    said = inputs.job.scan.files[0].read_text()
    if "fail" in said:
        raise ChironError("P007", "an empty mask", "a brain")
    if "surprise" in said:
        raise ValueError(f"the file {inputs.job.scan.files[0]} of {SENTINEL}")
    if "once" in said and not (inputs.job.folder / "died").exists():
        (inputs.job.folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if "die" in said:
        os.kill(os.getpid(), signal.SIGKILL)
    if "CHIRON_TEST_DEAF" in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(3600 if "hang" in said else float(os.environ.get("CHIRON_TEST_HANG", 0)))
    echoes = torch.ones(2, *SHAPE)
    return Made({"unwrapped_rad": echoes, "offset_rad": echoes[0]})


def _field(inputs: Inputs) -> Made:
    time.sleep(float(os.environ.get("CHIRON_TEST_CARD", 0)))
    ones = torch.ones(SHAPE)
    return Made({"total_ppm": ones, "sd_ppm": ones, "mask": ones.to(torch.uint8), "residual": ones})


def _background(inputs: Inputs) -> Made:
    ones = torch.ones(SHAPE)
    return Made({"local_ppm": ones, "sd_ppm": ones, "mask": ones.to(torch.uint8)})


def _invert(method: str, inputs: Inputs) -> Made:
    inputs.progress(0.5, "half way")
    reference = {"region": "final mask", "mean_ppm": 0.0, "sd_ppm": 0.1}
    chi = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return Made({"chi_ppm": chi}, facts={"method": method, "reference": reference})


def _note(inputs: Inputs, stage: str) -> None:
    with (inputs.job.folder.parent.parent / "stages.txt").open("a") as stream:
        stream.write(f"{inputs.job.scan.subject} {stage}\n")


def install(put: Callable[[Any, str, Any], None]) -> None:
    """Put the stages above in place of the true ones, and files in place of exports."""
    for stage in (_convert, _mask, _unwrap, _field, _background, _invert):
        put(pipeline.recipe.stages, stage.__name__.removeprefix("_"), stage)
    if "CHIRON_TEST_CARD" in os.environ:
        put(pipeline.recipe, "pick_device", lambda name: torch.device("cuda", 0))
        put(pipeline.recipe, "forget_peak", lambda device: None)
        put(pipeline.recipe, "peak_memory_bytes", lambda device: 0)
        put(pipeline.card, "_name", lambda device: "test")
    put(flows.batch, "find", find)
    put(flows.crew, "Worker", hire)
    put(flows.crew.process, "START", partial(program, sys.executable, __file__, "worker"))
    put(pipeline.publish, "write_report", lambda work, label, settings, failure=None: f"<html>{label}</html>")


def export(folder: Path, **scans: str) -> Path:
    for name, said in scans.items():
        (folder / f"{SENTINEL}-{name}").write_text(f"{name} {said}")
    return folder


IDLE: list[KeptWorker] = []


class KeptWorker(flows.crew.process.Worker):
    """One with these stages that outlives its crew where it is idle and well: the next test need not wait for one."""

    kept = False

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.kept = self.task is None and not self.overdue and self.process.poll() is None
        if not self.kept:
            super().end(number)

    def hurry(self, limit_s: float) -> None:
        """The limit is for the scan that hangs: over all others a busy machine may take its time."""
        with suppress(FileNotFoundError):  # a scan whose file vanished
            if self.task and not self.task.failure and "hang" in self.task.job.scan.files[0].read_text():
                super().hurry(limit_s)

    def bury(self, wait_s: float) -> int:
        if not self.kept:
            return super().bury(wait_s)
        self.kept = False
        IDLE.append(self)
        return 0


def hire(threads: int, card: int | None) -> flows.crew.process.Worker:
    return IDLE.pop() if IDLE else KeptWorker(threads, card)


def dismiss_all() -> None:
    """End the workers that were kept; their environment is that of the tests before."""
    while IDLE:
        worker = IDLE.pop()
        flows.crew.process.Worker.end(worker)
        flows.crew.process.Worker.bury(worker, 5)
        os.close(worker.replies)


if __name__ == "__main__":
    from flows.cli import main

    install(setattr)
    flows.crew.Worker = flows.crew.process.Worker  # type: ignore[misc]
    patience = float(os.environ.get("CHIRON_TEST_PATIENCE", flows.crew.worker.PREFECT_MAY_HOLD_S))
    flows.crew.worker.PREFECT_MAY_HOLD_S = patience
    if sys.argv[1] == "worker":
        flows.crew.worker.main(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
