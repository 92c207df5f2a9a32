"""The cells of the grid, as data: how heads are scanned; and one cell and one anatomy -> a simulated scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from models.gre import Simulation, scan_head
from models.head import Head, head_from_labels, resample_labels, simulate_head
from pipeline.disk import check_folder
from pipeline.errors import ChironError

FIELD_OF_VIEW_MM = (176, 208, 176)
FOUR_ECHOES = (0.004, 0.012, 0.020, 0.028)


@dataclass(frozen=True)
class Cell:
    """A scan: `oversample` finer voxels along each axis are simulated and averaged, where voxels are large."""

    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    oversample: tuple[int, int, int] = (1, 1, 1)
    snr: float = 100.0
    b0_tesla: float = 3.0
    b0_dir: tuple[float, float, float] = (0.0, 0.0, 1.0)
    echo_times_s: tuple[float, ...] = FOUR_ECHOES
    lesions: tuple[str, ...] = ()
    bipolar: bool = False
    field_of_view_mm: tuple[float, float, float] = FIELD_OF_VIEW_MM

    @property
    def fine_mm(self) -> tuple[float, ...]:
        return tuple(v / n for v, n in zip(self.voxel_mm, self.oversample, strict=True))


TWO_MM: dict[str, Any] = {"voxel_mm": (2.0, 2.0, 2.0), "oversample": (2, 2, 2)}
SEVEN_TESLA: dict[str, Any] = {
    "voxel_mm": (1.0, 1.0, 2.0),
    "oversample": (1, 1, 2),
    "b0_tesla": 7.0,
    "echo_times_s": (0.004, 0.008, 0.012, 0.016),
    "bipolar": True,
}
CELLS: dict[str, Cell] = {
    "2mm": Cell(**TWO_MM),
    "2mm-calcification": Cell(**TWO_MM, snr=50.0, b0_dir=(0.15, 0.0, 1.0), lesions=("calcification",)),
    "2mm-haemorrhage": Cell(**TWO_MM, snr=30.0, b0_dir=(0.3, 0.2, 1.0), lesions=("haemorrhage",)),
    "1mm-calcification": Cell(lesions=("calcification",)),
    "1mm-noisy-tilted": Cell(
        snr=30.0,
        b0_dir=(0.3, 0.2, 1.0),
        echo_times_s=(0.005, 0.010, 0.015, 0.020, 0.025),
        lesions=("calcification",),
    ),
    "7t": Cell(**SEVEN_TESLA, snr=50.0, b0_dir=(0.1, 0.1, 1.0)),
    "7t-noisy-tilted": Cell(**SEVEN_TESLA, snr=30.0, b0_dir=(0.3, 0.2, 1.0)),
}
QUICK = tuple(name for name, cell in CELLS.items() if min(cell.voxel_mm) >= 2)


@dataclass(frozen=True)
class Anatomy:
    """A head by its seed; its shape is procedural, or that of a label map, `name` being all that is told of it."""

    name: str
    seed: int
    labels: Path | None = None


def anatomies(seeds: tuple[int, ...], place: int, labels: list[Path]) -> list[Anatomy]:
    """The heads of the cell at `place` in the list: for each seed a procedural one and, where there are, a label map.

    Every cell has other heads, so that few seeds make many anatomies; label maps are taken in turn.
    """
    found = []
    for turn, seed in enumerate(seeds):
        found.append(Anatomy(f"procedural {seed + place}", seed + place))
        if labels:
            number = (turn * len(CELLS) + place) % len(labels)
            found.append(Anatomy(f"label map {number + 1}", seed + place, labels[number]))
    return found


def label_maps(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, by name; S003 where it cannot be read, X002 where there is none."""
    check_folder(folder)
    found = sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz")))
    if not found:
        raise ChironError("X002", "no label map", "NIfTI files of FreeSurfer's codes")
    return found


def simulate(cell: Cell, anatomy: Anatomy) -> Simulation:
    """Scan the head; X002 as for `finer_head`."""
    return scan(cell, anatomy, finer_head(cell, anatomy))


def scan(cell: Cell, anatomy: Anatomy, head: Head) -> Simulation:
    """The cell's scan of a head of the cell's finer voxels."""
    return scan_head(
        head,
        echo_times_s=cell.echo_times_s,
        b0_tesla=cell.b0_tesla,
        b0_dir=cell.b0_dir,
        oversample=cell.oversample,
        seed=anatomy.seed,
        bipolar=cell.bipolar,
        snr=cell.snr,
    )


def finer_head(cell: Cell, anatomy: Anatomy) -> Head:
    """The head at the voxels it is simulated at; X002 where a label map is unreadable or has codes not known."""
    fine = [int(mm / v) // n * n for mm, v, n in zip(cell.field_of_view_mm, cell.fine_mm, cell.oversample, strict=True)]
    if anatomy.labels is None:
        return simulate_head(fine, cell.fine_mm, seed=anatomy.seed, lesions=cell.lesions)
    try:
        image: Any = nib.as_closest_canonical(nib.load(anatomy.labels))
        codes = torch.from_numpy(np.asarray(image.dataobj).astype(np.int32))
        codes = resample_labels(codes, image.header.get_zooms()[:3], fine, cell.fine_mm)
        return head_from_labels(codes, cell.fine_mm, seed=anatomy.seed, lesions=cell.lesions)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise ChironError("X002", f"{anatomy.name}: {error}", "a NIfTI file of FreeSurfer's codes") from None
