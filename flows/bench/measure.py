"""One step on one head -> its seconds, its memory and its floor; runs in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from flows.bench import floor
from flows.bench.case import Case, Shape
from flows.bench.steps import Ready, steps
from pipeline.errors import ChironError

ENOUGH_S = 8.0  # of timed runs
LONG_S = 30.0  # a step that takes longer is timed in its first run, whose start-up then weighs little


@dataclass(frozen=True)
class Row:
    """What was measured; `error` says why not. `echoes` is None where the cost does not depend on them.

    `peak_bytes` is the most memory in use while the step ran, `extra_bytes` how much of it was not there before.
    """

    device: str
    shape: Shape
    echoes: int | None
    step: str
    seconds: float = math.nan
    floor_s: float = math.nan
    floor: str = ""
    peak_bytes: int = 0
    extra_bytes: int = 0
    runs: int = 0
    error: str = ""

    @property
    def ratio(self) -> float:
        return self.seconds / self.floor_s if self.floor_s else math.nan


def run_step(case: Case, step: str, repeat: int) -> Row:
    """Make the step ready and measure it; a failure is a row too."""
    chosen = steps()[step]
    row = (case.device, case.shape, case.echoes if chosen.by_echoes else None, step)
    try:
        return measure(row, chosen.prepare(case), repeat)
    except (torch.OutOfMemoryError, MemoryError):
        return Row(*row, error="out of memory")
    except ChironError as error:
        return Row(*row, error=f"{error.code}: {error.found}")
    except Exception as error:
        short = "out of memory" if "memory" in str(error) else f"{type(error).__name__}: {error}".splitlines()[0]
        return Row(*row, error=short)


def measure(row: tuple[str, Shape, int | None, str], ready: Ready, repeat: int) -> Row:
    """Run once while its work is counted, which warms caches and plans, then at most `repeat` times by the clock."""
    device = torch.device(row[0])
    ffts, flops = floor.CountFFTs(), floor.CountFlops()
    with ffts, flops:
        memory = Memory(device)
        seconds, made = floor.clocked(ready.run, device)
    outputs = floor.bytes_of(made)
    del made
    times = [seconds]
    if seconds < LONG_S:
        memory = Memory(device)
        times = []
        while len(times) < repeat and sum(times) < ENOUGH_S:
            times.append(_clocked_alone(ready.run, device))
    peak, extra = memory.peak()
    least, kind = floor.floor(ffts, flops, ready.inputs, outputs, device)
    return Row(*row, median(times), least, kind, peak, extra, len(times))


def _clocked_alone(run: Callable[[], object], device: torch.device) -> float:
    return floor.clocked(run, device)[0]


class Memory:
    """From here on: the most memory in use, of the device where it is a GPU, of this process where it is the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            _return_freed_memory()
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use now
            self.before = _status("VmRSS")

    def peak(self) -> tuple[int, int]:
        """Bytes at most, and how many more than at the start."""
        most = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _status("VmHWM")
        return most, most - self.before


def _return_freed_memory() -> None:
    """What the C library keeps for later goes back to the system, or it would hide what a step takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
