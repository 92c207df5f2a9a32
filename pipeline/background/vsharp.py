"""Total field -> local field by V-SHARP: the mean over the largest ball that fits is background."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from models.ball import sphere_response
from models.dipole import padded_shape
from models.params import param
from pipeline.filters import depth_mm
from pipeline.volumes import Field


@dataclass(frozen=True)
class VSHARP:
    """V-SHARP (Li 2011, doi 10.1016/j.neuroimage.2010.11.088; Wu 2012, doi 10.1002/mrm.23000)."""

    largest_mm: float = param(25.0, "radius of the largest ball, used deep inside", 1, 60)
    smallest_mm: float = param(2.0, "radius of the smallest ball; the rim that is lost is about as wide", 0.5, 15)
    ratio: float = param(1.3, "from each radius to the next larger one", 1.05, 4)
    threshold: float = param(0.2, "response of the largest ball's filter below which it is not inverted", 0.001, 0.5)


SMALLEST = 0.9  # of the largest voxel size: a ball that holds shares of its centre's neighbours on every axis


def vsharp(total: Field, params: VSHARP) -> tuple[Field, dict[str, Any]]:
    """Harmonic fields equal their mean over any ball that lies in the mask: subtract it, then undo what that did.

    Every voxel takes the largest ball that fits. Balls are in mm with soft edges, so voxels may be anisotropic. No
    padding is needed: a ball that lies in the mask does not reach round the volume's edge.
    """
    voxel = total.grid.voxel_size_mm
    x, y, z = total.mask.shape
    padded = padded_shape((x, y, z), 0)
    radii = _radii(params, max(voxel))
    depth = torch.zeros(padded, device=total.ppm.device)
    depth[:x, :y, :z] = depth_mm(total.mask, voxel, radii[0] + max(voxel))
    spectrum = torch.fft.rfftn(total.ppm, s=padded)
    left = torch.zeros_like(depth)
    done = torch.zeros_like(depth, dtype=torch.bool)
    largest = None
    for radius in radii:
        fits = (depth >= radius + min(voxel) / 2) & ~done
        if not bool(fits.any()):
            continue
        rest = 1 - sphere_response(padded, voxel, radius, total.ppm)
        largest = rest if largest is None else largest
        left = torch.where(fits, torch.fft.irfftn(spectrum * rest, s=padded), left)
        done |= fits
    if largest is None:
        return replace(total, mask=torch.zeros_like(total.mask)), {}
    inverse = torch.where(largest.abs() > params.threshold, 1 / largest, 0)
    local = torch.fft.irfftn(torch.fft.rfftn(left) * inverse, s=padded)
    return replace(total, ppm=local[:x, :y, :z], mask=done[:x, :y, :z]), {"radii": len(radii)}


def _radii(params: VSHARP, voxel_mm: float) -> list[float]:
    """From the largest radius down to the smallest; none so small that it is a single voxel and removes everything."""
    radii = [max(params.smallest_mm, SMALLEST * voxel_mm)]
    while radii[-1] * params.ratio <= params.largest_mm * 1.001:
        radii.append(radii[-1] * params.ratio)
    return radii[::-1]
