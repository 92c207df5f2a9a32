"""A susceptibility map, its field and mask -> how plausible it is, with no truth in sight; one function a number."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from models.dipole import Dipole


def data_consistency(chi: Tensor, local_ppm: Tensor, sd_ppm: Tensor, mask: Tensor, dipole: Dipole) -> float:
    """RMS of (D chi - local field) / sd in the mask: about 1 explains the field, below fits noise, above leaves signal.

    Neither the field's constant nor chi's reference can be known, so a constant field and the field of the mask are
    fitted and taken out first. Voxels without a noise estimate do not count.
    """
    known = mask & torch.isfinite(sd_ppm) & (sd_ppm > 0)
    if not bool(known.any()):
        return math.nan
    weight = 1 / sd_ppm[known].double()
    inside = mask.to(chi.dtype)
    misfit = (dipole.forward(chi * inside) - local_ppm)[known].double() * weight
    free = torch.stack([dipole.forward(inside)[known].double() * weight, weight])
    residual = misfit - torch.linalg.pinv(free @ free.T, hermitian=True) @ (free @ misfit) @ free
    return float(residual.square().mean().sqrt())


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
    """Share of neighbours in the mask, of all echoes (E, X, Y, Z), between which the unwrapped phase jumps by > pi."""
    jumps = edges = 0
    for axis in range(3):
        n = mask.shape[axis] - 1
        pairs = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
        step = unwrapped_rad.narrow(axis + 1, 1, n) - unwrapped_rad.narrow(axis + 1, 0, n)
        jumps += int(((step.abs() > np.pi) & pairs).sum())
        edges += int(pairs.sum()) * len(unwrapped_rad)
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
