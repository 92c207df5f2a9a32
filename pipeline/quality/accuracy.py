"""A susceptibility map, the truth (ppm) and a mask -> accuracy, one function a metric; float64, the result is a float.

Throughout, `chi` is the reconstruction x, `truth` is y, all tensors are (X, Y, Z), and a metric that has nothing to
stand on (an empty region, a truth without contrast) is NaN. Regions are those of the 2019 challenge
(doi 10.1002/mrm.28754).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from models.dipole import fft_size

Box = tuple[slice, slice, slice]


def nrmse(chi: Tensor, truth: Tensor, mask: Tensor) -> float:
    """100 |x' - y'| / |y'|, both demeaned in the mask; 0 is perfect, 100 is what an empty map gets."""
    x, y = _demeaned(chi, mask), _demeaned(truth, mask)
    return 100 * _ratio(float((x - y).norm()), float(y.norm()))


def dnrmse(chi: Tensor, truth: Tensor, mask: Tensor) -> float:
    """NRMSE after the best linear fit x = a y + b is undone; blind to a wrong scale."""
    x, y = _demeaned(chi, mask), _demeaned(truth, mask)
    a = _ratio(float(x @ y), float(y @ y))
    return 100 * _ratio(float((x / a - y).norm()), float(y.norm())) if a else math.nan


