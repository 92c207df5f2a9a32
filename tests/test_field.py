"""The fit of the echoes: exact without noise, its stated noise the true one, its residual high where an echo is bad."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from pipeline.errors import ChironError
from pipeline.field import Fit, total_field
from pipeline.volumes import Echoes, Grid, ppm_per_rad

SHAPE = (25, 22, 19)
GRID = Grid.simple(SHAPE, (0.9, 1.1, 1.7), (0.3, -0.2, 0.9))
TIMES = (0.004, 0.009, 0.017, 0.021)
EVERYWHERE = torch.ones(SHAPE, dtype=torch.bool)
METHODS: tuple[Literal["linear", "nonlinear"], ...] = ("linear", "nonlinear")


def truth() -> Tensor:
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    return 0.03 * x - 0.02 * y * z + 0.01 * x**2


def scan(times: tuple[float, ...] = TIMES, b0: float = 3.0, snr: float = math.inf, seed: int = 0) -> Echoes:
    """Echoes of the true field, decaying and shaded, with phase that needs no unwrapping."""
    t = torch.tensor(times).view(-1, 1, 1, 1)
    phase = truth() * t / ppm_per_rad(1.0, b0)
    shade = torch.linspace(0.7, 1.3, SHAPE[0])[:, None, None]
    signal = torch.polar(100 * shade * torch.exp(-30 * t).expand(phase.shape), phase)
    noise = torch.randn((*signal.shape, 2), generator=torch.Generator().manual_seed(seed))
    signal = signal + float(signal[0].abs().mean()) / snr * torch.view_as_complex(noise)
    unwrapped = phase + (signal * torch.polar(torch.ones_like(phase), -phase)).angle()
    return Echoes(signal.abs(), unwrapped, times, b0, GRID)


@pytest.mark.parametrize("b0", [1.5, 3.0, 7.0])
@pytest.mark.parametrize("times", [(0.012,), (0.005, 0.018), TIMES])
def test_echoes_without_noise_give_the_field(times: tuple[float, ...], b0: float) -> None:
    fitted = total_field(scan(times, b0), EVERYWHERE)
    torch.testing.assert_close(fitted.field.ppm, truth(), rtol=0, atol=1e-6)
    assert float(fitted.residual.abs().max()) < 1e-5
    assert fitted.facts["echoes"] == len(times)


def test_one_ppm_is_one_millionth_of_the_frequency() -> None:
    cycles = 42.577478 * 3.0 * 0.010
    assert 1 / ppm_per_rad(0.010, 3.0) == pytest.approx(2 * math.pi * cycles)
    assert ppm_per_rad(0.010, 1.5) == pytest.approx(2 * ppm_per_rad(0.010, 3.0))


@pytest.mark.parametrize("snr", [30.0, 100.0])
@pytest.mark.parametrize("times", [(0.005, 0.018), (0.006, 0.012, 0.018), TIMES])
def test_the_stated_noise_is_the_true_one(times: tuple[float, ...], snr: float) -> None:
    fitted = total_field(scan(times, snr=snr), EVERYWHERE)
    normal = (fitted.field.ppm - truth()) / fitted.field.sd_ppm
    assert float(normal.std()) == pytest.approx(1, abs=0.15)
    assert abs(float(normal.mean())) < 0.1
    assert fitted.facts["snr_first_echo"] == pytest.approx(snr, rel=0.15)


def test_more_echoes_and_a_higher_field_mean_less_noise() -> None:
    sd = [
        total_field(scan(times, b0, 50), EVERYWHERE).facts["median_sd_ppm"]
        for times, b0 in (
            ((0.004, 0.012), 3.0),
            ((0.004, 0.012, 0.020, 0.028), 3.0),
            ((0.004, 0.012, 0.020, 0.028), 7.0),
        )
    ]
    assert sd[0] > sd[1] > sd[2]


def test_the_residual_is_high_where_an_echo_is_corrupted() -> None:
    clean = scan(snr=100)
    phase = clean.phase_rad.clone()
    phase[2, 5:9, 5:9, 5:9] += 2.5
    fitted = total_field(replace(clean, phase_rad=phase), EVERYWHERE)
    bad = torch.zeros(SHAPE, dtype=torch.bool)
    bad[5:9, 5:9, 5:9] = True
    assert float(fitted.residual.min()) >= 0 and float(fitted.residual.max()) <= 1
    assert float(fitted.residual[bad].min()) > 10 * float(fitted.residual[~bad].quantile(0.99))


def test_voxels_of_a_large_residual_have_no_say_and_only_where_asked() -> None:
    clean = scan(snr=100)
    phase = clean.phase_rad.clone()
    phase[1::2, 5:9, 5:9, 5:9] += 2.5
    spoilt = replace(clean, phase_rad=phase)
    kept, excluded = total_field(spoilt, EVERYWHERE, Fit(largest_residual=1.0)), total_field(spoilt, EVERYWHERE)
    large = excluded.residual > 0.3
    assert bool(large[6:8, 6:8, 6:8].any()) and not bool(large[:4].any())
    assert float(excluded.field.sd_ppm[large].min()) > 1e3 * float(kept.field.sd_ppm[large].max())
    assert torch.equal(excluded.field.sd_ppm[~large], kept.field.sd_ppm[~large])
    assert excluded.facts["excluded_share"] == pytest.approx(float(large.float().mean()))


def test_nothing_is_said_outside_the_mask_or_without_signal() -> None:
    echoes = scan(snr=50)
    mask = EVERYWHERE.clone()
    mask[:8] = False
    magnitude = echoes.magnitude.clone()
    magnitude[:, 12, 10, 9] = 0
    fitted = total_field(replace(echoes, magnitude=magnitude), mask)
    expected = mask.clone()
    expected[12, 10, 9] = False
    assert torch.equal(fitted.field.mask, expected)
    for volume in (fitted.field.ppm, fitted.field.sd_ppm, fitted.residual):
        assert not bool(volume[~expected].any()) and bool(torch.isfinite(volume).all())
    assert float(fitted.field.sd_ppm[expected].min()) > 0


def test_the_unit_of_the_magnitude_does_not_matter() -> None:
    echoes = scan(snr=50)
    one, other = (total_field(replace(echoes, magnitude=c * echoes.magnitude), EVERYWHERE) for c in (1, 1000))
    torch.testing.assert_close(one.field.ppm, other.field.ppm)
    torch.testing.assert_close(one.field.sd_ppm, other.field.sd_ppm)


def test_an_empty_mask_is_a_fault() -> None:
    with pytest.raises(ChironError, match="P007"):
        total_field(scan(), ~EVERYWHERE)


@pytest.mark.parametrize("method", ["linear", "nonlinear"])
def test_both_fits_give_the_field_of_a_sound_scan(method: Literal["linear", "nonlinear"]) -> None:
    fitted = total_field(scan(snr=100), EVERYWHERE, Fit(method))
    normal = (fitted.field.ppm - truth()) / fitted.field.sd_ppm
    assert float(normal.std()) == pytest.approx(1, abs=0.15) and fitted.facts["method"] == method


def test_a_wrong_turn_of_a_late_echo_does_not_count_in_the_complex_fit() -> None:
    clean = scan()
    phase = clean.phase_rad.clone()
    phase[3, 5:9, 5:9, 5:9] += 2 * math.pi
    magnitude = clean.magnitude.clone()
    magnitude[3] *= 0.3
    torn = replace(clean, phase_rad=phase, magnitude=magnitude)
    error = {m: float((total_field(torn, EVERYWHERE, Fit(m)).field.ppm - truth()).abs().max()) for m in METHODS}
    assert error["nonlinear"] < 1e-5 < 0.01 < error["linear"]


def test_echoes_that_disagree_widen_the_standard_deviation_and_nothing_else_does() -> None:
    clean = scan(snr=100)
    phase = clean.phase_rad.clone()
    phase[2, 5:9, 5:9, 5:9] += 0.5
    sound, torn = (total_field(e, EVERYWHERE).field.sd_ppm for e in (clean, replace(clean, phase_rad=phase)))
    ratio = torn / sound
    far = torch.ones(SHAPE, dtype=torch.bool)
    far[4:10, 4:10, 4:10] = False
    assert float(ratio[6:8, 6:8, 6:8].min()) > 5
    assert float((ratio[far] - 1).abs().max()) < 0.05
