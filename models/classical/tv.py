"""Local field -> susceptibility by total variation with a weighted data term."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.classical.calculus import EDGE_PPM, crop, divergence, gradient, laplacian_spectrum, pad, shrink
from models.dipole import Dipole
from models.params import param


@dataclass(frozen=True)
class TV:
    """Total variation by ADMM with a weighted data term (Bilgic 2014; Milovic 2018, doi 10.1002/mrm.27073)."""

    strength: float = param(
        40.0, "weight of the total variation in 1/ppm, against the misfit in units of noise", 0, 1e5
    )
    iterations: int = param(40, "ADMM iterations at most", 1, 5000)
    tolerance: float = param(0.01, "relative change of chi from one iteration to the next at which it stops", 0, 1)


def tv(field: Tensor, weight: Tensor, dipole: Dipole, params: TV) -> Tensor:
    """min 1/2 |W (D chi - f)|^2 + strength |grad chi|_1.

    ADMM with both the gradient and the field D chi split off, so that every step is closed form; starts from Tikhonov.
    """
    D, grad2 = dipole.kernel, laplacian_spectrum(dipole)
    w2, f = pad(weight**2, dipole), pad(torch.where(weight > 0, field, 0), dipole)
    mu_d = 0.15 * float(weight[weight > 0].square().mean())
    mu_g = max(params.strength, 1e-6) / EDGE_PPM
    system = mu_g * grad2 + mu_d * D**2
    system[0, 0, 0] = 1
    spectrum = D / (D**2 + 0.01) * torch.fft.rfftn(f)
    x = torch.fft.irfftn(spectrum, s=dipole.padded)
    s_g = torch.zeros((3, *dipole.padded), device=x.device, dtype=x.dtype)
    s_d = torch.zeros_like(x)
    for _ in range(params.iterations):
        s_g += gradient(x, dipole)
        z_g = shrink(s_g, EDGE_PPM)
        s_g -= z_g
        s_d += torch.fft.irfftn(D * spectrum, s=dipole.padded)
        z_d = (w2 * f + mu_d * s_d) / (w2 + mu_d)
        s_d -= z_d
        spectrum = mu_g * torch.fft.rfftn(divergence(z_g - s_g, dipole)) + mu_d * D * torch.fft.rfftn(z_d - s_d)
        spectrum /= system
        before, x = x, torch.fft.irfftn(spectrum, s=dipole.padded)
        if float((x - before).norm()) <= params.tolerance * float(x.norm()):
            break
    return crop(x, dipole)
