"""Stored phase, or real and imaginary parts -> phase in radians with the sign of the field, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.params import param


@dataclass(frozen=True)
class Phase:
    """How stored phase is read."""

    range: Literal["auto", "radians", "degrees", "milliradians", "0-4095", "+-4096"] = param(
        "auto", "unit of the stored phase; auto takes header and range, and refuses what both leave open"
    )
    sign: Literal["auto", "+", "-"] = param("auto", "sign of the phase; auto inverts where the vendor is known to")
    chopper: Literal["auto", "on", "off"] = param("auto", "slices alternate in sign (GE); auto detects it")
