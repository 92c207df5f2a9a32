"""Inversion of a local field by any method: zero outside, mean zero inside, the same wherever the mask lies."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_classical import B0, SD, SIZE, phantom

from models import dip, weights
from models.classical import TKD
from models.cyclegan import CycleGAN
from models.diffusion import Diffusion
from models.dip import DIP
from pipeline.errors import ChironError
from pipeline.invert import (
    FROM_MAGNITUDE,
    PARAMS,
    check_weights,
    chosen_methods,
    classical_default,
    invert,
    invert_twice,
    reference,
)
from pipeline.settings import load
from pipeline.volumes import Field, Grid, Susceptibility, bounding_box

QUICK = {
    "dip": DIP(network="untrained", input="noise", channels=(4, 8), inputs=2, iterations=3, precision="float32"),
    "diffusion": Diffusion(steps=2, samples=1, precision="float32"),
    "cyclegan": CycleGAN(precision="float32"),
}


def local(before: tuple[int, int, int] = (3, 3, 3), after: tuple[int, int, int] = (3, 3, 3)) -> Field:
    """The phantom's field in a volume with so many voxels around it."""
    p = phantom()
    ends = [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair]
    mask, ppm = (torch.nn.functional.pad(v, ends) for v in (p.weight > 0, p.field))
    return Field(ppm, torch.where(mask, SD, 0.0), mask, Grid.simple(ppm.shape, SIZE, B0))


def inverted(field: Field, method: str, params: Any = None) -> Susceptibility:
    """With a magnitude for those that need one."""
    magnitude = torch.nan_to_num(field.ppm) if method in FROM_MAGNITUDE else None
    return invert(field, method, params, magnitude=magnitude)


def test_a_method_that_follows_the_magnitude_says_that_it_is_missing() -> None:
    for method in FROM_MAGNITUDE:
        with pytest.raises(ChironError, match=r"X002.*no magnitude"):
            invert(local(), method)


@pytest.mark.parametrize("method", PARAMS)
def test_every_method_gives_a_referenced_map(method: str) -> None:
    field = local()
    found = inverted(field, method, QUICK.get(method))
    assert found.ppm.shape == field.mask.shape and found.method == method and found.grid == field.grid
    assert not bool(found.ppm[~field.mask].any()) and torch.equal(found.mask, field.mask)
    assert abs(float(found.ppm[field.mask].mean())) < 1e-6 < float(found.ppm[field.mask].std())
    assert set(found.facts["parameters"]) == {f.name for f in fields(PARAMS[method])}
    assert found.facts["reference"]["sd_ppm"] == pytest.approx(float(found.ppm[field.mask].std()), rel=1e-4)


