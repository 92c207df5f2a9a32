"""The shipped weights of CycleQSM: better than the classical maps, true to what is strong, inventing little."""

from __future__ import annotations

import pytest
import torch

from flows.grid import cycle, prior
from flows.grid.cells import Anatomy, Cell, simulate
from flows.grid.score import field_of
from models import cyclegan, weights
from models.gre import Simulation
from pipeline.invert import invert
from pipeline.quality.accuracy import nrmse, slope
from pipeline.quality.stage import REGIONS
from pipeline.settings import Settings
from pipeline.volumes import Field

CPU = Settings(device="cpu")


@pytest.fixture(scope="module")
def scan() -> Simulation:
    cell = Cell((2.5, 2.5, 2.5), snr=50.0, b0_dir=(0.2, 0.1, 1.0))
    return simulate(cell, Anatomy("procedural 41", 41))


@pytest.fixture(scope="module")
def field(scan: Simulation) -> Field:
    return field_of(scan, 50.0, torch.device("cpu"))


@pytest.mark.parametrize("preset", ["default", "seed"])
def test_the_weights_are_those_of_their_card_and_say_what_they_learned(preset: str) -> None:
    tensors, card = cyclegan.learned(preset)
    file = weights.FOLDER / f"{card['name']}.safetensors"
    assert file.stat().st_size == card["bytes"] < 20e6
    assert card["patients"] == "none" and card["licence"] == "Apache-2.0" and card["steps"] > 1000 and card["data"]
    assert card["voxel_mm"][0] < 1 < card["voxel_mm"][1] and card["tilt_deg"] >= 40 and card["patch"] == 48
    assert card["form"]["adversary"] == {"default": "hinge", "seed": "wgan-gp"}[preset]
    assert all(bool(value.isfinite().all()) for value in tensors.values())


def test_it_is_better_than_tv_and_rts_and_does_not_underestimate(scan: Simulation, field: Field) -> None:
    truth, labels = scan.head.chi_ppm, scan.head.labels
    maps = {method: invert(field, method).ppm for method in ("rts", "tv", "cyclegan")}
    error = {method: nrmse(chi, truth, field.mask) for method, chi in maps.items()}
    assert error["cyclegan"] < 0.97 * error["tv"] and error["cyclegan"] < 0.9 * error["rts"], error
    assert 0.93 < slope(maps["cyclegan"], truth, field.mask, labels, REGIONS["dgm"]) < 1.07
    assert 0.8 < cycle.vein_slope(maps["cyclegan"], truth, field.mask, labels) < 1.2


def test_lesions_come_back_with_their_sign_and_moment() -> None:
    for row in prior.lesions(CPU, ("cyclegan",), (1.0, -3.0, 0.1, -0.1)):
        assert 95 < row["moment_percent"] < 105, row


def test_it_invents_little_from_noise() -> None:
    (row,) = prior.invented(CPU, ("cyclegan",))
    assert row["mean_ppm"] < 0.003 and row["largest_ppm"] < 0.03, row


def test_the_sign_of_a_field_is_that_of_its_map(field: Field) -> None:
    for row in cycle.scaled(field, CPU):
        assert row["departs_percent"] < 15, row
