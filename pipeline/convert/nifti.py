"""A scan of a BIDS dataset -> its stored echoes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from pipeline.acquisition import Acquisition
from pipeline.convert.b0 import B0
from pipeline.convert.stored import Stored, StoredPhase, given_times, overrides
from pipeline.errors import ChironError
from pipeline.find.orientation import orientation, read_header
from pipeline.find.scan import Scan
from pipeline.volumes import Grid


def convert_nifti(scan: Scan, acquisition: Acquisition) -> Stored:
    """Values and affines as they stand in the files; E011 where two of them differ in shape or place."""
    paths = {(v.part, v.echo): scan.files[v.files[0]] for v in scan.volumes}
    images = {key: _load(path) for key, path in paths.items()}
    placed = orientation(list(paths.values()), acquisition.orientation, scan.b0_dir)
    if len(placed.affines) < len(images):
        raise ChironError("F003", "a NIfTI file whose header cannot be read", "a whole file")
    shape, affine = next(iter(images.values())).shape, placed.affines[next(iter(paths.values()))]
    for key, path in paths.items():
        if images[key].shape != shape or not np.allclose(placed.affines[path], affine, atol=1e-3):
            raise ChironError("E011", "images of different shape or place in one scan", "one grid")
    grid = Grid.from_affine(shape, affine)
    if scan.b0_dir:
        length = float(np.linalg.norm(scan.b0_dir))
        grid = replace(grid, b0_dir=tuple(c / length for c in scan.b0_dir))  # type: ignore[arg-type]
    b0 = B0.of(scan, acquisition)
    times = given_times(scan.echo_times_s, acquisition)
    first, second = (torch.stack([images[part, e] for e in range(len(times))]) for part in scan.parts)
    return Stored(
        kind="magnitude-phase" if scan.parts[0] == "magnitude" else "real-imaginary",
        first=first,
        second=second,
        echo_times_s=times,
        b0_tesla=b0.tesla,
        grid=grid,
        vendor=scan.vendor,
        facts={**b0.header(), "source": "BIDS"},
        stored_phase=StoredPhase(unit=scan.phase_unit),
        decisions=(*overrides(acquisition), b0.decision(), *placed.decisions),
    )


def _load(path: Path) -> Tensor:
    """Values (X, Y, Z) of a NIfTI file; F003 where it breaks off or is none."""
    try:
        values = np.asarray(_data(path), dtype=np.float32)
    except FileNotFoundError:
        raise ChironError("F016", "a file of the scan that vanished") from None
    except Exception as error:  # a damaged file can make the parser fail in any way
        raise ChironError("F003", "a NIfTI file that breaks off or is damaged", "a whole file") from error
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise ChironError("E011", f"an image of {values.ndim} dimensions", "one volume (x, y, z) a file")
    return torch.from_numpy(np.ascontiguousarray(values))


def _data(path: Path) -> Any:
    """The scaled data of an image, which need no affine: nibabel's loader fails at a quaternion that is no rotation."""
    try:
        return nib.load(path).dataobj
    except ValueError:
        return nib.arrayproxy.ArrayProxy(str(path), read_header(path))
