"""The engine of total variation: where it ends is the minimum that it states, and the background takes its own."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from test_classical import Phantom, phantom, solve
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from models.classical.admm import DataStep, Harmonic, Minimum, linear, minimise
from models.classical.calculus import descend, gradient, laplacian_spectrum
from models.classical.nltv import phase_step
from models.dipole import Dipole

SHAPE, SIZE, B0 = (20, 18, 16), (1.0, 1.2, 1.6), (0.3, -0.4, 0.85)
STRENGTH, STIFF, K = 40.0, 30.0, 16.0
DATA: dict[str, DataStep] = {"linear": linear, "phase": phase_step(K)}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def small() -> Phantom:
    """The phantom on a grid that needs no padding, so that the whole of chi is seen."""
    p = phantom(torch.float64)
    chi, field, weight = (pad(v[:20], (0, 1)) for v in (p.chi, p.field, p.weight))
    return Phantom(chi, field, weight, Dipole(SHAPE, SIZE, B0, padding=0, dtype=torch.float64))


def solved(iterations: int, **options: Any) -> Minimum:
    p = small()
    return minimise(p.field, p.weight, p.dipole, strength=STRENGTH, iterations=iterations, tolerance=0, **options)


def cost(chi: Tensor, h: Tensor, data: str, penalty: Tensor | float, stiff: float) -> float:
    """What the engine says that it minimises."""
    p = small()
    misfit, w2 = p.dipole.forward(chi) + h - p.field, p.weight**2
    each = misfit**2 / 2 if data == "linear" else (1 - torch.cos(K * misfit)) / K**2
    mask = p.weight > 0
    inner = mask.clone()
    for axis in range(3):
        inner &= mask.roll(1, axis) & mask.roll(-1, axis)
    curvature = torch.fft.irfftn(laplacian_spectrum(p.dipole) * torch.fft.rfftn(h), s=SHAPE)[inner]
    rough = stiff / 2 * w2[mask].mean() * curvature.square().sum()
    return float((w2 * each).sum() + STRENGTH * (penalty * gradient(chi, p.dipole).abs()).sum() + rough)


def descent(found: Minimum, data: str, penalty: Tensor | float, stiff: float) -> float:
    """The largest share of the cost that a step away from what was found saves, towards other maps or at random."""
    here = cost(found.chi_ppm, found.harmonic_ppm, data, penalty, stiff)
    steps = []
    for seed in range(8):
        dc, dh = random(2, *SHAPE, seed=seed)
        if seed % 2:
            dc, dh = avg_pool3d(torch.stack([dc, dh])[:, None], 5, 1, 2)[:, 0]
        steps += [(size * dc, size * dh * (stiff > 0)) for size in (1e-2, 1e-3, 1e-4)]
    for other in (small().chi, torch.zeros(SHAPE), 1.1 * found.chi_ppm):
        steps += [(size * (other - found.chi_ppm), torch.zeros(SHAPE)) for size in (0.3, 0.03, 0.003)]
    costs = [cost(found.chi_ppm + dc, found.harmonic_ppm + dh, data, penalty, stiff) for dc, dh in steps]
    return 1 - min(costs) / here


@pytest.mark.parametrize("stiff", [0.0, STIFF])
@pytest.mark.parametrize("relieved", [False, True])
@pytest.mark.parametrize("data", DATA)
def test_it_ends_at_a_minimum_of_what_it_states(data: str, relieved: bool, stiff: float) -> None:
    penalty = 0.3 + random(3, *SHAPE).abs() if relieved else None
    weighed = 1.0 if penalty is None else penalty

    def after(iterations: int) -> Minimum:
        harmonic = Harmonic(small().dipole, strength=stiff) if stiff else None
        return solved(iterations, data=DATA[data], penalty=penalty, harmonic=harmonic)

    assert descent(after(500), data, weighed, stiff) <= 0
    assert descent(after(10), data, weighed, stiff) > 1e-6


def test_its_start_does_not_matter_in_the_end() -> None:
    starts = (None, small().chi, 0.1 * random(*SHAPE))
    first, second, third = (solved(2000, chi_ppm=start).chi_ppm for start in starts)
    for other in (second, third):
        assert float((other - first).norm() / first.norm()) < 1e-3


def test_it_stops_when_the_map_changes_no_more() -> None:
    p = small()
    options: dict[str, Any] = {"strength": STRENGTH, "iterations": 500}
    counts = [minimise(p.field, p.weight, p.dipole, tolerance=t, **options).iterations for t in (0.1, 0.01, 0.001)]
    assert counts[0] < counts[1] < counts[2] < 500 == solved(500).iterations


@pytest.mark.parametrize("data", DATA)
def test_a_step_on_the_data_is_a_minimum(data: str) -> None:
    s = torch.linspace(-0.05, 0.05, 101, dtype=torch.float64)
    f, w2, mu = torch.full_like(s, 0.01), torch.full_like(s, 4e4), 6e3
    z = DATA[data](s, f, w2, mu).requires_grad_()
    each = (z - f) ** 2 / 2 if data == "linear" else (1 - torch.cos(K * (z - f))) / K**2
    (slope,) = torch.autograd.grad((w2 * each + mu / 2 * (z - s) ** 2).sum(), z)
    assert float(slope.abs().max()) < 1e-3 * float((mu * s).abs().max())


@pytest.mark.parametrize("data", DATA)
def test_a_value_of_no_weight_leaves_the_step_where_it_is(data: str) -> None:
    s, f = 0.02 * random(50), 5 * random(50, seed=1)
    torch.testing.assert_close(DATA[data](s, f, torch.zeros(50, dtype=torch.float64), 100.0), s)


def test_one_step_of_descent_is_shrinkage_and_the_adjoint_of_the_gradient() -> None:
    dipole = small().dipole
    x, dual = random(*SHAPE), random(3, *SHAPE, seed=1)
    for threshold in (0.7, 0.2 + random(3, *SHAPE, seed=2).abs()):
        moved = dual + gradient(x, dipole)
        z = moved.sign() * (moved.abs() - threshold).clamp_min(0)
        updated = dual.clone()
        found = descend(x, updated, threshold, dipole)
        torch.testing.assert_close(updated, moved - z)
        probe = random(*SHAPE, seed=3)
        torch.testing.assert_close((found * probe).sum(), ((z - updated) * gradient(probe, dipole)).sum())


def test_without_relief_total_variation_is_the_plain_one() -> None:
    p = phantom(torch.float64)
    found = minimise(p.field, p.weight, p.dipole, strength=40.0, iterations=30, tolerance=0.01).chi_ppm
    plain = solve("tv", p, strength=40.0, iterations=30, edge_ppm=0.0)
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


def test_edges_that_were_found_keep_more_of_their_height() -> None:
    p = phantom(torch.float64)
    inside = p.weight > 0
    plain, relieved = (solve("tv", p, strength=300.0, edge_ppm=edge) for edge in (0.0, 0.02))
    slopes = [float((v[inside] * p.chi[inside]).sum() / p.chi[inside].square().sum()) for v in (plain, relieved)]
    assert slopes[0] < slopes[1] < 1.1


def test_weights_that_are_all_trusted_stay() -> None:
    weight = small().weight
    torch.testing.assert_close(solved(20, trusted=1e6).weight, weight)
    assert torch.equal(solved(20).weight, weight)


def test_a_voxel_that_is_not_trusted_loses_weight() -> None:
    p = small()
    field = p.field.clone()
    field[10, 9, 7] += 0.3
    found = minimise(field, p.weight, p.dipole, strength=STRENGTH, iterations=100, tolerance=0, trusted=6.0)
    lost = 1 - found.weight / p.weight.clamp_min(1e-9)
    assert float(lost[10, 9, 7]) > 0.8 and int((lost[p.weight > 0] > 0.1).sum()) < 4


def test_a_stiffer_background_is_smoother_and_none_is_none() -> None:
    p = small()
    inside = p.weight > 0
    rough = []
    for stiff in (1.0, 30.0, 1000.0):
        h = solved(400, harmonic=Harmonic(p.dipole, strength=stiff)).harmonic_ppm
        curvature = torch.fft.irfftn(laplacian_spectrum(p.dipole) * torch.fft.rfftn(h), s=SHAPE)
        deep = -torch.nn.functional.max_pool3d(-inside[None].double(), 3, 1, 1)[0] > 0
        rough.append(float(curvature[deep].norm()))
    assert rough[0] > rough[1] > rough[2] > 0
    assert not bool(solved(5).harmonic_ppm.any())


def test_ringing_is_free_where_voxels_alternate_and_dear_where_they_do_not() -> None:
    shares = Harmonic(Dipole((16, 18, 20), SIZE, B0, padding=0, dtype=torch.float64), whole=True).band
    assert float(shares[8].max()) < 1e-6 and float(shares[:, 9].max()) < 1e-6 and float(shares[..., -1].max()) < 1e-6
    assert float(shares[:4, :4, :4].min()) > 0.99
    assert bool((Harmonic(small().dipole, strength=3.0).band == 1).all())
