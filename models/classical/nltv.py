"""Local field -> susceptibility by total variation with the nonlinear data term of the complex signal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.classical.admm import DataStep, Harmonic, minimise
from models.dipole import Dipole
from models.params import param


@dataclass(frozen=True)
class NLTV:
    """Nonlinear weighted total variation (Milovic 2018, doi 10.1002/mrm.27073)."""

    strength: float = param(
        40.0, "weight of the total variation in 1/ppm, against the misfit in units of noise", 0, 1e5
    )
    radians_per_ppm: float = param(
        16.0, "phase of 1 ppm: a misfit of more than the inverse counts less; 16 is 20 ms at 3 T", 0.1, 200
    )
    harmonic: float = param(
        0.0, "weight of the Laplacian of a background left in the field, against the misfit; 0: none is left", 0, 1e6
    )
    iterations: int = param(60, "ADMM iterations at most", 1, 5000)
    tolerance: float = param(0.01, "relative change of chi from one iteration to the next at which it stops", 0, 1)


def nltv(field: Tensor, weight: Tensor, dipole: Dipole, params: NLTV) -> Tensor:
    """min |W / k (exp(i k (D chi + h)) - exp(i k f))|^2 / 2 + strength |grad chi|_1 + harmonic |W M laplace(h)|^2 / 2.

    k is `radians_per_ppm`, M the mask, and h a background that was left in the field (Milovic 2019,
    doi 10.1002/mrm.27483); h is zero where `harmonic` is.
    """
    return minimise(
        field,
        weight,
        dipole,
        strength=params.strength,
        iterations=params.iterations,
        tolerance=params.tolerance,
        data=phase_step(params.radians_per_ppm),
        harmonic=Harmonic(dipole, strength=params.harmonic) if params.harmonic else None,
    ).chi_ppm


def phase_step(k: float) -> DataStep:
    """min over z of w2 / k^2 (1 - cos k (z - f)) + mu / 2 (z - s)^2 by Newton's method, each voxel by itself.

    It starts from the linear solution about the turn that is nearest to s.
    """
    turn = 2 * torch.pi / k

    def step(s: Tensor, f: Tensor, w2: Tensor, mu: float) -> Tensor:
        s = s - f
        z = s - (s - turn * torch.round(s / turn)) * (w2 / (w2 + mu))
        for _ in range(3):
            slope = (w2 / k) * torch.sin(k * z) + mu * (z - s)
            z = z - slope / (w2 * torch.cos(k * z).clamp_min(0) + mu)
        return f + z

    return step
