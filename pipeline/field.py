"""Unwrapped echoes -> total field in ppm with its standard deviation, by a weighted fit through the origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ChironError
from pipeline.volumes import Echoes, Field, ppm_per_rad


@dataclass(frozen=True)
class Fitted:
    """The field, the relative residual of its fit (X, Y, Z), and facts on the noise."""

    field: Field
    residual: Tensor
    facts: dict[str, Any]


def total_field(echoes: Echoes, mask: Tensor) -> Fitted:
    """Least squares of phase = 2 pi gamma B0 TE field, each echo weighted by magnitude squared, as its noise demands.

    `echoes` hold unwrapped phase without offset. The noise of the complex signal is estimated from what the fit leaves
    (three echoes or more) or from neighbouring voxels; the field's standard deviation follows from it voxel by voxel.
    The residual is 1 - |sum m^2 exp(i r)| / sum m^2 with r the misfit of each echo: 0 is a perfect fit, 1 none at all.
    """
    if not bool(mask.any()):
        raise ChironError("P007", "an empty mask", "a mask of the brain")
    times = torch.tensor(echoes.echo_times_s, device=mask.device).view(-1, 1, 1, 1)
    weight = echoes.magnitude**2
    norm = (weight * times**2).sum(0)
    signal = mask & (norm > 0)
    slope = torch.where(signal, (weight * times * echoes.phase_rad).sum(0) / norm.clamp_min(1e-30), 0)
    left = echoes.phase_rad - slope * times
    scale = ppm_per_rad(1.0, echoes.b0_tesla)
    noise = _signal_noise(echoes, left, signal)
    sd = noise / norm.clamp_min(1e-30).sqrt() * scale
    misfit = (weight * torch.polar(torch.ones_like(left), left)).sum(0).abs() / weight.sum(0).clamp_min(1e-30)
    residual = torch.where(signal, 1 - misfit, 0)
    sd = torch.where(signal, sd, 0)
    facts = {
        "echoes": len(echoes.echo_times_s),
        "signal_noise": noise,
        "snr_first_echo": float(echoes.magnitude[0][signal].mean()) / max(noise, 1e-30),
        "median_sd_ppm": float(sd[signal].median()),
        "median_residual": float(residual[signal].median()),
    }
    return Fitted(Field(slope * scale, sd, signal, echoes.grid), residual, facts)


def _signal_noise(echoes: Echoes, left: Tensor, mask: Tensor) -> float:
    """Standard deviation of the signal's real part, robust against what no noise is.

    Second differences along each axis of the misfit (of the phase itself for one or two echoes), times magnitude,
    remove what is smooth; their median absolute value is scaled to that of a Gaussian.
    """
    count = len(echoes.echo_times_s)
    values = echoes.magnitude * (left if count > 2 else echoes.phase_rad)
    freedom = (count - 1) / count if count > 2 else 1.0
    estimates = []
    for axis in (1, 2, 3):
        if values.shape[axis] < 3:
            continue
        n = values.shape[axis] - 2
        parts = [values.narrow(axis, k, n) for k in range(3)]
        inside = mask.narrow(axis - 1, 0, n) & mask.narrow(axis - 1, 1, n) & mask.narrow(axis - 1, 2, n)
        bend = (parts[0] - 2 * parts[1] + parts[2])[:, inside]
        if bend.numel():
            estimates.append(float(bend.abs().median()) / 0.6745 / 6**0.5)
    return min(estimates) / freedom**0.5 if estimates else 0.0
