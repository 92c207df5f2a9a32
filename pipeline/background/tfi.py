"""Total field -> local field by total field inversion: what is harmonic once sparse chi has had its part goes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from models.classical.tfi import TFI, separate
from models.dipole import Dipole
from pipeline.filters import depth_mm
from pipeline.volumes import Field

PADDING = 0.04  # share of each size that is added; periodic images of the head are background, too
RIM_MM = 4.0
LARGE_MM = 5.7  # diagonal of a voxel, 3.3 mm along each axis, beyond which the outermost ones spoil the map


def tfi(total: Field, params: TFI) -> tuple[Field, dict[str, Any]]:
    """Chi and the background are fitted together (`models.classical.tfi`); the field less the background is local.

    Nothing is eroded but what fits no chi: voxels near the rim whose misfit is far beyond noise, and their neighbours.
    Deep inside they stay, with a standard deviation as large as their misfit. Of large voxels the outermost are taken
    off as well, once they have had their part in the fit: they lie partly outside.
    """
    voxel, mask = total.grid.voxel_size_mm, total.mask
    dipole = Dipole(
        mask.shape, voxel, total.grid.b0_dir, padding=PADDING, device=total.ppm.device, dtype=total.ppm.dtype
    )
    weight = torch.where(mask, 1 / total.sd_ppm.clamp_min(1e-6), 0)
    found = separate(total.ppm, weight, dipole, params)
    distrust = torch.where(mask, weight / found.weight.clamp_min(1e-12), 1).clamp_min(1)
    odd = _with_neighbours(distrust > 1.001) & (depth_mm(mask, voxel, RIM_MM + max(voxel)) <= RIM_MM)
    left = mask & ~odd
    if math.hypot(*voxel) > LARGE_MM:
        left &= depth_mm(mask, (1, 1, 1), 2) > 1
    kept = replace(total, ppm=total.ppm - found.harmonic_ppm, sd_ppm=total.sd_ppm * distrust, mask=left)
    return kept, {"iterations": found.iterations, "odd_voxels": int((odd & mask).sum())}


def _with_neighbours(voxels: Tensor) -> Tensor:
    return max_pool3d(voxels.float()[None, None], 3, stride=1, padding=1)[0, 0] > 0
