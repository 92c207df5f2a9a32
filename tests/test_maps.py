"""Random training maps: the same by number, of mean 0, of every kind, as large as their voxels say."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from models import maps
from models.maps import THICKEST_MM, VOXELS_MM, deformed, random_map

EDGE = 60


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "FIELD_OF_VIEW_MM", (150.0, 184.0, 30.0))
    monkeypatch.setattr(maps, "VOXELS_MM", (4.0, 5.0))
    monkeypatch.setattr(maps, "FINE_MM", 3.0)
    monkeypatch.setattr(maps, "THICKEST_MM", 8.0)


SHAPES, HEAD = 1, 2  # numbers of such maps


@pytest.mark.parametrize(("number", "other", "kind"), [(SHAPES, 3, "shapes"), (HEAD, 5, "procedural")])
def test_a_number_is_one_map_of_mean_zero(number: int, other: int, kind: str) -> None:
    one, again, another = (random_map(n) for n in (number, number, other))
    assert one.kind == another.kind == kind
    assert torch.equal(one.chi_ppm, again.chi_ppm) and torch.equal(one.inside, again.inside)
    assert one.chi_ppm.shape != another.chi_ppm.shape or not torch.equal(one.chi_ppm, another.chi_ppm)
    assert abs(float(one.chi_ppm[one.inside].double().mean())) < 1e-6
    assert not bool(one.chi_ppm[~one.inside].any()) and 0.001 < float(one.chi_ppm[one.inside].std()) < 1
    assert bool(one.inside.any(2).any(1)[[0, -1]].all()), "cropped to what is inside"


def test_a_head_of_thick_slices_is_as_large_as_one_of_cubes(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = []
    for voxel in ([5.0, 5.0, 5.0], [5.0, 5.0, 7.5], [6.0, 5.0, 5.0]):
        monkeypatch.setattr(maps, "_voxel", lambda draw, whole, voxel=voxel: voxel)
        one = random_map(HEAD)
        assert one.voxel_size_mm == tuple(voxel)
        volumes.append(float(one.inside.sum()) * math.prod(voxel))
    assert volumes == pytest.approx([volumes[0]] * 3, rel=0.05)


def test_voxels_are_drawn_from_their_range_and_one_axis_is_thick_in_a_third(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "VOXELS_MM", VOXELS_MM)
    monkeypatch.setattr(maps, "THICKEST_MM", THICKEST_MM)
    draw = random.Random(1)
    drawn = [sorted(maps._voxel(draw, False)) for _ in range(600)]
    assert all(a == b <= c <= min(2 * a, THICKEST_MM) for a, b, c in drawn)
    assert VOXELS_MM[0] <= min(a for a, _, _ in drawn) < 0.62 and 2.4 < max(a for a, _, _ in drawn) <= VOXELS_MM[1]
    assert 0.27 < sum(c > a for a, _, c in drawn) / 600 < 0.4


def ball(radius: float) -> Tensor:
    """Labels of 1 mm: a ball of white matter, its upper half the thalamus, off the volume's middle."""
    x, y, z = torch.meshgrid(*(torch.arange(n) - c for n, c in ((EDGE, 25), (EDGE, 33), (EDGE, 30))), indexing="ij")
    inside = x**2 + y**2 + z**2 < radius**2
    return torch.where(inside, torch.where(z > 0, 10, 2), 0)


@pytest.mark.parametrize("voxel", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)])
def test_labels_are_deformed_about_the_brain_and_keep_their_size(voxel: tuple[float, float, float]) -> None:
    shape = [round(70 / v) for v in voxel]
    codes = deformed(ball(20), shape, voxel, random.Random(4))
    assert set(codes.unique().tolist()) == {0, 2, 10}
    volume = float((codes > 0).sum()) * math.prod(voxel)
    assert 0.65 < volume / float((ball(20) > 0).sum()) < 1.45  # three scales within a tenth, some bending
    middle = (codes > 0).nonzero().double().mean(0) * torch.tensor(voxel) - torch.tensor([35 - v / 2 for v in voxel])
    assert float(middle.abs().max()) < 8


def test_a_deformation_turns_and_scales_but_mirrors_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    for _ in range(5):
        turn = maps._rotation([draw.uniform(-3, 3) for _ in range(3)])
        assert torch.allclose(turn @ turn.T, torch.eye(3), atol=1e-5) and float(torch.linalg.det(turn)) > 0.99
    still = random.Random(0)
    monkeypatch.setattr(still, "uniform", lambda low, high: (low + high) / 2 if low else 0.0)
    assert torch.equal(deformed(ball(20), [51, 51, 51], (1, 1, 1), still), ball(20)[:51, 8:59, 5:56])


def test_the_blur_keeps_the_sum_of_what_lies_inside() -> None:
    chi = torch.zeros(7, 8, 9)
    chi[3, 4, 4] = 1
    spread = maps._blurred(chi, 0.2)
    assert float(spread.sum()) == pytest.approx(1) and float(spread[3, 4, 4]) == pytest.approx(0.8**3)
