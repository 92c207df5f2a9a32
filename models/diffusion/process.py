"""The variance-preserving diffusion of susceptibility: a time in (0, 1] <-> how much noise there is, and its schedules.

dx = -b(t) x / 2 dt + sqrt(b(t)) dw with b from 0.1 to 20 (Song 2021, arXiv 2011.13456, eq. 11) gives
x_t = alpha (x_0 + sigma n), alpha^2 (1 + sigma^2) = 1. Here sigma, the noise over the signal, names a level.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALE_PPM = 0.05  # chi of one unit; about the standard deviation of chi in the brain
FIRST, LAST = 0.1, 20.0  # b at the times 0 and 1
EARLIEST = 1e-3  # no sampling nearer to 0


def sigma_at(time: Tensor | float) -> Tensor:
    """Noise over signal at a time."""
    t = torch.as_tensor(time, dtype=torch.float64)
    return torch.expm1(FIRST * t + (LAST - FIRST) * t.square() / 2).sqrt()


def time_of(sigma: float) -> float:
    """The inverse of `sigma_at`."""
    width = LAST - FIRST
    return (math.sqrt(FIRST**2 + 2 * width * math.log1p(sigma**2)) - FIRST) / width


def alpha_at(sigma: Tensor | float) -> Tensor:
    """The share of the signal in x_t."""
    return (1 + torch.as_tensor(sigma).square()).rsqrt()


def levels(steps: int, first: float, last: float) -> list[float]:
    """Sigmas of `steps` evaluations from `first` to `last`, at equal distances in time."""
    times = torch.linspace(time_of(first), time_of(last), steps, dtype=torch.float64)
    return [float(s) for s in sigma_at(times)]


LARGEST = float(sigma_at(1.0))
SMALLEST = float(sigma_at(EARLIEST))
