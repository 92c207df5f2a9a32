"""Echoes -> the mask of the brain: magnitude times phase quality, cut loose from scalp and neck, holes filled."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch import Tensor

from models.params import param
from pipeline import romeo
from pipeline.errors import ChironError, Notice
from pipeline.filters import dilate, erode, gaussian
from pipeline.volumes import Echoes, Grid


@dataclass(frozen=True)
class Mask:
    """How the brain is told from the rest."""

    file: str = param("", "own mask, a NIfTI file on the scan's grid; taken as it is")
    threshold: float = param(1.0, "share of the Otsu threshold of magnitude times quality; less takes in more", 0.1, 2)
    bridge_mm: float = param(
        12.0, "radius up to which a piece of tissue is taken for scalp, neck or a bridge to them", 1, 20
    )
    erode_mm: float = param(0.0, "taken off the rim in the end", 0, 20)


@dataclass(frozen=True)
class Masked:
    """The mask (bool), the phase quality (0 to 1, X, Y, Z), and what is to be said of them."""

    mask: Tensor
    quality: Tensor
    facts: dict[str, Any]
    notices: list[Notice] = field(default_factory=list)


SMALLEST, LARGEST = 0.005, 0.95  # shares of the volume between which a mask is believed


def make_mask(echoes: Echoes, params: Mask = Mask()) -> Masked:
    """The brain of a head scan, or the voxels of an own mask.

    Foreground is where the magnitude (root of the sum of squares, bias field removed by N4, Tustison 2010,
    doi 10.1109/TMI.2010.2046908) times the phase quality (mean ROMEO weight) passes Otsu's threshold. An erosion cuts
    the bridges to scalp and neck; of the pieces the largest is grown back within the foreground, closed and filled.
    Raises P005 where there is no signal, P007 where the mask is empty, tiny or everything.
    """
    quality = phase_quality(echoes)
    if not float(echoes.magnitude.max()) > 0:
        raise ChironError("P005", "a magnitude that is zero everywhere", "an image")
    own = Path(params.file) if params.file else None
    mask = read_mask(own, echoes.grid).to(quality.device) if own else _brain(echoes, quality, params)
    share = float(mask.float().mean())
    if not SMALLEST < share < LARGEST:
        raise ChironError("P007", f"a mask of {100 * share:.1f} % of the volume", "between 0.5 % and 95 %")
    return Masked(mask, quality, *_describe(mask, echoes.grid, bool(params.file)))


def phase_quality(echoes: Echoes) -> Tensor:
    """How well each voxel's phase agrees with its neighbours' in space and, from two echoes on, in time (0 to 1)."""
    magnitude = echoes.magnitude.cpu().numpy()
    phase, times = echoes.phase_rad.cpu().numpy(), echoes.echo_times_s
    witness = (phase[1], (times[0], times[1])) if len(times) > 1 else ()
    return torch.from_numpy(romeo.quality(phase[0], magnitude[0], *witness)).to(echoes.magnitude.device)


def read_mask(file: Path, grid: Grid) -> Tensor:
    """An own mask (bool), brought to the scan's axis order; X002 where it does not lie on the scan's grid."""
    try:
        image = nib.load(file)
        image = nib.as_closest_canonical(image)
        target = nib.io_orientation(np.asarray(grid.affine))
        turn = nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], target)
        image = image.as_reoriented(turn)
        values = np.asanyarray(image.dataobj)
    except (OSError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise ChironError("X002", f"a mask that cannot be read ({type(error).__name__})", "a NIfTI file") from None
    if values.shape != grid.shape or not np.allclose(image.affine, np.asarray(grid.affine), atol=0.1):
        raise ChironError(
            "X002", f"a mask of shape {values.shape} or place unlike the scan's", f"{grid.shape}, same affine"
        )
    return torch.from_numpy(np.nan_to_num(values) > 0.5)


def _brain(echoes: Echoes, quality: Tensor, params: Mask) -> Tensor:
    voxel = echoes.grid.voxel_size_mm
    magnitude = _without_bias(echoes.magnitude.square().sum(0).sqrt(), echoes.grid)
    score = gaussian(magnitude * quality, voxel, 0.6 * min(voxel))
    values = score.clamp_max(float(torch.quantile(score.flatten()[:: max(1, score.numel() // 1_000_000)], 0.99)))
    foreground = score > params.threshold * float(threshold_otsu(values.cpu().numpy()))
    foreground = _filled(foreground)
    core = _largest(erode(foreground, voxel, params.bridge_mm))
    grown = dilate(core, voxel, params.bridge_mm + 1.5 * min(voxel)) & foreground
    mask = _filled(_closed(_largest(grown), voxel, 1.5 * max(voxel)))
    if params.erode_mm:
        mask = erode(mask, voxel, params.erode_mm)
    return _largest(mask)


def _without_bias(magnitude: Tensor, grid: Grid) -> Tensor:
    """The magnitude without the slow shading of the coils, estimated by N4 on voxels of about 6 mm."""
    shrink = [max(1, round(6 / size)) for size in reversed(grid.voxel_size_mm)]
    array = magnitude.cpu().numpy()
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(grid.voxel_size_mm)])
    small = SimpleITK.Shrink(image, list(reversed(shrink))[::-1])
    head = SimpleITK.Cast(small > 0.2 * float(np.quantile(array, 0.98)), SimpleITK.sitkUInt8)
    corrector = SimpleITK.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([15, 15, 10])
    corrector.Execute(SimpleITK.Cast(small, SimpleITK.sitkFloat32), head)
    log_bias = SimpleITK.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    return magnitude / torch.from_numpy(np.exp(np.clip(log_bias, -2, 2))).to(magnitude.device)


def _largest(mask: Tensor) -> Tensor:
    """The largest connected piece."""
    labels, count = ndimage.label(mask.cpu().numpy())
    if count == 0:
        raise ChironError("P007", "no brain in the image", "a head with signal")
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return torch.from_numpy(labels == sizes.argmax()).to(mask.device)


def _filled(mask: Tensor) -> Tensor:
    """The mask with all that it encloses."""
    return torch.from_numpy(ndimage.binary_fill_holes(mask.cpu().numpy())).to(mask.device)


def _closed(mask: Tensor, voxel_size_mm: tuple[float, float, float], radius_mm: float) -> Tensor:
    """The mask after a closing; nothing is lost at the edges of the volume."""
    return mask | ~dilate(~dilate(mask, voxel_size_mm, radius_mm), voxel_size_mm, radius_mm)


def _describe(mask: Tensor, grid: Grid, own: bool) -> tuple[dict[str, Any], list[Notice]]:
    labels, count = ndimage.label(mask.cpu().numpy())
    sizes = np.sort(np.bincount(labels.ravel())[1:])[::-1]
    volume = float(mask.sum()) * float(np.prod(grid.voxel_size_mm)) / 1000
    facts = {
        "voxels": int(mask.sum()),
        "volume_ml": volume,
        "components": int(count),
        "source": "own" if own else "found",
    }
    notices = []
    if count > 1 and sizes[1:].sum() > 0.01 * sizes.sum():
        notices.append(
            Notice("P008", f"a mask in {count} pieces; the largest holds {100 * sizes[0] / sizes.sum():.0f} %")
        )
    return facts, notices
