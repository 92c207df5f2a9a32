"""A mask -> its pieces, filled, opened or closed by a radius in mm, or on another grid."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate, pad

from pipeline.errors import ChironError
from pipeline.filters import Triple, dilate, erode


def pieces(mask: Tensor) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The number (from 1) of the connected piece of each voxel, and the voxels of each; those outside are piece 0."""
    labels, count = ndimage.label(mask.cpu().numpy())
    return labels, np.bincount(labels.ravel(), minlength=count + 1)


def largest(mask: Tensor) -> Tensor:
    """The largest connected piece; P007 where there is none."""
    labels, sizes = pieces(mask)
    if len(sizes) < 2:
        raise ChironError("P007", "no brain in the image", "a head with signal")
    return torch.from_numpy(labels == sizes[1:].argmax() + 1).to(mask.device)


def touching(mask: Tensor, other: Tensor) -> Tensor:
    """The pieces of `mask` that share a voxel with `other`."""
    labels, sizes = pieces(mask)
    chosen = np.zeros(len(sizes), np.bool_)
    chosen[np.unique(labels[other.cpu().numpy()])] = True
    chosen[0] = False
    return torch.from_numpy(chosen[labels]).to(mask.device)


def filled(mask: Tensor) -> Tensor:
    """The mask with all that it encloses."""
    return torch.from_numpy(ndimage.binary_fill_holes(mask.cpu().numpy())).to(mask.device)


def closed(mask: Tensor, voxel_size_mm: Triple, radius_mm: float) -> Tensor:
    """The mask after a closing; nothing is lost at the edges of the volume."""
    reach = [math.ceil(radius_mm / size) + 1 for size in voxel_size_mm]
    wide = pad(mask.float(), [r for r in reversed(reach) for _ in range(2)]) > 0.5
    wide = ~dilate(~dilate(wide, voxel_size_mm, radius_mm), voxel_size_mm, radius_mm)
    inner = tuple(slice(r, r + n) for r, n in zip(reach, mask.shape, strict=True))
    return mask | wide[inner]


def opened(mask: Tensor, voxel_size_mm: Triple, radius_mm: float) -> Tensor:
    """The mask without what is thinner than twice the radius; the edges of the volume count as its rim."""
    return regrown(erode(mask, voxel_size_mm, radius_mm), mask, voxel_size_mm, radius_mm)


def regrown(core: Tensor, mask: Tensor, voxel_size_mm: Triple, radius_mm: float) -> Tensor:
    """What of the mask lies within `radius_mm` of a core that was eroded by as much."""
    return dilate(core, voxel_size_mm, radius_mm + 0.75 * min(voxel_size_mm)) & mask


def resample(volume: Tensor, shape: Triple) -> Tensor:
    """A volume (..., X, Y, Z) on another number of voxels in the same box: means where coarser, else linear."""
    batch = volume.reshape(1, -1, *volume.shape[-3:])
    target = [int(n) for n in shape]
    batch = interpolate(batch, [min(n, t) for n, t in zip(volume.shape[-3:], target, strict=True)], mode="area")
    batch = interpolate(batch, target, mode="trilinear", align_corners=False)
    return batch.reshape(*volume.shape[:-3], *target)
