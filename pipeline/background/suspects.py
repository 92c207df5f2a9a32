"""Total field -> the same with the voxels that cannot be believed bridged by their neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from pipeline.filters import depth_mm
from pipeline.volumes import Field

SUSPECT = 3.0  # times the median SD
STEEP = 15.0  # times the deviation from the neighbours' mean that the believed voxels around have
RIM_MM = 6.0


def bridge_suspects(total: Field) -> tuple[Tensor, Tensor]:
    """The field (X, Y, Z) without its suspects, and which voxels (bool) were bridged for good.

    A voxel whose SD is above `SUSPECT` times the median, and that differs from the believed voxels next to it by more
    than the steepness of the field there explains, takes their mean; a cluster is filled from its surface inwards. One
    such voxel near air may err by a hundred times the local field, and every ball that holds it would carry that on.
    Near the mask's rim the bridge replaces the field for good; deep inside, where a calcification or a haemorrhage
    looks alike, only the background is estimated with it.
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
    believed = mask & ~suspect
    steep = _wide_mean(torch.where(believed, (total.ppm - _near_mean(field, mask)).abs(), 0), believed)
    wrong = suspect & ((total.ppm - field).abs() > STEEP * steep)
    rim = depth_mm(mask, total.grid.voxel_size_mm, RIM_MM + max(total.grid.voxel_size_mm)) <= RIM_MM
    return torch.where(wrong, field, torch.where(mask, total.ppm, 0)), wrong & rim


def _near_mean(values: Tensor, where: Tensor) -> Tensor:
    return _mean(values * where) / _mean(where.to(values.dtype)).clamp_min(0.01)


def _wide_mean(values: Tensor, where: Tensor) -> Tensor:
    return _mean(_mean(values * where)) / _mean(_mean(where.to(values.dtype))).clamp_min(0.001)


def _mean(volume: Tensor) -> Tensor:
    mean: Tensor = avg_pool3d(volume[None, None], 3, stride=1, padding=1)[0, 0]
    return mean
