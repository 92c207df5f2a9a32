"""A susceptibility map, its field and mask -> how plausible it is, with no truth in sight; one function a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from models.dipole import Dipole
from pipeline.filters import depth_mm

FLAT_PPM = 0.005  # spread of a map below which it has no tissue whose shape could be judged


def data_consistency(chi: Tensor, local_ppm: Tensor, sd_ppm: Tensor, mask: Tensor, dipole: Dipole) -> float:
    """RMS of (D chi - local field) / sd in the mask: about 1 explains the field, below fits noise, above leaves signal.

    Neither the field's constant nor chi's reference can be known, so a constant field and the field of the mask are
    fitted and taken out first. Voxels without a noise estimate do not count.
    """
    residual, _ = _weighted(chi, local_ppm, sd_ppm, mask, dipole)
    return float(residual.square().mean().sqrt()) if len(residual) else math.nan


def unexplained_share(chi: Tensor, local_ppm: Tensor, sd_ppm: Tensor, mask: Tensor, dipole: Dipole) -> float:
    """Power of (D chi - local field) / sd over that of the field / sd: 0 explains all of it, 1 nothing.

    Unlike the misfit in units of noise it has no need of a noise that is the field's only error: what background
    removal and anisotropy leave in a field is no susceptibility, however little noise there is.
    """
    residual, field = _weighted(chi, local_ppm, sd_ppm, mask, dipole)
    power = float(field.square().sum())
    return float(residual.square().sum()) / power if power else math.nan


def _weighted(chi: Tensor, local_ppm: Tensor, sd_ppm: Tensor, mask: Tensor, dipole: Dipole) -> tuple[Tensor, Tensor]:
    """(D chi - local field) and the local field, in units of noise, free of a constant and of the mask's own field."""
    known = mask & torch.isfinite(sd_ppm) & (sd_ppm > 0)
    weight = 1 / sd_ppm[known].double()
    inside = mask.to(chi.dtype)
    free = torch.stack([dipole.forward(inside)[known].double() * weight, weight])
    inverse = torch.linalg.pinv(free @ free.T, hermitian=True)

    def freed(field: Tensor) -> Tensor:
        values = field[known].double() * weight
        values -= inverse @ (free @ values) @ free
        return values

    return freed(dipole.forward(chi * inside) - local_ppm), freed(local_ppm)


def core(mask: Tensor, voxel_size_mm: Sequence[float], rim_mm: float = 5.0, least: int = 100) -> Tensor:
    """The mask without a rim of `rim_mm`; all of it where fewer than `least` voxels would be left."""
    inner = depth_mm(mask, voxel_size_mm, rim_mm + max(voxel_size_mm)) > rim_mm
    return inner if int(inner.sum()) >= least else mask


def robust_spread(values: Tensor) -> float:
    """Half the distance of the 16th and 84th percentile: the standard deviation of a Gaussian, blind to extremes."""
    low, high = _quantiles(values, 0.16, 0.84)
    return (high - low) / 2


def asymmetry(values: Tensor, share: float = 0.005) -> float:
    """How much further the top `share` lies from the median than the bottom one, over their distance: -1 to 1.

    Veins and iron make it positive, an inverted sign of the phase negative. NaN where the map is flat, or
    either extreme would be less than ten voxels.
    """
    if share * len(values) < 10 or not robust_spread(values) >= FLAT_PPM:
        return math.nan
    low, middle, high = _quantiles(values, share, 0.5, 1 - share)
    return (high + low - 2 * middle) / (high - low) if high > low else math.nan


def _quantiles(values: Tensor, *shares: float) -> list[float]:
    """NaN where there is no value, or one that is not finite."""
    if not len(values) or not bool(torch.isfinite(values).all()):
        return [math.nan] * len(shares)
    values_at: list[float] = np.quantile(values.double().cpu().numpy(), shares).tolist()
    return values_at


def neighbour_correlation(chi: Tensor, mask: Tensor) -> float:
    """Correlation of chi in neighbouring voxels of the mask, along the axis where it is least: 0 in noise.

    NaN where the map is flat: a few odd voxels say nothing of their neighbours.
    """
    if not robust_spread(chi[mask]) >= FLAT_PPM:
        return math.nan
    correlations = []
    for axis in range(3):
        n = mask.shape[axis] - 1
        pairs = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
        a, b = (chi.narrow(axis, i, n)[pairs].double() for i in (0, 1))
        if len(a) < 2:
            continue
        a, b = a - a.mean(), b - b.mean()
        power = float(a.norm() * b.norm())
        correlations.append(float(a @ b) / power if power else math.nan)
    return min(correlations, default=math.nan)


