"""The nonlinear methods and the one from the total field: robust, scaled by the noise, true to sources of high chi."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from test_classical import METHODS, SHAPE, Phantom, error, phantom, solve
from torch import Tensor

from models.classical import MEDI, NLTV, TFI, medi, nltv, tfi
from models.classical.calculus import descend, divergence, gradient, shrink
from models.classical.medi import edges
from models.classical.nltv import _phase_step
from models.classical.tfi import first_background
from models.dipole import Dipole
from models.gre import simulate_scan

SETTLED = {"iterations": 400, "tolerance": 0.0}


def run(method: str, p: Phantom, magnitude: Tensor | None = None, **changes: Any) -> Tensor:
    if method == "medi":
        magnitude = p.chi + 1 if magnitude is None else magnitude
        return medi(p.field, p.weight, p.dipole, replace(MEDI(), **changes), magnitude=magnitude)
    return nltv(p.field, p.weight, p.dipole, replace(NLTV(), **changes))


def test_one_step_of_descent_is_shrinkage_and_its_adjoint() -> None:
    dipole = phantom(torch.float64).dipole
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(dipole.padded, generator=generator, dtype=torch.float64)
    dual = torch.randn((3, *dipole.padded), generator=generator, dtype=torch.float64)
    moved = dual + gradient(x, dipole)
    z = shrink(moved, 0.7)
    found = descend(x, dual, 0.7, dipole)
    torch.testing.assert_close(dual, moved - z)
    torch.testing.assert_close(found, divergence(z - dual, dipole))


def test_the_phase_step_is_a_minimum() -> None:
    s = torch.linspace(-0.05, 0.05, 101, dtype=torch.float64)
    w2, mu, k = torch.full_like(s, 4e4), 6e3, 16.0
    z = _phase_step(s, w2, mu, k).requires_grad_()
    cost = (w2 / k**2 * (1 - torch.cos(k * z)) + mu / 2 * (z - s) ** 2).sum()
    (slope,) = torch.autograd.grad(cost, z)
    assert float(slope.abs().max()) < 1e-3 * float((mu * s).abs().max())


def test_with_little_phase_the_nonlinear_method_is_total_variation() -> None:
    p = phantom(torch.float64)
    linear = solve("tv", p, strength=40.0, **SETTLED)
    found = run("nltv", p, radians_per_ppm=0.1, **SETTLED)
    inside = p.weight > 0
    a, b = (v[inside] - v[inside].mean() for v in (found, linear))
    assert float((a - b).norm() / b.norm()) < 0.02


@pytest.mark.parametrize("method", ["nltv", "medi"])
def test_a_voxel_that_is_wrong_by_a_turn_does_less_harm_than_to_a_linear_method(method: str) -> None:
    p = phantom()
    field = p.field.clone()
    field[10, 9, 7] += 2 * torch.pi / NLTV().radians_per_ppm
    wrong = replace(p, field=field)
    assert error(run(method, wrong), p) < 1.1 * error(run(method, p), p)
    assert error(run(method, wrong), p) < 0.8 * error(solve("tv", wrong), p)


@pytest.mark.parametrize("method", ["nltv", "medi"])
def test_the_phantom_is_found_and_noise_and_strength_scale_together(method: str) -> None:
    p = phantom()
    assert error(run(method, p), p) < 0.3
    louder = replace(p, weight=p.weight / 2)
    same = run(method, louder, strength=20.0, reweight=0) if method == "medi" else run(method, louder, strength=20.0)
    whole = run(method, p, strength=80.0, reweight=0) if method == "medi" else run(method, p, strength=80.0)
    torch.testing.assert_close(same, whole, rtol=0, atol=1e-4)


@cache
def head() -> tuple[Phantom, Tensor]:
    """A head of 3 mm with the true local field and little noise, and its background."""
    shape, size, b0 = (54, 66, 50), (3.0, 3.0, 3.0), (0.1, -0.2, 1)
    scan = simulate_scan(shape, size, oversample=2, b0_dir=b0)
    inside = scan.head.brain.bool()
    noise = 0.001 * torch.randn(shape, generator=torch.Generator().manual_seed(6))
    local = torch.where(inside, scan.local_ppm + noise, 0)
    dipole = Dipole(shape, size, b0, padding=0.2)
    background = torch.where(inside, scan.total_ppm - scan.local_ppm, 0)
    return Phantom(scan.head.chi_ppm, local, inside / 0.001, dipole), background


def test_weak_harmonics_take_off_a_background_that_was_left() -> None:
    p, background = head()
    spoilt = replace(p, field=p.field + 0.1 * background)
    assert error(run("nltv", spoilt, harmonic=30.0), p) < 0.8 * error(run("nltv", spoilt), p)


def test_the_total_field_is_inverted_with_its_background() -> None:
    p, background = head()
    inside = p.weight > 0
    total = p.field + background
    found = first_background(total, p.weight, p.dipole, TFI())
    assert float((found - background)[inside].std()) < 0.1 * float(background[inside].std())
    left = run("nltv", replace(p, field=total - found))
    assert error(tfi(total, p.weight, p.dipole, TFI()), p) < min(0.8, 0.9 * error(left, p))


def test_edges_are_the_asked_share_and_lie_where_the_magnitude_steps() -> None:
    p = phantom()
    inside = p.weight > 0
    step = torch.zeros(SHAPE)
    step[11:] = 1.0
    found = edges(step, inside, p.dipole, 0.02)
    assert bool(found[0, 10][: SHAPE[1], : SHAPE[2]][inside[10] & inside[11]].all())
    assert not bool(found[1:].any()) and not bool(found[0, :10].any())
    noisy = edges(torch.randn(SHAPE, generator=torch.Generator().manual_seed(4)), inside, p.dipole, 0.3)
    both = edges(torch.randn(SHAPE, generator=torch.Generator().manual_seed(4)), inside, p.dipole, 0.9)
    assert float(noisy.sum() / both.sum()) == pytest.approx(1 / 3, rel=0.01)
    assert not bool(edges(step, inside, p.dipole, 0.0).any())


def test_the_magnitude_guides_the_map() -> None:
    p = phantom()
    guided, blind = run("medi", p, relief=0.0), run("medi", p, magnitude=torch.ones(SHAPE), relief=0.0)
    assert not torch.equal(guided, blind)
    assert error(guided, p) < error(run("medi", p, magnitude=p.chi.flip(0) + 1, relief=0.0), p)


@pytest.mark.parametrize("method", ["nltv", "medi", "tfi", *METHODS])
def test_a_field_of_zeros_gives_a_map_of_zeros(method: str) -> None:
    p = phantom()
    still = replace(p, field=torch.zeros(SHAPE))
    if method == "tfi":
        found = tfi(still.field, still.weight, still.dipole, TFI())
    else:
        found = solve(method, still) if method in METHODS else run(method, still)
    assert found.dtype == torch.float32 and float(found.abs().max()) == 0


def sources(value: float) -> tuple[Phantom, Tensor]:
    """A block of chi `value` alone in a sphere, and where it is."""
    shape = (40, 36, 34)
    axes = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    inside = axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2 < 15**2
    where = torch.zeros(shape, dtype=torch.bool)
    where[18:21, 17:20, 16:18] = True
    dipole = Dipole(shape, (1, 1, 1), (0.2, 0.1, 1), padding=0.2)
    field = Dipole(shape, (1, 1, 1), (0.2, 0.1, 1)).forward(value * where)
    field += 0.002 * torch.randn(shape, generator=torch.Generator().manual_seed(5))
    return Phantom(value * where, torch.where(inside, field, 0), inside / 0.002, dipole), where


@pytest.mark.parametrize("value", [-3.0, 1.0])
@pytest.mark.parametrize("method", ["nltv", "medi", "rts"])
def test_calcification_and_haemorrhage_keep_their_moment_and_make_no_streaks(method: str, value: float) -> None:
    p, where = sources(value)
    chi = solve(method, p) if method in METHODS else run(method, p)
    chi = chi - chi[(p.weight > 0) & ~where].median()
    near = torch.nn.functional.max_pool3d(where[None].float(), 3, 1, 1)[0] > 0
    assert 0.85 < float(chi[near].sum() / p.chi[where].sum()) < 1.15
    assert float(chi[(p.weight > 0) & ~near].std()) < 0.02 * abs(value)


@pytest.mark.parametrize("method", ["nltv", "tfi"])
def test_turning_the_head_turns_the_map(method: str) -> None:
    p = phantom(torch.float64)
    b = p.dipole.b0_dir
    turned = replace(
        p,
        field=torch.rot90(p.field, 1, (0, 1)).contiguous(),
        weight=torch.rot90(p.weight, 1, (0, 1)).contiguous(),
        dipole=Dipole((18, 21, 15), (1.2, 1.0, 1.6), (-b[1], b[0], b[2]), padding=0.2, dtype=torch.float64),
    )
    here, there = (
        tfi(q.field, q.weight, q.dipole, TFI()) if method == "tfi" else run("nltv", q, harmonic=10.0)
        for q in (p, turned)
    )
    torch.testing.assert_close(there, torch.rot90(here, 1, (0, 1)), rtol=0, atol=1e-7)
