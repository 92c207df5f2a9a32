"""Total field -> local field in an eroded mask: V-SHARP or PDF."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from models.dipole import Dipole, padded_shape
from models.params import param
from pipeline.errors import ChironError
from pipeline.filters import half_a_voxel, sphere_response
from pipeline.volumes import Field, bounding_box


@dataclass(frozen=True)
class Background:
    """How the field of sources outside the mask is removed."""

    method: Literal["vsharp", "pdf"] = param("vsharp", "vsharp loses a rim; pdf keeps the mask and errs at its edge")


@dataclass(frozen=True)
class VSHARP:
    """V-SHARP (Li 2011, doi 10.1016/j.neuroimage.2010.11.088; Wu 2012, doi 10.1002/mrm.23000)."""

    largest_mm: float = param(18.0, "radius of the largest sphere, used deep inside", 1, 30)
    smallest_mm: float = param(3.0, "radius of the smallest sphere; the rim that is lost is about as wide", 0.5, 15)
    step_mm: float = param(1.5, "from radius to radius", 0.25, 10)
    threshold: float = param(0.2, "response of the largest sphere's filter below which it is not inverted", 0.001, 0.5)


@dataclass(frozen=True)
class PDF:
    """Projection onto dipole fields (Liu 2011, doi 10.1002/nbm.1670)."""

    iterations: int = param(60, "conjugate gradient steps at most", 1, 1000)
    tolerance: float = param(0.001, "size of the gradient, relative to the first, at which it stops", 1e-8, 0.5)


def remove_background(
    total: Field, params: Background = Background(), *, vsharp: VSHARP = VSHARP(), pdf: PDF = PDF()
) -> tuple[Field, dict[str, Any]]:
    """The field of the sources inside the mask, in the mask that is left, and what was lost; zero elsewhere.

    Raises P007 where no voxel of the mask is left.
    """
    box = bounding_box(total.mask, margin=1)
    inside = total.mask[box]
    field = torch.where(inside, total.ppm[box], 0)
    part = Field(torch.where(inside, field - field[inside].median(), 0), total.sd_ppm[box], inside, total.grid)
    if params.method == "pdf":
        local, mask, facts = _pdf(part, pdf)
        facts["parameters"] = asdict(pdf)
    else:
        local, mask, facts = _vsharp(part, vsharp)
        facts["parameters"] = asdict(vsharp)
    if not bool(mask.any()):
        raise ChironError("P007", "no voxel of the mask is left by the background removal", "a larger mask")
    whole, whole_mask = torch.zeros_like(total.ppm), torch.zeros_like(total.mask)
    whole[box], whole_mask[box] = torch.where(mask, local, 0), mask
    lost = 1 - float(whole_mask.sum()) / float(total.mask.sum())
    facts.update(method=params.method, eroded_share=lost, volume_share=1 - lost)
    return Field(whole, total.sd_ppm, whole_mask, total.grid), facts


def _vsharp(total: Field, params: VSHARP) -> tuple[Tensor, Tensor, dict[str, Any]]:
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


def _pdf(total: Field, params: PDF) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The field inside the mask that sources outside it explain best (weighted least squares) is background.

    Conjugate gradients on the sources outside, on a grid padded so that they may lie around the mask on all sides.
    """
    pad = [n // 4 + 4 for n in total.mask.shape]
    grow = (pad[2], pad[2], pad[1], pad[1], pad[0], pad[0])
    mask = torch.nn.functional.pad(total.mask, grow)
    weight = torch.nn.functional.pad(_relative_weight(total), grow)
    field = torch.nn.functional.pad(total.ppm, grow)
    dipole = Dipole(
        mask.shape, total.grid.voxel_size_mm, total.grid.b0_dir, padding=0.0, device=field.device, dtype=field.dtype
    )
    outside = (~mask).to(field.dtype)

    def forward(sources: Tensor) -> Tensor:
        return weight * dipole.forward(outside * sources)

    def adjoint(misfit: Tensor) -> Tensor:
        return outside * dipole.forward(weight * misfit)

    sources = torch.zeros_like(field)
    misfit = weight * field
    gradient = direction = adjoint(misfit)
    size = first = float(gradient.square().sum())
    iterations = 0
    for iterations in range(1, params.iterations + 1):  # noqa: B007
        if size == 0:
            break
        step = forward(direction)
        alpha = size / float(step.square().sum())
        sources = sources + alpha * direction
        misfit = misfit - alpha * step
        gradient = adjoint(misfit)
        size, last = float(gradient.square().sum()), size
        if size <= params.tolerance**2 * first:
            break
        direction = gradient + (size / last) * direction
    background = dipole.forward(outside * sources)
    slices = tuple(slice(p, p + n) for p, n in zip(pad, total.mask.shape, strict=True))
    return total.ppm - background[slices], total.mask, {"iterations": iterations}


def _relative_weight(total: Field) -> Tensor:
    """1 / SD in units of its median, between 0 and 2, zero outside the mask."""
    sd = total.sd_ppm.clamp_min(1e-9)
    return torch.where(total.mask, (sd[total.mask].median() / sd).clamp_max(2), 0)
