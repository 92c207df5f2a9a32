"""Unwrapped echoes -> total field in ppm with its standard deviation, by a weighted fit through the origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from models.params import param
from pipeline.volumes import Echoes, Field, bounding_box, ppm_per_rad


@dataclass(frozen=True)
class Fit:
    """How the field is fitted to the echoes."""

    method: Literal["linear", "nonlinear"] = param(
        "nonlinear",
        "linear fits the unwrapped phase; nonlinear the complex signal, where no wrong turn of an echo counts",
    )


@dataclass(frozen=True)
class Fitted:
    """The field, the relative residual of its fit (X, Y, Z), and facts on the noise."""

    field: Field
    residual: Tensor
    facts: dict[str, Any]


_STEPS = 4  # of Gauss and Newton
_FLAT = 0.2  # least curvature, as a share of that of a perfect fit
_SAMPLE = 300_000  # second differences are enough to know the noise to a few per mille


def total_field(echoes: Echoes, mask: Tensor, params: Fit = Fit()) -> Fitted:
    """Least squares of phase = 2 pi gamma B0 TE field, each echo weighted by magnitude squared, as its noise demands.

    `echoes` hold unwrapped phase without offset. The noise of the complex signal is estimated from what the fit leaves
    (three echoes or more) or from neighbouring voxels; the field's standard deviation follows from it voxel by voxel,
    widened where the echoes disagree by more than noise. The residual is 1 - |sum m^2 exp(i r)| / sum m^2 with r the
    misfit of each echo: 0 is a perfect fit, 1 none at all.
    """
    box = bounding_box(mask, 0)
    magnitude, phase = echoes.magnitude[(slice(None), *box)], echoes.phase_rad[(slice(None), *box)]
    inside = mask[box]
    times = torch.tensor(echoes.echo_times_s, device=mask.device).view(-1, 1, 1, 1)
    weight = magnitude**2
    norm = (weight * times**2).sum(0)
    signal = inside & (norm > 0)
    norm = norm.clamp_min(1e-30)
    slope = (weight * times * phase).sum(0) / norm
    if params.method == "nonlinear":
        slope = _complex_fit(slope, phase, weight, times, norm)
    left = phase - slope * times
    left = left - 2 * torch.pi * torch.round(left / (2 * torch.pi))
    noise = _signal_noise(magnitude, left if len(times) > 2 else phase, signal)
    excess = _excess((weight * left**2).sum(0), noise, len(times) - 1, signal)
    scale = ppm_per_rad(1.0, echoes.b0_tesla)
    sd = noise / norm.sqrt() * scale * excess
    misfit = (weight * torch.polar(torch.ones_like(left), left)).sum(0).abs() / weight.sum(0).clamp_min(1e-30)
    residual = 1 - misfit
    facts = {
        "method": params.method,
        "echoes": len(times),
        "signal_noise": noise,
        "snr_first_echo": float(magnitude[0][signal].mean()) / max(noise, 1e-30),
        "median_sd_ppm": float(sd[signal].median()),
        "median_residual": float(residual[signal].median()),
        "share_residual_above_0.3": float((residual[signal] > 0.3).float().mean()),
    }
    ppm, sd, residual = (_whole(v, signal, box, mask) for v in (slope * scale, sd, residual))
    return Fitted(Field(ppm, sd, _whole(signal, signal, box, mask).bool(), echoes.grid), residual, facts)


def _complex_fit(slope: Tensor, phase: Tensor, weight: Tensor, times: Tensor, norm: Tensor) -> Tensor:
    """The field (rad/s) that minimises sum |S - |S| exp(i field TE)|^2, by Newton's steps from `slope`.

    Liu 2013, doi 10.1002/mrm.24272. An echo far from the rest pulls by its sine: the less, the nearer it is to half a
    turn. Where the curvature is lost, steps are those of the linear fit, shortened.
    """
    for _ in range(_STEPS):
        left = phase - slope * times
        force = (weight * times * left.sin()).sum(0)
        curvature = (weight * times**2 * left.cos()).sum(0)
        slope = slope + force / torch.maximum(curvature, _FLAT * norm)
    return slope


def _excess(misfit: Tensor, noise: float, freedom: int, signal: Tensor) -> Tensor:
    """How many times noise the echoes disagree (at least 1): root of the reduced chi-square, mean of 3^3 voxels."""
    if freedom < 1 or noise <= 0:
        return torch.ones_like(misfit)
    chi2 = torch.where(signal, misfit / (freedom * noise**2), 0)
    mean, share = (
        functional.avg_pool3d(v[None, None], 3, stride=1, padding=1)[0, 0] for v in (chi2, signal.to(misfit.dtype))
    )
    return (mean / share.clamp_min(1e-3)).clamp_min(1).sqrt()


def _signal_noise(magnitude: Tensor, left: Tensor, mask: Tensor) -> float:
    """Standard deviation of the signal's real part, robust against what no noise is.

    Second differences along each axis of the misfit `left` (of the phase itself for one or two echoes), times
    magnitude, remove what is smooth; their median absolute value is scaled to that of a Gaussian.
    """
    count = len(magnitude)
    values = magnitude * left
    freedom = (count - 1) / count if count > 2 else 1.0
    estimates = []
    for axis in (1, 2, 3):
        if values.shape[axis] < 3:
            continue
        n = values.shape[axis] - 2
        parts = [values.narrow(axis, k, n) for k in range(3)]
        inside = mask.narrow(axis - 1, 0, n) & mask.narrow(axis - 1, 1, n) & mask.narrow(axis - 1, 2, n)
        bend = (parts[0] - 2 * parts[1] + parts[2])[:, inside].flatten()
        bend = bend[:: max(1, bend.numel() // _SAMPLE)]
        if bend.numel():
            estimates.append(float(bend.abs().median()) / 0.6745 / 6**0.5)
    return min(estimates) / freedom**0.5 if estimates else 0.0


def _whole(inner: Tensor, signal: Tensor, box: tuple[slice, slice, slice], mask: Tensor) -> Tensor:
    """The volume of `mask`, zero but where there is signal."""
    whole = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    whole[box] = torch.where(signal, inner, 0).to(torch.float32)
    return whole
