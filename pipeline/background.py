"""Total field -> local field in an eroded mask: V-SHARP or PDF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.params import param


@dataclass(frozen=True)
class Background:
    """How the field of sources outside the mask is removed."""

    method: Literal["vsharp", "pdf"] = param("vsharp", "vsharp loses a rim; pdf keeps the mask")


@dataclass(frozen=True)
class VSHARP:
    """V-SHARP."""

    radius_mm: float = param(12.0, "largest radius of the spherical mean", 1, 30)


@dataclass(frozen=True)
class PDF:
    """Projection onto dipole fields."""

    iterations: int = param(100, "at most", 1, 1000)
