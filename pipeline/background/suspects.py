"""Total field -> the same with the voxels that cannot be believed bridged by their neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from pipeline.filters import depth_mm
from pipeline.volumes import Field

SUSPECT = 3.0  # times the median SD; on simulated heads 0.2 % of the voxels, with most of the total field's error
RIM_MM = 6.0


def bridge_suspects(total: Field) -> tuple[Tensor, Tensor]:
    """The field (X, Y, Z) without its suspects, and which voxels (bool) were bridged for good.

    A voxel whose SD is above `SUSPECT` times the median takes the mean of the believed voxels next to it; a cluster is
    filled from its surface inwards. One such voxel near air may err by a hundred times the local field, and every ball
    that holds it would carry that on. Near the mask's rim the bridge replaces the field for good; deep inside, where a
    calcification or a haemorrhage looks alike, only the background is estimated with it.
    """
    mask, sd = total.mask, total.sd_ppm
    suspect = mask & (sd > SUSPECT * sd[mask].median())
    field = torch.where(mask & ~suspect, total.ppm, 0)
    known, left = mask & ~suspect, int(suspect.sum())
    while left:
        share = _mean(known.to(field.dtype))
        reached = mask & ~known & (share > 0.01)
        if not bool(reached.any()):
            return torch.where(known, field, total.ppm), torch.zeros_like(mask)
        field = torch.where(reached, _mean(field) / share.clamp_min(0.01), field)
        known, left = known | reached, left - int(reached.sum())
    rim = depth_mm(mask, total.grid.voxel_size_mm, RIM_MM + max(total.grid.voxel_size_mm)) <= RIM_MM
    return field, suspect & rim


def _mean(volume: Tensor) -> Tensor:
    mean: Tensor = avg_pool3d(volume[None, None], 3, stride=1, padding=1)[0, 0]
    return mean
