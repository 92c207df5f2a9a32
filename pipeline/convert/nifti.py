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
from pipeline.convert.stored import Stored, StoredPhase, given_times, overrides
from pipeline.errors import ChironError
from pipeline.find.scan import Scan
from pipeline.volumes import Grid


def convert_nifti(scan: Scan, acquisition: Acquisition) -> Stored:
    """Values and affines as they stand in the files; E011 where two of them differ in shape or place."""
    images = {(v.part, v.echo): _load(scan.files[v.files[0]]) for v in scan.volumes}
    shape, affine = next(iter(images.values()))[0].shape, next(iter(images.values()))[1]
    for values, own in images.values():
        if values.shape != shape or not np.allclose(own, affine, atol=1e-3):
            raise ChironError("E011", "images of different shape or place in one scan", "one grid")
    grid = Grid.from_affine(shape, affine)
    if scan.b0_dir:
        length = float(np.linalg.norm(scan.b0_dir))
        grid = replace(grid, b0_dir=tuple(c / length for c in scan.b0_dir))  # type: ignore[arg-type]
    times = given_times(scan.echo_times_s, acquisition)
    first, second = (torch.stack([images[part, e][0] for e in range(len(times))]) for part in scan.parts)
    return Stored(
        kind="magnitude-phase" if scan.parts[0] == "magnitude" else "real-imaginary",
        first=first,
        second=second,
        echo_times_s=times,
        b0_tesla=acquisition.b0_tesla or scan.b0_tesla,
        grid=grid,
        vendor=scan.vendor,
        facts={"field_strength_tesla": acquisition.b0_tesla or scan.b0_tesla, "source": "BIDS"},
        stored_phase=StoredPhase(unit=scan.phase_unit),
        decisions=overrides(acquisition),
    )


def _load(path: Path) -> tuple[Tensor, Any]:
    """Values (X, Y, Z) and affine of a NIfTI file; F003 where it breaks off or is none."""
    try:
        image: Any = nib.load(path)
        values = np.asarray(image.get_fdata(dtype=np.float32))
    except FileNotFoundError:
        raise ChironError("F016", "a file of the scan that vanished") from None
    except Exception as error:  # a damaged file can make the parser fail in any way
        raise ChironError("F003", "a NIfTI file that breaks off or is damaged", "a whole file") from error
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise ChironError("E011", f"an image of {values.ndim} dimensions", "one volume (x, y, z) a file")
    return torch.from_numpy(np.ascontiguousarray(values)), image.affine
