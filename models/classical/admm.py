"""A field, its weight and a strength -> susceptibility under total variation, by ADMM: the engine of its methods.

min over chi and h of  sum w^2 l(D chi + h - f) + strength |P grad chi|_1,  with l half the square or what `data`
solves, P a penalty for each difference, and h a field that is harmonic in the mask, or none. The gradient, the field
D chi + h and the Laplacian of h are split off, so that every step is closed form (Bilgic 2014, doi 10.1002/mrm.25029;
Milovic 2018, doi 10.1002/mrm.27073; Milovic 2019, doi 10.1002/mrm.27483).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.classical.calculus import descend, gradient, laplacian_spectrum, pad
from models.dipole import Dipole

STEP_PPM = 0.012  # threshold of the shrinkage; with COUPLING it sets the speed, not where it ends
COUPLING = 0.15  # penalty of D chi + h = z, over the mean squared weight
STIFFNESS = 0.02  # penalty of the split Laplacian of h, over the mean squared weight
RINGING = 0.02  # response of a smoothing by 1 2 1 at which ringing of the size of the noise costs as much as noise
STENCIL_MM = 3.3  # diagonal of a voxel at which half of the Laplacian beside the rim is forgiven
PERIOD = 5  # iterations from one weighing of misfits and edges to the next

DataStep = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Minimum:
    """Chi (X, Y, Z) in ppm, the harmonic field h in ppm (zero if none), the weight that each voxel had in the end."""

    chi_ppm: Tensor
    harmonic_ppm: Tensor
    weight: Tensor
    iterations: int


def linear(s: Tensor, f: Tensor, w2: Tensor, mu: float) -> Tensor:
    """min over z of w2 / 2 (z - f)^2 + mu / 2 (z - s)^2, each voxel by itself."""
    return s + (f - s) * (w2 / (w2 + mu))


def minimise(
    field: Tensor,
    weight: Tensor,
    dipole: Dipole,
    *,
    strength: float,
    iterations: int,
    tolerance: float,
    data: DataStep = linear,
    penalty: Tensor | None = None,
    edge_ppm: float = 0.0,
    trusted: float = 0.0,
    harmonic: Harmonic | None = None,
    chi_ppm: Tensor | None = None,
) -> Minimum:
    """Run until chi changes by less than `tolerance`, relative, from one iteration to the next.

    `penalty` (3, X, Y, Z) on the padded grid multiplies the strength of each difference; with `edge_ppm`, edges found
    so far count less, by edge_ppm / (edge_ppm + step), which undoes the loss of contrast (Candes 2008,
    doi 10.1007/s00041-008-9045-x). Voxels of more than `trusted` times their noise of misfit lose weight (MERIT, Liu
    2013, doi 10.1002/mrm.24272); 0 trusts all. It starts from `chi_ppm`, or from Tikhonov's solution.
    """
    D, w2 = dipole.kernel, pad(weight**2, dipole)
    f = pad(torch.where(weight > 0, field, 0), dipole)
    typical = float(weight[weight > 0].square().mean())
    mu_d, mu_g = COUPLING * typical, max(strength, 1e-6) / STEP_PPM
    system = mu_g * laplacian_spectrum(dipole) + mu_d * D**2 * (harmonic.freedom if harmonic else 1.0)
    system[0, 0, 0] = 1
    threshold: float | Tensor = STEP_PPM if penalty is None else STEP_PPM * penalty
    chi = D / (D**2 + 0.01) * torch.fft.rfftn(f) if chi_ppm is None else torch.fft.rfftn(pad(chi_ppm, dipole))
    x = torch.fft.irfftn(chi, s=dipole.padded)
    if harmonic:
        harmonic.begin(torch.fft.rfftn(f) - D * chi, _interior(w2 > 0), mu_d, STIFFNESS * typical)
    s_g, s_d, w2_now = torch.zeros((3, *dipole.padded), device=x.device, dtype=x.dtype), torch.zeros_like(x), w2
    iteration = 0
    for iteration in range(1, iterations + 1):
        z = torch.fft.irfftn(D * chi + harmonic.spectrum if harmonic else D * chi, s=dipole.padded)
        if trusted and iteration % PERIOD == 1:
            w2_now = w2 / ((z - f).square_().mul_(w2 / trusted**2)).clamp_min_(1)
        if edge_ppm and iteration % PERIOD == 1 and iteration > 1:
            threshold = gradient(x, dipole).abs_().add_(edge_ppm).reciprocal_().mul_(STEP_PPM * edge_ppm)
            threshold = threshold if penalty is None else threshold.mul_(penalty)
        s_d += z
        z = data(s_d, f, w2_now, mu_d)
        s_d -= z
        seen = torch.fft.rfftn(z.sub_(s_d)).mul_(mu_d)
        chi = torch.fft.rfftn(descend(x, s_g, threshold, dipole)).mul_(mu_g)
        chi += D * (harmonic.explain(seen) if harmonic else seen)
        chi /= system
        chi[0, 0, 0] = 0
        if harmonic:
            harmonic.take(D * chi)
        before, x = x, torch.fft.irfftn(chi, s=dipole.padded)
        if float(before.sub_(x).norm()) <= tolerance * float(x.norm()):
            break
    a, b, c = dipole.shape
    h = torch.fft.irfftn(harmonic.spectrum, s=dipole.padded) if harmonic else torch.zeros_like(x)
    return Minimum(x[:a, :b, :c], h[:a, :b, :c], w2_now[:a, :b, :c].sqrt(), iteration)


def _interior(mask: Tensor) -> Tensor:
    """The voxels whose six neighbours are in the mask: there the Laplacian knows of nothing outside."""
    inner = mask.clone()
    for axis in range(3):
        inner &= mask.roll(1, axis) & mask.roll(-1, axis)
    return inner


class Harmonic:
    """The field h of sources outside the mask: harmonic inside, but for what a finite `strength` forgives.

    For given data v and split Laplacian y, h(k) = (mu_d (v - D chi) + mu_h L y) / (mu_d + mu_h L^2), with L the
    spectrum of the Laplacian; eliminating h leaves a closed form for chi. With `whole`, h starts as all of the field
    that the first chi does not explain, otherwise at zero; and what alternates from voxel to voxel is then taken for
    ringing of the steep field outside (Gibbs), not for tissue: a part r(k) of the field that is free near the highest
    frequencies and costs ever more below.
    """

    def __init__(self, dipole: Dipole, *, strength: float = float("inf"), whole: bool = False) -> None:
        self.laplacian, self.shape, self.whole = laplacian_spectrum(dipole), dipole.padded, whole
        self.deep = STIFFNESS / (STIFFNESS + strength)  # share of the Laplacian that is forgiven
        self.beside = 1 / (1 + (STENCIL_MM / math.hypot(*dipole.voxel_size_mm)) ** 6) if whole else self.deep
        cost = (_smoothing(dipole) / RINGING) ** 2 if whole else torch.full_like(self.laplacian, float("inf"))
        self.band = 1 / (1 + COUPLING / cost)  # of the data that is not left to ringing
        self.share = COUPLING * self.band / (COUPLING * self.band + STIFFNESS * self.laplacian**2 + 1e-30)
        self.freedom = self.band * (1 - self.share)  # of the data that is left to chi

    def begin(self, unexplained: Tensor, inside: Tensor, mu_d: float, mu_h: float) -> None:
        """Take the first field, where the mask is, and the penalties."""
        self.mu_d, self.mu_h = mu_d, mu_h
        self.forgiven = torch.ones(inside.shape, device=inside.device, dtype=self.laplacian.dtype)
        self.forgiven[inside] = self.beside
        self.forgiven[_interior(inside)] = self.deep
        self.norm = mu_d * self.band + mu_h * self.laplacian**2
        self.norm[0, 0, 0] = mu_d
        self.spectrum = self.h = unexplained if self.whole else torch.zeros_like(unexplained)
        self.dual = torch.zeros(inside.shape, device=inside.device, dtype=self.laplacian.dtype)

    def explain(self, seen: Tensor) -> Tensor:
        """The part of the data `seen` (times mu_d) that is left to chi, once h and ringing have taken their own."""
        self.dual += torch.fft.irfftn(self.laplacian * self.h, s=self.shape)
        split = self.dual * self.forgiven
        self.dual -= split
        self.seen, believed = seen, self.band * seen
        self.known = torch.fft.rfftn(split.sub_(self.dual)).mul_(self.mu_h * self.laplacian).add_(believed)
        left: Tensor = believed - self.share * self.known
        return left

    def take(self, field: Tensor) -> None:
        """h and the ringing for a new field D chi."""
        self.h = (self.known - (self.mu_d * self.band) * field) / self.norm
        ringing = (1 - self.band) * (self.seen / self.mu_d - field - self.h)
        self.spectrum = self.h + ringing


def _smoothing(dipole: Dipole) -> Tensor:
    """The half spectrum of weights 1 2 1 along each axis: nothing is left of what alternates from voxel to voxel."""
    total = torch.ones_like(dipole.kernel)
    for axis, n in enumerate(dipole.padded):
        k = torch.arange(total.shape[axis], device=total.device, dtype=total.dtype)
        view = [1, 1, 1]
        view[axis] = -1
        total *= (0.5 + 0.5 * torch.cos(2 * torch.pi * k / n)).view(view)
    return total.clamp_min(1e-6)
