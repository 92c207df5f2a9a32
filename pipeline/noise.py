"""A volume that comes without its noise -> the standard deviation that its finest detail tells."""

from __future__ import annotations

from torch import Tensor

SMALLEST_NOISE_PPM = 1e-4  # of a field that is free of noise: no scanner measures better


def noise_level(ppm: Tensor, mask: Tensor, smallest: float = SMALLEST_NOISE_PPM) -> float:
    """Standard deviation of the noise in ppm (Donoho and Johnstone 1994, doi 10.1093/biomet/81.3.425)."""
    detail, whole = ppm, mask
    for axis in range(3):
        detail = (detail.diff(dim=axis)) / 2**0.5
        whole = whole.narrow(axis, 1, whole.shape[axis] - 1) & whole.narrow(axis, 0, whole.shape[axis] - 1)
    level = float(detail[whole].abs().median()) / 0.6745 if bool(whole.any()) else 0.0
    return max(level, smallest)