def pearson(chi: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Correlation coefficient in the mask."""
    x, y = _demeaned(chi, mask), _demeaned(truth, mask)
    return _ratio(float(x @ y), float(x.norm() * y.norm()))


def psnr(chi: Tensor, truth: Tensor, mask: Tensor) -> tuple[float, float]:
    """Peak signal-to-noise ratio in dB, 20 log10(R / RMSE), and its R = max - min of the truth in the mask, in ppm."""
    x, y = chi[mask].double(), truth[mask].double()
    if not len(y):
        return math.nan, math.nan
    peak, rmse = float(y.max() - y.min()), float((x - y).square().mean().sqrt())
    return (20 * math.log10(peak / rmse) if rmse and peak else math.inf if peak else math.nan), peak


def slope_deviation(chi: Tensor, truth: Tensor, mask: Tensor, labels: Tensor, codes: tuple[int, ...]) -> float:
    """|1 - slope| of the regions' means."""
    return abs(1 - slope(chi, truth, mask, labels, codes))


def slope(chi: Tensor, truth: Tensor, mask: Tensor, labels: Tensor, codes: tuple[int, ...]) -> float:
    """Of the regions' means, x on y; `codes` are the labels of the six deep grey nuclei."""
    regions = [region for code in codes if bool((region := mask & (labels == code)).any())]
    if len(regions) < 2:
        return math.nan
    x = torch.stack([chi[r].double().mean() for r in regions])
    y = torch.stack([truth[r].double().mean() for r in regions])
    x, y = x - x.mean(), y - y.mean()
    return _ratio(float(x @ y), float(y @ y))


def calcification(chi: Tensor, truth: Tensor, where: Tensor) -> tuple[float, float]:
    """Deviation of the calcification's moment (ppm * voxels) and the level of streaks around it.

    `where` is the true calcification. A box holds it with 3 voxels to spare. What is calcified in a map is what lies
    below the first of 0, -0.01, ... ppm that no voxel of the shell (8 voxels around the box) falls below; its moment is
    their number times their mean, and that of `chi` is compared with that of `truth`, found in the same way. Streaks:
    in the rim (4 voxels around the box) x is regressed on y, and the residual's standard deviation is divided by the
    |mean| of what is calcified.
    """
    if not bool(where.any()):
        return math.nan, math.nan
    box, rim, outer = (_grown_box(where, by) for by in (3, 7, 11))
    x, y = chi.double(), truth.double()
    shell, around = _between(where.shape, outer, box, x.device), _between(where.shape, rim, box, x.device)
    found, true = _calcified(x, box, shell), _calcified(y, box, shell)
    deviation = abs(float(true.sum()) - float(found.sum()))
    if not len(found) or not bool(around.any()):
        return deviation, math.nan
    a, b = _demeaned(x, around), _demeaned(y, around)
    slope = float(a @ b) / float(b @ b) if bool(b.any()) else 0.0
    residual = float((a - slope * b).square().mean().sqrt())
    return deviation, residual / abs(float(found.mean()))


def _calcified(volume: Tensor, box: tuple[slice, ...], shell: Tensor) -> Tensor:
    """The values in the box below what any voxel of the shell has, in steps of 0.01 ppm from 0 down."""
    around = volume[shell]
    threshold = -math.ceil(max(0.0, -float(around.min())) * 100 - 1e-9) / 100 if len(around) else 0.0
    return volume[box][volume[box] < threshold]


def hfen(chi: Tensor, truth: Tensor, mask: Tensor, sigma: float = 1.5) -> float:
    """High-frequency error norm in per cent: NRMSE, not demeaned, after a 15^3 Laplacian of Gaussian.

    Both maps are masked before they are filtered, and the norm runs over the whole response, so that it can be taken in
    k-space (Parseval). After the 2016 challenge (doi 10.1002/mrm.26830), where sigma is 1.5 voxels.
    """
    if not bool(mask.any()):
        return math.nan
    box = _grown_box(mask, 0)
    y = truth[box].double() * mask[box]
    x = chi[box].double() * mask[box]
    size = [fft_size(n + 14) for n in y.shape]
    edges = torch.fft.rfftn(_laplacian_of_gaussian(sigma, y.device), s=size)
    error = (edges * torch.fft.rfftn(x - y, s=size)).abs().square()
    reference = (edges * torch.fft.rfftn(y, s=size)).abs().square()
    twice = torch.full(error.shape[-1:], 2.0, dtype=torch.float64, device=y.device)  # the half that rfftn leaves out
    twice[[0, -1]] = 1
    return 100 * math.sqrt(_ratio(float((error * twice).sum()), float((reference * twice).sum())))


def xsim(chi: Tensor, truth: Tensor, mask: Tensor, window: Literal["gaussian7", "uniform5"] = "gaussian7") -> float:
    """Structural similarity for QSM: SSIM on ppm with L = 1, K = (0.01, 0.001), mean in the mask; 1 is perfect.

    Milovic 2024, doi 10.1002/mrm.30271. `gaussian7` is the paper's window (7^3, sigma 1.5), `uniform5` the one of the
    QSM-CI scores. At the volume's border a window is cut off and its weights are scaled up.
    """
    if not bool(mask.any()):
        return math.nan
    taps = _gaussian(3, 1.5) if window == "gaussian7" else torch.full((5,), 0.2, dtype=torch.float64)
    taps = taps.to(chi.device)
    box = _grown_box(mask, len(taps) // 2)
    x, y = chi[box].double(), truth[box].double()
    weight = _convolve(torch.ones_like(x), taps)
    mx, my = _convolve(x, taps) / weight, _convolve(y, taps) / weight
    xx = _convolve(x * x, taps) / weight - mx * mx
    yy = _convolve(y * y, taps) / weight - my * my
    xy = _convolve(x * y, taps) / weight - mx * my
    c1, c2 = 0.01**2, 0.001**2
    similarity = (2 * mx * my + c1) * (2 * xy + c2) / ((mx * mx + my * my + c1) * (xx + yy + c2))
    return float(similarity[mask[box]].mean())


def dilated(region: Tensor) -> Tensor:
    """A region grown by a cube of 3^3."""
    grown = ndimage.binary_dilation(region.cpu().numpy(), np.ones((3, 3, 3)))
    return torch.from_numpy(grown).to(region.device)


def _demeaned(volume: Tensor, mask: Tensor) -> Tensor:
    values = volume[mask].double()
    return values - values.mean() if len(values) else values


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _grown_box(region: Tensor, by: int) -> Box:
    """The bounding box of a region, `by` voxels larger on all sides, within the volume."""
    found = region.nonzero()
    low, high = found.amin(0).tolist(), found.amax(0).tolist()
    x, y, z = (slice(max(0, a - by), min(n, b + 1 + by)) for a, b, n in zip(low, high, region.shape, strict=True))
    return x, y, z


def _between(shape: torch.Size, outer: Box, inner: Box, device: torch.device) -> Tensor:
    region = torch.zeros(shape, dtype=torch.bool, device=device)
    region[outer] = True
    region[inner] = False
    return region


def _gaussian(radius: int, sigma: float) -> Tensor:
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-(offset**2) / (2 * sigma**2))
    return taps / taps.sum()


def _laplacian_of_gaussian(sigma: float, device: torch.device) -> Tensor:
    """15^3, with zero sum, so that a constant has no edges."""
    offset = torch.arange(-7, 8, dtype=torch.float64, device=device)
    r2 = offset[:, None, None] ** 2 + offset[:, None] ** 2 + offset**2
    gaussian = torch.exp(-r2 / (2 * sigma**2))
    kernel = gaussian / gaussian.sum() * (r2 - 3 * sigma**2) / sigma**4
    return kernel - kernel.mean()


def _convolve(volume: Tensor, taps: Tensor) -> Tensor:
    """Convolution with symmetric `taps` along all three axes; zero outside. Shifted copies are fast anywhere."""
    for axis in range(3):
        n, radius = volume.shape[axis], len(taps) // 2
        total = torch.zeros_like(volume)
        for shift in range(-min(radius, n - 1), min(radius, n - 1) + 1):
            length = n - abs(shift)
            source = volume.narrow(axis, max(0, shift), length)
            total.narrow(axis, max(0, -shift), length).add_(source, alpha=float(taps[radius + shift]))
        volume = total
    return volume
