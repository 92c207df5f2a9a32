"""A simulated scan -> what its noise does to the field, for steps that are tried on the true field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.volumes import ppm_per_rad


def signal_noise(magnitude: Tensor, brain: Tensor, snr: float) -> float:
    """Standard deviation of the noise in the real part, of a scan whose brain has `snr` in the first echo."""
    return float(magnitude[0][brain].mean()) / snr


def field_noise(magnitude: Tensor, echo_times_s: Sequence[float], b0_tesla: float, sigma: float) -> Tensor:
    """Standard deviation (X, Y, Z) in ppm of a field that is fitted to echoes (E, X, Y, Z) of noise `sigma`."""
    times = torch.tensor(tuple(echo_times_s), device=magnitude.device).view(-1, 1, 1, 1)
    information = (magnitude**2 * times**2).sum(0).sqrt().clamp_min(1e-9)
    return sigma / information * ppm_per_rad(1.0, b0_tesla)


def noisy(field_ppm: Tensor, sd_ppm: Tensor, seed: int) -> Tensor:
    """The field with Gaussian noise of that standard deviation."""
    noise = torch.randn(field_ppm.shape, generator=torch.Generator().manual_seed(seed))
    return field_ppm + sd_ppm * noise.to(field_ppm.device)
