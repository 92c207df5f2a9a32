"""A radius in mm -> the mean over a ball, as a filter: what takes harmonic fields away, and what erodes masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Triple = Sequence[float]


def sphere_response(padded: Sequence[int], voxel_size_mm: Triple, radius_mm: float, like: Tensor) -> Tensor:
    """The half spectrum of the mean over a sphere; a voxel counts by the share of it that lies inside (soft edge).

    A sphere is even along each axis: its spectrum is that of one octant by cosines, three small matrix products.
    """
    octant = sphere_octant(voxel_size_mm, radius_mm)
    waves = []
    for axis, n in enumerate(padded):
        k = torch.arange(n if axis < 2 else n // 2 + 1, dtype=torch.float64)[:, None]
        index = torch.arange(octant.shape[axis], dtype=torch.float64)
        waves.append((torch.cos(2 * torch.pi / n * k * index) * torch.where(index > 0, 2, 1)).to(like))
    x, y, z = waves
    planes = torch.einsum("yb,zc,abc->ayz", y, z, octant.to(like))
    response: Tensor = (x @ planes.flatten(1)).view(x.shape[0], y.shape[0], z.shape[0])
    return response


def sphere_octant(voxel_size_mm: Triple, radius_mm: float) -> Tensor:
    """Weights of the voxels of one octant of a sphere (index 0 is the centre), those of the whole add up to one."""
    edge = min(voxel_size_mm)
    axes = [torch.arange(int((radius_mm + edge / 2) / size) + 1, dtype=torch.float64) * size for size in voxel_size_mm]
    r = torch.sqrt(axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2)
    sphere = ((radius_mm - r) / edge + 0.5).clamp(0, 1)
    sphere[0, 0, 0] = 1
    times = torch.ones_like(sphere)
    for axis in range(3):
        times.narrow(axis, 1, sphere.shape[axis] - 1).mul_(2)
    return sphere / (sphere * times).sum()
