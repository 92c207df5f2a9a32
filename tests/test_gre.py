"""The simulated signal: phase of the field, Ernst's magnitude, decay with field strength, noise and readout."""

from __future__ import annotations

import math

import pytest
import torch

from models.gre import GAMMA_MHZ_PER_T, Simulation, average, coarsen, ernst, gre_signal, scan_head, simulate_scan
from models.head import TISSUES, Head, fields, simulate_head

SHAPE, SIZE = (36, 44, 36), (5.0, 5.0, 5.0)
TIMES = (0.004, 0.008, 0.012, 0.016)


@pytest.fixture(scope="module")
def head() -> Head:
    return simulate_head(SHAPE, SIZE, seed=5)


def wrapped(phase: torch.Tensor) -> torch.Tensor:
    return torch.angle(torch.exp(1j * phase))


def uniform(value: float) -> Head:
    volume = torch.ones((6, 6, 6))
    return Head(volume.short() * 8, volume * value, volume, volume, volume * 20, volume > 0, (1.0, 1.0, 1.0))


@pytest.mark.parametrize(("field_ppm", "b0"), [(0.1, 3.0), (-0.2, 1.5), (0.05, 7.0)])
def test_a_higher_field_turns_the_phase_forward(field_ppm: float, b0: float) -> None:
    flat = uniform(0)
    signal = gre_signal(flat, torch.full((6, 6, 6), field_ppm), (0.005,), b0, phase_offset=False, snr=math.inf)
    expected = 2 * math.pi * GAMMA_MHZ_PER_T * b0 * field_ppm * 0.005
    torch.testing.assert_close(signal[0].angle(), wrapped(torch.full((6, 6, 6), expected)), atol=1e-4, rtol=0)


def test_the_phase_is_linear_in_echo_time_and_the_offset_common(head: Head) -> None:
    total, _ = fields(head, (0, 0, 1))
    plain = gre_signal(head, total, TIMES, 3.0, phase_offset=False, snr=math.inf).angle()
    offset = gre_signal(head, total, TIMES, 3.0, phase_offset=True, snr=math.inf).angle()
    inside = head.brain
    for e, te in enumerate(TIMES):
        exact = 2 * math.pi * GAMMA_MHZ_PER_T * 3.0 * te * total
        assert float(wrapped(plain[e] - exact)[inside].abs().max()) < 2e-3
        torch.testing.assert_close(
            wrapped(offset[e] - plain[e] - offset[0] + plain[0])[inside].abs().max().item(), 0.0, atol=2e-3, rtol=0
        )
    turned = wrapped(offset[0] - plain[0])[inside]
    assert float(turned.max() - turned.min()) > 1.5


def test_the_magnitude_is_ernst_and_decays_with_r2star() -> None:
    flat = uniform(0)
    magnitude = gre_signal(flat, torch.zeros(6, 6, 6), (0.01, 0.03), 3.0, flip_deg=20, tr_s=0.05, snr=math.inf).abs()
    a, e1 = math.radians(20), math.exp(-0.05)
    steady = math.sin(a) * (1 - e1) / (1 - math.cos(a) * e1)
    torch.testing.assert_close(magnitude[0], torch.full((6, 6, 6), steady * math.exp(-0.2)))
    torch.testing.assert_close(magnitude[1] / magnitude[0], torch.full((6, 6, 6), math.exp(-0.4)))
    best = math.degrees(math.acos(e1))
    one = torch.ones(1)
    assert max((10.0, best, 40.0), key=lambda flip: float(ernst(one, one, flip, 0.05))) == best


def test_the_signal_decays_faster_at_higher_field(head: Head) -> None:
    zero = torch.zeros(SHAPE)
    ratio = [
        (s[1].abs() / s[0].abs())[head.brain].mean()
        for s in (gre_signal(head, zero, (0.005, 0.025), b0, snr=math.inf) for b0 in (1.5, 3.0, 7.0))
    ]
    assert ratio[0] > ratio[1] > ratio[2] + 0.1


