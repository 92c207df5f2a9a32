"""What a network has not learned from: voxels, extent, values, misfit, by its card and by no other."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from models import diffusion
from models.diffusion import Diffusion
from pipeline.invert import invert
from pipeline.unlearned import unlearned
from pipeline.volumes import Grid

CARD = {"tilt_deg": 40, "voxel_mm": [0.6, 2.5], "thickest_mm": 3.5, "limit_ppm": 0.4, "patch": 48, "sha256": "0" * 64}
MASK = torch.zeros((60, 60, 60), dtype=torch.bool)
MASK[5:55, 4:56, 6:54] = True


def grid(size: tuple[float, ...] = (1, 1, 1), b0_dir: tuple[float, ...] = (0, 0, 1)) -> Grid:
    return Grid.simple(MASK.shape, size, b0_dir)


def said(size: tuple[float, ...] = (1, 1, 1), misfit: float = 1.0, high: int = 0, card: Any = CARD) -> dict[str, str]:
    chi = torch.zeros(MASK.shape)
    chi[20, 20:24, :high] = -1.0
    chi[0] = 9.0  # outside
    found = unlearned(card, grid(size), chi, MASK, misfit)
    json.dumps(found)
    assert found["unlearned_share"] == pytest.approx(4 * max(0, high - 6) / int(MASK.sum()))
    return found["unlearned"]  # type: ignore[no-any-return]


def test_a_scan_like_those_learned_from_is_passed() -> None:
    for size in ((0.6, 0.6, 0.6), (2.5, 2.5, 2.5), (1, 1, 3.5), (1, 2, 1.5), (2.5004, 1, 0.5996)):
        assert said(size) == {}
    for misfit in (0.3, 1, 3):
        assert said(misfit=misfit) == {}


@pytest.mark.parametrize("size", [(0.5, 0.5, 0.5), (1, 0.5, 1), (3, 3, 3), (1, 1, 4), (1, 2.6, 2.6), (0.5, 0.5, 2)])
def test_other_voxels_are_told(size: tuple[float, ...]) -> None:
    found = said(size)
    assert list(found) == ["voxels"] and f"{size[1]:.3g} x {size[2]:.3g} mm" in found["voxels"]
    assert "0.6 to 2.5 mm" in found["voxels"] and "3.5 mm" in found["voxels"]


@pytest.mark.parametrize(("degrees", "told"), [(0, False), (40, False), (40.9, False), (41.1, True), (49, False)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_direction_of_b0_far_from_every_axis_is_told(degrees: float, told: bool, axis: int) -> None:
    along, across = math.cos(math.radians(degrees)), math.sin(math.radians(degrees)) * (0.6 if told else 1)
    b0_dir = [0.0, 0.0, 0.0]
    b0_dir[axis], b0_dir[axis - 1] = -along, across
    b0_dir[axis - 2] = math.sqrt(max(0, 1 - along**2 - across**2))
    found = unlearned(CARD, grid(b0_dir=tuple(b0_dir)), torch.zeros(MASK.shape), MASK, 1.0)["unlearned"]
    assert list(found) == ["tilt"] * told
    if told:
        assert "41 degrees from the nearest axis" in found["tilt"] and "40 were learned" in found["tilt"]


def test_a_thin_mask_values_and_misfits_are_told() -> None:
    found = unlearned(CARD, grid(), torch.zeros(60, 60, 60), MASK & (torch.arange(60) < 40), 1.0)
    assert list(found["unlearned"]) == ["extent"] and "50 x 52 x 34 voxels" in found["unlearned"]["extent"]
    assert said(high=20) == {} and list(said(high=26)) == ["values"]
    assert "0.06% of the mask are beyond 0.4 ppm" in said(high=26)["values"]
    for misfit in (0.29, 3.01, float("nan")):
        assert list(said(misfit=misfit)) == ["misfit"]


def test_more_noise_than_was_learned_is_told() -> None:
    noisy = CARD | {"noise_ppm": 0.003}
    for noise, names in ((0.003, []), (0.0031, ["noise"])):
        found = unlearned(noisy, grid(), torch.zeros(MASK.shape), MASK, 1.0, noise)["unlearned"]
        assert list(found) == names
    assert "0.0031 ppm" in found["noise"] and "up to 0.003 ppm" in found["noise"]
    assert unlearned(CARD, grid(), torch.zeros(MASK.shape), MASK, 1.0, 9.0)["unlearned"] == {}


def test_a_card_that_says_nothing_is_believed_to_cover_all_and_one_that_says_little_no_more_than_that() -> None:
    assert unlearned({"name": "dip"}, grid((9, 9, 9)), torch.zeros(60, 60, 60), MASK, 50.0) == {}
    assert said((9, 9, 9), card={"patch": 48, "limit_ppm": 0.4}) == {}
    assert said((0.7, 0.7, 3), card={"voxel_mm": [0.6, 2.5], "limit_ppm": 0.4}).keys() == {"voxels"}


def test_inversion_tells_it_of_any_learned_method_with_such_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    from test_invert import local

    tensors, card = diffusion.learned()
    monkeypatch.setattr(diffusion, "learned", lambda: (tensors, {**card, **CARD}))
    field = local()
    params = Diffusion(steps=2, samples=1, precision="float32")
    found = invert(field, "diffusion", params).facts
    assert "extent" in found["unlearned"] and "voxels" not in found["unlearned"] and found["unlearned_share"] < 0.1
    assert "unlearned" not in invert(field, "tkd").facts
