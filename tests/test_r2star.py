"""R2* and T2* from the echoes' decay: exact without noise, unbiased with it; and the ventricles that R2* finds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pipeline.errors import ChironError
from pipeline.r2star import R2Star, map_r2star
from pipeline.volumes import Grid
from pipeline.water import Reference, csf_mask, refer_to_csf

EVEN = (0.004, 0.012, 0.020, 0.028)
UNEVEN = (0.003, 0.010, 0.013, 0.031)
SHAPE = (11, 9, 7)
EVERYWHERE = torch.ones(SHAPE, dtype=torch.bool)


def decay(r2star: Tensor, times: Sequence[float], start: float = 700.0) -> Tensor:
    """Magnitude (E, X, Y, Z) without noise."""
    return start * torch.exp(-torch.tensor(times).view(-1, 1, 1, 1) * r2star)


def noisy(magnitude: Tensor, noise: float, seed: int = 0) -> Tensor:
    real, imaginary = noise * torch.randn(2, *magnitude.shape, generator=torch.Generator().manual_seed(seed))
    return torch.hypot(magnitude + real, imaginary)


def between(low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(SHAPE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("times", [EVEN, UNEVEN, EVEN[:3], EVEN[:2], UNEVEN[:2]], ids=str)
def test_an_exact_decay_gives_its_rate_and_no_residual(times: tuple[float, ...]) -> None:
    true = between(2, 150)
    found = map_r2star(decay(true, times), times, EVERYWHERE, 0.0)
    torch.testing.assert_close(found.r2star, true, rtol=1e-3, atol=0.02)
    torch.testing.assert_close(found.t2star_s, 1 / true, rtol=1e-3, atol=1e-5)
    assert float(found.residual.max()) < 1e-5 and found.facts["method"] == "loglinear"


def test_arlo_gives_the_rate_as_well_as_simpsons_rule_does() -> None:
    true = between(2, 80)
    found = map_r2star(decay(true, EVEN), EVEN, EVERYWHERE, 0.0, R2Star("arlo"))
    torch.testing.assert_close(found.r2star, true, rtol=3e-3, atol=0.02)
    assert found.facts["method"] == "arlo" and found.decisions == []


@pytest.mark.parametrize("times", [UNEVEN, EVEN[:2]], ids=str)
def test_where_arlo_cannot_take_the_echoes_it_is_said(times: tuple[float, ...]) -> None:
    found = map_r2star(decay(between(10, 50), times), times, EVERYWHERE, 0.0, R2Star("arlo"))
    assert found.facts["method"] == "loglinear"
    assert [(d.what, d.decided) for d in found.decisions] == [("R2* method", "loglinear")]


@pytest.mark.parametrize("method", ["loglinear", "arlo"])
def test_the_unit_of_the_magnitude_does_not_matter(method: str) -> None:
    magnitude, params = noisy(decay(between(5, 60), EVEN), 10.0), R2Star(method)  # type: ignore[arg-type]
    one, other = (map_r2star(k * magnitude, EVEN, EVERYWHERE, k * 10.0, params) for k in (1.0, 1e-4))
    torch.testing.assert_close(one.r2star, other.r2star, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(one.residual, other.residual, rtol=1e-3, atol=1e-5)


def test_axes_may_be_exchanged() -> None:
    magnitude, mask = noisy(decay(between(5, 60), EVEN), 10.0), between(0, 1) > 0.3
    turned = map_r2star(magnitude.permute(0, 3, 1, 2), EVEN, mask.permute(2, 0, 1), 10.0).r2star
    torch.testing.assert_close(turned.permute(1, 2, 0), map_r2star(magnitude, EVEN, mask, 10.0).r2star)


def test_nothing_is_said_outside_the_mask() -> None:
    mask = between(0, 1) > 0.5
    found = map_r2star(noisy(decay(between(5, 60), EVEN), 10.0), EVEN, mask, 10.0)
    for volume in (found.r2star, found.t2star_s, found.residual):
        assert not volume[~mask].any() and bool(volume[mask].isfinite().all())
    assert bool((found.t2star_s[mask] > 0).all())


@pytest.mark.parametrize("snr", [30, 100])
@pytest.mark.parametrize(("true", "bias"), [(5.0, 0.02), (20.0, 0.02), (45.0, 0.02), (100.0, 0.04)])
def test_noise_spreads_the_rate_as_told_and_shifts_it_little(true: float, bias: float, snr: int) -> None:
    volume = torch.full((40, 40, 40), true)
    noise = 700 * torch.exp(torch.tensor(-EVEN[0] * true)).item() / snr
    found = map_r2star(noisy(decay(volume, EVEN), noise), EVEN, torch.ones_like(volume, dtype=torch.bool), noise)
    told = found.facts["median_r2star_sd"]
    values = found.r2star.flatten()
    assert abs(float(values.median()) - true) < bias * true + 0.02 * told + 0.02
    if true > 3 * told and true < 100:
        assert float(values.std()) == pytest.approx(told, rel=0.1)


def test_the_noise_floor_is_not_taken_for_slow_decay() -> None:
    """The last echoes of a bleeding are noise alone; a fit that believed them would halve its rate."""
    volume = torch.full((40, 40, 40), 200.0)
    mask = torch.ones_like(volume, dtype=torch.bool)
    magnitude = noisy(decay(volume, EVEN), 7.0)
    assert float(map_r2star(magnitude, EVEN, mask, 7.0).r2star.median()) == pytest.approx(200, rel=0.05)
    assert float(map_r2star(magnitude, EVEN, mask, 0.0, R2Star("arlo")).r2star.median()) < 195


def test_what_is_clipped_is_counted() -> None:
    true = torch.full(SHAPE, 20.0)
    true[0], true[1] = -5.0, 900.0
    found = map_r2star(decay(true, EVEN[:2]), EVEN[:2], EVERYWHERE, 0.0, R2Star(highest=500, longest_s=0.5))
    assert (found.facts["clipped_negative"], found.facts["clipped_high"]) == (63, 63)
    assert bool((found.r2star[0] == 0).all()) and bool((found.r2star[1] == 500).all())
    assert bool((found.t2star_s[0] == 0.5).all()) and float(found.t2star_s[2, 0, 0]) == pytest.approx(0.05, rel=1e-3)


def test_one_echo_and_an_empty_mask_are_faults() -> None:
    with pytest.raises(ChironError, match="E007"):
        map_r2star(torch.ones(1, *SHAPE), (0.02,), EVERYWHERE, 0.0)
    with pytest.raises(ChironError, match="P007"):
        map_r2star(torch.ones(2, *SHAPE), EVEN[:2], ~EVERYWHERE, 0.0)


def test_a_voxel_without_signal_stays_finite() -> None:
    magnitude = decay(torch.full(SHAPE, 20.0), EVEN)
    magnitude[:, 2] = 0
    found = map_r2star(magnitude, EVEN, EVERYWHERE, 0.0)
    assert all(bool(v.isfinite().all()) for v in (found.r2star, found.t2star_s, found.residual))


SIZE_MM = (2.0, 2.5, 3.0)
GRID = Grid.simple((48, 40, 36), SIZE_MM, (0.2, 0.0, 1.0))


def ellipsoid(centre_mm: Sequence[float], radii_mm: Sequence[float]) -> Tensor:
    axes = [(torch.arange(n) - n / 2) * s for n, s in zip(GRID.shape, SIZE_MM, strict=True)]
    parts = zip(torch.meshgrid(*axes, indexing="ij"), centre_mm, radii_mm, strict=True)
    inside: Tensor = sum(((x - c) / r) ** 2 for x, c, r in parts) < 1  # type: ignore[assignment]
    return inside


BRAIN = ellipsoid((0, 0, 0), (42, 44, 42))
VENTRICLES = ellipsoid((-8, 0, 4), (6, 14, 7)) | ellipsoid((8, 0, 4), (6, 14, 7))
SULCUS = ellipsoid((0, 38, 0), (20, 5, 20)) & BRAIN


def rates(noise: float = 0.0) -> Tensor:
    fluid = VENTRICLES | SULCUS
    r2star = torch.where(fluid, 2.0, 20.0) + noise * torch.randn(GRID.shape, generator=torch.Generator().manual_seed(1))
    return r2star.clamp_min(0) * BRAIN


@pytest.mark.parametrize("noise", [0.0, 2.5])
def test_the_ventricles_are_found_and_a_sulcus_is_not(noise: float) -> None:
    found = csf_mask(rates(noise), BRAIN, GRID, noise)
    assert not (found & SULCUS).any()
    assert int((found & VENTRICLES).sum()) > 0.9 * int(VENTRICLES.sum())
    assert int((found & ~VENTRICLES).sum()) < 0.02 * int(found.sum())


def test_fluid_is_not_made_up() -> None:
    for r2star, noise in ((torch.where(BRAIN, 20.0, 0.0), 0.0), (rates(9.0), 9.0), (rates() * ~VENTRICLES + 0, 0.0)):
        lacking = r2star + 20.0 * (VENTRICLES & (r2star < 5)) * (noise == 0)
        with pytest.raises(ChironError, match="P009"):
            csf_mask(lacking, BRAIN, GRID, noise)
    with pytest.raises(ChironError, match="P009"):
        csf_mask(rates(), torch.zeros_like(BRAIN), GRID)


def test_the_limit_and_the_radius_are_obeyed() -> None:
    with pytest.raises(ChironError, match="P009"):
        csf_mask(rates(), BRAIN, GRID, 0.0, Reference(csf_r2star=1))
    wide = csf_mask(rates(), BRAIN, GRID, 0.0, Reference(csf_radius_mm=60))
    assert (wide & SULCUS).any()


def test_the_map_is_zero_in_the_fluid_and_says_what_was_taken_off() -> None:
    chi = torch.where(BRAIN, between_on(BRAIN), 0) + 0.05 * VENTRICLES
    referred, facts = refer_to_csf(chi, BRAIN, VENTRICLES, 0.01)
    assert float(referred[VENTRICLES].mean()) == pytest.approx(0, abs=1e-6) and not referred[~BRAIN].any()
    torch.testing.assert_close((chi - referred)[BRAIN], torch.full((int(BRAIN.sum()),), facts["mean_ppm"] - 0.01))
    assert facts["voxels"] == int(VENTRICLES.sum()) and facts["sd_ppm"] == pytest.approx(float(chi[VENTRICLES].std()))
    with pytest.raises(ChironError, match="P009"):
        refer_to_csf(chi, ~VENTRICLES, VENTRICLES, 0.0)


def between_on(mask: Tensor) -> Tensor:
    return 0.02 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(5))
