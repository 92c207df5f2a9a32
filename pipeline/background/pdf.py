"""Total field -> local field by PDF: what sources outside the mask explain best is background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.cg import conjugate_gradients
from models.dipole import Dipole
from models.params import param
from pipeline.volumes import Field


@dataclass(frozen=True)
class PDF:
    """Projection onto dipole fields (Liu 2011, doi 10.1002/nbm.1670)."""

    iterations: int = param(60, "conjugate gradient steps at most", 1, 1000)
    tolerance: float = param(0.001, "size of the gradient, relative to the first, at which it stops", 1e-8, 0.5)


def pdf(total: Field, params: PDF) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The field inside the mask that sources outside it explain best (weighted least squares) is background.

    Conjugate gradients on the sources outside, on a grid padded so that they may lie around the mask on all sides.
    """
    pad = [n // 4 + 4 for n in total.mask.shape]
    grow = (pad[2], pad[2], pad[1], pad[1], pad[0], pad[0])
    mask = torch.nn.functional.pad(total.mask, grow)
    weight = torch.nn.functional.pad(_relative_weight(total), grow)
    field = torch.nn.functional.pad(total.ppm, grow)
    dipole = Dipole(
        mask.shape, total.grid.voxel_size_mm, total.grid.b0_dir, padding=0.0, device=field.device, dtype=field.dtype
    )
    outside = (~mask).to(field.dtype)

    def normal(sources: Tensor) -> Tensor:
        return outside * dipole.forward(weight**2 * dipole.forward(sources))

    right = outside * dipole.forward(weight**2 * field)
    sources, iterations = conjugate_gradients(normal, right, iterations=params.iterations, tolerance=params.tolerance)
    background = dipole.forward(sources)
    slices = tuple(slice(p, p + n) for p, n in zip(pad, total.mask.shape, strict=True))
    return total.ppm - background[slices], total.mask, {"iterations": iterations}


def _relative_weight(total: Field) -> Tensor:
    """1 / SD in units of its median, between 0 and 2, zero outside the mask."""
    sd = total.sd_ppm.clamp_min(1e-9)
    return torch.where(total.mask, (sd[total.mask].median() / sd).clamp_max(2), 0)
