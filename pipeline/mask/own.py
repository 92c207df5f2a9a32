"""The setting `mask.file` and a scan -> the site's own mask of that scan, or why there is none that fits it.

The setting names a NIfTI file (of a single scan), a folder of masks, or a pattern with `{label}`, `{subject}`,
`{session}` or `{run}` in it. All that headers tell is checked before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipeline.convert.dicom import header_grid
from pipeline.errors import ChironError
from pipeline.find.orientation import stated_affine
from pipeline.find.scan import Scan

if TYPE_CHECKING:
    from pipeline.settings import Settings

NAMES = ("{label}_desc-brain_mask", "{label}_mask", "{label}")  # in a folder, the first that is there
FOLDERS = ("", "anat", "sub-{subject}", "sub-{subject}/anat", "sub-{subject}/ses-{session}/anat")
ENDINGS = (".nii.gz", ".nii")
KEYS = ("label", "subject", "session", "run")  # that a pattern may hold, in braces
APART = 0.5  # of the smallest voxel edge: corners nearer than that are the same place

Grid = tuple[tuple[int, ...], NDArray[Any]]


def check_source(text: str) -> None:
    """X002 where the setting names no mask that can be used, whatever the scans are."""
    if not text:
        return
    if Path(text).is_dir():
        if not any(path.name.endswith(ENDINGS) for path in Path(text).rglob("*.nii*")):
            raise ChironError("X002", "a folder without masks", "NIfTI files named as the scans are")
    elif is_pattern(text):
        if not _above(text).is_dir():
            raise ChironError("X002", "a pattern of masks in a folder that is not there", "a folder that is there")
    else:
        _check(load(Path(text)))


def check_single(settings: Settings, scans: Sequence[Scan]) -> None:
    """X002 where one mask file is to serve several scans and does not tell them apart: it fits none, or many."""
    text = settings.mask.file
    if len(scans) < 2 or not text or is_pattern(text) or Path(text).is_dir():
        return
    mask = grid_of(load(Path(text)))
    fitting = sum(grid is None or _same_place(mask, grid) for grid in map(scan_grid, scans))
    if fitting != 1:
        expected = "a folder of masks named as the scans are, or a pattern such as masks/{label}.nii.gz"
        raise ChironError("X002", f"one mask for {len(scans)} scans, of which it fits {fitting}", expected)


def with_own_mask(settings: Settings, scan: Scan) -> Settings:
    """The settings with the file of the scan's own mask, where one is asked for; X002 where none is there or fits."""
    if not settings.mask.file:
        return settings
    file = find_mask(settings.mask.file, scan)
    image = load(file)
    _check(image)
    grid = scan_grid(scan)
    placed = not settings.acquisition.orientation  # else neither states where it lies
    if grid and not (_same_place if placed else _same_size)(grid_of(image), grid):
        found = f"a mask of shape {image.shape} or place unlike the scan's"
        raise ChironError("X002", found, f"voxels and place of the scan: {grid[0]}")
    return settings.model_copy(update={"mask": replace(settings.mask, file=str(file))})


def find_mask(text: str, scan: Scan) -> Path:
    """The mask file of the scan; X002 where there is none."""
    if Path(text).is_dir():
        file = next((file for file in _candidates(Path(text), scan) if file.is_file()), None)
    else:
        file = Path(_filled(text, scan))
    if file is None or not file.exists():
        raise ChironError("X002", "no mask for this scan", f"{scan.label}.nii.gz, or the mask that a pattern names")
    return file


def is_pattern(text: str) -> bool:
    return any(f"{{{key}}}" in text for key in KEYS)


def load(file: Path) -> Any:
    """The image of a mask, with three axes; X002 where it is none."""
    try:
        image = nib.funcs.squeeze_image(nib.load(file))
    except Exception as error:  # a damaged file can make the parser fail in any way
        why = type(error).__name__ if not isinstance(error, FileNotFoundError) else "there is no such file"
        raise ChironError("X002", f"a mask that cannot be read ({why})", "a NIfTI file") from None
    if len(image.shape) != 3:
        raise ChironError("X002", f"a mask of {len(image.shape)} dimensions", "3")
    return image


def voxels(image: Any) -> NDArray[np.bool_]:
    """Where the mask is; X002 where its values are neither zero nor one other number."""
    try:
        values = np.asanyarray(image.dataobj)
    except Exception as error:  # as above
        raise ChironError("X002", f"a mask that cannot be read ({type(error).__name__})", "a NIfTI file") from None
    inside: NDArray[np.bool_] = values != 0
    if inside.any():
        low, high = values[inside].min(), values[inside].max()
        if not low == high:  # nor is it where one of them is not a number
            raise ChironError("X002", "a mask that is not binary", "0, and one other value in the brain")
    return inside


def grid_of(image: Any) -> Grid:
    """Shape and affine in mm, as the conversion takes it."""
    affine = stated_affine(image.header)
    return tuple(image.shape), np.asarray(image.affine) if affine is None else affine


def scan_grid(scan: Scan) -> Grid | None:
    """Shape and affine (voxel -> RAS mm) by the scan's headers; None where they do not tell, as its conversion will."""
    try:
        if scan.source == "dicom":
            return header_grid(scan)
        return grid_of(nib.load(scan.files[scan.volumes[0].files[0]]))
    except Exception:  # a damaged file can make a parser fail in any way
        return None


def _check(image: Any) -> None:
    if not voxels(image).any():
        raise ChironError("X002", "an empty mask", "voxels that are not zero")


def _same_size(one: Grid, other: Grid) -> bool:
    return sorted(one[0][:3]) == sorted(other[0][:3])


def _same_place(one: Grid, other: Grid) -> bool:
    """Whether both have the same voxels, in whatever order of their axes: as many, and the same corners."""
    if not _same_size(one, other):
        return False
    a, b = _corners(one), _corners(other)
    edge = min(np.linalg.norm(affine[:3, :3], axis=0).min() for _, affine in (one, other))
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1).min(axis=1)
    return bool(distances.max() < APART * edge)


def _corners(grid: Grid) -> NDArray[Any]:
    shape, affine = grid
    index = np.array(list(product(*((0, n - 1) for n in shape[:3]))))
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


def _candidates(folder: Path, scan: Scan) -> Iterator[Path]:
    for place, name, ending in product(FOLDERS, NAMES, ENDINGS):
        yield folder / _filled(place, scan) / f"{_filled(name, scan)}{ending}"


def _filled(text: str, scan: Scan) -> str:
    for key in KEYS:
        text = text.replace(f"{{{key}}}", getattr(scan, key))
    return text


def _above(pattern: str) -> Path:
    """The folder above the first part with a placeholder."""
    return next(folder for folder in Path(pattern).parents if "{" not in str(folder))
