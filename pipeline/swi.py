"""Echoes and local field -> susceptibility-weighted image (SWI), and its minimum-intensity projection (minIP)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate, max_pool1d, pad

from models.params import param
from pipeline.errors import ChironError
from pipeline.filters import erode, gaussian
from pipeline.volumes import Echoes, Field, Grid, bounding_box


@dataclass(frozen=True)
class SWI:
    """How much of the field darkens the magnitude, and how thick the projection is."""

    field_ppm: float = param(0.02, "rise of the local field that halves the magnitude; less darkens more", 0.002, 0.2)
    highpass_mm: float = param(4.0, "Gaussian sigma of what is taken off the local field as slow", 1, 50)
    bias_mm: float = param(20.0, "Gaussian sigma of the coils' shading, which is divided out", 5, 100)
    slab_mm: float = param(12.0, "thickness of the slab that the minimum is taken over", 1, 60)


@dataclass(frozen=True)
class Weighted:
    """SWI of the whole volume and its minIP inside the brain (X, Y, Z); 1 is the brain's usual brightness."""

    swi: Tensor
    minip: Tensor
    facts: dict[str, Any]


STEEP = 3  # how sharply the field darkens: 0.95 of the magnitude is left where it does not rise, 0.05 at twice
ROUNDS = 3  # of the estimate of the shading, each without what the last one found to be no common tissue
COMMON = 0.3  # how far from the shading, as a share of it, tissue may lie and still be common


def weight_susceptibility(echoes: Echoes, mask: Tensor, local: Field, params: SWI = SWI()) -> Weighted:
    """The magnitude of all echoes, freed of shading, darkened where the local field is higher than around.

    In the manner of CLEAR-SWI (Eckstein 2021, doi 10.1016/j.neuroimage.2021.118175), but by the field in ppm that all
    echoes tell together: free of wraps, of echo times and of field strength, and without the rims of a filtered phase.
    A paramagnetic vein along B0 is dark. Outside the field's mask the magnitude stays as it is. `mask` (bool) is the
    brain; P007 where it is empty.
    """
    if not bool(mask.any()):
        raise ChironError("P007", "an empty mask", "a mask of the brain")
    magnitude = unshaded(combined(echoes, mask), mask, echoes.grid, params.bias_mm)
    factor = darkening(local, params)
    swi = magnitude * factor
    minip, axis, slices = projected(swi, mask, echoes.grid, params.slab_mm)
    facts = {
        "echoes": len(echoes.echo_times_s),
        "slab_axis": axis,
        "slab_slices": slices,
        "slab_mm": round(slices * echoes.grid.voxel_size_mm[axis], 3),
        "darkened_share": float((factor[local.mask] < 0.5).float().mean()),
    }
    return Weighted(swi, minip, facts)


def combined(echoes: Echoes, mask: Tensor) -> Tensor:
    """Mean of the echoes, each weighted for the contrast of R2*: its time times its usual signal.

    A change of R2* changes an echo by -TE m; weights in that proportion give the sum the most contrast for its noise.
    """
    times = torch.tensor(echoes.echo_times_s, device=mask.device).view(-1, 1, 1, 1)
    weight = times * echoes.magnitude[:, mask].mean(1).view(-1, 1, 1, 1)
    if not float(weight.sum()) > 0:
        raise ChironError("P005", "a magnitude that is zero in the mask", "an image of the brain")
    combination: Tensor = (weight * echoes.magnitude).sum(0) / weight.sum()
    return combination


def unshaded(magnitude: Tensor, mask: Tensor, grid: Grid, bias_mm: float) -> Tensor:
    """The magnitude over its mean among common tissue nearby, which is the shading; far from tissue, over all of it."""
    common = mask & (magnitude > 0)
    flat = magnitude
    for _ in range(ROUNDS):
        usual = magnitude[common].mean()
        flat = magnitude / _mean_nearby(magnitude, common, usual, grid, bias_mm)
        common = mask & ((flat - 1).abs() < COMMON)
        if not bool(common.any()):
            break
    return flat


def _mean_nearby(volume: Tensor, where: Tensor, otherwise: Tensor, grid: Grid, sigma_mm: float) -> Tensor:
    """Gaussian mean of the voxels `where`, made on voxels of a fifth of sigma; `otherwise` where none are near."""
    steps = [max(1, int(sigma_mm / 5 / size)) for size in grid.voxel_size_mm]
    kept = where.to(volume.dtype)
    small = avg_pool3d(torch.stack([volume * kept, kept])[None], steps, ceil_mode=True)[0]
    size_mm = [step * size for step, size in zip(steps, grid.voxel_size_mm, strict=True)]
    sums, weights = gaussian(small, size_mm, sigma_mm).clamp_min(0)
    mean = ((sums + 1e-3 * otherwise) / (weights + 1e-3))[None, None]
    whole = [step * n for step, n in zip(steps, mean.shape[2:], strict=True)]
    x, y, z = volume.shape
    return interpolate(mean, size=whole, mode="trilinear", align_corners=False)[0, 0, :x, :y, :z]


def darkening(local: Field, params: SWI) -> Tensor:
    """A factor from 1, where the field is as around or lower, to 0.

    It is a half where the field rises by `field_ppm`, or by three times its noise where that is more.
    """
    box = bounding_box(local.mask)
    field, mask, sd = local.ppm[box], local.mask[box], local.sd_ppm[box]
    inside = mask.to(field.dtype)
    sums, weights = gaussian(torch.stack([field * inside, inside]), local.grid.voxel_size_mm, params.highpass_mm)
    rise = (field - sums / weights.clamp_min(1e-3)) / torch.sqrt(params.field_ppm**2 + (3 * sd) ** 2)
    factor = torch.ones_like(local.ppm)
    factor[box] = torch.where(mask, torch.sigmoid(STEEP * (1 - rise)) * (1 + math.exp(-STEEP)), 1).clamp_max(1)
    return factor


def projected(swi: Tensor, mask: Tensor, grid: Grid, slab_mm: float) -> tuple[Tensor, int, int]:
    """Minimum over the slab around each slice, across the axis nearest to B0; zero where the slab holds no brain.

    The outermost voxels of the brain share their voxel with what is dark around it and do not count.
    """
    axis = max(range(3), key=lambda a: abs(grid.b0_dir[a]))
    slices = max(1, round(slab_mm / grid.voxel_size_mm[axis]))
    inner = erode(mask, (1, 1, 1), 1)
    lowest = torch.where(inner, swi, torch.inf).movedim(axis, -1)
    rows = -pad(lowest.flatten(0, 1), ((slices - 1) // 2, slices // 2), value=torch.inf)
    minimum = -max_pool1d(rows[:, None], slices, 1)[:, 0].reshape(lowest.shape).movedim(-1, axis)
    return torch.where(minimum.isfinite(), minimum, 0), axis, slices
