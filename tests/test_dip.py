"""Deep Image Prior: one seed one map, the loss falls, it stops for the reason that it states, tiles change nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_classical import SHAPE, Phantom, phantom

from models import classical
from models.classical import calculus
from models.dip import DIP, Found, misfit, moved, reconstruct, stopping
from models.dip.loss import Loss, laplacian26
from models.dipole import Dipole
from models.generator import Generator, tiles
from models.seen import CHANNELS, OUTSIDE, Given, educated
from models.unet import FoldedUNet

SMALL = DIP(
    network="untrained", input="noise", channels=(4, 8), inputs=3, strength=20, iterations=8, rate=0.003,
    discrepancy=1, window=20, patience=60, precision="float32",
)  # fmt: skip
LEARNED = DIP(iterations=3, discrepancy=0, precision="float32")


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
    assert not found.chi_ppm.requires_grad and found.uncertainty_ppm is None
    assert len(found.facts["loss"]) == len(found.facts["misfit"]) == found.facts["stopped_at"] == 3
    assert found.facts["stop_reason"] == "all 3 steps done"


@pytest.mark.parametrize("params", [SMALL, replace(SMALL, start="zero"), LEARNED])
def test_a_seed_makes_one_map_whatever_was_drawn_before(p: Phantom, params: DIP) -> None:
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


def test_before_its_first_step_an_untrained_network_adds_nothing_to_its_start(p: Phantom) -> None:
    found = run(p, replace(SMALL, start="tv", iterations=1))
    tv = classical.tv(p.field, p.weight, p.dipole, classical.TV())
    torch.testing.assert_close(found.chi_ppm, torch.where(p.weight > 0, tv - tv[p.weight > 0].mean(), 0))


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


def test_it_stops_when_its_time_is_over_and_says_how_much_is_done(p: Phantom, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[int] = count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr("models.dip.time", clock)
    monkeypatch.setattr(stopping, "time", clock)
    said: list[float] = []
    params = replace(SMALL, seconds=8.5, iterations=1000)
    facts = reconstruct(p.field, p.weight, p.dipole, params, lambda share, word: said.append(share)).facts
    assert "time limit of 8.5 s" in facts["stop_reason"] and len(facts["loss"]) == 5
    assert said == sorted(said) and said[-1] > 0.9


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


def test_progress_rises_to_one_over_all_seeds(p: Phantom) -> None:
    said: list[float] = []
    reconstruct(p.field, p.weight, p.dipole, replace(SMALL, seeds=2), lambda share, word: said.append(share))
    assert said == sorted(said) and len(said) == 16 and said[-1] == 1


def test_several_seeds_give_their_mean_and_their_spread(p: Phantom) -> None:
    params = replace(SMALL, start="zero", rate=0.01)
    both = run(p, replace(params, seeds=2))
    each = [run(p, replace(params, seed=seed)).chi_ppm for seed in (0, 1)]
    torch.testing.assert_close(both.chi_ppm, (each[0] + each[1]) / 2)
    assert both.uncertainty_ppm is not None
    torch.testing.assert_close(both.uncertainty_ppm, (each[0] - each[1]).abs() / math.sqrt(2))
    assert [r["seed"] for r in both.facts["runs"]] == [0, 1]


def test_the_educated_network_says_how_sure_it_is(p: Phantom) -> None:
    found = run(p, LEARNED)
    assert found.uncertainty_ppm is not None
    inside = p.weight > 0
    assert bool((found.uncertainty_ppm[inside] > 0).all()) and not bool(found.uncertainty_ppm[~inside].any())
    assert not bool(found.chi_ppm[~inside].any())


def test_an_educated_network_may_be_left_as_it_is(p: Phantom) -> None:
    found = run(p, replace(LEARNED, iterations=0))
    assert found.facts["loss"] == [] and found.facts["stopped_at"] == 0
    assert bool(found.chi_ppm.isfinite().all()) and bool(found.chi_ppm.any())


def test_the_preset_is_the_method_as_its_authors_coded_it(p: Phantom) -> None:
    seed = DIP(preset="seed", seed=3)
    assert (seed.network, seed.input, seed.start, seed.iterations, seed.rate) == (
        "untrained",
        "field",
        "zero",
        500,
        1e-3,
    )
    assert seed.seed == 3 and replace(SMALL, seed=3).iterations == SMALL.iterations
    facts = run(p, DIP(preset="seed", seconds=1e-9)).facts
    assert facts["network"] == "untrained" and "time limit" in facts["stop_reason"]


@pytest.mark.parametrize("shape", [(9, 10, 11), (130, 7, 6)])
def test_tiles_cover_each_voxel_once(shape: tuple[int, int, int]) -> None:
    seen = torch.zeros(shape)
    for outer, inner, place in tiles(shape, 30):
        volume = torch.zeros(shape)
        assert volume[outer][inner].shape == volume[place].shape
        seen[place] += 1
        volume[outer][inner] = 1
        assert bool((volume[place] == 1).all())
    assert bool((seen == 1).all())


@pytest.mark.parametrize("mirrored", [(), (-1, -3)])
def test_tiles_change_neither_the_map_nor_the_slope(mirrored: tuple[int, ...]) -> None:
    shape = (152, 17, 9)
    random = torch.Generator().manual_seed(1)
    dipole = Dipole(shape, (1, 1, 1), (0, 0.1, 1), padding=0.1)
    field, z = (torch.randn(s, generator=random) for s in (shape, (1, 2, *shape)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FoldedUNet(2, (4, 6, 8), 2)
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    mask = torch.ones(shape, dtype=torch.bool)
    loss = Loss(field, mask.float(), dipole, DIP())
    found = []
    for tile in (0, 24):
        network.zero_grad()
        generator = Generator(network, torch.zeros(shape), mask, False, tile, torch.tensor([0.0, 3.0]))
        chi, value, misfit = generator.descend(z, loss, mirrored)
        slopes = torch.cat([w.grad.flatten() for w in network.parameters() if w.grad is not None])
        found.append((chi, slopes, value, misfit, generator.answer(z)[1]))
    for whole, tiled in zip(*found, strict=True):
        torch.testing.assert_close(whole, tiled, rtol=1e-3, atol=1e-5)


def test_total_variation_is_that_of_the_classical_method(p: Phantom) -> None:
    inner = torch.nn.functional.pad(p.chi, (0, 1) * 3)
    grid = Dipole(inner.shape, p.dipole.voxel_size_mm, (0, 0, 1), padding=0)
    grid.padded = tuple(inner.shape)  # type: ignore[assignment]
    expected = calculus.gradient(inner, grid).abs().sum()
    loss = Loss(inner, torch.ones_like(inner), grid, DIP(strength=1.0))
    torch.testing.assert_close(loss.variation(inner), expected, rtol=1e-4, atol=1e-4)
    loss.relieve(inner)
    assert 0 < float(loss.variation(inner)) < float(expected)


def test_misfits_agree_where_they_are_small_and_forgive_where_they_say_so(p: Phantom) -> None:
    def cost(off: float, **kinds: Any) -> float:
        loss = Loss(p.dipole.forward(p.chi) - off, torch.ones(SHAPE), p.dipole, DIP(strength=0, **kinds))
        return float(loss(p.chi)[0])

    assert cost(0.001) == pytest.approx(0.5e-6, rel=1e-3)
    assert cost(0.001, data="nonlinear") == pytest.approx(cost(0.001), rel=1e-3)
    assert cost(0.4, data="nonlinear") < 0.1 * cost(0.4)
    assert cost(0.4, data="absolute") == pytest.approx(0.4, rel=1e-3)
    ramp = torch.arange(float(SHAPE[0]))[:, None, None].expand(SHAPE)
    tilted = Loss(p.dipole.forward(p.chi) - ramp, torch.ones(SHAPE), p.dipole, DIP(strength=0, gradient=1.0))
    plain = Loss(p.dipole.forward(p.chi) - ramp, torch.ones(SHAPE), p.dipole, DIP(strength=0))
    between = (SHAPE[0] - 1) / SHAPE[0] / 2
    assert float(tilted(p.chi)[0] - plain(p.chi)[0]) == pytest.approx(between, rel=0.02)


def test_the_laplacian_over_26_neighbours_is_blind_to_what_is_linear() -> None:
    x = torch.arange(6.0)[:, None, None] + 2 * torch.arange(5.0)[:, None] + torch.arange(7.0)
    assert float(laplacian26(x).abs().max()) < 1e-4
    x[3, 2, 3] += 1
    assert float(laplacian26(x).max()) == pytest.approx(26)


def test_features_are_finite_and_of_about_unit_size(p: Phantom) -> None:
    given = Given(p.field, p.weight, p.dipole)
    tv = given.classical("tv")
    seen = educated(given, tv)
    assert seen.shape == (1, CHANNELS, *SHAPE) and bool(seen.isfinite().all())
    assert 0.1 < float(seen[0, 0][given.mask].std()) < 5
    assert bool((seen[0, 4][~given.mask] == OUTSIDE).all())


def test_an_educated_network_is_fitted_only_where_the_noise_asks_for_it(p: Phantom) -> None:
    said: list[float] = []
    quiet = replace(p, weight=p.weight / 100)
    found = reconstruct(
        quiet.field, quiet.weight, p.dipole, replace(LEARNED, discrepancy=1), lambda share, word: said.append(share)
    )
    assert found.facts["stopped_at"] == 0 and found.facts["stop_reason"].startswith("no fit") and said == [1.0]
    assert found.facts["last_misfit"] == found.facts["first_misfit"] <= 1
    fitted = run(p, LEARNED).facts
    assert fitted["stopped_at"] == 3 and fitted["loss"][-1] < fitted["loss"][0]


def test_a_mirror_image_gives_the_mirrored_map() -> None:
    shape = (16, 24, 8)
    network = FoldedUNet(1, (4, 6, 8))
    torch.nn.init.normal_(network.last.weight, std=0.2)
    z = torch.randn((1, 1, *shape), generator=torch.Generator().manual_seed(1))
    generator = Generator(network, torch.zeros(shape), torch.ones(shape, dtype=torch.bool), False, 0, torch.zeros(1))
    with torch.no_grad():
        direct, seen = generator.chi(z.flip(-2)).flip(-2), generator.chi(z, (-2,))
    torch.testing.assert_close(direct, seen)
    assert not torch.equal(seen, generator.chi(z).detach())


def test_the_map_moves_towards_the_field_no_further_than_it_is_trusted(p: Phantom) -> None:
    given = Given(p.field, p.weight, p.dipole)
    smooth = given.classical("tikhonov") * 0.8
    near, far = (moved(smooth, torch.tensor(by), 0, given) for by in (1e-4, 1e-2))
    assert misfit(far, given) < misfit(near, given) < misfit(smooth, given)
    assert float((near - smooth).norm()) < 0.2 * float((far - smooth).norm())
    torch.testing.assert_close(moved(smooth, torch.tensor(1e-9), 0, given), smooth, rtol=0, atol=1e-7)


def test_a_map_is_not_moved_below_the_noise(p: Phantom) -> None:
    given = Given(p.field, p.weight, p.dipole)
    smooth = given.classical("tikhonov") * 0.8
    before, least = misfit(smooth, given), misfit(moved(smooth, torch.tensor(0.01), 0, given), given)
    target = (before + least) / 2
    assert least < misfit(moved(smooth, torch.tensor(0.01), target, given), given) <= target
    assert moved(smooth, torch.tensor(0.01), before, given) is smooth


def test_it_ends_nearer_to_the_field_than_its_network(p: Phantom) -> None:
    free, held = (run(p, replace(LEARNED, trust=trust)).facts["last_misfit"] for trust in (0.0, 0.5))
    assert held < free


def ball(chi_of: Any) -> tuple[torch.Tensor, torch.Tensor, Phantom]:
    """Squared distance from the middle in mm, chi of it, and its noisy field in a ball: what no head looks like."""
    shape, sd = (64, 64, 48), 0.002
    x, y, z = torch.meshgrid(*(torch.arange(float(n)) - n / 2 for n in shape), indexing="ij")
    inside, r2 = x**2 + y**2 + (1.3 * z) ** 2 < 29**2, x**2 + y**2 + z**2
    chi, dipole = chi_of(r2), Dipole(shape, (1, 1, 1), (0, 0, 1), padding=0.2)
    noise = sd * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    field = torch.where(inside, dipole.forward(chi) + noise, 0)
    return chi, inside, replace(phantom(), chi=chi, field=field, weight=inside / sd, dipole=dipole)


def test_what_it_invents_of_an_empty_field_is_small() -> None:
    _, inside, p = ball(torch.zeros_like)
    made = run(p, DIP(precision="float32")).chi_ppm[inside]
    assert float((made - made.median()).abs().mean()) < 0.01


@pytest.mark.parametrize(("chi_ppm", "radius_mm", "within"), [(1.0, 6, 0.05), (-3.0, 5, 0.05), (0.1, 8, 0.2)])
def test_a_lone_sphere_keeps_its_sign_and_most_of_its_moment(chi_ppm: float, radius_mm: float, within: float) -> None:
    chi, inside, p = ball(lambda r2: chi_ppm * (r2 < radius_mm**2))
    made = run(p, DIP(precision="float32")).chi_ppm
    around = made[inside & (chi == 0)].median()
    assert float(made[chi != 0].mean() - around) == pytest.approx(chi_ppm, rel=within)


def test_seeds_cost_nothing_where_there_is_no_fit(p: Phantom) -> None:
    one, three = (run(p, replace(LEARNED, discrepancy=1e6, seeds=seeds)) for seeds in (1, 3))
    assert torch.equal(one.chi_ppm, three.chi_ppm) and "runs" not in three.facts
