"""Local field -> susceptibility by total variation with the nonlinear data term of the complex signal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.classical.calculus import crop, descend, laplacian_spectrum, pad
from models.dipole import Dipole
from models.params import param

STEP_PPM = 0.012  # threshold of the shrinkage; with COUPLING it sets the speed of ADMM, not where it ends
COUPLING = 0.15  # penalty of D chi + h = z, over the mean squared weight
STIFFNESS = 0.1  # penalty of the split Laplacian of the background, over the mean squared weight
TRUSTED = 6.0  # misfit in units of noise from which on a voxel loses weight (Liu 2013, doi 10.1002/mrm.24272)


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
    return fit(
        field,
        weight,
        dipole,
        strength=params.strength,
        radians_per_ppm=params.radians_per_ppm,
        harmonic=params.harmonic,
        iterations=params.iterations,
        tolerance=params.tolerance,
    )


def fit(
    field: Tensor,
    weight: Tensor,
    dipole: Dipole,
    *,
    strength: float,
    radians_per_ppm: float,
    iterations: int,
    tolerance: float,
    harmonic: float = 0.0,
    penalty: Tensor | None = None,
    reweight: int = 0,
) -> Tensor:
    """The minimum of `nltv`, by ADMM with grad chi, D chi + h and laplace(h) split off: every step is closed form.

    `penalty` (3, X, Y, Z) on the padded grid multiplies the strength of each difference. Every `reweight` iterations
    voxels of large misfit lose weight (MERIT); 0 leaves the weights alone.
    """
    D, w2 = dipole.kernel, pad(weight**2, dipole)
    f = pad(torch.where(weight > 0, field, 0), dipole)
    typical = float(weight[weight > 0].square().mean())
    mu_d, mu_g = COUPLING * typical, max(strength, 1e-6) / STEP_PPM
    background = Background(harmonic, w2 > 0, typical, dipole) if harmonic else None
    system = mu_g * laplacian_spectrum(dipole) + mu_d * D**2 * (background.freedom if background else 1.0)
    system[0, 0, 0] = 1
    threshold = STEP_PPM if penalty is None else STEP_PPM * penalty
    chi = D / (D**2 + 0.01) * torch.fft.rfftn(f)
    x = torch.fft.irfftn(chi, s=dipole.padded)
    s_g, s_d, w2_now = torch.zeros((3, *dipole.padded), device=x.device, dtype=x.dtype), torch.zeros_like(x), w2
    for iteration in range(iterations):
        z = torch.fft.irfftn(D * chi + background.spectrum if background else D * chi, s=dipole.padded)
        if reweight and iteration and iteration % reweight == 0:
            w2_now = w2 / ((z - f).square() * w2 / TRUSTED**2).clamp_min(1)
        s_d += z
        z = f + _phase_step(s_d - f, w2_now, mu_d, radians_per_ppm)
        s_d -= z
        seen = mu_d * torch.fft.rfftn(z - s_d)
        chi = mu_g * torch.fft.rfftn(descend(x, s_g, threshold, dipole))
        chi += D * (background.explain(seen) if background else seen)
        chi /= system
        chi[0, 0, 0] = 0
        if background:
            background.take(D * chi)
        before, x = x, torch.fft.irfftn(chi, s=dipole.padded)
        if float((x - before).norm()) <= tolerance * float(x.norm()):
            break
    return crop(x, dipole)


def _phase_step(s: Tensor, w2: Tensor, mu: float, k: float) -> Tensor:
    """min over z of w2 / k^2 (1 - cos k z) + mu / 2 (z - s)^2 by Newton's method, each voxel by itself.

    It starts from the linear solution about the turn that is nearest to s.
    """
    turn = 2 * torch.pi / k
    z = s - (s - turn * torch.round(s / turn)) * (w2 / (w2 + mu))
    for _ in range(3):
        slope = (w2 / k) * torch.sin(k * z) + mu * (z - s)
        z = z - slope / (w2 * torch.cos(k * z).clamp_min(0) + mu)
    return z


class Background:
    """The field h of sources outside the mask, harmonic inside but for what the strength forgives; ADMM's part of it.

    For given data v and split Laplacian y, h(k) = (mu_d (v - D chi) + mu_h L y) / (mu_d + mu_h L^2), with L the
    spectrum of the Laplacian; eliminating h leaves a closed form for chi.
    """

    def __init__(self, strength: float, inside: Tensor, typical: float, dipole: Dipole) -> None:
        self.laplacian, self.inside, self.shape = laplacian_spectrum(dipole), inside, dipole.padded
        self.mu_d, self.mu_h = COUPLING * typical, STIFFNESS * typical
        self.forgiven = STIFFNESS / (STIFFNESS + strength)
        self.norm = self.mu_d + self.mu_h * self.laplacian**2
        self.freedom = 1 - self.mu_d / self.norm  # share of the data term that h leaves to chi
        self.spectrum = torch.zeros_like(dipole.kernel, dtype=dipole.kernel.dtype.to_complex())
        self.dual = torch.zeros_like(inside, dtype=dipole.kernel.dtype)

    def explain(self, seen: Tensor) -> Tensor:
        """The part of the data `seen` (times mu_d) that is left to chi, once h has taken its own."""
        self.dual += torch.fft.irfftn(self.laplacian * self.spectrum, s=self.shape)
        split = torch.where(self.inside, self.dual * self.forgiven, self.dual)
        self.dual -= split
        self.known = seen + self.mu_h * self.laplacian * torch.fft.rfftn(split - self.dual)
        left: Tensor = seen - (self.mu_d / self.norm) * self.known
        return left

    def take(self, field: Tensor) -> None:
        """h for a new field D chi."""
        self.spectrum = (self.known - self.mu_d * field) / self.norm
