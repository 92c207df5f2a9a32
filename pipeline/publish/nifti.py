"""A volume on its grid -> the bytes of a compressed NIfTI file, the same bytes every time."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
from torch import Tensor

import pipeline
from pipeline.errors import ChironError
from pipeline.volumes import Grid

SCANNER = 1  # NIfTI's code for scanner coordinates


def image_bytes(volume: Tensor, grid: Grid, window: tuple[float, float] = (0, 0)) -> bytes:
    """NIfTI-1, gzip: float32, or uint8 where `volume` is; mm, qform = sform. P006 where a value is not finite.

    Viewers open the image at `window`, from black to white (`cal_min`, `cal_max`); (0, 0) leaves the choice to them.
    """
    values = volume.detach().cpu().numpy()
    if not np.isfinite(values).all():
        raise ChironError("P006", "a result with values that are not finite", "numbers only")
    kind = np.uint8 if values.dtype in (np.uint8, np.bool_) else np.float32
    image = nib.Nifti1Image(np.ascontiguousarray(values, dtype=kind), np.asarray(grid.affine))
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = f"Chiron {pipeline.__version__}: research use only"
    image.header["cal_min"], image.header["cal_max"] = window
    image.set_qform(np.asarray(grid.affine), SCANNER)
    image.set_sform(image.get_qform(), SCANNER)  # what a quaternion can say, so that both say the same
    return gzip.compress(image.to_bytes(), compresslevel=5, mtime=0)
