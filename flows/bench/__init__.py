"""Sizes, echoes, devices and steps -> a row each: seconds, memory, and the share that no implementation avoids.

Every step runs in a fresh process, so that its peak memory is its own and a failure ends nothing but its row.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from flows.bench.case import Case, Shape, make
from flows.bench.measure import Row, run_step
from flows.bench.steps import steps
from pipeline import child

__all__ = ["ECHOES", "SIZES", "Plan", "Row", "bench", "devices"]

SIZES: tuple[Shape, ...] = ((96, 96, 96), (160, 160, 128), (256, 256, 160))
ECHOES = (3, 6)

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What is measured: every step for every size and device; steps that read the echoes, for each number of them."""

    sizes: Sequence[Shape]
    echoes: Sequence[int]
    devices: Sequence[str]
    steps: Sequence[str]
    repeat: int

    def runs(self) -> list[tuple[str, Shape, int, str]]:
        """Device, shape, echoes, step; all of one shape together."""
        return [
            (device, shape, echoes, step)
            for shape in sorted(set(self.sizes), key=math.prod)
            for device in self.devices
            for echoes in sorted(set(self.echoes))
            for step in self.steps
            if steps()[step].by_echoes or echoes == min(self.echoes)
        ]


def bench(plan: Plan, say: Callable[[str], None] = lambda text: None) -> Iterator[Row]:
    """Measure one after the other; `say` is told what is running."""
    runs = plan.runs()
    with tempfile.TemporaryDirectory() as scratch:
        made: Shape | None = None
        for number, (device, shape, echoes, step) in enumerate(runs, 1):
            size = "x".join(map(str, shape))
            if shape != made:
                say(f"simulating a head of {size}")
                _apart(make, Path(scratch), shape, max(plan.echoes))
                made = shape
            say(f"[{number}/{len(runs)}] {device} {size}, {echoes} echoes: {step}")
            case = Case(Path(scratch), shape, echoes, device)
            try:
                yield _apart(run_step, case, step, plan.repeat)
            except BrokenProcessPool:
                yield Row(device, shape, echoes, step, error="its process was killed, as it is when memory runs out")


def devices() -> list[str]:
    """The CPU and every GPU that is there."""
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def _apart(run: Callable[..., T], *arguments: object) -> T:
    """Run a function in a fresh process, forked from one that has imported everything and computed nothing."""
    context = child.context("forkserver")
    context.set_forkserver_preload(["flows.bench.measure", "sympy"])  # torch loads sympy where operations are counted
    leash, end = context.Pipe(duplex=False)
    with ProcessPoolExecutor(1, context, child.tie, (leash,)) as pool, end:
        return pool.submit(run, *arguments).result()
