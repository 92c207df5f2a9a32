"""Echoes unwrapped and freed of offsets: the true field's phase comes out, whatever the coils and the readout add."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from models.gre import Simulation, scan_head
from models.head import Head, simulate_head
from pipeline.errors import ChironError
from pipeline.field import total_field
from pipeline.unwrap import Unwrap, laplacian_phase, unwrap, wraps_left
from pipeline.unwrap.time import unwrap_in_time
from pipeline.volumes import Echoes, Grid, ppm_per_rad

SHAPE, SIZE, B0_DIR = (29, 36, 25), (6.0, 5.6, 6.4), (0.15, -0.2, 0.97)
TWO_PI = 2 * torch.pi
EQUAL = (0.004, 0.010, 0.016, 0.022)


@cache
def head() -> Head:
    return simulate_head(SHAPE, SIZE, seed=2, skull=False)


@cache
def scan(times: tuple[float, ...] = EQUAL, bipolar: bool = False, offset: bool = True, seed: int = 0) -> Simulation:
    return scan_head(
        head(), echo_times_s=times, b0_dir=B0_DIR, bipolar=bipolar, phase_offset=offset, snr=100, seed=seed
    )


def echoes(simulation: Simulation) -> Echoes:
    grid = Grid.simple(SHAPE, SIZE, B0_DIR)
    return Echoes(simulation.signal.abs(), simulation.signal.angle(), simulation.echo_times_s, 3.0, grid)


def brain() -> Tensor:
    return head().brain


PLAIN = Unwrap()


def misfit_ppm(simulation: Simulation, params: Unwrap = PLAIN) -> float:
    """Median error in the brain of the field that is fitted, less its mean."""
    found = unwrap(echoes(simulation), brain(), params)
    error = (total_field(found.echoes, brain()).field.ppm - simulation.total_ppm)[brain()]
    return float((error - error.median()).abs().median())


@pytest.mark.parametrize(
    "times", [(0.004, 0.010), (0.004, 0.010, 0.016), EQUAL, (0.004, 0.009, 0.017), (0.003, 0.008, 0.013, 0.021, 0.030)]
)
def test_the_offset_of_the_coils_is_taken_off(times: tuple[float, ...]) -> None:
    simulation = scan(times)
    found = unwrap(echoes(simulation), brain())
    true = simulation.total_ppm / ppm_per_rad(1.0, 3.0)
    for e, t in enumerate(times):
        left = (found.echoes.phase_rad[e] - true * t)[brain()]
        left = left - TWO_PI * torch.round(left.median() / TWO_PI)
        assert float(left.abs().median()) < 0.25, e
    assert misfit_ppm(simulation) < 0.015
    assert found.facts["offset_removed"]


@pytest.mark.parametrize("times", [(0.004, 0.010, 0.016), (0.004, 0.009, 0.016), EQUAL])
@pytest.mark.parametrize("seed", range(2))
def test_a_bipolar_readout_is_detected_and_corrected(times: tuple[float, ...], seed: int) -> None:
    bipolar = scan(times, bipolar=True, seed=seed)
    found = unwrap(echoes(bipolar), brain())
    assert "E013" in [n.code for n in found.notices]
    assert [(d.what, d.decided) for d in found.decisions] == [("readout", "bipolar, corrected")]
    assert misfit_ppm(bipolar) < 0.02 < misfit_ppm(bipolar, Unwrap(bipolar="no"))


@pytest.mark.parametrize("times", [(0.004, 0.010, 0.016), EQUAL])
@pytest.mark.parametrize("seed", range(3))
def test_a_monopolar_readout_is_left_alone(times: tuple[float, ...], seed: int) -> None:
    found = unwrap(echoes(scan(times, seed=seed)), brain())
    assert found.decisions[0].decided == "monopolar" and "E013" not in [n.code for n in found.notices]


@pytest.mark.parametrize("method", ["romeo", "laplacian"])
def test_nothing_is_left_outside_the_mask_and_the_input_stays(method: str) -> None:
    given = echoes(scan())
    before = given.phase_rad.clone()
    found = unwrap(given, brain(), Unwrap(method=method))  # type: ignore[arg-type]
    assert not bool(found.echoes.phase_rad[:, ~brain()].any())
    assert torch.equal(given.phase_rad, before) and found.echoes.echo_times_s == given.echo_times_s


def test_every_echo_is_congruent_with_its_input_less_the_offset() -> None:
    given = echoes(scan())
    found = unwrap(given, brain(), Unwrap(bipolar="no"))
    turns = (found.echoes.phase_rad - given.phase_rad + found.offset_rad)[:, brain()] / TWO_PI
    torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-4)
    step = found.echoes.phase_rad[1:] - found.echoes.phase_rad[:-1]
    assert float(step.abs().max()) > torch.pi


def test_a_single_echo_is_unwrapped_with_its_offset_on() -> None:
    simulation = scan((0.012,), offset=False)
    found = unwrap(echoes(simulation), brain())
    assert not found.facts["offset_removed"] and not bool(found.offset_rad.any()) and not found.decisions
    assert misfit_ppm(simulation) < 0.005


def test_echoes_out_of_order_cannot_be() -> None:
    given = echoes(scan())
    for times in ((0.010, 0.004, 0.016, 0.022), (0.004, 0.004, 0.016, 0.022), (0.0, 0.010, 0.016, 0.022)):
        with pytest.raises(ChironError, match="E005"):
            replace(given, echo_times_s=times)


def test_the_laplacian_gives_a_phase_back_whose_edges_are_flat() -> None:
    shape = (33, 30, 35)
    x, y, z = torch.meshgrid(*[(torch.arange(n) + 0.5) / n for n in shape], indexing="ij")
    true = 4 * torch.cos(torch.pi * x) * torch.cos(torch.pi * y) + 2 * torch.cos(2 * torch.pi * z)
    wrapped = torch.polar(torch.ones(shape), true).angle()
    assert float((wrapped - true).abs().max()) > 3
    found = laplacian_phase(wrapped, Grid.simple(shape, (1.0, 1.3, 2.0)))
    error = found - found.mean() - (true - true.mean())
    assert float(error.abs().max()) < 0.05 * float(true.abs().max())


def test_the_laplacian_method_is_near_the_exact_one() -> None:
    simulation = scan()
    spread = float(simulation.total_ppm[brain()].std())
    assert misfit_ppm(simulation) < 0.1 * spread
    assert misfit_ppm(simulation, Unwrap(method="laplacian")) < 0.5 * spread


def steep() -> tuple[Echoes, Tensor, Tensor]:
    """A ball of smooth field, at whose rim the field rises by most of a turn a voxel; its mask and true phase."""
    shape = (33, 31, 29)
    x, y, z = torch.meshgrid(*[torch.arange(n) - n // 2 for n in shape], indexing="ij")
    mask = (x**2 + y**2 + z**2).sqrt() < 12
    rim = mask & (x > 8)
    phase = 0.15 * x + 0.1 * y + torch.where(rim, 5.2 * (x - 8), 0)
    times = (0.005, 0.010, 0.015)
    true = torch.stack([phase * t / times[0] for t in times])
    noise = 0.03 * torch.view_as_complex(torch.randn((*true.shape, 2), generator=torch.Generator().manual_seed(0)))
    signal = torch.polar(torch.where(rim, 0.2, 1.0).expand(true.shape), true) + noise
    found = Echoes(signal.abs(), signal.angle(), times, 3.0, Grid.simple(shape, (1.0, 1.0, 1.0)))
    return found, mask, true


def test_rim_voxels_whose_turns_are_not_known_leave_the_mask() -> None:
    given, mask, true = steep()
    found = unwrap(given, mask)
    wrong = ((found.echoes.phase_rad[0] - true[0]).abs() > torch.pi) & mask
    assert float(wrong.sum()) > 50
    assert bool((found.mask <= mask).all()) and not bool((wrong & found.mask).any())
    assert float(found.mask.sum() / mask.sum()) > 0.9
    assert found.facts["unreliable_share"] == pytest.approx(1 - float(found.mask.sum() / mask.sum()))
    assert torch.equal(unwrap(given, mask, Unwrap(least_reach=0)).mask, mask)


@pytest.mark.parametrize(("slope", "stays"), [(0.5, True), (1.5, False)])
def test_a_rim_that_is_steep_leaves_the_mask_and_a_gentle_one_stays(slope: float, stays: bool) -> None:
    given, mask, _ = steep()
    x = torch.arange(33)[:, None, None].expand(mask.shape) - 16
    first = 0.15 * x + torch.where(x > 8, slope * (x - 8), 0)
    phase = torch.stack([first, 2 * first, 3 * first])
    signal = torch.polar(torch.ones_like(phase), phase)
    kept = unwrap(replace(given, phase_rad=signal.angle(), magnitude=signal.abs()), mask).mask
    assert bool(kept[mask & (x <= 7)].all())
    assert bool(kept[mask & (x > 8)].all()) if stays else not bool(kept[x > 8].any())


def test_what_is_unreliable_amid_the_mask_stays() -> None:
    given, mask, _ = steep()
    phase, magnitude = given.phase_rad.clone(), given.magnitude.clone()
    phase[:, 12:15, 14:17, 13:16] = torch.rand((3, 3, 3, 3), generator=torch.Generator().manual_seed(1)) * 6 - 3
    magnitude[:, 12:15, 14:17, 13:16] = 0.05
    found = unwrap(replace(given, phase_rad=phase, magnitude=magnitude), mask)
    assert bool(found.mask[11:16, 13:18, 12:17].all())


def test_wraps_that_are_left_are_counted_and_told() -> None:
    shape = (12, 10, 8)
    mask = torch.ones(shape, dtype=torch.bool)
    unwrapped = torch.zeros(2, *shape)
    unwrapped[0, 4, 4, 4] = 7.0
    edges = 11 * 10 * 8 + 12 * 9 * 8 + 12 * 10 * 7
    assert wraps_left(unwrapped, mask) == ([pytest.approx(6 / edges), 0.0], 7)
    given, whole, _ = steep()
    noise = torch.rand(given.phase_rad.shape, generator=torch.Generator().manual_seed(1)) * 6 - 3
    torn = unwrap(replace(given, phase_rad=noise), whole, Unwrap(least_reach=0))
    assert "P010" in [n.code for n in torn.notices] and torn.facts["wraps_left_voxels"] > 1000


def test_a_late_echo_that_noise_hides_follows_the_others() -> None:
    true = torch.linspace(-3, 3, 500)
    times = (0.004, 0.012, 0.020)
    phase = torch.stack([torch.remainder(true * t / 0.004 + torch.pi, TWO_PI) - torch.pi for t in times])
    first = true + 0.9
    found = unwrap_in_time(first, phase, torch.tensor([0.2, 1.0, 1.0])[:, None].expand(3, 500), times)
    torch.testing.assert_close(found[1:], torch.stack([true * t / 0.004 for t in times[1:]]), rtol=0, atol=1e-3)
