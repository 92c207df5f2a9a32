"""DICOM files of one volume (or one enhanced file) -> what dcm2niix makes of them, read back; nothing of it is printed.

The converter sees links named by ordinal, in a folder of its own. Files in a transfer syntax that only pydicom decodes for
certain (compressed, big-endian, deflated, without preamble) are given to it as plain copies.
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
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.errors import ChironError
from pipeline.find.headers import number, read_dataset
from pipeline.work import disk_error

_LIMIT_S = 900
# Headers' own rescale, no compression, no defaults of the user's.
_OPTIONS = "-b y -ba y -z n -p n -g i -f v".split()


@dataclass(frozen=True)
class Converted:
    """One volume: values (X, Y, Z) float32 after rescale, affine to scanner mm (RAS+), echo time as the converter read it."""

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    echo_time_s: float | None


def run(files: list[Path], scratch: Path) -> list[Converted]:
    """Convert `files` in `scratch`; E014 where the converter fails or makes nothing."""
    source, made = scratch / "in", scratch / "out"
    try:
        for folder in (source, made):
            folder.mkdir(parents=True, mode=0o700)
        for ordinal, file in enumerate(files, 1):
            _give(file, source / f"{ordinal:06d}.dcm")
    except OSError as error:
        raise disk_error(error) from error
    merge = ["-m", "y" if len(files) > 1 else "n"]
    command = [str(dcm2niix.bin), *_OPTIONS, *merge, "-o", str(made), str(source)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
            env={"PATH": os.defpath},
        )
    except subprocess.TimeoutExpired:
        raise ChironError("E014", f"dcm2niix did not end within {_LIMIT_S} s", "a conversion") from None
    outputs = sorted(made.glob("*.nii"))
    if done.returncode or not outputs:
        raise ChironError("E014", f"dcm2niix ended with {done.returncode} and {len(outputs)} images", "one image")
    return [volume for path in outputs for volume in _load(path)]


def _load(path: Path) -> list[Converted]:
    image: Any = nib.load(path)
    values = np.asarray(image.get_fdata(dtype=np.float32))
    sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8", errors="replace"))
    volumes = np.moveaxis(values, 3, 0) if values.ndim == 4 else values[None]
    echo_time = number(sidecar.get("EchoTime")) if len(volumes) == 1 else None
    return [Converted(np.ascontiguousarray(v), np.asarray(image.affine), echo_time) for v in volumes]


def _give(file: Path, target: Path) -> None:
    """A link to the file, or a plain copy of one that the converter may not read."""
    with file.open("rb") as stream:
        plain = stream.read(132)[128:] == b"DICM"
    dataset = (
        read_dataset(file)
        if not plain or _syntax(file) not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
        else None
    )
    if dataset is None:
        target.symlink_to(file.resolve())
        return
    try:
        if dataset.file_meta.TransferSyntaxUID.is_compressed and not dataset.file_meta.TransferSyntaxUID.is_deflated:
            dataset.decompress(generate_instance_uid=False)
        elif dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
            dataset.PixelData = dataset.pixel_array.astype(dataset.pixel_array.dtype.newbyteorder("<")).tobytes()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(target, enforce_file_format=True, implicit_vr=False, little_endian=True)
    except OSError:
        raise
    except Exception as error:  # decoders fail in ways of their own
        raise ChironError("F003", "pixels that cannot be decoded", "a whole file") from error


def _syntax(file: Path) -> str:
    return str(read_file_meta_info(file).get("TransferSyntaxUID", ""))
