"""Total field -> local field in the mask that is left, by TFI, V-SHARP, PDF, RESHARP or LBV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from models.classical.tfi import TFI
from models.params import param
from pipeline.background.lbv import LBV, lbv
from pipeline.background.leftover import background_left
from pipeline.background.pdf import PDF, pdf
from pipeline.background.resharp import RESHARP, resharp
from pipeline.background.suspects import bridge_suspects
from pipeline.background.tfi import tfi
from pipeline.background.vsharp import VSHARP, vsharp
from pipeline.errors import ChironError
from pipeline.volumes import Field, bounding_box

__all__ = ["LBV", "PDF", "RESHARP", "TFI", "VSHARP", "Background", "background_left", "remove_background"]


@dataclass(frozen=True)
class Background:
    """How the field of sources outside the mask is removed."""

    method: Literal["tfi", "vsharp", "pdf", "resharp", "lbv"] = param(
        "tfi",
        "tfi: fitted together with the susceptibility, keeps the rim; vsharp: means over balls; pdf: sources outside; "
        "resharp: one size of ball; lbv: from the values at the rim",
    )


METHODS: dict[str, Callable[..., tuple[Field, dict[str, Any]]]] = {
    "tfi": tfi,
    "vsharp": vsharp,
    "pdf": pdf,
    "resharp": resharp,
    "lbv": lbv,
}
PARAMS: dict[str, type] = {"tfi": TFI, "vsharp": VSHARP, "pdf": PDF, "resharp": RESHARP, "lbv": LBV}


WEIGHTED = frozenset({"tfi"})  # these know by themselves which voxels cannot be believed


def remove_background(total: Field, method: str = "tfi", params: Any = None) -> tuple[Field, dict[str, Any]]:
    """The field of the sources inside the mask, in the mask that is left, and what was lost; zero elsewhere.

    `params` is the method's parameter class (its defaults where None). Voxels that cannot be believed have no say in
    the background: TFI weighs them down, for the others `bridge_suspects` replaces them. The facts tell what is left
    of it. Raises P007 where no voxel is left.
    """
    params = params or PARAMS[method]()
    box = bounding_box(total.mask)
    inside = total.mask[box]
    field = torch.where(inside, total.ppm[box], 0)
    field = torch.where(inside, field - field[inside].median(), 0)
    x, y, z = inside.shape
    part = Field(field, total.sd_ppm[box], inside, replace(total.grid, shape=(x, y, z)))
    found, facts = METHODS[method](part, params) if method in WEIGHTED else _bridged(part, method, params)
    if not bool(found.mask.any()):
        raise ChironError("P007", "no voxel of the mask is left by the background removal", "a larger mask")
    found = replace(found, ppm=torch.where(found.mask, found.ppm, 0))
    facts["background_left"] = background_left(found)
    ppm, sd, mask = torch.zeros_like(total.ppm), total.sd_ppm.clone(), torch.zeros_like(total.mask)
    ppm[box], sd[box], mask[box] = found.ppm, found.sd_ppm, found.mask
    lost = 1 - float(mask.sum()) / float(total.mask.sum())
    facts |= {"method": method, "parameters": asdict(params), "eroded_share": lost, "volume_share": 1 - lost}
    return Field(ppm, sd, mask, total.grid), facts


def _bridged(part: Field, method: str, params: Any) -> tuple[Field, dict[str, Any]]:
    """The local field of a method without weights: bridged at the rim for good, inside only for the background."""
    bridged, for_good = bridge_suspects(part)
    found, facts = METHODS[method](replace(part, ppm=bridged), params)
    local = found.ppm + torch.where(for_good, 0, part.ppm - bridged)
    return replace(found, ppm=local), {**facts, "bridged": int(for_good.sum())}
