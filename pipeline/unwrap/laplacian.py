"""Wrapped phase -> the smooth phase that has its Laplacian: approximate, and never torn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.volumes import Grid

TWO_PI = 2 * np.pi


def laplacian_phase(phase: Tensor, grid: Grid) -> Tensor:
    """The smooth phase whose Laplacian is that of `phase` (X, Y, Z), wraps or not; mirrored at the edges.

    Schofield & Zhu 2003, doi 10.1364/OL.28.001194.
    """
    mirrored = phase
    for axis in range(3):
        mirrored = torch.cat([mirrored, mirrored.flip(axis)], dim=axis)
    laplacian = torch.zeros((), device=phase.device)
    for axis, (n, size) in enumerate(zip(mirrored.shape, grid.voxel_size_mm, strict=True)):
        k = torch.fft.fftfreq(n, device=phase.device) if axis < 2 else torch.fft.rfftfreq(n, device=phase.device)
        view = [1, 1, 1]
        view[axis] = -1
        laplacian = laplacian + ((2 * torch.cos(TWO_PI * k) - 2) / size**2).view(view)

    def apply(volume: Tensor, response: Tensor) -> Tensor:
        applied: Tensor = torch.fft.irfftn(torch.fft.rfftn(volume) * response, s=mirrored.shape)
        return applied

    sine, cosine = mirrored.sin(), mirrored.cos()
    source = cosine * apply(sine, laplacian) - sine * apply(cosine, laplacian)
    laplacian[0, 0, 0] = 1
    inverse = 1 / laplacian
    inverse[0, 0, 0] = 0
    x, y, z = phase.shape
    return apply(source, inverse)[:x, :y, :z]
