"""Local field and magnitude -> susceptibility that changes only where the magnitude does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.classical.admm import minimise
from models.classical.calculus import gradient, pad
from models.classical.nltv import phase_step
from models.dipole import Dipole
from models.params import param


@dataclass(frozen=True)
class MEDI:
    """Morphology enabled dipole inversion (Liu 2012, doi 10.1016/j.neuroimage.2011.08.082) with MERIT."""

    strength: float = param(
        40.0, "weight of the penalised differences in 1/ppm, against the misfit in units of noise", 0, 1e5
    )
    edges: float = param(0.3, "share of the differences in the mask that count as edges of the magnitude", 0, 0.9)
    relief: float = param(0.3, "share of the penalty that is left at an edge; 0 in the paper", 0, 1)
    radians_per_ppm: float = param(
        16.0, "phase of 1 ppm: a misfit of more than the inverse counts less; 16 is 20 ms at 3 T", 0.1, 200
    )
    trusted: float = param(6.0, "misfit in units of noise from which on a voxel loses weight; 0: never", 0, 1e4)
    iterations: int = param(60, "ADMM iterations at most", 1, 5000)
    tolerance: float = param(0.01, "relative change of chi from one iteration to the next at which it stops", 0, 1)


def medi(field: Tensor, weight: Tensor, dipole: Dipole, params: MEDI, *, magnitude: Tensor) -> Tensor:
    """min |W / k (exp(i k D chi) - exp(i k f))|^2 / 2 + strength |P grad chi|_1, with P small at edges of `magnitude`.

    The paper's Gauss-Newton steps are replaced by ADMM, whose steps are closed form. `magnitude` (X, Y, Z), any unit.
    """
    edge = edges(magnitude, weight > 0, dipole, params.edges)
    return minimise(
        field,
        weight,
        dipole,
        strength=params.strength,
        iterations=params.iterations,
        tolerance=params.tolerance,
        data=phase_step(params.radians_per_ppm),
        penalty=torch.where(edge, params.relief, 1.0).to(field.dtype),
        trusted=params.trusted,
    ).chi_ppm


def edges(magnitude: Tensor, inside: Tensor, dipole: Dipole, share: float) -> Tensor:
    """Differences (3, X, Y, Z on the padded grid) of both voxels inside that are the `share` of largest magnitude."""
    m, change = pad(inside, dipole), gradient(pad(magnitude, dipole), dipole).abs()
    both = torch.stack([m & m.roll(-1, axis) for axis in range(3)])
    found = change[both]
    count = round(share * found.numel())
    if not count:
        return torch.zeros_like(both)
    level = found.kthvalue(found.numel() - count + 1).values
    return both & (change >= level) & (change > 0)
