"""The parameters of CycleQSM, and the plain form of its first description as a preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from models.params import param, with_presets

PRESETS: dict[str, dict[str, Any]] = {"default": {}, "seed": {"consistency": False}}


@with_presets(PRESETS)
@dataclass(frozen=True)
class CycleGAN:
    """CycleQSM: a network that learned from fields and maps that do not belong together, in one pass."""

    preset: Literal["default", "seed"] = param(
        "default", "seed: the plain form, from the field alone, with weights of its own and no data consistency"
    )
    consistency: bool = param(
        True, "end in the closed form that brings the map nearer to the field; not for preset=seed"
    )
    views: int = param(1, "mirror images of the scan whose maps are averaged, each a pass of the network", 1, 8)
    refine: int = param(0, "steps of fitting the network to this scan", 0, 10000)
    rate: float = param(0.00005, "learning rate of these steps", 1e-7, 1)
    tile: int = param(0, "edge of the tiles that the network works on, in voxels; 0: as memory admits", 0, 4096)
    precision: Literal["auto", "float32", "bfloat16"] = param(
        "auto", "of convolutions; auto is bfloat16 where it is fast"
    )
