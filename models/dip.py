"""Local field -> susceptibility by Deep Image Prior: an untrained 3D network fitted to one scan."""

from __future__ import annotations

from dataclasses import dataclass

from models.params import param


@dataclass(frozen=True)
class DIP:
    iterations: int = param(500, "at most", 1, 100000)
