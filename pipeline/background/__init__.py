"""Total field -> local field in an eroded mask, by V-SHARP or PDF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from models.params import param
from pipeline.background.pdf import PDF, pdf
from pipeline.background.vsharp import VSHARP, vsharp
from pipeline.errors import ChironError
from pipeline.volumes import Field, bounding_box

__all__ = ["PDF", "VSHARP", "Background", "remove_background"]


@dataclass(frozen=True)
class Background:
    """How the field of sources outside the mask is removed."""

    method: Literal["vsharp", "pdf"] = param("vsharp", "vsharp loses a rim; pdf keeps the mask and errs at its edge")


METHODS: dict[str, Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]] = {"vsharp": vsharp, "pdf": pdf}
PARAMS: dict[str, type] = {"vsharp": VSHARP, "pdf": PDF}


def remove_background(total: Field, method: str = "vsharp", params: Any = None) -> tuple[Field, dict[str, Any]]:
    """The field of the sources inside the mask, in the mask that is left, and what was lost; zero elsewhere.

    `params` is the method's parameter class (its defaults where None). Raises P007 where no voxel of the mask is left.
    """
    params = params or PARAMS[method]()
    box = bounding_box(total.mask, margin=1)
    inside = total.mask[box]
    field = torch.where(inside, total.ppm[box], 0)
    part = Field(torch.where(inside, field - field[inside].median(), 0), total.sd_ppm[box], inside, total.grid)
    local, mask, facts = METHODS[method](part, params)
    if not bool(mask.any()):
        raise ChironError("P007", "no voxel of the mask is left by the background removal", "a larger mask")
    whole, whole_mask = torch.zeros_like(total.ppm), torch.zeros_like(total.mask)
    whole[box], whole_mask[box] = torch.where(mask, local, 0), mask
    lost = 1 - float(whole_mask.sum()) / float(total.mask.sum())
    facts |= {"method": method, "parameters": asdict(params), "eroded_share": lost, "volume_share": 1 - lost}
    return Field(whole, total.sd_ppm, whole_mask, total.grid), facts
