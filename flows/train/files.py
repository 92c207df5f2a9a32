"""A folder of a site's files -> label maps, susceptibility maps, local fields; files are told by their place alone."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from models.maps import Map
from pipeline.disk import check_folder
from pipeline.errors import ChironError
from pipeline.volumes import bounding_box

LARGEST_PPM = 20.0
LEAST = 16  # voxels along each axis of a field that something can be learned from
PUBLISHED = "*_desc-local_fieldmap.nii.gz"
KINDS = {
    "label map": "a NIfTI file of FreeSurfer's codes of a head",
    "own map": "a NIfTI file of susceptibility in ppm",
    "own field": "a local field in ppm as it is published, with its sidecar",
}
T = TypeVar("T")


@dataclass(frozen=True)
class LocalField:
    """A published local field: `ppm` (X, Y, Z), zero outside its mask, and B0 in voxel axes."""

    ppm: Tensor
    voxel_size_mm: tuple[float, float, float]
    b0_dir: tuple[float, float, float]


def files(folder: Path | None, kind: str) -> tuple[Path, ...]:
    """The NIfTI files of a folder, by name; S003 where it cannot be read, X002 where there is none."""
    if folder is None:
        return ()
    check_folder(folder)
    found = tuple(sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz"))))
    if not found:
        raise ChironError("X002", f"no {kind}", KINDS[kind])
    return found


def published_fields(folder: Path) -> tuple[Path, ...]:
    """The local fields of a derivatives folder, by path; S003 where it cannot be read, X002 where there is none."""
    check_folder(folder)
    found = tuple(sorted(folder.rglob(PUBLISHED)))
    if not found:
        raise ChironError("X002", "no own field", f"files {PUBLISHED} with their sidecars")
    return found


def read_labels(file: Path) -> Tensor:
    """Codes (X, Y, Z) in RAS order of a label map of 1 mm; X002 where it is no such file."""
    image = nib.as_closest_canonical(_read(file))
    if image.ndim != 3 or not np.allclose(image.header.get_zooms()[:3], 1, atol=0.05):
        size = " x ".join(f"{v:g}" for v in image.header.get_zooms()[:3])
        raise ChironError("X002", f"{image.ndim} axes, voxels of {size} mm", "a volume with voxels of 1 mm")
    return torch.from_numpy(np.asarray(image.dataobj).astype(np.int32))


def read_map(file: Path) -> Map:
    """A susceptibility map (NIfTI, ppm, zero outside the brain), its mean taken off; X002 where it is none."""
    image = nib.as_closest_canonical(_read(file))
    chi = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))
    inside = chi != 0
    if chi.dim() != 3 or not bool(chi.isfinite().all()) or not bool(inside.any()):
        raise ChironError("X002", f"an image of shape {tuple(chi.shape)} that is no map", "a volume of finite numbers")
    if float(chi.abs().max()) > LARGEST_PPM:
        raise ChironError("X002", f"values up to {float(chi.abs().max()):.0f}", "susceptibility in ppm")
    x, y, z = (float(v) for v in image.header.get_zooms()[:3])
    return Map(torch.where(inside, chi - chi[inside].mean(), 0), inside, (x, y, z), "own")


def read_field(file: Path) -> LocalField:
    """A local field as `chiron run` publishes it, in its own voxel axes; X002 where it is none."""
    image = _read(file)
    ppm = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))
    if ppm.dim() != 3 or not bool(ppm.isfinite().all()) or float(ppm.abs().max()) > LARGEST_PPM:
        raise ChironError("X002", f"an image of shape {tuple(ppm.shape)} that is no field", "a volume in ppm")
    mask = ppm != 0
    extent = [s.stop - s.start for s in bounding_box(mask, margin=0)] if bool(mask.any()) else [0, 0, 0]
    if min(extent) < LEAST or not float(ppm[mask].std()) > 0:
        size = " x ".join(map(str, extent))
        raise ChironError("X002", f"a field over {size} voxels", f"{LEAST} or more along each axis, not all alike")
    x, y, z = (float(v) for v in image.header.get_zooms()[:3])
    return LocalField(ppm, (x, y, z), _b0_dir(sidecar_of(file)))


def sidecar_of(file: Path) -> Path:
    return file.with_name(file.name.removesuffix(".nii.gz") + ".json")


def _b0_dir(sidecar: Path) -> tuple[float, float, float]:
    try:
        said = json.loads(sidecar.read_text())
        b = np.asarray(said["B0Direction"], dtype=float)
        units = said["Units"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ChironError("X002", "no sidecar with B0Direction and Units", KINDS["own field"]) from None
    if b.shape != (3,) or not np.isfinite(b).all() or not b.any() or units != "ppm":
        raise ChironError("X002", "a sidecar with no B0 direction, or another unit", "three numbers, and ppm")
    x, y, z = (b / np.linalg.norm(b)).tolist()
    return x, y, z


def _read(file: Path) -> Any:
    try:
        image = nib.squeeze_image(nib.load(file))
        if image.ndim < 3:
            raise ValueError(image.ndim)
        return image
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
        raise ChironError("X002", "a file that cannot be read as NIfTI", "NIfTI files only") from None


def named(kind: str, index: int, work: Callable[..., T], *given: Any) -> T:
    """Work on a file, whose faults tell it by its place among the others, for its name may be a patient's."""
    which = f"{kind} {index + 1}"
    try:
        return work(*given)
    except ChironError as error:
        raise ChironError(error.code, f"{which}: {error.found}", error.expected) from None
    except (OSError, EOFError, zlib.error):  # its head could be read, its voxels not
        raise ChironError("X002", f"{which}: a file that is not whole", KINDS[kind]) from None
    except ValueError as error:
        raise ChironError("X002", f"{which}: {error}", KINDS[kind]) from None
