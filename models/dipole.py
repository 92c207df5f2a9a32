"""Susceptibility (ppm) -> magnetic field perturbation (ppm): the unit dipole in k-space, padded, for any B0 direction.

D(k) = 1/3 - (k.b)^2 / |k|^2, D(0) = 0 (Salomir 2003, doi 10.1002/cmr.b.10083; Marques & Bowtell 2005,
doi 10.1002/cmr.b.20034), with k in cycles per mm, so that anisotropic voxels and oblique slices come out right.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from models.constants import GAMMA_MHZ_PER_T as GAMMA_MHZ_PER_T

Triple = Sequence[float]


def fft_size(n: int) -> int:
    """The smallest even size >= n whose prime factors are 2, 3 and 5."""
    sizes = (
        size
        for a, b in itertools.product(range(8), range(6))
        for size in [2 * 3**a * 5**b * 2 ** max(0, ((n - 1) // (2 * 3**a * 5**b)).bit_length())]
    )
    return int(min(sizes))


def padded_shape(shape: Sequence[int], padding: float) -> tuple[int, int, int]:
    """FFT-friendly sizes of at least `(1 + padding)` times `shape`; `padding` 1 excludes any wrap-around."""
    x, y, z = (fft_size(max(n, round(n * (1 + padding)))) for n in shape)
    return x, y, z


def frequencies(shape: Sequence[int], voxel_size_mm: Triple, device: torch.device | str = "cpu") -> list[Tensor]:
    """k along each axis in cycles/mm, shaped to broadcast over the half spectrum of `torch.fft.rfftn`."""
    kx = torch.fft.fftfreq(shape[0], voxel_size_mm[0], device=device, dtype=torch.float64)
    ky = torch.fft.fftfreq(shape[1], voxel_size_mm[1], device=device, dtype=torch.float64)
    kz = torch.fft.rfftfreq(shape[2], voxel_size_mm[2], device=device, dtype=torch.float64)
    return [kx[:, None, None], ky[None, :, None], kz[None, None, :]]


def dipole_kernel(
    shape: Sequence[int],
    voxel_size_mm: Triple,
    b0_dir: Triple,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """D(k) on the half spectrum (X, Y, Z//2+1) of a real volume of `shape`; `b0_dir` in voxel axes, any length > 0.

    The Nyquist plane of an even axis stands for +k and -k at once; D is averaged over both, so that the operator
    stays real and self-adjoint for oblique B0 too.
    """
    k = frequencies(shape, voxel_size_mm, device)
    b = torch.tensor([float(c) for c in b0_dir], dtype=torch.float64)
    b = b / b.norm()
    signed = []
    for n, axis in zip(shape, k, strict=True):
        axis = axis.clone()
        if n % 2 == 0:
            axis.view(-1)[n // 2] = 0
        signed.append(axis)
    along = sum((b[i] * signed[i]) for i in range(3))
    nyquist = sum(b[i] ** 2 * (k[i] ** 2 - signed[i] ** 2) for i in range(3))
    k2 = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    k2[0, 0, 0] = 1
    kernel: Tensor = 1 / 3 - (along**2 + nyquist) / k2
    kernel[0, 0, 0] = 0
    return kernel.to(dtype)


class Dipole:
    """The dipole convolution of volumes of one shape, voxel size and B0 direction.

    Volumes (..., X, Y, Z) are zero-padded to `self.padded`, convolved, and cropped. `padding` is the share of each
    size that is added: 1 (the default) makes the convolution linear, with no wrap-around.
    """

    def __init__(
        self,
        shape: Sequence[int],
        voxel_size_mm: Triple,
        b0_dir: Triple,
        *,
        padding: float = 1.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape = tuple(shape)
        self.voxel_size_mm = tuple(float(v) for v in voxel_size_mm)
        self.b0_dir = tuple(float(c) for c in b0_dir)
        self.padded = padded_shape(shape, padding)
        self.kernel = dipole_kernel(self.padded, voxel_size_mm, b0_dir, device, dtype)

    def to(self, device: torch.device | str) -> Dipole:
        """The same operator on another device."""
        moved = copy.copy(self)
        moved.kernel = self.kernel.to(device)
        return moved

    def fft(self, volume: Tensor) -> Tensor:
        """Half spectrum of a volume (..., X, Y, Z), zero-padded at the far ends."""
        spectrum: Tensor = torch.fft.rfftn(volume, s=self.padded, dim=(-3, -2, -1))
        return spectrum

    def ifft(self, spectrum: Tensor) -> Tensor:
        """The cropped volume of a half spectrum."""
        x, y, z = self.shape
        volume: Tensor = torch.fft.irfftn(spectrum, s=self.padded, dim=(-3, -2, -1))
        return volume[..., :x, :y, :z]

    def forward(self, chi_ppm: Tensor) -> Tensor:
        """Field in ppm of B0 that `chi_ppm` makes. The operator is its own adjoint."""
        return self.ifft(self.kernel * self.fft(chi_ppm))
