"""What a learned method returns: a map, how it came about, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Found:
    """Chi (X, Y, Z) in ppm and how it came about: curves, misfit, seeds, weights.

    `uncertainty_ppm` (X, Y, Z) is its standard deviation, None where the method cannot tell.
    """

    chi_ppm: Tensor
    facts: dict[str, Any]
    uncertainty_ppm: Tensor | None = None
