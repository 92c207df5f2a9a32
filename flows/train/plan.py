"""What `chiron train` is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """For how long, how fast, from what and where; then what only some methods ask."""

    minutes: float = 60.0
    seed: int = 1
    rate: float = 0.001
    labels: Path | None = None
    device: str = "auto"
    scans: int = 60  # simulated scans, whose numbers begin at `first`
    first: int = 1000
    config: str = "small"  # diffusion: how large the network and its batches are
    maps: Path | None = None  # a site's own maps
    workers: int = 0  # processes that make maps; 0: all cores but one
    fields: Path | None = None  # cyclegan: a site's own published local fields, in place of simulated ones
    preset: str = "full"  # cyclegan: what is learned
    adversary: str = ""  # cyclegan: the critic, where it is not that of the preset
