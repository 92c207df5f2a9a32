"""Local field -> how smooth it is and how strong at the rim, which is where background that is left would show."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.filters import depth_mm
from pipeline.volumes import Field

DEGREE = 6
SAMPLES = 60_000
RIM_MM = 4.0


def background_left(local: Field) -> dict[str, float]:
    """`harmonic_share` (0 to 1) and `rim_excess` of a local field, told without the truth: signs, not measures.

    Sources outside the mask make harmonic fields in it: `harmonic_share` is the share of the field's variance that
    solid harmonics up to degree 6 about the mask's centre explain, by least squares. `rim_excess` is the RMS of the
    field within 4 mm of the rim over that deeper inside. Either rises where background is added to a given field, but
    tissue has its own share of both: between methods they do not follow the error. A field may be short of both because
    too much was taken off. Values beyond five robust standard deviations count as five, so that a calcification or
    haemorrhage does not decide.
    """
    mask = local.mask
    values = local.ppm[mask]
    values = values - values.median()
    bound = 5 * 1.4826 * float(values.abs().median())
    values = values.clamp(-bound, bound)
    every = max(1, values.numel() // SAMPLES)
    voxel = torch.tensor(local.grid.voxel_size_mm, device=values.device, dtype=torch.float64)
    places = (torch.nonzero(mask) * voxel)[::every]
    some = values[::every].to(torch.float64)
    basis = solid_harmonics((places - places.mean(0)) / (places - places.mean(0)).abs().max().clamp_min(1e-9), DEGREE)
    basis = basis / basis.norm(dim=1, keepdim=True).clamp_min(1e-30)
    weights = torch.linalg.lstsq(basis @ basis.T + 1e-9 * torch.eye(len(basis), device=basis.device), basis @ some)
    spread = (some - some.mean()).square().sum().clamp_min(1e-30)
    share = 1 - float((some - weights.solution @ basis).square().sum() / spread)
    deep = depth_mm(mask, local.grid.voxel_size_mm, RIM_MM + max(local.grid.voxel_size_mm))[mask] > RIM_MM
    excess = _rms(values[~deep]) / max(_rms(values[deep]), 1e-30) if bool(deep.any()) and not bool(deep.all()) else 1.0
    return {"harmonic_share": max(0.0, share), "rim_excess": excess}


def solid_harmonics(places: Tensor, degree: int) -> Tensor:
    """The real solid harmonics of degrees 0 to `degree` at `places` (N, 3), not normalised: ((degree + 1)^2, N).

    r^l times the associated Legendre functions by their recurrence in l, times Re and Im of (x + iy)^m.
    """
    x, y, z = places.T
    r2 = x**2 + y**2 + z**2
    real, imag = torch.ones_like(x), torch.zeros_like(x)
    functions = []
    for m in range(degree + 1):
        before, now = torch.zeros_like(z), torch.ones_like(z)
        for n in range(m, degree + 1):
            functions += [now * real] if m == 0 else [now * real, now * imag]
            before, now = now, ((2 * n + 1) * z * now - (n + m) * r2 * before) / (n - m + 1)
        real, imag = x * real - y * imag, x * imag + y * real
    return torch.stack(functions)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
