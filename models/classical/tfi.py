"""Total field -> susceptibility in one step: sources inside the mask and the background of those outside, together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.cg import conjugate_gradients
from models.classical.calculus import crop, pad
from models.classical.nltv import fit
from models.dipole import Dipole
from models.params import param

HARMONIC = 100.0  # holds the background harmonic in the mask; more changes nothing
REWEIGHT = 5  # iterations from one weighing of the misfit to the next


@dataclass(frozen=True)
class TFI:
    """Preconditioned total field inversion (Liu 2017, doi 10.1002/mrm.26331) with a harmonic background."""

    strength: float = param(
        40.0, "weight of the total variation in 1/ppm, against the misfit in units of noise", 0, 1e5
    )
    outside: float = param(50.0, "how much larger chi may be outside the mask than inside", 1, 1e4)
    steps: int = param(25, "conjugate gradient steps for the first background", 1, 500)
    radians_per_ppm: float = param(
        16.0, "phase of 1 ppm: a misfit of more than the inverse counts less; 16 is 20 ms at 3 T", 0.1, 200
    )
    iterations: int = param(40, "ADMM iterations at most", 1, 5000)
    tolerance: float = param(0.01, "relative change of chi from one iteration to the next at which it stops", 0, 1)


def tfi(field: Tensor, weight: Tensor, dipole: Dipole, params: TFI) -> Tensor:
    """Chi inside the mask, of the total `field` in the whole mask: nothing is eroded.

    The background starts as the field of sources outside the mask that a preconditioned fit of all space finds
    (equation 5); what it got wrong is harmonic in the mask too, so it is then found together with chi under total
    variation (Milovic 2019, doi 10.1002/mrm.27483).
    """
    inside = weight > 0
    weight = _even(weight)
    local = field - first_background(field, weight, dipole, params)
    local = torch.where(inside, local - local[inside].mean(), 0)
    return fit(
        local,
        weight,
        dipole,
        strength=params.strength,
        radians_per_ppm=params.radians_per_ppm,
        iterations=params.iterations,
        tolerance=params.tolerance,
        harmonic=HARMONIC,
        reweight=REWEIGHT,
    )


def first_background(field: Tensor, weight: Tensor, dipole: Dipole, params: TFI) -> Tensor:
    """Field in the mask of the sources outside it, by a least-squares fit of y with chi = P y everywhere."""
    D, w2 = dipole.kernel, pad(weight**2 / weight[weight > 0].square().mean(), dipole)
    P = torch.where(w2 > 0, 1.0, params.outside)

    def convolve(x: Tensor) -> Tensor:
        y: Tensor = torch.fft.irfftn(D * torch.fft.rfftn(x), s=dipole.padded)
        return y

    right = P * convolve(w2 * pad(field, dipole))
    y, _ = conjugate_gradients(lambda y: P * convolve(w2 * convolve(P * y)), right, iterations=params.steps)
    return crop(convolve(torch.where(w2 > 0, 0, P * y)), dipole)


def _even(weight: Tensor) -> Tensor:
    """Weights of a field that is known no better than the median voxel's: near air, models err by more than noise."""
    typical = weight[weight > 0].median()
    return weight / (1 + (weight / typical).square()).sqrt()
