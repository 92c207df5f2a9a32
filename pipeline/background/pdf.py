"""Total field -> local field by PDF: what sources outside the mask explain best is background."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from models.cg import conjugate_gradients
from models.dipole import Dipole, fft_size
from models.params import param
from pipeline.filters import depth_mm
from pipeline.volumes import Field


@dataclass(frozen=True)
class PDF:
    """Projection onto dipole fields (Liu 2011, doi 10.1002/nbm.1670)."""

    erode_mm: float = param(2.0, "rim given away: sources beside it explain what belongs to the tissue there", 0, 20)
    reach_mm: float = param(14.0, "how far around the mask's box sources may lie", 2, 100)
    regularisation: float = param(1e-3, "what the size of the sources costs beside the misfit", 1e-9, 1)
    iterations: int = param(40, "conjugate gradient steps at most", 1, 1000)
    tolerance: float = param(1e-5, "size of the gradient, relative to the first, at which it stops", 1e-8, 0.5)


NEAR_MM, FARTHEST_MM, POWER = 5.0, 40.0, 1.5


def pdf(total: Field, params: PDF) -> tuple[Field, dict[str, Any]]:
    """The field inside the mask that sources outside it explain best (weighted least squares) is background.

    A source may be the stronger the farther it is from the mask, (1 + distance / 5 mm)^1.5, where it stands for much
    that lies beyond: with this as preconditioner, distant and near sources are found at the same pace. The grid is
    periodic: what a source does round its edge is the field of one more source outside, so no padding is needed.
    """
    voxel, shape = total.grid.voxel_size_mm, total.mask.shape
    before = [max(1, round(params.reach_mm / v)) for v in voxel]
    sizes = [fft_size(n + 2 * b) for n, b in zip(shape, before, strict=True)]
    after = [s - n - b for s, n, b in zip(sizes, shape, before, strict=True)]
    grow = (before[2], after[2], before[1], after[1], before[0], after[0])
    dipole = Dipole(sizes, voxel, total.grid.b0_dir, padding=0.0, device=total.ppm.device, dtype=total.ppm.dtype)
    square, outside = pad(relative_weight(total) ** 2, grow), ~pad(total.mask, grow)
    strength = outside * (1 + depth_mm(outside, voxel, FARTHEST_MM) / NEAR_MM) ** POWER

    def normal(sources: Tensor) -> Tensor:
        field = dipole.forward(strength * sources)
        return strength * dipole.forward(square * field) + params.regularisation * sources

    right = strength * dipole.forward(square * pad(total.ppm, grow))
    sources, steps = conjugate_gradients(normal, right, iterations=params.iterations, tolerance=params.tolerance)
    background = dipole.forward(strength * sources)
    slices = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
    kept = total.mask
    if params.erode_mm:
        kept = depth_mm(total.mask, voxel, params.erode_mm + max(voxel)) > params.erode_mm
    return replace(total, ppm=total.ppm - background[slices], mask=kept), {"iterations": steps}


def relative_weight(total: Field) -> Tensor:
    """1 / SD in units of its median, between 0 and 2, zero outside the mask."""
    sd = total.sd_ppm.clamp_min(1e-9)
    return torch.where(total.mask, (sd[total.mask].median() / sd).clamp_max(2), 0)