@pytest.mark.parametrize("method", [m for m in PARAMS if m not in QUICK])
def test_the_place_of_the_mask_in_the_volume_does_not_matter(method: str) -> None:
    here, there = local(), local((8, 2, 5), (3, 9, 11))
    torch.testing.assert_close(
        inverted(here, method).ppm[here.mask], inverted(there, method).ppm[there.mask], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("method", PARAMS)
def test_values_outside_the_mask_and_a_constant_have_no_say(method: str) -> None:
    field = local()
    nan = float("nan")
    spoilt = replace(
        field, ppm=torch.where(field.mask, field.ppm + 1, nan), sd_ppm=torch.where(field.mask, field.sd_ppm, nan)
    )
    params = QUICK.get(method)
    torch.testing.assert_close(
        inverted(spoilt, method, params).ppm, inverted(field, method, params).ppm, rtol=0, atol=2e-4
    )


def test_parameters_are_heeded_and_recorded() -> None:
    field = local()
    assert not torch.equal(invert(field, "tkd", TKD(0.3)).ppm, invert(field, "tkd").ppm)
    assert invert(field, "tkd", TKD(0.3)).facts["parameters"] == {"threshold": 0.3}


def test_the_reference_is_the_mean_of_the_mask() -> None:
    chi = torch.arange(24.0).reshape(2, 3, 4)
    mask = torch.zeros((2, 3, 4), dtype=torch.bool)
    mask[1] = True
    found, facts = reference(chi, mask)
    assert facts["mean_ppm"] == pytest.approx(17.5) and facts["sd_ppm"] == pytest.approx(float(chi[1].std()))
    torch.testing.assert_close(found[1], chi[1] - 17.5)
    assert not bool(found[0].any())


def test_a_box_lies_around_the_mask_and_within_the_volume() -> None:
    mask = torch.zeros((9, 8, 7), dtype=torch.bool)
    mask[1, 3:5, 6] = True
    assert bounding_box(mask) == (slice(0, 4), slice(1, 7), slice(4, 7))
    assert bounding_box(mask, margin=0) == (slice(1, 2), slice(3, 5), slice(6, 7))
    with pytest.raises(ChironError, match="P007"):
        bounding_box(mask & ~mask)


def test_a_field_that_is_not_finite_is_a_fault() -> None:
    field = local()
    field.ppm[tuple(n // 2 for n in field.ppm.shape)] = float("inf")
    with pytest.raises(ChironError, match="M001"):
        invert(field, "tkd")


@pytest.mark.parametrize("gpu", [False, True])
def test_the_published_method_comes_first_and_the_classical_one_is_always_there(
    gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    classical = classical_default()

    def chosen(**given: Any) -> tuple[str, ...]:
        return chosen_methods(load(**given))

    assert chosen() == (("dip", classical) if gpu else (classical,))
    assert chosen(device="cpu") == (classical,) and chosen(device="cuda:1") == ("dip", classical)
    assert chosen(method="classical") == chosen(method=classical) == (classical,)
    assert chosen(method="tkd", device="cpu") == ("tkd", classical)
    assert chosen(method="diffusion") == ("diffusion", classical)
    assert chosen(method="dip", also=("rts", "classical", "rts"), device="cpu") == ("dip", "rts", classical)
    assert set(chosen(method="rts", also=tuple(PARAMS))) == set(PARAMS)


def test_progress_of_the_network_is_passed_on() -> None:
    said: list[float] = []
    invert(local(), "dip", QUICK["dip"], lambda share, word: said.append(share))
    assert said[-1] == 1 and len(said) == 3


def test_two_passes_map_the_reliable_voxels_alone_and_fill_the_holes() -> None:
    field = local()
    reliable = field.mask.clone()
    reliable[8:11, 8:11, 8:11] = False
    spoilt = replace(field, ppm=torch.where(reliable, field.ppm, field.ppm + 0.5))
    once, twice = inverted(spoilt, "tv"), invert_twice(spoilt, reliable, "tv")
    alone = inverted(replace(field, mask=field.mask & reliable), "tv").ppm
    inside, hole = field.mask & reliable, field.mask & ~reliable
    found, known = (v[inside] - v[inside].mean() for v in (twice.ppm, alone))
    torch.testing.assert_close(found, known, rtol=0, atol=1e-5)
    assert float((once.ppm[inside] - once.ppm[inside].mean() - known).abs().mean()) > 0.01
    filled = once.ppm - once.ppm[inside].mean() + twice.ppm[inside].mean()
    torch.testing.assert_close(twice.ppm[hole], filled[hole], rtol=0, atol=1e-5)
    assert abs(float(twice.ppm[field.mask].mean())) < 1e-6 and torch.equal(twice.mask, field.mask)
    assert twice.facts["two_pass"]["reliable_share"] == pytest.approx(float(inside.sum() / field.mask.sum()))


def test_two_passes_without_holes_are_one() -> None:
    field = local()
    for reliable in (torch.ones_like(field.mask), torch.zeros_like(field.mask)):
        assert torch.equal(invert_twice(field, reliable, "tv").ppm, inverted(field, "tv").ppm)


@pytest.mark.parametrize("spoil", ["absent", "truncated", "flipped", "pickle"])
def test_weights_that_are_not_those_of_the_card_are_refused_before_a_run(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (weights.FOLDER / "dip.safetensors").read_bytes()
    flipped = bytes([good[0] ^ 1]) + good[1:]
    found = {"truncated": good[:-7], "flipped": flipped, "pickle": pickle.dumps({"first.weight": 1})}
    (tmp_path / "dip.json").write_text((weights.FOLDER / "dip.json").read_text())
    if spoil in found:
        (tmp_path / "dip.safetensors").write_bytes(found[spoil])
    monkeypatch.setattr(dip, "learned", lambda: weights.load("dip", tmp_path))
    for ask in (lambda: check_weights(load(method="dip")), lambda: invert(local(), "dip", DIP(iterations=1))):
        with pytest.raises(ChironError) as caught:
            ask()
        assert caught.value.code == "M003" and caught.value.fault.exit == 15
    check_weights(load(method="tv", device="cpu"))
    check_weights(load(method="dip", dip={"network": "untrained"}))
