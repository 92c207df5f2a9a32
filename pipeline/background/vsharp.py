"""Total field -> local field by V-SHARP: the mean over the largest sphere that fits is background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.dipole import padded_shape
from models.params import param
from pipeline.filters import half_a_voxel, sphere_response
from pipeline.volumes import Field


@dataclass(frozen=True)
class VSHARP:
    """V-SHARP (Li 2011, doi 10.1016/j.neuroimage.2010.11.088; Wu 2012, doi 10.1002/mrm.23000)."""

    largest_mm: float = param(18.0, "radius of the largest sphere, used deep inside", 1, 30)
    smallest_mm: float = param(3.0, "radius of the smallest sphere; the rim that is lost is about as wide", 0.5, 15)
    step_mm: float = param(1.5, "from radius to radius", 0.25, 10)
    threshold: float = param(0.2, "response of the largest sphere's filter below which it is not inverted", 0.001, 0.5)


def vsharp(total: Field, params: VSHARP) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Harmonic fields equal their mean over any sphere that lies in the mask: subtract it, then undo what that did.

    Every voxel takes the largest sphere that fits. Spheres are in mm with soft edges, so voxels may be anisotropic.
    """
    voxel = total.grid.voxel_size_mm
    padded = padded_shape([n + int(params.largest_mm / v) + 2 for n, v in zip(total.mask.shape, voxel, strict=True)], 0)
    x, y, z = total.mask.shape
    spectrum = torch.fft.rfftn(total.ppm, s=padded)
    support = torch.fft.rfftn(total.mask.to(total.ppm.dtype), s=padded)
    left = torch.zeros(padded, device=total.ppm.device, dtype=total.ppm.dtype)
    done = torch.zeros(padded, device=total.ppm.device, dtype=torch.bool)
    largest = None
    for radius in _radii(params, max(voxel)):
        sphere = sphere_response(padded, voxel, radius, total.ppm)
        fits = (torch.fft.irfftn(support * sphere, s=padded) > 1 - half_a_voxel(voxel, radius)) & ~done
        if not bool(fits.any()):
            continue
        largest = sphere if largest is None else largest
        left = torch.where(fits, torch.fft.irfftn(spectrum * (1 - sphere), s=padded), left)
        done |= fits
    if largest is None:
        return total.ppm, torch.zeros_like(total.mask), {}
    response = 1 - largest
    inverse = torch.where(response.abs() > params.threshold, 1 / response, 0)
    local = torch.fft.irfftn(torch.fft.rfftn(left) * inverse, s=padded)
    return local[:x, :y, :z], done[:x, :y, :z] & total.mask, {}


def _radii(params: VSHARP, voxel_mm: float) -> list[float]:
    """From the largest radius down; none below the voxel, where a sphere is a single voxel and removes everything."""
    smallest = max(params.smallest_mm, 1.01 * voxel_mm)
    count = int(max(0.0, params.largest_mm - smallest) / params.step_mm + 1e-6)
    larger = [params.largest_mm - k * params.step_mm for k in range(count + 1)]
    return [*(radius for radius in larger if radius > smallest), smallest]
