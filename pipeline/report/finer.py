"""What was found of a scan -> the section on its map on finer voxels: sizes, how well it fits, and cuts through it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.report.found import Array, Found, number
from pipeline.report.pictures import CHI, SPREAD, Picture
from pipeline.report.view import View
from pipeline.volumes import Grid
from pipeline.work import Result

NOTE = "Bright is paramagnetic. What is finer than the scan's voxels was not measured."
DOUBT = "Standard deviation over the samples; an error that all of them share is not in it."


@dataclass(frozen=True)
class Finer:
    """What is said of the map, by name, and its pictures."""

    rows: list[tuple[str, str]]
    pictures: list[Picture]


def finer(found: Found) -> Finer | None:
    """The section; None where no such map was made, or its files are damaged."""
    made = found.results.get("upsample")
    if made is None or found.grid is None or not made.has("chi_ppm"):
        return None
    grid = Grid.from_json(made.facts["grid"])
    chi, mask = _read(made, "chi_ppm", grid), _read(made, "mask", grid)
    if chi is None or mask is None or not mask.any():
        return None
    return Finer(_rows(found.grid, grid, made), _pictures(made, grid, chi, mask > 0))


def _rows(scan: Grid, grid: Grid, made: Result) -> list[tuple[str, str]]:
    sizes = [" × ".join(number(v) for v in g.voxel_size_mm) + " mm" for g in (grid, scan)]
    matrices = [" × ".join(str(n) for n in g.shape) for g in (grid, scan)]
    rows = [
        ("Voxel", f"{sizes[0]}, of {sizes[1]} in the scan"),
        ("Matrix", f"{matrices[0]}, of {matrices[1]}"),
        ("Misfit of its field (1: as large as the noise)", number(made.facts.get("data_misfit"))),
        ("Evaluations of the network", number(made.facts.get("network_evaluations"))),
    ]
    return rows


def _pictures(made: Result, grid: Grid, chi: Array, mask: Array) -> list[Picture]:
    view = View.of(grid.affine, mask)
    drawn = [Picture("χ on finer voxels, diffusion prior", NOTE, CHI, view.planes(chi, CHI, mask))]
    spread = _read(made, "uncertainty_ppm", grid)
    if spread is not None:
        drawn.append(Picture("Uncertainty of χ on finer voxels", DOUBT, SPREAD, view.planes(spread, SPREAD, mask)))
    return drawn


def _read(made: Result, name: str, grid: Grid) -> Array | None:
    """The named array of the finer grid; None where there is none or its file is damaged."""
    try:
        array: Array = np.load(made.folder / f"{name}.npy", mmap_mode="r")
    except (OSError, ValueError):
        return None
    return array if array.shape == grid.shape else None
