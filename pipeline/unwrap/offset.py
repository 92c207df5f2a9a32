"""Unwrapped first echo and wrapped later ones -> the phase at echo time zero, and what a bipolar readout adds.

MCPC-3D-S (Eckstein 2018, doi 10.1002/mrm.26963): the offset is the phase that two echoes extrapolate to at time zero,
smoothed. It is smooth by nature, so it is fitted on a coarse grid, and the fit is repeated on what it leaves: that
takes the bias of the smoothing away, at the mask's edge above all. What stands far off, as near air, loses its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline import romeo
from pipeline.filters import gaussian

TWO_PI = 2 * np.pi
_FITS = 4  # the first, and those of what it leaves
_FAR_RAD = 0.3  # where a block's weight is halved


@dataclass(frozen=True)
class Coarse:
    """Blocks of voxels: how many along each axis, and the smoothing's sigma in mm."""

    factors: tuple[int, int, int]
    voxel_size_mm: tuple[float, float, float]
    sigma_mm: float

    @classmethod
    def of(cls, voxel_size_mm: Sequence[float], sigma_mm: float) -> Coarse:
        """Blocks of at most 0.6 sigma."""
        x, y, z = (max(1, int(0.6 * sigma_mm / size)) for size in voxel_size_mm)
        a, b, c = (n * size for n, size in zip((x, y, z), voxel_size_mm, strict=True))
        return cls((x, y, z), (a, b, c), sigma_mm)

    def pooled(self, phase: Tensor, weight: Tensor) -> Tensor:
        """Mean of weight * exp(i phase) (X, Y, Z) over each block, complex."""
        margins = [m for n, f in zip(reversed(phase.shape), reversed(self.factors), strict=True) for m in (0, -n % f)]
        parts = torch.stack([weight * phase.cos(), weight * phase.sin()])
        mean = functional.avg_pool3d(functional.pad(parts, margins)[:, None], self.factors)[:, 0]
        return torch.complex(mean[0], mean[1])

    def fine(self, blocks: Tensor, shape: Sequence[int]) -> Tensor:
        """Blocks, interpolated to voxels of `shape`."""
        scale = [float(f) for f in self.factors]
        fine = functional.interpolate(blocks[None, None], scale_factor=scale, mode="trilinear", align_corners=False)
        return fine[0, 0, : shape[0], : shape[1], : shape[2]]


@dataclass(frozen=True)
class Readout:
    """What even echoes have too much (X, Y, Z), and the RMS of the ramp in it: none where the readout is monopolar."""

    excess_rad: Tensor
    ramp_rad: float


def phase_offset(
    first: Tensor, phase: Tensor, magnitude: Tensor, times: Sequence[float], coarse: Coarse, pair: int = 1
) -> Tensor:
    """Phase at time zero (X, Y, Z) from echo 0, unwrapped, and echo `pair`; magnitude is zero outside the mask.

    With m = TE1 / dTE the offset is phi1 - m (phi2 - phi1): its m-th part is free of the second echo's wraps.
    """
    m = times[0] / (times[pair] - times[0])
    blocks = coarse.pooled(first / m - (phase[pair] - phase[0]), magnitude[0] * magnitude[pair])
    return m * coarse.fine(_smooth(blocks, coarse), first.shape)


def readout(first: Tensor, phase: Tensor, magnitude: Tensor, times: Sequence[float], coarse: Coarse) -> Readout:
    """Echo 1 against what echoes 0 and 2, read out the same way, let expect; needs three echoes, at any spacing."""
    offset = phase_offset(first, phase, magnitude, times, coarse, pair=2)
    expected = offset + (first - offset) * (times[1] / times[0])
    blocks = coarse.pooled(phase[1] - expected, magnitude[0] * magnitude[1])
    smooth = _smooth(blocks, coarse)
    weight = blocks.abs()
    step = TWO_PI * (times[1] - times[0]) / (times[2] - times[0])  # the field is known but for full turns of dTE
    middle = float((smooth * weight).sum() / weight.sum().clamp_min(1e-30))
    constant = min((_wrapped(middle + n * step) for n in range(-3, 4)), key=abs)
    smooth = smooth - middle + constant
    return Readout(coarse.fine(smooth, first.shape), _ramp_rms(smooth, weight))


def _smooth(blocks: Tensor, coarse: Coarse) -> Tensor:
    """Smooth phase (blocks) of a complex volume, unwrapped."""
    mean = gaussian(blocks, coarse.voxel_size_mm, coarse.sigma_mm)
    known = mean.abs() > 1e-5 * mean.abs().max()
    arrays = (mean.angle().cpu().numpy(), mean.abs().cpu().numpy(), known.cpu().numpy())
    phase = torch.from_numpy(romeo.unwrap_volume(*arrays)).to(blocks.device)
    for _ in range(_FITS - 1):
        left = blocks * torch.polar(torch.ones_like(phase), -phase)
        left = left / (1 + (left.angle() / _FAR_RAD) ** 2)
        phase = phase + torch.where(known, gaussian(left, coarse.voxel_size_mm, coarse.sigma_mm).angle(), 0)
    return phase


def _ramp_rms(phase: Tensor, weight: Tensor) -> float:
    """Weighted RMS of the linear ramp that fits `phase` (X, Y, Z) best."""
    w = (weight / weight.sum().clamp_min(1e-30)).flatten()
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n, device=phase.device) for n in phase.shape], indexing="ij")
    basis = torch.stack([axis.flatten() - (w * axis.flatten()).sum() for axis in axes])
    fit = torch.linalg.lstsq((basis * w) @ basis.T, (basis * w) @ phase.flatten()).solution
    return float((w * (fit @ basis) ** 2).sum().sqrt())


def _wrapped(angle: float) -> float:
    return angle - TWO_PI * round(angle / TWO_PI)
