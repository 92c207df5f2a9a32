"""The methods without a network: each finds a phantom, turns and scales with it, and the better ones are better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models import classical
from models.classical import RTS, TKD, TV, Tikhonov, calculus
from models.dipole import Dipole
from models.gre import simulate_scan
from pipeline.invert import invert
from pipeline.volumes import Field, Grid, ppm_per_rad

METHODS: dict[str, tuple[Callable[..., Tensor], Any]] = {
    "tkd": (classical.tkd, TKD()),
    "tikhonov": (classical.tikhonov, Tikhonov()),
    "rts": (classical.rts, RTS()),
    "tv": (classical.tv, TV()),
}
SHAPE, SIZE, B0 = (21, 18, 15), (1.0, 1.2, 1.6), (0.3, -0.4, 0.85)
SD = 0.002


@dataclass(frozen=True)
class Phantom:
    """Chi of smooth blobs in an ellipsoid, its field with noise, and the weight of that field."""

    chi: Tensor
    field: Tensor
    weight: Tensor
    dipole: Dipole


def phantom(dtype: torch.dtype = torch.float32, padding: float = 0.2) -> Phantom:
    axes = [(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * v for n, v in zip(SHAPE, SIZE, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    inside = (x / 9.5) ** 2 + (y / 9.8) ** 2 + (z / 11) ** 2 < 1
    chi = torch.zeros(SHAPE, dtype=torch.float64)
    for cx, cy, cz, width, value in ((-3, 1, 0, 2.2, 0.15), (4, -2, 2, 1.8, -0.1), (0, 4, -5, 2.0, 0.2)):
        chi += value * torch.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * width**2))
    chi = torch.where(inside, chi, 0)
    field = Dipole(SHAPE, SIZE, B0, dtype=torch.float64).forward(chi)
    field += SD * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dipole = Dipole(SHAPE, SIZE, B0, padding=padding, dtype=dtype)
    return Phantom(chi.to(dtype), torch.where(inside, field, 0).to(dtype), (inside / SD).to(dtype), dipole)


def error(chi: Tensor, p: Phantom) -> float:
    """Relative to the truth, both without their mean, inside."""
    inside = p.weight > 0
    a, b = (v[inside] - v[inside].mean() for v in (chi, p.chi))
    return float((a - b).norm() / b.norm())


def solve(method: str, p: Phantom, **changes: Any) -> Tensor:
    run, params = METHODS[method]
    return run(p.field, p.weight, p.dipole, replace(params, **changes))


@pytest.mark.parametrize(("method", "bound"), [("tkd", 0.65), ("tikhonov", 0.65), ("rts", 0.6), ("tv", 0.3)])
def test_each_method_finds_the_phantom(method: str, bound: float) -> None:
    p = phantom()
    chi = solve(method, p)
    assert chi.shape == SHAPE and chi.dtype == torch.float32
    assert error(chi, p) < bound


@pytest.mark.parametrize("method", METHODS)
def test_turning_field_and_b0_together_turns_the_map(method: str) -> None:
    p = phantom(torch.float64)
    turned = replace(
        p,
        field=torch.rot90(p.field, 1, (0, 1)).contiguous(),
        weight=torch.rot90(p.weight, 1, (0, 1)).contiguous(),
        dipole=Dipole((18, 21, 15), (1.2, 1.0, 1.6), (-B0[1], B0[0], B0[2]), padding=0.2, dtype=torch.float64),
    )
    torch.testing.assert_close(solve(method, turned), torch.rot90(solve(method, p), 1, (0, 1)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_is_enough(method: str) -> None:
    single, double = solve(method, phantom()), solve(method, phantom(torch.float64))
    assert double.dtype == torch.float64
    assert float((single - double).norm() / double.norm()) < 1e-3


@pytest.mark.parametrize("method", ["tkd", "tikhonov"])
def test_the_closed_forms_are_linear(method: str) -> None:
    p = phantom(torch.float64)
    torch.testing.assert_close(solve(method, replace(p, field=-7 * p.field)), -7 * solve(method, p))


def test_total_variation_scales_with_field_noise_and_strength() -> None:
    p, c = phantom(torch.float64), 2.0
    settled = {"iterations": 600, "tolerance": 0.0}
    once = solve("tv", p, strength=40.0, edge_ppm=0.03, **settled)
    louder = replace(p, field=c * p.field, weight=p.weight / c)
    twice = solve("tv", louder, strength=40.0 / c, edge_ppm=0.03 * c, **settled)
    assert float((twice - c * once).norm() / (c * once).norm()) < 0.01


@pytest.mark.parametrize("method", ["rts", "tv"])
def test_a_value_of_no_weight_has_no_say(method: str) -> None:
    p = phantom()
    spoilt = torch.where(p.weight > 0, p.field, 0.05 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)))
    steps = {"iterations": 300, "tolerance": 0.0} if method == "tv" else {}
    clean, other = solve(method, p, **steps), solve(method, replace(p, field=spoilt), **steps)
    inside = p.weight > 0
    assert float((clean - other)[inside].norm() / clean[inside].norm()) < 0.001


@pytest.mark.parametrize("method", ["rts", "tv"])
def test_an_unreliable_value_is_believed_less(method: str) -> None:
    p = phantom()
    field, weight = p.field.clone(), p.weight.clone()
    field[10, 9, 7] += 0.3
    weight[10, 9, 7] *= 0.01
    believed = error(solve(method, replace(p, field=field)), p)
    assert error(solve(method, replace(p, field=field, weight=weight)), p) < believed


def test_the_spectrum_of_the_laplacian_is_the_gradient_and_its_adjoint() -> None:
    dipole = phantom(torch.float64).dipole
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(dipole.padded, generator=generator, dtype=torch.float64, requires_grad=True)
    (product,) = torch.autograd.grad(calculus.gradient(x, dipole).square().sum() / 2, x)
    spectrum = calculus.laplacian_spectrum(dipole) * torch.fft.rfftn(x.detach())
    torch.testing.assert_close(torch.fft.irfftn(spectrum, s=dipole.padded), product)


def test_a_difference_counts_per_millimetre() -> None:
    h = calculus.steps(Dipole((4, 4, 4), (1.0, 2.0, 4.0), (0, 0, 1)))
    assert h == pytest.approx([2.0, 1.0, 0.5])
    assert calculus.steps(Dipole((4, 4, 4), (3.0, 3.0, 3.0), (0, 0, 1))) == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("method", ["rts", "tv"])
def test_more_strength_makes_the_map_flatter(method: str) -> None:
    p = phantom()
    variation = [
        float(calculus.gradient(torch.nn.functional.pad(solve(method, p, strength=s), (0, 1) * 3), dipole).abs().sum())
        for s in (4.0, 40.0, 400.0)
        for dipole in [Dipole([n + 1 for n in SHAPE], SIZE, B0)]
    ]
    assert variation[0] > variation[1] > variation[2]


def test_tv_beats_rts_beats_tkd_on_a_head() -> None:
    shape, size = (48, 62, 44), (3.0, 3.0, 3.0)
    scan = simulate_scan(shape, size, oversample=2, b0_dir=(0.1, -0.2, 1), skull=False)
    times = torch.tensor(scan.echo_times_s).view(-1, 1, 1, 1)
    noise = float(scan.signal[0].abs()[scan.head.brain].mean()) / 100
    norm = (scan.signal.abs() ** 2 * times**2).sum(0).sqrt()
    sd = noise / norm.clamp_min(1e-9) * ppm_per_rad(1.0, scan.b0_tesla)
    field = scan.local_ppm + sd * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    local = Field(field, sd, scan.head.brain, Grid.simple(shape, size, scan.b0_dir))
    inside = scan.head.brain
    truth = scan.head.chi_ppm[inside] - scan.head.chi_ppm[inside].mean()
    errors = {m: float((invert(local, m).ppm[inside] - truth).norm() / truth.norm()) for m in ("tv", "rts", "tkd")}
    assert errors["tv"] < errors["rts"] < errors["tkd"] < 0.65
