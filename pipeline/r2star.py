"""Magnitudes of two or more echoes -> R2* (1/s) and T2* (s) with the misfit of the decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from models.params import param
from pipeline.errors import ChironError, Decision


@dataclass(frozen=True)
class R2Star:
    """How the decay of the magnitude is fitted."""

    method: Literal["loglinear", "arlo"] = param(
        "loglinear", "loglinear takes any two or more echoes; arlo needs three or more that are equally spaced"
    )
    highest: float = param(500.0, "R2* in 1/s beyond which a voxel is clipped and counted", 50, 2000)
    longest_s: float = param(1.0, "T2* in s beyond which a voxel is clipped; fluids come near it", 0.1, 5)


@dataclass(frozen=True)
class Decay:
    """R2* in 1/s and T2* in s, zero outside the mask; `residual` is the misfit relative to the signal (X, Y, Z)."""

    r2star: Tensor
    t2star_s: Tensor
    residual: Tensor
    facts: dict[str, Any]
    decisions: list[Decision] = field(default_factory=list)


PART = 1 << 16  # voxels fitted at a time: what fits into a processor's cache
REWEIGHTED = 2  # rounds after which the weights of the log-linear fit stand still
SPACING = 0.02  # by how much, relative to the first, spacings may differ and still be called equal


def map_r2star(
    magnitude: Tensor, echo_times_s: Sequence[float], mask: Tensor, noise: float, params: R2Star = R2Star()
) -> Decay:
    """Fit m = a exp(-TE R2*) to `magnitude` (E, X, Y, Z) in each voxel of `mask`.

    `noise` is the standard deviation of the signal's real part, in the unit of the magnitude. Its floor is taken off
    first: m^2 - noise^2 is the square of what a magnitude without Rician bias would be (Gudbjartsson & Patz 1995, doi
    10.1002/mrm.1910340618). Raises E007 for a single echo, P007 for an empty mask.
    """
    if len(echo_times_s) < 2:
        raise ChironError("E007", "a single echo, which tells no decay", "two or more for R2*")
    if not bool(mask.any()):
        raise ChironError("P007", "an empty mask", "a mask of the brain")
    times = torch.tensor(list(echo_times_s), device=magnitude.device, dtype=magnitude.dtype)
    method, decision = _method(echo_times_s, params)
    fits = [_fit(part, times, noise, method, params.highest) for part in torch.split(magnitude[:, mask], PART, dim=1)]
    rate, spread, residual = (torch.cat(parts) for parts in zip(*fits, strict=True))
    clipped = rate.clamp(0, params.highest)
    facts = {
        "method": method,
        "clipped_negative": int((rate < 0).sum()),
        "clipped_high": int((rate > params.highest).sum()),
        "median_r2star": float(clipped.median()),
        "median_r2star_sd": float(spread.median()),
        "median_residual": float(residual.median()),
    }
    maps = [_placed(v, mask) for v in (clipped, 1 / clipped.clamp_min(1 / params.longest_s), residual)]
    return Decay(maps[0], maps[1], maps[2], facts, [decision] if decision else [])


def _method(echo_times_s: Sequence[float], params: R2Star) -> tuple[str, Decision | None]:
    """The asked method; where ARLO cannot take the echoes, the log-linear fit, and the decision that says so."""
    steps = [b - a for a, b in pairwise(echo_times_s)]
    equal = len(steps) > 1 and max(abs(step / steps[0] - 1) for step in steps) < SPACING
    if params.method != "arlo" or equal:
        return params.method, None
    why = "ARLO needs three or more equally spaced echoes"
    return "loglinear", Decision("R2* method", "loglinear", why, "--set r2star.method=loglinear")


def _fit(magnitude: Tensor, times: Tensor, noise: float, method: str, highest: float) -> tuple[Tensor, Tensor, Tensor]:
    """R2*, its standard deviation and the relative misfit of each column of `magnitude` (E, N)."""
    signal = (magnitude.square() - noise**2).clamp_min(max((0.1 * noise) ** 2, 1e-30)).sqrt()
    rate = _arlo(signal, times) if method == "arlo" else _loglinear(signal, times, highest)
    decay = torch.exp(-times[:, None] * rate.clamp(0, highest))
    energy = decay.square()
    start = (signal * decay).sum(0) / energy.sum(0)
    offset = times[:, None] - (energy * times[:, None]).sum(0) / energy.sum(0)
    spread = noise / (start * (energy * offset.square()).sum(0).sqrt()).clamp_min(1e-30)
    residual = ((signal - start * decay).square().sum(0) / signal.square().sum(0)).sqrt()
    return rate, spread, residual


def _loglinear(signal: Tensor, times: Tensor, highest: float) -> Tensor:
    """Line through log(signal), weighted by the signal's square as its noise demands.

    The weights are first those measured, then those of the fitted decay: echoes at the noise then lose their say.
    """
    logarithm = signal.log()
    rate = _slope(logarithm, times, signal.square())
    for _ in range(REWEIGHTED):
        rate = _slope(logarithm, times, torch.exp(-2 * times[:, None] * rate.clamp(0, 2 * highest)))
    return rate


def _slope(logarithm: Tensor, times: Tensor, weight: Tensor) -> Tensor:
    """Minus the slope of the weighted line through each column of `logarithm` (E, N)."""
    total = weight.sum(0).clamp_min(1e-30)
    offset = times[:, None] - (weight * times[:, None]).sum(0) / total
    weighted = weight * offset
    return -(weighted * logarithm).sum(0) / (weighted * offset).sum(0).clamp_min(1e-30)


def _arlo(signal: Tensor, times: Tensor) -> Tensor:
    """Auto-regression on linear operations (Pei 2015, doi 10.1002/mrm.25137): T2* relates integral and difference.

    The integral over three neighbouring echoes, by Simpson's rule, is T2* times the fall between the outer two; both
    carry noise of the same kind, which weighs the least squares.
    """
    third = (times[-1] - times[0]) / (len(times) - 1) / 3
    integral = third * (signal[:-2] + 4 * signal[1:-1] + signal[2:])
    fall = signal[:-2] - signal[2:]
    mixed = (integral * fall).sum(0)
    return (third * fall.square().sum(0) + mixed) / (integral.square().sum(0) + third * mixed).clamp_min(1e-30)


def _placed(values: Tensor, mask: Tensor) -> Tensor:
    volume = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    volume[mask] = values
    return volume
