"""Nonlinear total variation and MEDI: robust, scaled by the noise, guided by edges, true to sources of high chi."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_background import CASES, SD, rms, scene
from test_classical import METHODS, SHAPE, Phantom, error, phantom, solve
from torch import Tensor

from models.classical import MEDI, NLTV, TFI, medi, nltv, tfi
from models.classical.medi import edges
from models.dipole import Dipole

SETTLED = {"iterations": 400, "tolerance": 0.0}


def run(method: str, p: Phantom, magnitude: Tensor | None = None, **changes: Any) -> Tensor:
    if method == "medi":
        magnitude = p.chi + 1 if magnitude is None else magnitude
        return medi(p.field, p.weight, p.dipole, replace(MEDI(), **changes), magnitude=magnitude)
    return nltv(p.field, p.weight, p.dipole, replace(NLTV(), **changes))


def test_with_little_phase_the_nonlinear_method_is_total_variation() -> None:
    p = phantom(torch.float64)
    linear = solve("tv", p, strength=40.0, edge_ppm=0.0, **SETTLED)
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
    same = run(method, louder, strength=20.0, trusted=0) if method == "medi" else run(method, louder, strength=20.0)
    whole = run(method, p, strength=80.0, trusted=0) if method == "medi" else run(method, p, strength=80.0)
    torch.testing.assert_close(same, whole, rtol=0, atol=1e-4)


def test_weak_harmonics_take_off_a_background_that_was_left() -> None:
    s = scene(*CASES[1])
    dipole = Dipole(s.mask.shape, s.grid.voxel_size_mm, s.grid.b0_dir, padding=0.2)
    noise = SD * torch.randn(s.mask.shape, generator=torch.Generator().manual_seed(6))
    clean = Phantom(s.outside, torch.where(s.mask, s.inside + noise, 0), s.mask / SD, dipole)
    spoilt = replace(clean, field=torch.where(s.mask, clean.field + 0.2 * s.outside, 0))
    harm = [rms(run("nltv", spoilt, harmonic=h) - run("nltv", clean, harmonic=h), s.mask) for h in (0.0, 30.0)]
    assert harm[1] < 0.3 * harm[0]


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
