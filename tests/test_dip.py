"""Deep Image Prior: one seed one map, the loss falls, and it stops for the reason that it states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_classical import SHAPE, Phantom, phantom

from models import classical, dip
from models.classical import calculus
from models.dip import DIP, Found, reconstruct
from models.dipole import Dipole

SMALL = DIP(channels=(4, 8), inputs=3, iterations=8, precision="float32")


@pytest.fixture(scope="module")
def p() -> Phantom:
    return phantom()


def run(p: Phantom, params: DIP) -> Found:
    return reconstruct(p.field, p.weight, p.dipole, params)


@pytest.mark.parametrize("input", ["noise", "field"])
@pytest.mark.parametrize("start", ["zero", "tkd", "rts", "tv"])
def test_every_set_up_gives_a_map(p: Phantom, input: Any, start: Any) -> None:
    found = run(p, replace(SMALL, input=input, start=start, iterations=3))
    assert found.chi_ppm.shape == SHAPE and bool(torch.isfinite(found.chi_ppm).all())
    assert not found.chi_ppm.requires_grad
    assert len(found.facts["loss"]) == len(found.facts["misfit"]) == found.facts["stopped_at"] == 3
    assert found.facts["stop_reason"] == "all 3 steps done"


@pytest.mark.parametrize("start", ["zero", "tv"])
def test_a_seed_makes_one_map_whatever_was_drawn_before(p: Phantom, start: Any) -> None:
    params = replace(SMALL, start=start)
    first = run(p, params)
    torch.rand(7)
    second, other = run(p, params), run(p, replace(params, seed=1))
    assert torch.equal(first.chi_ppm, second.chi_ppm) and first.facts["loss"] == second.facts["loss"]
    assert not torch.equal(first.chi_ppm, other.chi_ppm)


def test_it_leaves_the_generator_of_others_alone(p: Phantom) -> None:
    before = torch.random.get_rng_state()
    run(p, replace(SMALL, iterations=1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_loss_falls_from_nothing(p: Phantom) -> None:
    loss = run(p, replace(SMALL, start="zero", strength=0, iterations=60, rate=0.01)).facts["loss"]
    assert loss[-1] < 0.5 * loss[0]


def test_before_its_first_step_the_network_adds_nothing_to_its_start(p: Phantom) -> None:
    found = run(p, replace(SMALL, start="tv", iterations=1))
    tv = classical.tv(p.field, p.weight, p.dipole, classical.TV())
    torch.testing.assert_close(found.chi_ppm, tv, rtol=0, atol=1e-7)


def test_it_stops_when_the_misfit_has_come_down_to_the_noise(p: Phantom) -> None:
    p = replace(p, weight=p.weight / 10)
    params = replace(SMALL, start="zero", strength=0, discrepancy=0, iterations=40, rate=0.01)
    curve = run(p, params).facts["misfit"]
    target = (curve[0] + min(curve)) / 2
    first = next(step for step, value in enumerate(curve, 1) if value <= target < 10)
    facts = run(p, replace(params, discrepancy=target)).facts
    assert "misfit" in facts["stop_reason"] and facts["stopped_at"] == len(facts["misfit"]) == first
    assert facts["misfit"][-1] <= target < facts["misfit"][-2]


def test_it_stops_when_the_output_has_been_quietest_and_gives_that_output(p: Phantom) -> None:
    params = replace(SMALL, start="tv", iterations=200, window=3, patience=4, rate=0.05, discrepancy=0, average=0.0)
    found = run(p, params)
    at, variance = found.facts["stopped_at"], found.facts["variance"]
    assert "quietest" in found.facts["stop_reason"]
    assert len(variance) == at + 4 and variance[:2] == [None, None]
    assert variance[at - 1] == min(v for v in variance if v is not None)
    there = run(p, replace(params, iterations=at, patience=1000))
    torch.testing.assert_close(found.chi_ppm, there.chi_ppm)


def test_it_stops_when_its_time_is_over(p: Phantom, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[int] = count()
    monkeypatch.setattr(dip, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    facts = run(p, replace(SMALL, seconds=4.5)).facts
    assert "time limit of 4.5 s" in facts["stop_reason"] and len(facts["loss"]) == 5


def test_half_precision_runs_and_stays_near(p: Phantom) -> None:
    single = run(p, SMALL)
    half = run(p, replace(SMALL, precision="bfloat16"))
    assert half.chi_ppm.dtype == torch.float32 and not torch.equal(single.chi_ppm, half.chi_ppm)
    assert float((single.chi_ppm - half.chi_ppm).norm() / single.chi_ppm.norm()) < 0.05


@pytest.mark.parametrize("start", ["zero", "tv"])
def test_what_is_not_finite_is_said_to_have_diverged(p: Phantom, start: Any) -> None:
    spoilt = p.field.clone()
    spoilt[9, 9, 9] = float("nan")
    found = run(replace(p, field=spoilt), replace(SMALL, start=start))
    assert found.facts["stop_reason"].startswith("diverged") and found.facts["stopped_at"] == 1


def test_progress_rises_to_one(p: Phantom) -> None:
    said: list[float] = []
    reconstruct(p.field, p.weight, p.dipole, SMALL, lambda share, word: said.append(share))
    assert said == sorted(said) and len(said) == 8 and said[-1] == 1


def test_total_variation_is_that_of_the_classical_method(p: Phantom) -> None:
    inner = torch.nn.functional.pad(p.chi, (0, 1) * 3)
    grid = Dipole(inner.shape, p.dipole.voxel_size_mm, (0, 0, 1), padding=0)
    grid.padded = tuple(inner.shape)  # type: ignore[assignment]
    expected = calculus.gradient(inner, grid).abs().sum()
    torch.testing.assert_close(dip.variation(inner, grid), expected, rtol=1e-4, atol=1e-4)
