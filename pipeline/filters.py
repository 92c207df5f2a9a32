"""A volume -> its Gaussian or spherical mean; a mask -> eroded or dilated by a radius in mm. By FFT, any voxel size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.ball import sphere_response
from models.dipole import fft_size, frequencies

Triple = Sequence[float]


def gaussian(volume: Tensor, voxel_size_mm: Triple, sigma_mm: float) -> Tensor:
    """Gaussian mean (..., X, Y, Z) with zero outside; real or complex."""
    if volume.is_complex():
        parts = gaussian(torch.stack([volume.real, volume.imag]), voxel_size_mm, sigma_mm)
        return torch.complex(parts[0], parts[1])
    padded = _padded(volume.shape, voxel_size_mm, 3 * sigma_mm)
    kx, ky, kz = frequencies(padded, voxel_size_mm, volume.device)
    response = torch.exp(-2 * (torch.pi * sigma_mm) ** 2 * (kx**2 + ky**2 + kz**2)).to(volume.dtype)
    return _filtered(volume, response, padded)


def depth_mm(mask: Tensor, voxel_size_mm: Triple, reach_mm: float) -> Tensor:
    """How far each voxel is from the nearest one outside the mask (X, Y, Z), at most `reach_mm`; 0 outside.

    The exact Euclidean distance between centres, axis by axis; beyond the volume nothing is in the mask.
    """
    nearest = torch.nn.functional.pad(mask, (1,) * 6).to(torch.float32) * reach_mm**2
    for axis, size in enumerate(voxel_size_mm):
        here, n = nearest, nearest.shape[axis]
        nearest = here.clone()
        for step in range(1, min(n - 1, int(reach_mm / size)) + 1):
            ahead = here.narrow(axis, step, n - step) + (step * size) ** 2
            behind = here.narrow(axis, 0, n - step) + (step * size) ** 2
            for part, start in ((ahead, 0), (behind, step)):
                target = nearest.narrow(axis, start, n - step)
                torch.minimum(target, part, out=target)
    return nearest[1:-1, 1:-1, 1:-1].sqrt()


def erode(mask: Tensor, voxel_size_mm: Triple, radius_mm: float) -> Tensor:
    """The voxels whose sphere of `radius_mm` lies in the mask; outside the volume nothing is in the mask."""
    return spherical_share(mask, voxel_size_mm, radius_mm) > 1 - half_a_voxel(voxel_size_mm, radius_mm)


def dilate(mask: Tensor, voxel_size_mm: Triple, radius_mm: float) -> Tensor:
    """The voxels whose sphere of `radius_mm` touches the mask."""
    return spherical_share(mask, voxel_size_mm, radius_mm) > half_a_voxel(voxel_size_mm, radius_mm)


def spherical_share(mask: Tensor, voxel_size_mm: Triple, radius_mm: float) -> Tensor:
    """Share (0 to 1) of the sphere around each voxel that lies in the mask."""
    volume = mask.to(torch.float32)
    padded = _padded(volume.shape, voxel_size_mm, radius_mm)
    return _filtered(volume, sphere_response(padded, voxel_size_mm, radius_mm, volume), padded)


def half_a_voxel(voxel_size_mm: Triple, radius_mm: float) -> float:
    """The share that half a voxel has in a large sphere; in a small one less, for the voxels of its soft edge."""
    voxels = 4 / 3 * torch.pi * radius_mm**3 / (voxel_size_mm[0] * voxel_size_mm[1] * voxel_size_mm[2])
    return max(min(0.5 / voxels, 1e-3), 5e-6)  # rounding makes about 1e-6 of nothing


def _padded(shape: Sequence[int], voxel_size_mm: Triple, reach_mm: float) -> tuple[int, int, int]:
    sizes = zip(shape[-3:], voxel_size_mm, strict=True)
    x, y, z = (fft_size(n + int(reach_mm / size) + 2) for n, size in sizes)
    return x, y, z


def _filtered(volume: Tensor, response: Tensor, padded: tuple[int, int, int]) -> Tensor:
    x, y, z = volume.shape[-3:]
    dims = (-3, -2, -1)
    mean: Tensor = torch.fft.irfftn(torch.fft.rfftn(volume, s=padded, dim=dims) * response, s=padded, dim=dims)
    return mean[..., :x, :y, :z]
