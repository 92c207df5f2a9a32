"""The echoes of a scan as the scanner stored them, and what the headers say of the way they were taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from pipeline.acquisition import Acquisition
from pipeline.errors import ChironError, Decision, Notice
from pipeline.volumes import Grid


@dataclass(frozen=True)
class StoredPhase:
    """What the header says of stored phase: unit, bits, and the range that its rescale gives to all possible pixels."""

    unit: str = ""
    slope: float | None = None  # None where slices differ, or the file has none
    intercept: float | None = None
    bits: int | None = None
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Stored:
    """Two parts of all echoes, float32 (E, X, Y, Z), after the header's rescale; `kind` says which."""

    kind: Literal["magnitude-phase", "real-imaginary"]
    first: Tensor
    second: Tensor
    echo_times_s: tuple[float, ...]
    b0_tesla: float
    grid: Grid
    vendor: str
    facts: dict[str, Any]  # of the acquisition, from an allow-list
    stored_phase: StoredPhase
    slice_axis: int = 2
    decisions: tuple[Decision, ...] = ()
    notices: tuple[Notice, ...] = ()


def overrides(acquisition: Acquisition) -> tuple[Decision, ...]:
    """What was believed instead of the headers."""
    found = []
    if acquisition.echo_times_s:
        times = ", ".join(f"{1000 * t:g}" for t in acquisition.echo_times_s)
        found.append(Decision("echo times", f"{times} ms", "they were given", "--echo-times"))
    return tuple(found)


def given_times(times: tuple[float, ...], acquisition: Acquisition) -> tuple[float, ...]:
    """The echo times to believe; E005 where as many were not given as there are echoes."""
    given = tuple(acquisition.echo_times_s)
    if given and len(given) != len(times):
        raise ChironError("E005", f"{len(given)} echo times were given for {len(times)} echoes", "one for each echo")
    return given or times