def base(mask: Tensor, affine: Any, height_mm: float = 30.0) -> Tensor:
    """The lowest `height_mm` of the mask in the patient, for volumes of any orientation.

    `affine` leads from voxels to millimetres with the third axis towards the head. A hundredth of the mask may lie
    lower, so that a strand of a few voxels does not count as the base.
    """
    where = mask.nonzero()
    if not len(where):
        return mask
    up = torch.as_tensor(np.asarray(affine)[2, :3], dtype=torch.float64, device=mask.device)
    heights = where.double() @ up
    lowest = float(np.quantile(heights.cpu().numpy(), 0.01))
    low = torch.zeros_like(mask)
    low[mask] = heights < lowest + height_mm
    return low


def dark_share(magnitude: Tensor, region: Tensor) -> float:
    """Share of a region whose magnitude is less than half of the region's median, as bone, air and lost signal are."""
    values = magnitude[region]
    return float((values < 0.5 * values.median()).double().mean()) if len(values) else math.nan


def cut_share(mask: Tensor) -> float:
    """The mask's area in an outermost slice of the volume over the largest of its slices; of the six the largest."""
    shares = []
    for axis in range(3):
        area = mask.sum(dim=[other for other in range(3) if other != axis])
        if int(area.max()):
            shares += [float(area[end]) / float(area.max()) for end in (0, -1)]
    return max(shares, default=math.nan)


def streak_index(chi: Tensor, mask: Tensor, dipole: Dipole) -> float:
    """Power of chi inside the cone |D| < 0.1 over that in the shell 0.1 <= |D| < 0.2; streaks live inside the cone."""
    inside = chi * mask
    power = dipole.fft(inside - inside.sum() / mask.sum() * mask).abs().square().double()
    power[..., 1 : (dipole.padded[2] + 1) // 2] *= 2  # the half of the spectrum that is not stored
    power[0, 0, 0] = 0
    size = dipole.kernel.abs()
    shell = float(power[(size >= 0.1) & (size < 0.2)].sum())
    return float(power[size < 0.1].sum()) / shell if shell else math.nan


def rim_energy(chi: Tensor, mask: Tensor, voxels: int = 2) -> float:
    """Standard deviation of chi in the outermost `voxels` of the mask over that inside; background fields raise it."""
    core = torch.from_numpy(ndimage.binary_erosion(mask.cpu().numpy(), iterations=voxels)).to(mask.device)
    rim, inner = chi[mask & ~core].double(), chi[core].double()
    if len(rim) < 2 or len(inner) < 2:
        return math.nan
    spread = float(inner.std())
    return float(rim.std()) / spread if spread else math.nan


def beyond_share(chi: Tensor, mask: Tensor, limit_ppm: float = 0.5) -> float:
    """Share of the mask whose |chi| is beyond `limit_ppm`, which only calcium, blood and errors are."""
    values = chi[mask]
    return float((values.abs() > limit_ppm).double().mean()) if len(values) else math.nan


def components(mask: Tensor) -> int:
    """How many pieces a mask is in, of neighbours that share a face."""
    return int(ndimage.label(mask.cpu().numpy())[1])


def wraps_left(unwrapped_rad: Tensor, mask: Tensor) -> float:
    """Share of neighbours in the mask between which the phase (X, Y, Z) jumps by > pi; of several (E, ...), of all."""
    phase = unwrapped_rad.reshape(-1, *mask.shape)
    jumps = edges = 0
    for axis in range(3):
        n = mask.shape[axis] - 1
        pairs = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
        step = phase.narrow(axis + 1, 1, n) - phase.narrow(axis + 1, 0, n)
        jumps += int(((step.abs() > np.pi) & pairs).sum())
        edges += int(pairs.sum()) * len(phase)
    return jumps / edges if edges else math.nan


def snr(magnitude: Tensor, mask: Tensor) -> float:
    """Median signal in the mask over the noise, which is read off the second differences of neighbours.

    They have sqrt(6) times the noise where the tissue is smooth; of the three axes the smoothest one counts.
    """
    values = magnitude.double()
    noise = []
    for axis in range(3):
        n = mask.shape[axis] - 2
        if n < 1:
            continue
        a, b, c = (values.narrow(axis, i, n) for i in range(3))
        inside = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n) & mask.narrow(axis, 2, n)
        if bool(inside.any()):
            noise.append(1.4826 * float((a - 2 * b + c)[inside].abs().median()) / math.sqrt(6))
    smallest = min(noise, default=0.0)
    return float(values[mask].median()) / smallest if smallest else math.nan
