"""The shipped diffusion prior: better than the map it begins with, true to lesions, inventing next to nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flows.grid import prior
from flows.grid.cells import Anatomy, Cell, simulate
from models.diffusion import Diffusion
from models.gre import Simulation
from pipeline.invert import invert
from pipeline.quality import nrmse
from pipeline.settings import Settings

ONE_SAMPLE = Settings(device="cpu", diffusion=Diffusion(samples=1))


@pytest.fixture(scope="module")
def scan() -> Simulation:
    cell = Cell((3.0, 3.0, 3.0), snr=50.0, b0_dir=(0.2, 0.1, 1.0))
    return simulate(cell, Anatomy("procedural 41", 41))


def test_the_shipped_weights_are_those_of_their_card_and_say_what_they_learned() -> None:
    from models import weights
    from models.diffusion import learned

    tensors, card = learned()
    assert card["patients"] == "none" and card["licence"] == "Apache-2.0" and card["limit_ppm"] == 0.4
    assert card["voxel_mm"] == [0.6, 2.5] and set(card["validation"]) == {"0.1", "0.3", "1", "5"}
    assert all(value.dtype == torch.float32 for value in tensors.values())
    assert (weights.FOLDER / "diffusion.safetensors").stat().st_size == card["bytes"] < 40e6


def test_it_is_better_than_the_map_that_it_begins_with(scan: Simulation) -> None:
    """On a block of a head that it never saw, with the field that the block alone would have."""
    field, chi = prior.block(scan, 50.0, prior.BLOCK)
    error = {
        method: nrmse(invert(field, method).ppm, chi - chi[field.mask].mean(), field.mask)
        for method in ("tv", "diffusion")
    }
    assert error["diffusion"] < 0.97 * error["tv"]


def test_lesions_come_back_with_their_sign_and_moment() -> None:
    for row in prior.lesions(ONE_SAMPLE, ("diffusion",), (1.0, -3.0)):
        assert 90 < row["moment_percent"] < 110, row


def test_it_invents_next_to_nothing_from_noise() -> None:
    (row,) = prior.invented(ONE_SAMPLE, ("diffusion",))
    assert row["mean_ppm"] < 0.002 and row["largest_ppm"] < 0.02


def test_patches_leave_no_seams_where_they_overlap() -> None:
    """One evaluation of heavy noise: without overlap the cuts are seen, with it they are not."""
    coarse = torch.randn((1, 1, 12, 6, 6), generator=torch.Generator().manual_seed(2))
    chi = 0.04 * torch.nn.functional.interpolate(coarse, size=(96, 48, 48), mode="trilinear")[0, 0]
    inside = torch.ones_like(chi, dtype=torch.bool)
    alone = prior.one_evaluation(chi, inside, Diffusion(patch=0))
    seam = {}
    for name, how in prior.SEAMS.items():
        params = replace(Diffusion(), patch=48, **how)
        seam[name] = prior.step_across(prior.one_evaluation(chi, inside, params) - alone, inside, params.overlap)
    assert seam["no overlap, fixed"] > 2 and seam["overlap 16, shifting (default)"] < 1.2, seam
