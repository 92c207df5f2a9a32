"""Echoes and phase quality -> the brain: tissue as bright as its surroundings, cut loose from the head, closed.

Brain tissue differs from cerebrospinal fluid in its first echo (longitudinal relaxation) or in its decay, from bone
and air in both, and from scalp and neck by the dark skull between. What is bright enough is found relative to the
tissue within some centimetres, so that coils' shading does not matter. All radii are in mm, on a grid of 2 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch import Tensor

from pipeline.filters import dilate, erode, gaussian
from pipeline.mask.shapes import closed, filled, largest, opened, pieces, regrown, resample, touching
from pipeline.volumes import Echoes

GRID_MM = 2.0
TIE = 0.1  # voxels: round sizes, an odd number of 1 or 3 mm, do not come to lie where rounding turns
SURROUNDINGS_MM = 10.0  # Gaussian sigma over which tissue is compared
BRIGHTEST = 1.5  # times its surroundings: more is fat or inflow
SLOWEST = 0.45  # times the R2* of the brain: less is cerebrospinal fluid
WORST = 0.3  # phase quality of a voxel that is taken for tissue
DARK = 0.35  # times its surroundings: less is bone, air or a void
REGROW_MM = 6.0  # gyri that an opening takes off
VOID_MM = 2.0  # radius of a void at the rim that is left out
SPUR_MM = 4.0  # radius of what sticks out of the brain and is left out


@dataclass(frozen=True)
class Maps:
    """What tells tissues apart, on one coarse grid: first echo without shading, R2* (1/s, None where it is not known),
    phase quality; voxel size in mm."""

    signal: Tensor
    r2star: Tensor | None
    quality: Tensor
    voxel: tuple[float, float, float]


def tissue(echoes: Echoes, quality: Tensor, threshold: float, bridge_mm: float, close_mm: float) -> Tensor:
    """The brain with sulci and ventricles (bool, X, Y, Z).

    An erosion of the foreground (magnitude times phase quality over Otsu's threshold) by `bridge_mm` gives its core.
    Around it, tissue is what has at least `threshold` of the signal of the tissue around, decays as brain does and has
    coherent phase; bridges of half of `bridge_mm` are cut. Closing by `close_mm` adds sulci, not bright fat; dark or
    incoherent voids at the rim are left out, those inside are kept. P007 where nothing is left.
    """
    maps, foreground = _prepare(echoes, quality)
    core = _core(foreground, maps, bridge_mm)
    found, relative = _tissue(maps, core, foreground, threshold, bridge_mm)
    mask = filled(found | closed(found, maps.voxel, close_mm) & (relative < BRIGHTEST))
    mask &= ~_voids(mask, (relative < DARK) | (maps.quality < WORST), maps.voxel)
    mask = filled(largest(opened(mask, maps.voxel, SPUR_MM)))
    return resample(gaussian(mask.float(), maps.voxel, 0.4 * GRID_MM), echoes.grid.shape) > 0.5


def _prepare(echoes: Echoes, quality: Tensor) -> tuple[Maps, Tensor]:
    """The maps on voxels of about `GRID_MM`, and the foreground."""
    sizes = echoes.grid.voxel_size_mm
    shape = [max(1, round(n * size / GRID_MM + TIE)) for n, size in zip(echoes.grid.shape, sizes, strict=True)]
    x, y, z = (n * size / m for n, size, m in zip(echoes.grid.shape, sizes, shape, strict=True))
    voxel = (x, y, z)
    magnitude, quality = resample(echoes.magnitude, shape), resample(quality, shape)
    total = magnitude.square().sum(0).sqrt()
    shading = _shading(total, voxel)
    score = gaussian(total / shading * quality, voxel, 0.3 * GRID_MM)
    score = score.clamp_max(float(torch.quantile(score.flatten()[:: max(1, score.numel() // 1_000_000)], 0.99)))
    foreground = filled(score > float(threshold_otsu(score.cpu().numpy())))
    r2star = _r2star(magnitude, echoes.echo_times_s, voxel) if len(magnitude) > 1 else None
    return Maps(gaussian(magnitude[0] / shading, voxel, 0.5 * GRID_MM), r2star, quality, voxel), foreground


def _shading(magnitude: Tensor, voxel: tuple[float, float, float]) -> Tensor:
    """The slow shading of the coils by N4 (Tustison 2010, doi 10.1109/TMI.2010.2046908), on voxels of about 8 mm.

    N4 is told no voxel size: its splines span the volume whatever that is, and would follow its last digits.
    """
    array = magnitude.cpu().numpy()
    image = SimpleITK.GetImageFromArray(array)
    counts = zip(voxel, magnitude.shape, strict=True)
    factors = [max(1, min(round(8 / size), n // 8)) for size, n in counts]
    small = SimpleITK.Shrink(image, factors[::-1])
    head = SimpleITK.Cast(small > 0.2 * float(np.quantile(array, 0.98)), SimpleITK.sitkUInt8)
    corrector = SimpleITK.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([15, 10])
    corrector.Execute(SimpleITK.Cast(small, SimpleITK.sitkFloat32), head)
    shading = SimpleITK.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    return torch.from_numpy(np.exp(np.clip(shading, -2, 2))).to(magnitude)


def _r2star(magnitude: Tensor, echo_times_s: tuple[float, ...], voxel: tuple[float, float, float]) -> Tensor:
    """Decay rate in 1/s: the slope of the logarithm, weighted by the squared magnitude, of neighbouring voxels."""
    times = torch.tensor(echo_times_s, device=magnitude.device).view(-1, 1, 1, 1)
    near = gaussian(magnitude, voxel, 0.75 * GRID_MM).clamp_min(1e-6 * float(magnitude.max()))
    weight, log = near.square(), near.log()
    total = weight.sum(0)
    time, height = (weight * times).sum(0) / total, (weight * log).sum(0) / total
    slope: Tensor = (weight * (times - time) * (log - height)).sum(0) / (weight * (times - time).square()).sum(0)
    return -slope


def _core(foreground: Tensor, maps: Maps, radius_mm: float) -> Tensor:
    """The largest piece of the eroded foreground, and others that are brain by their signal: a cerebellum, say."""
    labels, sizes = pieces(erode(foreground, maps.voxel, radius_mm))
    main = largest(torch.from_numpy(labels > 0).to(foreground.device))
    signal = float(maps.signal[main].median())
    decay = float(maps.r2star[main].median()) if maps.r2star is not None else 0.0
    reach = np.asarray(ndimage.distance_transform_edt(~main.cpu().numpy(), sampling=maps.voxel))
    for number in np.flatnonzero(sizes > 0.02 * float(main.sum()))[1:]:
        piece = torch.from_numpy(labels == number).to(main.device)
        if bool((piece & main).any()) or reach[labels == number].min() > 2.5 * radius_mm:
            continue
        alike = 0.7 < float(maps.signal[piece].median()) / signal < 1.35
        if maps.r2star is not None:
            alike &= 0.6 < float(maps.r2star[piece].median()) / max(decay, 1e-3) < 1.4
        if alike and not _cropped(piece, maps.voxel, radius_mm + 3):
            main = main | piece
    return main


def _cropped(piece: Tensor, voxel: tuple[float, float, float], margin_mm: float) -> bool:
    """Whether the piece comes as near as that to an end of the volume, as neck and shoulders do."""
    for axis, size in enumerate(voxel):
        at = piece.any(dim=[a for a in range(3) if a != axis]).nonzero()
        if min(int(at[0]), piece.shape[axis] - 1 - int(at[-1])) * size < margin_mm:
            return True
    return False


def _tissue(maps: Maps, core: Tensor, foreground: Tensor, threshold: float, bridge_mm: float) -> tuple[Tensor, Tensor]:
    """Brain tissue, and the signal of every voxel relative to the tissue around it, each found from the other."""
    voxel = maps.voxel
    around = regrown(core, foreground, voxel, bridge_mm + 0.75 * min(voxel))
    near = dilate(around, voxel, 2 * GRID_MM)
    sure = erode(around, voxel, bridge_mm / 2)
    for _ in range(3):
        sure = sure if bool(sure.any()) else core
        relative = _relative(maps.signal, sure, voxel)
        found = near & (relative > threshold) & (relative < BRIGHTEST) & (maps.quality > WORST)
        found &= _decays(maps.r2star, sure)
        inner = touching(opened(found, voxel, bridge_mm / 2), core)
        sure = erode(inner, voxel, GRID_MM) & (relative > 0.85) & (relative < 1.25)
    return largest(found & dilate(inner, voxel, min(REGROW_MM, bridge_mm))), relative


def _relative(signal: Tensor, sure: Tensor, voxel: tuple[float, float, float]) -> Tensor:
    """The signal over its mean in the sure tissue around; far from any, over the median of all of that."""
    level, few = float(signal[sure].median()), 1e-3
    share = gaussian(sure.float(), voxel, SURROUNDINGS_MM)
    around = (gaussian(signal * sure, voxel, SURROUNDINGS_MM) + few * level) / (share + few)
    return signal / around.clamp_min(1e-3 * level)


def _decays(r2star: Tensor | None, sure: Tensor) -> Tensor:
    """Where the signal decays as fast as tissue; everywhere where echoes are too few or too near to tell."""
    if r2star is None:
        return torch.ones_like(sure)
    middle = r2star[sure].median()
    spread = 1.48 * (r2star[sure] - middle).abs().median()
    return (r2star > SLOWEST * middle) | (spread > 0.6 * middle)


def _voids(mask: Tensor, bad: Tensor, voxel: tuple[float, float, float]) -> Tensor:
    """The bad voxels that reach the outside through a passage wider than `VOID_MM` to each side."""
    outside = ~mask | bad
    wide = dilate(~dilate(~outside, voxel, VOID_MM), voxel, VOID_MM) & outside
    return touching(wide, ~mask)
