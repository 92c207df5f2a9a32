"""One simulated head, exported by every vendor at every orientation, comes out as the same susceptibility in space."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, io_orientation

from models.gre import Simulation, simulate_scan
from models.head import DEEP_GREY, TISSUES
from pipeline.find import find
from pipeline.quality.accuracy import nrmse, pearson
from pipeline.recipe import Job, reconstruct
from pipeline.scanner import VENDORS, write_export
from pipeline.settings import parse
from pipeline.volumes import Grid

KEY = b"a key of tests" * 3
SHAPE, VOXEL_MM = (52, 62, 52), (3.5, 3.6, 3.7)
TIMES = (0.004, 0.010, 0.016, 0.022)
SETTINGS = parse({"method": "tv", "device": "cpu"})
TILTS = {"straight": (0, 0.0), "about x": (0, 30.0)}
AXIAL, SAGITTAL, CORONAL = (0, 1, 2), (1, 2, 0), (0, 2, 1)  # which of the head's axes each voxel axis runs along


@cache
def scanned(tilt: str) -> tuple[Simulation, Grid]:
    """The head in a grid tilted about a scanner axis; B0 stays the scanner's z axis."""
    affine = np.eye(4)
    affine[:3, :3] = turn(*TILTS[tilt]) @ np.diag(VOXEL_MM)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    grid = Grid.from_affine(SHAPE, affine)
    return simulate_scan(SHAPE, VOXEL_MM, echo_times_s=TIMES, b0_dir=grid.b0_dir, oversample=2, seed=3), grid


def turn(axis: int, degrees: float) -> np.ndarray[Any, Any]:
    """Rotation by the right hand rule about a scanner axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = np.eye(3)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return matrix


@pytest.fixture(scope="module")
def chi(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(vendor, tilt, slices) -> chi and mask on the grid of the simulation, each reconstructed once."""

    @cache
    def reconstructed(vendor: Any, tilt: str = "straight", order: tuple[int, ...] = AXIAL) -> Any:
        folder = tmp_path_factory.mktemp("scan")
        simulation, grid = scanned(tilt)
        affine = np.asarray(grid.affine)[:, [*order, 3]]
        sliced = Grid.from_affine([SHAPE[a] for a in order], affine)
        signal = simulation.signal.permute(0, *(a + 1 for a in order))
        write_export(signal, sliced, TIMES, 3.0, folder / "export", vendor=vendor)
        (scan,) = find(folder / "export", KEY).scans
        work = reconstruct(Job(scan, SETTINGS, folder / "work"))
        converted, local, inverted = map(work.find, ("convert", "background", "invert-tv"))
        assert converted and local and inverted
        found = Grid.from_json(converted.facts["grid"])
        volumes = (inverted.array("chi_ppm"), local.array("mask").bool())
        return tuple(onto(grid, found, volume) for volume in volumes)

    return reconstructed


def onto(wanted: Grid, found: Grid, volume: torch.Tensor) -> torch.Tensor:
    """`volume` with its axes swapped and flipped until its voxels lie where those of `wanted` do."""
    step = np.linalg.inv(np.asarray(wanted.affine)) @ np.asarray(found.affine)
    turned = apply_orientation(volume.numpy(), io_orientation(step))
    assert turned.shape == wanted.shape
    corner = np.array([[0 if s > 0 else n - 1 for s, n in zip(_signs(step), found.shape, strict=True)]]).T
    assert np.abs(step[:3, :3] @ corner + step[:3, 3:]).max() < 0.01
    return torch.from_numpy(np.ascontiguousarray(turned))


def _signs(step: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of each voxel axis of the found grid, along whichever axis of the wanted one it runs."""
    rounded = np.rint(step[:3, :3])
    assert np.abs(step[:3, :3] - rounded).max() < 1e-3 and (np.abs(rounded).sum(0) == 1).all()
    signs: np.ndarray[Any, Any] = rounded.sum(0)
    return signs


def agreement(one: Any, other: Any) -> float:
    """Pearson's r where both masks are."""
    return pearson(one[0], other[0], one[1] & other[1])


@pytest.mark.parametrize("tilt", [pytest.param("straight", marks=pytest.mark.slow), "about x"])
@pytest.mark.parametrize("vendor", [v for v in VENDORS if v != "siemens"])
def test_vendors_agree(chi: Any, vendor: str, tilt: str) -> None:
    one, other = chi("siemens", tilt), chi(vendor, tilt)
    assert agreement(one, other) > 0.99
    assert float((one[1] ^ other[1]).sum()) < 0.01 * float(one[1].sum())


@pytest.mark.parametrize(
    ("vendor", "tilt", "order"),
    [
        ("siemens", "about x", SAGITTAL),
        ("ge", "about x", CORONAL),
        pytest.param("ge", "straight", CORONAL, marks=pytest.mark.slow),
    ],
)
def test_slices_may_be_cut_any_way(chi: Any, vendor: str, tilt: str, order: tuple[int, ...]) -> None:
    axial, other = chi(vendor, tilt), chi(vendor, tilt, order)
    assert agreement(axial, other) > 0.99
    assert nrmse(other[0], axial[0], axial[1] & other[1]) < 2


@pytest.mark.parametrize("tilt", TILTS)
def test_susceptibility_is_true_in_sign_and_value(chi: Any, tilt: str) -> None:
    simulation, _ = scanned(tilt)
    found, mask = chi("siemens", tilt)
    truth = simulation.head.chi_ppm
    assert pearson(found, truth, mask) > 0.7
    assert 0.6 < slope(found, truth, mask) < 1.2
    iron = mask & torch.isin(simulation.head.labels, torch.tensor([TISSUES[name].code for name in DEEP_GREY]))
    white = mask & (simulation.head.labels == TISSUES["white matter"].code)
    assert found[iron].mean() > found[white].mean() + 0.5 * (truth[iron].mean() - truth[white].mean())


def slope(found: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> float:
    """Of the straight line through found over true values."""
    x, y = truth[mask] - truth[mask].mean(), found[mask] - found[mask].mean()
    return float(x @ y / (x @ x))
