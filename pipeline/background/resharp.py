"""Total field -> local field by RESHARP: the smallest field that explains what a ball's mean leaves of the total."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models.ball import sphere_response
from models.cg import conjugate_gradients
from models.dipole import padded_shape
from models.params import param
from pipeline.background.vsharp import SMALLEST
from pipeline.filters import depth_mm
from pipeline.volumes import Field


@dataclass(frozen=True)
class RESHARP:
    """RESHARP (Sun & Wilman 2014, doi 10.1002/mrm.24765)."""

    radius_mm: float = param(3.0, "radius of the ball; the rim that is lost is as wide", 0.5, 15)
    regularisation: float = param(1e-4, "weight of the local field's size beside what it must explain", 1e-9, 0.1)
    iterations: int = param(30, "conjugate gradient steps at most", 1, 1000)
    tolerance: float = param(0.001, "size of the gradient, relative to the first, at which it stops", 1e-8, 0.5)


def resharp(total: Field, params: RESHARP) -> tuple[Field, dict[str, Any]]:
    """Of the fields whose values minus their mean over a ball are those of the total field, the smallest one.

    Minimises |M (local - mean(local)) - M (total - mean(total))|^2 + regularisation |local|^2 with M the voxels whose
    ball lies in the mask, by conjugate gradients. Balls are in mm with soft edges, so voxels may be anisotropic.
    """
    voxel = total.grid.voxel_size_mm
    radius = max(params.radius_mm, SMALLEST * max(voxel))
    x, y, z = total.mask.shape
    padded = padded_shape([n + int(radius / v) + 1 for n, v in zip(total.mask.shape, voxel, strict=True)], 0)
    fits = torch.zeros(padded, device=total.ppm.device, dtype=torch.bool)
    fits[:x, :y, :z] = depth_mm(total.mask, voxel, radius + max(voxel)) >= radius + min(voxel) / 2
    rest = 1 - sphere_response(padded, voxel, radius, total.ppm)

    def sharpened(volume: Tensor) -> Tensor:
        applied: Tensor = torch.fft.irfftn(torch.fft.rfftn(volume, s=padded) * rest, s=padded)
        return applied

    def normal(local: Tensor) -> Tensor:
        return sharpened(fits * sharpened(local)) + params.regularisation * local

    right = sharpened(fits * sharpened(total.ppm))
    local, steps = conjugate_gradients(normal, right, iterations=params.iterations, tolerance=params.tolerance)
    return replace(total, ppm=local[:x, :y, :z], mask=fits[:x, :y, :z]), {"iterations": steps}