def test_a_steep_field_dephases_a_voxel() -> None:
    steep = torch.linspace(-0.5, 0.5, 6)[:, None, None].expand(6, 6, 6)
    signal = gre_signal(uniform(0), steep, (0.02,), 3.0, snr=math.inf).abs()[0]
    level = gre_signal(uniform(0), steep * 0, (0.02,), 3.0, snr=math.inf).abs()[0]
    share = math.sin(math.pi * 0.2 * GAMMA_MHZ_PER_T * 3 * 0.02) / (math.pi * 0.2 * GAMMA_MHZ_PER_T * 3 * 0.02)
    torch.testing.assert_close(signal[2:4], level[2:4] * abs(share), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("snr", [20.0, 100.0])
def test_the_noise_is_as_stated(head: Head, snr: float) -> None:
    total, _ = fields(head, (0, 0, 1))
    clean = gre_signal(head, total, TIMES, 3.0, snr=math.inf)
    noise = gre_signal(head, total, TIMES, 3.0, snr=snr) - clean
    mean = float(clean[0].abs()[head.brain].mean())
    for part in (noise.real, noise.imag):
        assert mean / float(part.std()) == pytest.approx(snr, rel=0.02)
        assert abs(float(part.mean())) < 0.02 * mean / snr
    assert abs(float((noise.real * noise.imag).mean())) < 0.02 * (mean / snr) ** 2


def test_a_bipolar_readout_alternates(head: Head) -> None:
    zero = torch.zeros(SHAPE)
    plain, bipolar = (
        gre_signal(head, zero, TIMES, 3.0, bipolar=b, snr=math.inf, seed=3).angle() for b in (False, True)
    )
    where = head.brain
    turn = [wrapped(b - a) for a, b in zip(plain, bipolar, strict=True)]
    for e in (1, 2, 3):
        assert float(wrapped(turn[e] - (-1) ** e * turn[0])[where].abs().max()) < 1e-3
    step = wrapped(turn[0][1:] - turn[0][:-1])[where[1:] & where[:-1]]
    assert float(step.std()) < 1e-3 and 1 / 36 < abs(float(step.mean())) < 3.2 / 35


def test_a_seed_makes_one_scan() -> None:
    a, b, c = (simulate_scan(SHAPE, SIZE, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.signal, b.signal) and torch.equal(a.local_ppm, b.local_ppm)
    assert not torch.equal(a.signal, c.signal)


def test_a_scan_says_what_it_is() -> None:
    scan = simulate_scan(
        (24, 30, 21), (7, 6.5, 8), echo_times_s=(0.003, 0.009), b0_tesla=7, b0_dir=(0, 3, 4), oversample=2
    )
    assert isinstance(scan, Simulation)
    assert tuple(scan.signal.shape) == (2, 24, 30, 21) and scan.signal.dtype == torch.complex64
    assert tuple(scan.total_ppm.shape) == tuple(scan.local_ppm.shape) == tuple(scan.head.labels.shape) == (24, 30, 21)
    assert scan.voxel_size_mm == scan.head.voxel_size_mm == (7, 6.5, 8)
    assert scan.b0_dir == pytest.approx((0, 0.6, 0.8)) and scan.b0_tesla == 7 and scan.echo_times_s == (0.003, 0.009)


def test_oversampling_averages_the_truth() -> None:
    fine = simulate_head((24, 30, 20), (4, 4, 4), seed=1)
    coarse = coarsen(fine, 2)
    inside, outside = average(fine.chi_ppm * fine.brain, 2), average(fine.chi_ppm, 2)
    torch.testing.assert_close(coarse.chi_ppm, torch.where(coarse.brain, inside, outside))
    assert float(coarse.brain.sum()) * 8 == pytest.approx(float(fine.brain.sum()), rel=0.05)
    assert set(coarse.labels.unique().tolist()) <= {t.code for t in TISSUES.values()}
    block = fine.labels[8:10, 14:16, 10:12]
    assert int((block == coarse.labels[4, 7, 5]).sum()) >= int(block.numel() / len(block.unique()))
    with pytest.raises(ValueError, match="no multiple of 7"):
        coarsen(fine, 7)
    scan = scan_head(fine, oversample=2, snr=math.inf)
    torch.testing.assert_close(scan.total_ppm.mean(), fields(fine, (0, 0, 1))[0].mean(), atol=1e-4, rtol=1e-3)
