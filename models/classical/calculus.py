"""Differences and shrinkage on the padded grid of a dipole: what the methods of total variation share."""

from __future__ import annotations

import torch
from torch import Tensor

from models.dipole import Dipole


def gradient(x: Tensor, dipole: Dipole) -> Tensor:
    """Periodic forward differences (3, X, Y, Z), scaled to the mean voxel size so that they compare across axes."""
    return torch.stack([(x.roll(-1, axis) - x) * h for axis, h in enumerate(steps(dipole))])


def laplacian_spectrum(dipole: Dipole) -> Tensor:
    """The half spectrum of `gradient` followed by its adjoint, minus the divergence: positive."""
    total = torch.zeros_like(dipole.kernel)
    for axis, (n, h) in enumerate(zip(dipole.padded, steps(dipole), strict=True)):
        k = torch.arange(total.shape[axis], device=total.device, dtype=total.dtype)
        view = [1, 1, 1]
        view[axis] = -1
        total += (h**2 * (2 - 2 * torch.cos(2 * torch.pi * k / n))).view(view)
    return total


def steps(dipole: Dipole) -> list[float]:
    """Mean voxel size over the size along each axis: what a difference counts."""
    v = dipole.voxel_size_mm
    mean = (v[0] * v[1] * v[2]) ** (1 / 3)
    return [mean / size for size in v]


def descend(x: Tensor, dual: Tensor, threshold: float | Tensor, dipole: Dipole) -> Tensor:
    """One step of ADMM on |grad x|_1, split off as z: `dual` (3, X, Y, Z) is updated; returns the adjoint of
    `gradient` on z - dual.

    `threshold` is a number, or one for each difference (3, X, Y, Z).
    """
    total = torch.zeros_like(x)
    for axis, h in enumerate(steps(dipole)):
        s = dual[axis]
        s.add_(x.roll(-1, axis).sub_(x), alpha=h)
        over = s.clone()
        if isinstance(threshold, Tensor):
            torch.clamp(s, -threshold[axis], threshold[axis], out=s)
        else:
            s.clamp_(-threshold, threshold)
        over.sub_(s, alpha=2)
        total.add_(over.roll(1, axis).sub_(over), alpha=h)
    return total


def pad(volume: Tensor, dipole: Dipole) -> Tensor:
    x, y, z = (big - small for big, small in zip(dipole.padded, dipole.shape, strict=True))
    return torch.nn.functional.pad(volume, (0, z, 0, y, 0, x))


def crop(volume: Tensor, dipole: Dipole) -> Tensor:
    x, y, z = dipole.shape
    return volume[:x, :y, :z]
