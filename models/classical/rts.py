"""Local field -> susceptibility by rapid two-step inversion: what is well determined first, then total variation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.classical.calculus import crop, descend, laplacian_spectrum, pad
from models.dipole import Dipole
from models.params import param

STEP_PPM = 0.012  # threshold of the shrinkage: sets the speed of ADMM, not where it ends


@dataclass(frozen=True)
class RTS:
    """Rapid two-step inversion (Kames 2018, doi 10.1016/j.neuroimage.2017.11.018)."""

    delta: float = param(0.15, "|D| below which the field is not believed", 0.01, 0.5)
    steps: int = param(3, "conjugate gradient steps of the first, weighted fit", 0, 50)
    strength: float = param(
        40.0, "weight of the total variation in 1/ppm, against the misfit in units of noise", 0, 1e5
    )
    iterations: int = param(8, "ADMM iterations of the second step", 1, 1000)


def rts(field: Tensor, weight: Tensor, dipole: Dipole, params: RTS) -> Tensor:
    """A few steps of a weighted fit give k-space where |D| > delta; total variation fills in the rest.

    The noise that the first step leaves in chi is that of the field over |D|: the second weighs each k by D^2.
    """
    D = dipole.kernel
    typical = weight[weight > 0].square().mean()
    first = _weighted_fit(field, weight / typical.sqrt(), dipole, params.steps)
    believed = torch.where(D.abs() > params.delta, D**2 * typical, 0)
    mu = max(params.strength, 1e-6) / STEP_PPM
    system = believed + mu * laplacian_spectrum(dipole)
    system[0, 0, 0] = 1
    kept, free = first * (believed / system), mu / system
    x = torch.fft.irfftn(first, s=dipole.padded)
    dual = torch.zeros((3, *dipole.padded), device=x.device, dtype=x.dtype)
    for _ in range(params.iterations):
        chi = torch.fft.rfftn(descend(x, dual, STEP_PPM, dipole))
        x = torch.fft.irfftn(chi.mul_(free).add_(kept), s=dipole.padded)
    return crop(x, dipole)


def _weighted_fit(field: Tensor, weight: Tensor, dipole: Dipole, steps: int) -> Tensor:
    """Half spectrum of chi after some conjugate gradient steps on min |W (D chi - f)|^2.

    They run on spectra, where a step costs two transforms, start from Tikhonov's closed form and are preconditioned
    by it: from zero, four steps leave a calcification half dissolved.
    """
    D, w2, field = dipole.kernel, pad(weight**2, dipole), torch.where(weight > 0, field, 0)
    prepare = 1 / (D**2 + 0.01)

    def normal(spectrum: Tensor) -> Tensor:
        product: Tensor = D * torch.fft.rfftn(torch.fft.irfftn(D * spectrum, s=dipole.padded).mul_(w2))
        return product

    x: Tensor = D * prepare * torch.fft.rfftn(field, s=dipole.padded)
    residual = D * torch.fft.rfftn(w2 * pad(field, dipole)) - normal(x)
    direction = z = prepare * residual
    size = _inner(residual, z, dipole)
    for _ in range(steps):
        if size == 0:
            break
        image = normal(direction)
        alpha = size / _inner(direction, image, dipole)
        x += alpha * direction
        residual -= alpha * image
        z = prepare * residual
        size, last = _inner(residual, z, dipole), size
        direction = z + (size / last) * direction
    return x


def _inner(a: Tensor, b: Tensor, dipole: Dipole) -> float:
    """Inner product of two real volumes, up to a factor, from their half spectra: inner planes stand for two."""
    both = (torch.view_as_real(a) * torch.view_as_real(b)).sum(dim=(0, 1, 3))
    once = both[0] + (both[-1] if dipole.padded[2] % 2 == 0 else 0)
    return float(2 * both.sum() - once)
