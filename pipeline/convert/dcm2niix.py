"""DICOM files of one volume (or one enhanced file) -> what dcm2niix makes of them, read back; nothing of it is printed.

The converter sees links named by ordinal, in a folder of its own. Files that only pydicom decodes for certain
(compressed, big-endian, deflated, without preamble) are given to it as plain copies.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dcm2niix
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.child import program
from pipeline.disk import TRIAL_BYTES, try_write
from pipeline.errors import ChironError
from pipeline.find.files import read_whole
from pipeline.find.values import number
from pipeline.work import disk_error

_LIMIT_S = 900
_TRIAL_MAX = 2**28  # bytes
# Headers' own rescale, no compression, no defaults of the user's.
_OPTIONS = ("-b", "y", "-ba", "y", "-z", "n", "-p", "n", "-g", "i", "-f", "v")


@dataclass(frozen=True)
class Converted:
    """One volume: values (X, Y, Z) after rescale, affine to scanner mm (RAS+), echo time as the converter read it."""

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    echo_time_s: float | None


def run(files: list[Path], scratch: Path) -> list[Converted]:
    """Convert `files` in `scratch`; E014 where the converter fails or makes nothing, R003 where it does not end.

    S001 or S002 where it fails because `scratch` has no room.
    """
    source, made = scratch.absolute() / "in", scratch.absolute() / "out"
    try:
        for folder in (source, made):
            folder.mkdir(parents=True, mode=0o700)
        for ordinal, file in enumerate(files, 1):
            _give(file, source / f"{ordinal:06d}.dcm")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise disk_error(error) from error
    merge = ["-m", "y" if len(files) > 1 else "n"]
    words = [*_OPTIONS, *merge, "-o", str(made), str(source)]
    try:
        done = subprocess.run(
            **program(str(dcm2niix.bin), *words, environment={"PATH": os.defpath}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChironError("R003", f"dcm2niix did not end within {_LIMIT_S} s") from None
    outputs = sorted(made.glob("*.nii"))
    if done.returncode or not outputs:
        try_write(made, max(TRIAL_BYTES, min(_TRIAL_MAX, sum(file.stat().st_size for file in files))))
        raise ChironError("E014", f"dcm2niix ended with {done.returncode} and {len(outputs)} images", "one image")
    return [volume for path in outputs for volume in _load(path)]


def _load(path: Path) -> list[Converted]:
    image: Any = nib.load(path)
    values = np.asarray(image.get_fdata(dtype=np.float32))
    sidecar = _sidecar(path.with_suffix(".json"))
    volumes = np.moveaxis(values, 3, 0) if values.ndim == 4 else values[None]
    echo_time = number(sidecar.get("EchoTime")) if len(volumes) == 1 else None
    return [Converted(np.ascontiguousarray(v), np.asarray(image.affine), echo_time) for v in volumes]


def _sidecar(path: Path) -> dict[str, Any]:
    """What the converter says of an image; nothing where it repeats words of the header that are no JSON."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"), strict=False)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _give(file: Path, target: Path) -> None:
    """A link to the file, or a plain copy of one that the converter may not read."""
    if _readable(file):
        target.symlink_to(file.resolve())
        return
    try:
        plain = _plain(read_whole(file))
        plain.preamble = bytes(128)
        dcmwrite(target, plain, implicit_vr=False, little_endian=True, force_encoding=True)
    except (OSError, ChironError):
        raise
    except Exception as error:  # decoders fail in ways of their own
        raise ChironError("F003", "pixels that cannot be decoded", "a whole file") from error


def _readable(file: Path) -> bool:
    with file.open("rb") as stream:
        if stream.read(132)[128:] != b"DICM":
            return False
    syntax = read_file_meta_info(file).get("TransferSyntaxUID", "")
    return syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


def _plain(dataset: FileDataset) -> FileDataset:
    """The same image as explicit little-endian DICOM."""
    syntax = dataset.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    if syntax.is_encapsulated:
        dataset.decompress(generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        pixels = dataset.pixel_array
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
        list(dataset.iterall())  # decodes every element, which would be written as it was read
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset
