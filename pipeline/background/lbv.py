"""Total field -> local field by LBV: the background is harmonic in the mask and equals the total field at its rim."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from models.cg import conjugate_gradients
from models.params import param
from pipeline.filters import depth_mm
from pipeline.volumes import Field


@dataclass(frozen=True)
class LBV:
    """Laplacian boundary value method (Zhou 2014, doi 10.1002/nbm.3064)."""

    peel_mm: float = param(0.0, "taken off the mask first, where the field at the rim is not to be trusted", 0, 20)
    tolerance: float = param(1e-3, "size of the gradient, relative to the first, at which it stops", 1e-8, 0.5)
    iterations: int = param(300, "conjugate gradient steps at most on each grid", 1, 10000)


def lbv(total: Field, params: LBV) -> tuple[Field, dict[str, Any]]:
    """Solve Laplacian(background) = 0 inside with background = total field in the mask's outermost voxels.

    The local field is then zero at the rim, which is given away. Conjugate gradients, started from the solution on a
    grid of twice the voxel size, and so on down to a few voxels.
    """
    voxel = total.grid.voxel_size_mm
    peeled = total.mask
    if params.peel_mm:
        peeled = depth_mm(total.mask, voxel, params.peel_mm + max(voxel)) > params.peel_mm
    field = torch.where(peeled, total.ppm, 0)
    background, steps = _harmonic(field, peeled, voxel, params)
    return replace(total, ppm=field - background, mask=_inner(peeled)), {"iterations": steps}


def _harmonic(field: Tensor, mask: Tensor, voxel: tuple[float, ...], params: LBV) -> tuple[Tensor, list[int]]:
    """The harmonic function that equals `field` in the outermost voxels of the mask, and the steps on each grid."""
    inner = _inner(mask)
    start = field
    steps: list[int] = []
    if int(inner.sum()) > 1000:
        coarse_field, coarse_mask, size = _halved(field, mask, voxel)
        coarse, steps = _harmonic(coarse_field, coarse_mask, size, params)
        doubled = interpolate(coarse[None, None], size=[2 * n for n in coarse.shape], mode="trilinear")[0, 0]
        x, y, z = field.shape
        start = torch.where(inner, doubled[:x, :y, :z], field)

    def minus_laplacian(values: Tensor) -> Tensor:
        total = torch.zeros_like(values)
        for axis, size in enumerate(voxel):
            n = values.shape[axis] - 1
            step = values.diff(dim=axis) / size**2
            total.narrow(axis, 0, n).sub_(step)
            total.narrow(axis, 1, n).add_(step)
        return inner * total

    rim = torch.where(mask & ~inner, field, 0)
    solution, count = conjugate_gradients(
        minus_laplacian,
        -minus_laplacian(rim),
        start=start * inner,
        iterations=params.iterations,
        tolerance=params.tolerance,
    )
    return solution + rim, [count, *steps]


def _inner(mask: Tensor) -> Tensor:
    """The voxels of the mask whose six neighbours lie in it too."""
    wide = torch.nn.functional.pad(mask, (1,) * 6)
    inner = mask.clone()
    for axis in range(3):
        n = mask.shape[axis]
        for start in (0, 2):
            part = wide.narrow(axis, start, n)
            for other in range(3):
                part = part if other == axis else part.narrow(other, 1, mask.shape[other])
            inner &= part
    return inner


def _halved(field: Tensor, mask: Tensor, voxel: tuple[float, ...]) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Mean field and mask on voxels twice as large; a voxel belongs to the mask if any of its eight does."""
    odd = [n % 2 for n in field.shape]
    grow = (0, odd[2], 0, odd[1], 0, odd[0])
    count = torch.nn.functional.avg_pool3d(torch.nn.functional.pad(mask.to(field.dtype), grow)[None, None], 2)[0, 0]
    mean = torch.nn.functional.avg_pool3d(torch.nn.functional.pad(field * mask, grow)[None, None], 2)[0, 0]
    return torch.where(count > 0, mean / count.clamp_min(0.1), 0), count > 0, tuple(2 * v for v in voxel)
