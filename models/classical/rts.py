"""Local field -> susceptibility by rapid two-step inversion: what is well determined first, then total variation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.cg import conjugate_gradients
from models.classical.calculus import EDGE_PPM, crop, divergence, gradient, laplacian_spectrum, pad, shrink
from models.dipole import Dipole
from models.params import param


@dataclass(frozen=True)
class RTS:
    """Rapid two-step inversion (Kames 2018, doi 10.1016/j.neuroimage.2017.11.018)."""

    delta: float = param(0.15, "|D| below which the field is not believed", 0.01, 0.5)
    steps: int = param(10, "conjugate gradient steps of the first, weighted fit", 1, 50)
    strength: float = param(
        40.0, "weight of the total variation in 1/ppm, against the misfit in units of noise", 0, 1e5
    )
    iterations: int = param(20, "ADMM iterations of the second step", 1, 1000)


def rts(field: Tensor, weight: Tensor, dipole: Dipole, params: RTS) -> Tensor:
    """A few steps of a weighted fit give k-space where |D| > delta; total variation fills in the rest.

    The noise that the first step leaves in chi is that of the field over |D|: its mean square scales the strength.
    """
    D, grad2 = dipole.kernel, laplacian_spectrum(dipole)
    believed = (D.abs() > params.delta).to(D.dtype)
    first = believed * torch.fft.rfftn(_weighted_fit(field, weight / weight.max(), dipole, params.steps))
    noise = float((believed / D.square().clamp_min(1e-6)).mean() / weight[weight > 0].square().mean())
    strength = max(params.strength * noise, 1e-12)
    mu = strength / EDGE_PPM
    system = believed + mu * grad2
    system[0, 0, 0] = 1
    x = torch.fft.irfftn(first, s=dipole.padded)
    s = torch.zeros((3, *dipole.padded), device=x.device, dtype=x.dtype)
    for _ in range(params.iterations):
        s += gradient(x, dipole)
        z = shrink(s, EDGE_PPM)
        s -= z
        x = torch.fft.irfftn((first + mu * torch.fft.rfftn(divergence(z - s, dipole))) / system, s=dipole.padded)
    return crop(x, dipole)


def _weighted_fit(field: Tensor, weight: Tensor, dipole: Dipole, steps: int) -> Tensor:
    """Conjugate gradients on min |W (D x - f)|^2 from zero, on the padded grid; stopping early regularises."""
    D, w2 = dipole.kernel, pad(weight**2, dipole)

    def convolve(x: Tensor) -> Tensor:
        y: Tensor = torch.fft.irfftn(D * torch.fft.rfftn(x), s=dipole.padded)
        return y

    right = convolve(w2 * pad(field, dipole))
    return conjugate_gradients(lambda x: convolve(w2 * convolve(x)), right, iterations=steps)[0]
