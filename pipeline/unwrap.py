"""Wrapped echoes -> unwrapped echoes, free of phase offsets: MCPC-3D-S, then ROMEO or Laplacian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.params import param


@dataclass(frozen=True)
class Unwrap:
    """How phase is unwrapped."""

    method: Literal["romeo", "laplacian"] = param("romeo", "romeo is exact; laplacian smooth and approximate")
