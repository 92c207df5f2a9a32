"""Total field -> local field in the mask that is left, by V-SHARP, PDF, RESHARP or LBV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from models.params import param
from pipeline.background.lbv import LBV, lbv
from pipeline.background.leftover import background_left
from pipeline.background.pdf import PDF, pdf
from pipeline.background.resharp import RESHARP, resharp
from pipeline.background.suspects import bridge_suspects
from pipeline.background.vsharp import VSHARP, vsharp
from pipeline.errors import ChironError
from pipeline.volumes import Field, bounding_box

__all__ = ["LBV", "PDF", "RESHARP", "VSHARP", "Background", "background_left", "remove_background"]


@dataclass(frozen=True)
class Background:
    """How the field of sources outside the mask is removed."""

    method: Literal["vsharp", "pdf", "resharp", "lbv"] = param(
        "vsharp",
        "vsharp: means over balls; pdf: sources outside; resharp: one size of ball; lbv: from the values at the rim",
    )


METHODS: dict[str, Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]] = {
    "vsharp": vsharp,
    "pdf": pdf,
    "resharp": resharp,
    "lbv": lbv,
}
PARAMS: dict[str, type] = {"vsharp": VSHARP, "pdf": PDF, "resharp": RESHARP, "lbv": LBV}


def remove_background(total: Field, method: str = "vsharp", params: Any = None) -> tuple[Field, dict[str, Any]]:
    """The field of the sources inside the mask, in the mask that is left, and what was lost; zero elsewhere.

    `params` is the method's parameter class (its defaults where None). Voxels that cannot be believed have no say in
    the background (`bridge_suspects`). The facts tell what is left of it. Raises P007 where no voxel is left.
    """
    params = params or PARAMS[method]()
    box = bounding_box(total.mask, margin=1)
    inside = total.mask[box]
    field = torch.where(inside, total.ppm[box], 0)
    field = torch.where(inside, field - field[inside].median(), 0)
    x, y, z = inside.shape
    grid = replace(total.grid, shape=(x, y, z))
    part = Field(field, total.sd_ppm[box], inside, grid)
    bridged, for_good = bridge_suspects(part)
    local, mask, facts = METHODS[method](replace(part, ppm=bridged), params)
    if not bool(mask.any()):
        raise ChironError("P007", "no voxel of the mask is left by the background removal", "a larger mask")
    local = torch.where(mask, local + torch.where(for_good, 0, field - bridged), 0)
    facts["background_left"] = background_left(Field(local, part.sd_ppm, mask, grid))
    whole, whole_mask = torch.zeros_like(total.ppm), torch.zeros_like(total.mask)
    whole[box], whole_mask[box] = local, mask
    lost = 1 - float(whole_mask.sum()) / float(total.mask.sum())
    facts |= {"method": method, "parameters": asdict(params), "eroded_share": lost, "volume_share": 1 - lost}
    facts["bridged"] = int(for_good.sum())
    return Field(whole, total.sd_ppm, whole_mask, total.grid), facts
