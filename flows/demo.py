"""A seed, a vendor, a voxel size -> a simulated scan as that vendor's scanner exports it, with the truth beside it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from models.gre import simulate_scan
from pipeline.errors import ChironError
from pipeline.names import meant
from pipeline.report.pictures import CHI
from pipeline.scanner import VENDORS, magnet_tesla, write_export
from pipeline.volumes import Grid
from pipeline.work import disk_error

FIELD_OF_VIEW_MM = (192.0, 228.0, 192.0)  # of a whole head
ECHO_TIMES_S = (0.004, 0.010, 0.016, 0.022, 0.028)
NOMINAL_TESLA = 3.0
SMALLEST_VOXEL_MM, LARGEST_VOXEL_MM = 1.0, 6.0


@dataclass(frozen=True)
class Simulated:
    """Where a simulated scan lies: the export, the true susceptibility (ppm), the true brain and the tissue labels."""

    folder: Path

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def truth(self) -> Path:
        return self.folder / "true_Chimap.nii.gz"

    @property
    def brain(self) -> Path:
        return self.folder / "true_desc-brain_mask.nii.gz"

    @property
    def labels(self) -> Path:
        return self.folder / "true_dseg.nii.gz"


def simulate(folder: Path, vendor: str, voxel_size_mm: float, seed: int) -> Simulated:
    """Simulate a scan into a folder of its own below `folder`, or find it there; same arguments, same bytes.

    X002 where the vendor is unknown or the voxel size is not within 1 to 6 mm; S001 or S002 where it cannot be written.
    """
    vendor = checked(vendor, voxel_size_mm)
    made = Simulated(folder / f"{vendor}-{voxel_size_mm:g}mm-seed{seed}")
    if made.brain.is_file():
        return made
    aside = Simulated(folder / f".{made.folder.name}")
    try:
        for old in (aside.folder, made.folder):
            shutil.rmtree(old, ignore_errors=True)
        aside.folder.mkdir(parents=True)
        _write(aside, vendor, voxel_size_mm, seed)
        aside.folder.rename(made.folder)
    except OSError as error:
        shutil.rmtree(aside.folder, ignore_errors=True)
        raise disk_error(error) from error
    return made


def checked(vendor: str, voxel_size_mm: float) -> str:
    """The vendor's name; X002 where it is unknown, or the voxel size is not within 1 to 6 mm."""
    vendor = meant(vendor, VENDORS, "vendor")
    if not SMALLEST_VOXEL_MM <= voxel_size_mm <= LARGEST_VOXEL_MM:
        raise ChironError(
            "X002", f"voxels of {voxel_size_mm:g} mm", f"{SMALLEST_VOXEL_MM:g} to {LARGEST_VOXEL_MM:g} mm"
        )
    return vendor


def _write(made: Simulated, vendor: str, voxel_size_mm: float, seed: int) -> None:
    shape = [2 * round(length / voxel_size_mm / 2) for length in FIELD_OF_VIEW_MM]
    size = (voxel_size_mm,) * 3
    b0 = magnet_tesla(vendor, NOMINAL_TESLA)  # type: ignore[arg-type]
    scan = simulate_scan(shape, size, echo_times_s=ECHO_TIMES_S, b0_tesla=b0, oversample=2, seed=seed)
    grid = Grid.simple(shape, size)
    write_export(scan.signal, grid, ECHO_TIMES_S, scan.b0_tesla, made.export, vendor=vendor, seed=seed)  # type: ignore[arg-type]
    _save(scan.head.chi_ppm, grid, made.truth, (CHI.low, CHI.high))
    _save(scan.head.brain.to(torch.int16), grid, made.brain)
    _save(scan.head.labels, grid, made.labels)


def _save(volume: Tensor, grid: Grid, path: Path, window: tuple[float, float] = (0, 0)) -> None:
    """`window` is what viewers show from black to white; (0, 0) leaves it to them."""
    values = volume.cpu().numpy()
    kind = np.int16 if values.dtype.kind in "iu" else np.float32
    image = nib.Nifti1Image(values.astype(kind), np.asarray(grid.affine))
    image.header["cal_min"], image.header["cal_max"] = window
    nib.save(image, path)
