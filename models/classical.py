"""Local field (ppm) and its noise -> susceptibility (ppm), by the methods without a network: TKD, Tikhonov, RTS, TV.

All share one signature: `method(field, weight, dipole, params)` with `field` (X, Y, Z) in ppm, `weight` = 1 / standard
deviation of the field in 1/ppm and zero outside the mask, `dipole` the operator on that grid. They return chi (X, Y, Z)
in ppm, up to a constant. Data terms are in units of the noise, so that one strength serves every noise level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.dipole import Dipole
from models.params import param


@dataclass(frozen=True)
class TKD:
    """Thresholded k-space division (Shmueli 2009, doi 10.1002/mrm.22135)."""

    threshold: float = param(0.15, "smallest |D| that is divided by; more smooths and underestimates", 0.01, 0.5)


@dataclass(frozen=True)
class Tikhonov:
    """L2 regularisation (Bilgic 2014, doi 10.1002/mrm.25029)."""

    strength: float = param(0.01, "weight of |chi|^2 against the unweighted field misfit", 1e-6, 1)


@dataclass(frozen=True)
class RTS:
    """Rapid two-step inversion (Kames 2018, doi 10.1016/j.neuroimage.2017.11.018)."""

    delta: float = param(0.15, "|D| below which the field is not believed", 0.01, 0.5)
    steps: int = param(10, "conjugate gradient steps of the first, weighted fit", 1, 50)
    strength: float = param(
        40.0, "weight of the total variation in 1/ppm, against the misfit in units of noise", 0, 1e5
    )
    iterations: int = param(20, "ADMM iterations of the second step", 1, 1000)


@dataclass(frozen=True)
class TV:
    """Total variation by ADMM with a weighted data term (Bilgic 2014; Milovic 2018, doi 10.1002/mrm.27073)."""

    strength: float = param(
        40.0, "weight of the total variation in 1/ppm, against the misfit in units of noise", 0, 1e5
    )
    iterations: int = param(40, "ADMM iterations at most", 1, 5000)
    tolerance: float = param(0.01, "relative change of chi from one iteration to the next at which it stops", 0, 1)


EDGE_PPM = 0.005  # a typical step of chi from voxel to voxel: sets the ADMM penalty, hence the speed, not the result


def tkd(field: Tensor, weight: Tensor, dipole: Dipole, params: TKD) -> Tensor:
    """Divide by D where |D| exceeds the threshold, elsewhere by the threshold with the sign of D."""
    D = dipole.kernel
    sign = torch.where(D < 0, -1.0, 1.0)
    inverse = torch.where(D.abs() > params.threshold, 1 / torch.where(D == 0, 1.0, D), sign / params.threshold)
    inverse[0, 0, 0] = 0
    return dipole.ifft(inverse * dipole.fft(field))


def tikhonov(field: Tensor, weight: Tensor, dipole: Dipole, params: Tikhonov) -> Tensor:
    """Closed form of min |D chi - f|^2 + strength |chi|^2."""
    D = dipole.kernel
    return dipole.ifft(D / (D**2 + params.strength) * dipole.fft(field))


def rts(field: Tensor, weight: Tensor, dipole: Dipole, params: RTS) -> Tensor:
    """A few steps of a weighted fit give k-space where |D| > delta; total variation fills in the rest.

    The noise that the first step leaves in chi is that of the field over |D|: its mean square scales the strength.
    """
    D, grad2 = dipole.kernel, _laplacian_spectrum(dipole)
    believed = (D.abs() > params.delta).to(D.dtype)
    first = believed * torch.fft.rfftn(_cgls(field, weight / weight.max(), dipole, params.steps))
    noise = float((believed / D.square().clamp_min(1e-6)).mean() / weight[weight > 0].square().mean())
    strength = max(params.strength * noise, 1e-12)
    mu = strength / EDGE_PPM
    system = believed + mu * grad2
    system[0, 0, 0] = 1
    x = torch.fft.irfftn(first, s=dipole.padded)
    s = torch.zeros((3, *dipole.padded), device=x.device, dtype=x.dtype)
    for _ in range(params.iterations):
        s += _gradient(x, dipole)
        z = _shrink(s, EDGE_PPM)
        s -= z
        x = torch.fft.irfftn((first + mu * torch.fft.rfftn(_divergence(z - s, dipole))) / system, s=dipole.padded)
    return _crop(x, dipole)


def tv(field: Tensor, weight: Tensor, dipole: Dipole, params: TV) -> Tensor:
    """min 1/2 |W (D chi - f)|^2 + strength |grad chi|_1.

    ADMM with both the gradient and the field D chi split off, so that every step is closed form; starts from Tikhonov.
    """
    D, grad2 = dipole.kernel, _laplacian_spectrum(dipole)
    w2, f = _pad(weight**2, dipole), _pad(torch.where(weight > 0, field, 0), dipole)
    mu_d = 0.15 * float(weight[weight > 0].square().mean())
    mu_g = max(params.strength, 1e-6) / EDGE_PPM
    system = mu_g * grad2 + mu_d * D**2
    system[0, 0, 0] = 1
    spectrum = D / (D**2 + 0.01) * torch.fft.rfftn(f)
    x = torch.fft.irfftn(spectrum, s=dipole.padded)
    s_g = torch.zeros((3, *dipole.padded), device=x.device, dtype=x.dtype)
    s_d = torch.zeros_like(x)
    for _ in range(params.iterations):
        s_g += _gradient(x, dipole)
        z_g = _shrink(s_g, EDGE_PPM)
        s_g -= z_g
        s_d += torch.fft.irfftn(D * spectrum, s=dipole.padded)
        z_d = (w2 * f + mu_d * s_d) / (w2 + mu_d)
        s_d -= z_d
        spectrum = mu_g * torch.fft.rfftn(_divergence(z_g - s_g, dipole)) + mu_d * D * torch.fft.rfftn(z_d - s_d)
        spectrum /= system
        before, x = x, torch.fft.irfftn(spectrum, s=dipole.padded)
        if float((x - before).norm()) <= params.tolerance * float(x.norm()):
            break
    return _crop(x, dipole)


def _cgls(field: Tensor, weight: Tensor, dipole: Dipole, steps: int) -> Tensor:
    """Conjugate gradients on min |W (D x - f)|^2 from zero, on the padded grid; stopping early regularises."""
    D, w = dipole.kernel, _pad(weight, dipole)

    def forward(x: Tensor) -> Tensor:
        field: Tensor = torch.fft.irfftn(D * torch.fft.rfftn(x), s=dipole.padded)
        return w * field

    def adjoint(r: Tensor) -> Tensor:
        chi: Tensor = torch.fft.irfftn(D * torch.fft.rfftn(w * r), s=dipole.padded)
        return chi

    r = w * _pad(field, dipole)
    p = s = adjoint(r)
    x, gamma = torch.zeros_like(r), float(s.square().sum())
    for _ in range(steps):
        if gamma == 0:
            break
        q = forward(p)
        alpha = gamma / float(q.square().sum())
        x = x + alpha * p
        r = r - alpha * q
        s = adjoint(r)
        gamma, last = float(s.square().sum()), gamma
        p = s + (gamma / last) * p
    return x


def _gradient(x: Tensor, dipole: Dipole) -> Tensor:
    """Periodic forward differences (3, X, Y, Z), scaled to the mean voxel size so that they compare across axes."""
    return torch.stack([(x.roll(-1, axis) - x) * h for axis, h in enumerate(steps(dipole))])


def _divergence(g: Tensor, dipole: Dipole) -> Tensor:
    """Adjoint of `_gradient`."""
    parts = [(g[axis].roll(1, axis) - g[axis]) * h for axis, h in enumerate(steps(dipole))]
    return parts[0] + parts[1] + parts[2]


def _laplacian_spectrum(dipole: Dipole) -> Tensor:
    """The half spectrum of `_divergence(_gradient(x))`."""
    total = torch.zeros_like(dipole.kernel)
    for axis, (n, h) in enumerate(zip(dipole.padded, steps(dipole), strict=True)):
        k = torch.arange(total.shape[axis], device=total.device, dtype=total.dtype)
        view = [1, 1, 1]
        view[axis] = -1
        total += (h**2 * (2 - 2 * torch.cos(2 * torch.pi * k / n))).view(view)
    return total


def steps(dipole: Dipole) -> list[float]:
    """Mean voxel size over the size along each axis: what a difference counts."""
    v = dipole.voxel_size_mm
    mean = (v[0] * v[1] * v[2]) ** (1 / 3)
    return [mean / size for size in v]


def _shrink(g: Tensor, threshold: float) -> Tensor:
    """Proximal step of threshold * |g|_1, each component by itself."""
    return g - g.clamp(-threshold, threshold)


def _pad(volume: Tensor, dipole: Dipole) -> Tensor:
    x, y, z = (big - small for big, small in zip(dipole.padded, dipole.shape, strict=True))
    return torch.nn.functional.pad(volume, (0, z, 0, y, 0, x))


def _crop(volume: Tensor, dipole: Dipole) -> Tensor:
    x, y, z = dipole.shape
    return volume[:x, :y, :z]
