"""Small simulated exports for tests of reading: written by the simulated scanner, edited, damaged, found, converted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from pipeline.convert import Acquisition, convert
from pipeline.convert.stored import Stored
from pipeline.find import Export, find
from pipeline.find.files import quiet
from pipeline.phase import Phase, to_radians
from pipeline.scanner import Patient, write_export
from pipeline.volumes import Echoes, Grid

Change = Callable[[pydicom.Dataset], None]
KEY = bytes(range(32))
WRITTEN: dict[str, dict[str, bytes]] = {}  # exports made before: simulating one again takes longer than copying it
TIMES = (0.004, 0.008, 0.012)
SHAPE = (10, 12, 6)
SENTINEL = "Zaphod"


def signal(
    shape: tuple[int, int, int] = SHAPE, times: tuple[float, ...] = TIMES, seed: int = 1
) -> np.ndarray[Any, Any]:
    """Complex echoes (E, X, Y, Z) of an object in noise, with wraps; its phase grows where the field is higher."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    magnitude = 100.0 * (x**2 + y**2 + z**2 < 0.9) + 2
    field_hz = 60 * x - 45 * y + 30 * z + 20 * x * y
    echoes = [magnitude * np.exp(-t / 0.03 + 1j * (2 * np.pi * field_hz * t + 0.4)) for t in times]
    noise = rng.normal(size=(2, len(times), *shape))
    return (np.stack(echoes) + noise[0] + 1j * noise[1]).astype(np.complex64)


def oblique(shape: tuple[int, int, int] = SHAPE, axes: tuple[int, int, int] = (0, 1, 2), tilt_deg: float = 12) -> Grid:
    """Anisotropic voxels; `axes` names the scanner axis of each voxel axis, then everything is tilted about x."""
    c, s = np.cos(np.radians(tilt_deg)), np.sin(np.radians(tilt_deg))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.eye(3)[:, axes] @ np.diag([1.0, 1.1, 2.0])
    affine[:3, 3] = (-5, 7, -3)
    return Grid.from_affine(shape, affine)


def write(folder: Path, vendor: str = "siemens", patient: str = "bad", **options: Any) -> list[Path]:
    """One scan of the patient whose identity, like everything else in the header, begins with the sentinel."""
    times = options.pop("times", TIMES)
    shape = options.pop("shape", SHAPE)
    grid = options.pop("grid", None) or oblique(shape)
    values = options.pop("values", None)
    who = Patient(name=f"{SENTINEL}^{patient}", id=f"{SENTINEL}-{patient}", accession=f"{SENTINEL}1")
    values = signal(shape, times) if values is None else values
    b0 = options.pop("b0", 3.0)
    asked = repr((vendor, patient, times, grid, b0, hashlib.sha256(values.tobytes()).digest(), sorted(options.items())))
    if asked not in WRITTEN:
        paths = write_export(values, grid, times, b0, folder, vendor=vendor, patient=who, **options)  # type: ignore[arg-type]
        WRITTEN[asked] = {path.name: path.read_bytes() for path in paths}
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in WRITTEN[asked].items():
        (folder / name).write_bytes(content)
    return [folder / name for name in WRITTEN[asked]]


def edit(paths: list[Path], change: Change, where: Callable[[pydicom.Dataset], bool] | None = None) -> int:
    """Change the files for which `where` holds, in place; how many."""
    count = 0
    for path in paths:
        with quiet():
            dataset = pydicom.dcmread(path)
        if where is None or where(dataset):
            with quiet():
                change(dataset)
                dataset.save_as(path)
            count += 1
    return count


def search(folder: Path, **options: Any) -> Export:
    """`find`, with what every search owes: all files accounted for, none touched, nothing told that identifies."""
    before = digests(folder)
    found = find(folder, KEY, **options)
    assert digests(folder) == before
    used = {path for scan in found.scans for path in scan.files}
    assert found.files_seen == len(used) + len(found.ignored) + sum(a.files for a in found.set_aside)
    told = repr((found.set_aside, found.ignored, [(s.label, s.id, s.notices) for s in found.scans]))
    assert SENTINEL not in told and str(folder) not in told and "1.2.826" not in told
    return found


def digests(folder: Path) -> dict[str, str]:
    """Content of every regular file below the folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read(scan: Any, scratch: Path, acquisition: Acquisition | None = None, phase: Phase | None = None) -> Echoes:
    """The scan's echoes in radians."""
    return to_radians(store(scan, scratch, acquisition), phase or Phase())[0]


def store(scan: Any, scratch: Path, acquisition: Acquisition | None = None) -> Stored:
    stored = convert(scan, acquisition or Acquisition(), scratch)
    assert not scratch.exists()
    return stored


def on_grid(values: np.ndarray[Any, Any], grid: Grid, target: Grid) -> np.ndarray[Any, Any]:
    """`values` (E, X, Y, Z) on `grid`, at the voxels of `target`, which has the same voxels in another order."""
    index = np.stack([*np.indices(target.shape), np.ones(target.shape)]).reshape(4, -1)
    there = np.linalg.inv(np.asarray(grid.affine)) @ np.asarray(target.affine) @ index
    assert np.abs(there - np.rint(there)).max() < 1e-2
    x, y, z = np.rint(there)[:3].astype(int)
    return values[:, x, y, z].reshape(len(values), *target.shape)


def phase_error(echoes: Echoes, truth: np.ndarray[Any, Any], grid: Grid) -> np.ndarray[Any, Any]:
    """Angle in radians between the echoes' phase and the truth's, where there is signal, without a common offset."""
    wanted = on_grid(truth, grid, echoes.grid)
    away = np.exp(1j * (echoes.phase_rad.numpy() - np.angle(wanted)))
    away = away * np.exp(-1j * np.angle(np.median(away.real) + 1j * np.median(away.imag)))
    return np.abs(np.angle(away))[np.abs(wanted) > 30]
