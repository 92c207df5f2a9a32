"""Echoes -> the mask of the brain, found from magnitude and phase quality, by a network, or taken from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import Tensor

from models.params import param
from pipeline import romeo
from pipeline.errors import ChironError, Notice
from pipeline.filters import erode
from pipeline.find.orientation import affine_of, read_header, stated_affine
from pipeline.mask.brain import tissue
from pipeline.mask.network import deepbet
from pipeline.mask.own import load, voxels
from pipeline.mask.shapes import largest, pieces
from pipeline.volumes import Echoes, Grid

__all__ = ["Mask", "Masked", "make_mask", "phase_quality", "read_mask"]


@dataclass(frozen=True)
class Mask:
    """How the brain is told from the rest."""

    method: Literal["tissue", "deepbet"] = param(
        "tissue", "tissue needs nothing else; deepbet is a network trained on T1-weighted images, an extra to install"
    )
    file: str = param(
        "",
        "own mask, a NIfTI file on the scan's grid, taken as it is; of several scans a folder of masks named as these, "
        "or a pattern such as masks/{label}.nii.gz",
    )
    threshold: float = param(
        0.75, "least signal of brain tissue as a share of that around it; less takes in more CSF", 0.3, 1
    )
    bridge_mm: float = param(10.0, "radius up to which a piece is taken for scalp, neck or a bridge to them", 1, 20)
    close_mm: float = param(10.0, "radius up to which sulci and gaps between tissue belong to the brain", 0, 20)
    erode_mm: float = param(0.0, "taken off the rim in the end", 0, 20)
    two_pass: bool = param(False, "tell the reliable voxels from the others in the mask, for a map of each")
    holes: float = param(
        1.3, "with two_pass, least phase quality of a reliable voxel as a share of its Otsu threshold", 0.1, 2
    )


@dataclass(frozen=True)
class Masked:
    """The filled mask (bool), its reliable voxels (bool; all of it without `two_pass`), the phase quality (0 to 1).

    All (X, Y, Z); and what is to be said of them.
    """

    mask: Tensor
    reliable: Tensor
    quality: Tensor
    facts: dict[str, Any]
    notices: list[Notice] = field(default_factory=list)


METHODS: dict[str, Callable[[Echoes, Tensor, Mask], Tensor]] = {
    "tissue": lambda echoes, quality, p: tissue(echoes, quality, p.threshold, p.bridge_mm, p.close_mm),
    "deepbet": lambda echoes, quality, p: deepbet(echoes),
}
SMALLEST, LARGEST = 0.005, 0.95  # shares of the volume between which a mask is believed


def make_mask(echoes: Echoes, params: Mask = Mask(), orientation: str = "") -> Masked:
    """The brain of a head scan by one of `METHODS`, or the voxels of an own mask.

    `orientation` holds the axis codes of a mask's file that states none. Raises P005 where there is no signal, P007
    where the mask is empty, tiny or everything, X002 where an own mask does not fit, X003 where a tool is asked for
    that is not installed.
    """
    quality = phase_quality(echoes)
    if not float(echoes.magnitude.max()) > 0:
        raise ChironError("P005", "a magnitude that is zero everywhere", "an image")
    mask = _own_or_found(echoes, quality, params, orientation).to(quality.device)
    share = float(mask.float().mean())
    if not SMALLEST < share < LARGEST:
        raise ChironError("P007", f"a mask of {100 * share:.1f} % of the volume", "between 0.5 % and 95 %")
    reliable = mask & _agrees(quality, params.holes) if params.two_pass else mask
    facts, notices = _describe(mask, echoes.grid)
    facts |= {"source": "own" if params.file else params.method}
    facts |= {"reliable_share": float(reliable.sum()) / float(mask.sum())}
    return Masked(mask, reliable, quality, facts, notices)


def phase_quality(echoes: Echoes) -> Tensor:
    """How well each voxel's phase agrees with its neighbours' in space and, from two echoes on, in time (0 to 1)."""
    magnitude = echoes.magnitude.cpu().numpy()
    phase, times = echoes.phase_rad.cpu().numpy(), echoes.echo_times_s
    witness = (phase[1], (times[0], times[1])) if len(times) > 1 else ()
    return torch.from_numpy(romeo.quality(phase[0], magnitude[0], *witness)).to(echoes.magnitude.device)


def read_mask(file: Path, grid: Grid, orientation: str = "") -> Tensor:
    """An own mask (bool), brought to the scan's axis order; X002 where it does not lie on the scan's grid.

    Of a file that states no orientation the axes run as `orientation` has it, and its place is that of the scan.
    """
    image, header = load(file), read_header(file)
    stated = stated_affine(header) if header is not None else None
    if header is not None and stated is None and not orientation:
        what = "a mask without orientation (qform_code and sform_code are 0, or their matrix spans no space)"
        raise ChironError("X002", what, "a mask with the scan's orientation", "Give it with --orientation.")
    if header is not None:
        image = nib.Nifti1Image(image.dataobj, affine_of(header, orientation) if stated is None else stated)
    image = nib.as_closest_canonical(image)
    target = nib.io_orientation(np.asarray(grid.affine))
    image = image.as_reoriented(nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], target))
    same_place = (header is not None and stated is None) or np.allclose(image.affine, np.asarray(grid.affine), atol=0.1)
    if image.shape != grid.shape or not same_place:
        fault = f"a mask of shape {image.shape} or place unlike the scan's"
        raise ChironError("X002", fault, f"{grid.shape}, same affine")
    return torch.from_numpy(voxels(image))


def _own_or_found(echoes: Echoes, quality: Tensor, params: Mask, orientation: str) -> Tensor:
    if params.file:
        return read_mask(Path(params.file), echoes.grid, orientation)
    mask = METHODS[params.method](echoes, quality, params)
    return largest(erode(mask, echoes.grid.voxel_size_mm, params.erode_mm)) if params.erode_mm else mask


def _agrees(quality: Tensor, share: float) -> Tensor:
    """Voxels whose phase quality passes `share` of its Otsu threshold: the second pass of QSMxT (Stewart 2022,
    doi 10.1002/mrm.29048), which leaves holes where the first, filled, bridges bad phase."""
    return quality > share * float(threshold_otsu(quality.cpu().numpy()))


def _describe(mask: Tensor, grid: Grid) -> tuple[dict[str, Any], list[Notice]]:
    _, sizes = pieces(mask)
    sizes = np.sort(sizes[1:])[::-1]
    volume = float(mask.sum()) * float(np.prod(grid.voxel_size_mm)) / 1000
    facts = {"voxels": int(mask.sum()), "volume_ml": volume, "components": len(sizes)}
    if len(sizes) < 2 or sizes[1:].sum() <= 0.01 * sizes.sum():
        return facts, []
    share = 100 * sizes[0] / sizes.sum()
    return facts, [Notice("P008", f"a mask in {len(sizes)} pieces; the largest holds {share:.0f} %")]
