"""Unwrapped first echo and wrapped later ones, all free of offsets -> every echo unwrapped, by the field they share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TWO_PI = 2 * np.pi
_MISFIT = 0.02  # of the weights: from here on all fields that the first echo allows are tried
_CHUNK = 50_000  # voxels that are searched at once


def unwrap_in_time(first: Tensor, phase: Tensor, magnitude: Tensor, times: Sequence[float]) -> Tensor:
    """Phase (E, V), each echo within half a turn of the field that fits all echoes best; echo 0 keeps its turns.

    Each echo follows the weighted fit of those before it. Where that leaves a misfit, every field within half a turn
    of the first echo is tried, and the best taken: an echo of little signal, or one led astray, decides no longer.
    """
    t = torch.tensor(times, device=first.device)
    weight = magnitude**2
    above, below = weight[0] * t[0] * first, weight[0] * t[0] ** 2
    for e in range(1, len(times)):
        this = _near(phase[e], above * (t[e] / below.clamp_min(1e-30)))
        above += weight[e] * t[e] * this
        below += weight[e] * t[e] ** 2
    slope = above / below.clamp_min(1e-30)
    misfit = sum(w * (1 - (p - slope * s).cos()) for w, p, s in zip(weight, phase, t, strict=True))
    bad = torch.nonzero(misfit > _MISFIT * weight.sum(0)).flatten()
    for part in torch.split(bad, _CHUNK):
        slope[part] = _search(first[part], phase[:, part], weight[:, part], t)
    return torch.stack([first, *(_near(phase[e], slope * t[e]) for e in range(1, len(times)))])


def _search(first: Tensor, phase: Tensor, weight: Tensor, t: Tensor) -> Tensor:
    """The field (V, rad/s) of the greatest sum of weight * cos(phase - field * t), within half a turn of the first."""
    count = 2 * int(np.ceil(4 * float(t[-1] / t[0]))) + 1
    best = torch.full_like(first, -torch.inf)
    slope = first / t[0]
    for turn in torch.linspace(-np.pi, np.pi, count).tolist():
        field = (first + turn) / t[0]
        score = (weight * (phase - field * t[:, None]).cos()).sum(0)
        better = score > best
        best, slope = torch.where(better, score, best), torch.where(better, field, slope)
    return slope


def _near(phase: Tensor, expected: Tensor) -> Tensor:
    return phase + TWO_PI * torch.round((expected - phase) / TWO_PI)
