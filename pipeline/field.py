"""Unwrapped echoes -> total field in ppm with its standard deviation, by a weighted fit through the origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from models.params import param
from pipeline.errors import ChironError
from pipeline.volumes import Echoes, Field, bounding_box, ppm_per_rad


@dataclass(frozen=True)
class Fit:
    """How the field is fitted to the echoes."""

    method: Literal["linear", "nonlinear"] = param(
        "nonlinear",
        "linear fits the unwrapped phase; nonlinear the complex signal, where no wrong turn of an echo counts",
    )
    largest_residual: float = param(
        0.3,
        "relative residual above which a voxel has no say (consensus, doi 10.1002/mrm.30006)",
        0,
        1,
    )


@dataclass(frozen=True)
class Fitted:
    """The field, the relative residual of its fit (X, Y, Z), and facts on the noise."""

    field: Field
    residual: Tensor
    facts: dict[str, Any]


TWO_PI = 2 * torch.pi
UNKNOWN_PPM = 100.0  # standard deviation of a field that no echo tells
_STEPS = 3  # of Newton
_FLAT = 0.2  # least curvature, as a share of that of a perfect fit
_LARGE = 500_000  # voxels, from which on every other line tells the noise to a per cent


def total_field(echoes: Echoes, mask: Tensor, params: Fit = Fit()) -> Fitted:
    """Least squares of phase = 2 pi gamma B0 TE field, each echo weighted by magnitude squared, as its noise demands.

    `echoes` hold unwrapped phase without offset. The noise of the complex signal is estimated from what the fit leaves
    (two echoes or more) or from neighbouring voxels; the field's standard deviation follows from it voxel by voxel,
    widened where the echoes disagree by more than noise, and beyond all use where they agree on no field. The residual
    is 1 - |sum m^2 exp(i r)| / sum m^2 with r the misfit of each echo: 0 is a perfect fit, 1 none at all.
    """
    if not bool(mask.any()):
        raise ChironError("P007", "an empty mask", "a mask of the brain")
    times = torch.tensor(echoes.echo_times_s, device=mask.device).view(-1, 1)
    signal = mask & (echoes.magnitude > 0).any(0)
    voxels = torch.nonzero(signal.flatten()).flatten()
    magnitude, phase = echoes.magnitude.flatten(1)[:, voxels], echoes.phase_rad.flatten(1)[:, voxels]
    weight = magnitude**2
    norm = (weight * times**2).sum(0).clamp_min(1e-30)
    slope = (weight * times * phase).sum(0) / norm
    if params.method == "nonlinear":
        slope = _complex_fit(slope, phase, weight, times, norm)
    left = phase - slope * times
    left -= TWO_PI * torch.round(left / TWO_PI)
    noise = _signal_noise(magnitude * (left if len(times) > 1 else phase), signal)
    residual = 1 - torch.hypot((weight * left.cos()).sum(0), (weight * left.sin()).sum(0)) / weight.sum(0)
    scale = ppm_per_rad(1.0, echoes.b0_tesla)
    excess = _excess((weight * left**2).sum(0), noise, len(times) - 1, signal)
    sd = noise / norm.sqrt() * scale * excess
    sd = torch.where(residual <= params.largest_residual, sd, UNKNOWN_PPM)
    facts = {
        "method": params.method,
        "echoes": len(times),
        "signal_noise": noise,
        "snr_first_echo": float(magnitude[0].mean()) / max(noise, 1e-30),
        "median_sd_ppm": float(sd.median()),
        "median_residual": float(residual.median()),
        "excluded_share": float((residual > params.largest_residual).float().mean()),
    }
    found = Field(_volume(slope * scale, signal), _volume(sd, signal), signal, echoes.grid)
    return Fitted(found, _volume(residual, signal), facts)


def _complex_fit(slope: Tensor, phase: Tensor, weight: Tensor, times: Tensor, norm: Tensor) -> Tensor:
    """The field (rad/s) that minimises sum |S - |S| exp(i field TE)|^2, by Newton's steps from `slope`.

    Liu 2013, doi 10.1002/mrm.24272. An echo far from the rest pulls by its sine: the less, the nearer it is to half a
    turn. Where the curvature is lost, steps are those of the linear fit, shortened.
    """
    pull = weight * times
    for _ in range(_STEPS):
        left = phase - slope * times
        force, curvature = (pull * left.sin()).sum(0), (pull * times * left.cos()).sum(0)
        slope = slope + force / torch.maximum(curvature, _FLAT * norm)
    return slope


def _excess(misfit: Tensor, noise: float, freedom: int, signal: Tensor) -> Tensor:
    """How many times noise the echoes disagree (V), at least 1: root of the reduced chi-square, mean of 3^3 voxels."""
    if freedom < 1 or noise <= 0:
        return torch.ones_like(misfit)
    box = bounding_box(signal, 1)
    chi2 = _volume(misfit / (freedom * noise**2), signal)[box]
    inside = signal[box].to(misfit.dtype)
    mean, share = (functional.avg_pool3d(v[None, None], 3, stride=1, padding=1)[0, 0] for v in (chi2, inside))
    return (mean / share.clamp_min(1e-3)).clamp_min(1).sqrt()[signal[box]]


def _signal_noise(values: Tensor, mask: Tensor) -> float:
    """Standard deviation of the signal's real part, robust against what no noise is.

    Second differences along each axis of `values` (E, V), magnitude times the fit's misfit (times the phase itself for
    one echo), remove what is smooth. Their sum of squares over the echoes has the median of chi-square, with a degree
    of freedom less than echoes (Wilson & Hilferty 1931, doi 10.1073/pnas.17.12.684). Of a large volume every other line
    is enough.
    """
    count = len(values)
    box = bounding_box(mask, 0)
    volume = torch.stack([_volume(v, mask)[box] for v in values])
    inside = mask[box]
    freedom = max(1, count - 1)
    chi2 = 0.4549 if freedom == 1 else freedom * (1 - 2 / (9 * freedom)) ** 3
    skip = 2 if inside.numel() > _LARGE else 1
    estimates = []
    for axis in range(3):
        if inside.shape[axis] < 3:
            continue
        lines = tuple(slice(None) if a == axis else slice(None, None, skip) for a in range(3))
        v, m = volume[(slice(None), *lines)], inside[lines]
        n = m.shape[axis] - 2
        whole = m.narrow(axis, 0, n) & m.narrow(axis, 1, n) & m.narrow(axis, 2, n)
        bend = v.diff(n=2, dim=axis + 1)[:, whole]
        if bend.numel():
            estimates.append((float(bend.square().sum(0).median()) / (6 * chi2)) ** 0.5)
    return min(estimates) if estimates else 0.0


def _volume(values: Tensor, mask: Tensor) -> Tensor:
    """The volume (X, Y, Z) with `values` (V) in the mask, zero outside."""
    volume = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    volume[mask] = values.to(torch.float32)
    return volume
