"""Unwrapping in space: wrapped and unwrapped is as before, congruent always, each piece by itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.romeo import edge_weights, grow, quality, unwrap_volume

SHAPE = (15, 12, 11)
TWO_PI = 2 * np.pi
Array = npt.NDArray[np.float32]


def smooth(seed: int, steepest: float) -> Array:
    """A field whose neighbours differ by `steepest` rad at most."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    a = rng.normal(size=7)
    field = a[0] * x + a[1] * y + a[2] * z + a[3] * x * y + a[4] * z**2 + a[5] * np.sin(2 * x + a[6])
    step = max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3))
    return np.asarray(field * steepest / step + rng.uniform(-20, 20), np.float32)


def wrap(phase: Array) -> Array:
    return np.asarray(np.angle(np.exp(1j * phase)), np.float32)


def turns(difference: Array) -> Array:
    return np.asarray(difference / TWO_PI)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 3.0))
def test_what_was_wrapped_comes_back(seed: int, steepest: float) -> None:
    field = smooth(seed, steepest)
    magnitude = np.random.default_rng(seed).uniform(0.1, 1, SHAPE).astype(np.float32)
    shift = turns(unwrap_volume(wrap(field), magnitude, np.ones(SHAPE, bool)) - field)
    np.testing.assert_allclose(shift, np.round(shift[0, 0, 0]), atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 2.5))
def test_each_piece_is_unwrapped_by_itself_with_its_median_next_to_zero(seed: int, steepest: float) -> None:
    field = smooth(seed, steepest)
    mask = np.ones(SHAPE, bool)
    mask[6:8] = False
    unwrapped = unwrap_volume(wrap(field), np.ones(SHAPE, np.float32), mask)
    for piece in (slice(0, 6), slice(8, None)):
        shift = turns(unwrapped[piece] - field[piece])
        np.testing.assert_allclose(shift, np.round(shift[0, 0, 0]), atol=1e-4)
        assert abs(np.median(unwrapped[piece])) <= np.pi + 1e-3
    assert not unwrapped[6:8].any()


@pytest.mark.parametrize("seed", range(3))
def test_even_noise_stays_congruent_inside_and_zero_outside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    phase = rng.uniform(-np.pi, np.pi, SHAPE).astype(np.float32)
    mask = rng.random(SHAPE) < 0.6
    unwrapped = unwrap_volume(phase, rng.random(SHAPE, dtype=np.float32), mask)
    shift = turns(unwrapped - phase)[mask]
    np.testing.assert_allclose(shift, np.round(shift), atol=1e-4)
    assert not unwrapped[~mask].any()


def test_a_second_echo_bears_witness_and_changes_nothing_that_is_clear() -> None:
    field = smooth(4, 1.0)
    later = wrap(2.5 * field)
    unwrapped = unwrap_volume(wrap(field), np.ones(SHAPE, np.float32), np.ones(SHAPE, bool), later, (0.004, 0.010))
    shift = turns(unwrapped - field)
    np.testing.assert_allclose(shift, np.round(shift[0, 0, 0]), atol=1e-4)


def test_the_good_region_is_not_torn_by_a_bad_one() -> None:
    field = smooth(1, 1.5)
    rng = np.random.default_rng(0)
    bad = np.zeros(SHAPE, bool)
    bad[5:9, 4:8, 4:8] = True
    phase = np.where(bad, rng.uniform(-np.pi, np.pi, SHAPE), wrap(field)).astype(np.float32)
    magnitude = np.where(bad, 0.02, 1).astype(np.float32)
    shift = turns(unwrap_volume(phase, magnitude, np.ones(SHAPE, bool)) - field)[~bad]
    np.testing.assert_allclose(shift, np.round(shift[0]), atol=1e-4)


def test_the_input_is_left_alone() -> None:
    phase, mask = wrap(smooth(2, 2.0)), np.ones(SHAPE, bool)
    before = phase.copy()
    unwrap_volume(phase, np.ones(SHAPE, np.float32), mask)
    assert np.array_equal(phase, before)


def test_an_empty_mask_and_a_single_voxel_are_no_trouble() -> None:
    phase, mask = wrap(smooth(3, 2.0)), np.zeros(SHAPE, bool)
    assert not unwrap_volume(phase, np.ones(SHAPE, np.float32), mask).any()
    mask[4, 5, 6] = True
    alone = unwrap_volume(phase, np.ones(SHAPE, np.float32), mask)
    assert alone[4, 5, 6] == pytest.approx(phase[4, 5, 6]) and np.count_nonzero(alone) == 1


def test_edges_lie_in_the_mask_only() -> None:
    mask = np.ones(SHAPE, bool)
    mask[7] = False
    phase = wrap(smooth(0, 1.0))
    weights = edge_weights(phase, np.ones(SHAPE, np.float32), mask, phase, 0.0)
    assert not weights[6:8, ..., 0].any() and not weights[7].any() and not weights[-1, ..., 0].any()
    assert weights[:6, ..., 0].all() and weights[8:-1, ..., 0].all()


@pytest.mark.parametrize("second", [False, True])
def test_quality_tells_signal_from_noise_between_zero_and_one(second: bool) -> None:
    rng = np.random.default_rng(0)
    field, noise = smooth(0, 0.3), rng.uniform(-np.pi, np.pi, (2, *SHAPE)).astype(np.float32)
    left = np.arange(SHAPE[0])[:, None, None] < 8
    first, later = (np.where(left, wrap(k * field), n).astype(np.float32) for k, n in zip((1, 2), noise, strict=True))
    witness = (later, (0.005, 0.010)) if second else ()
    found = quality(first, np.ones(SHAPE, np.float32), *witness)
    assert found.min() >= 0 and found.max() <= 1
    assert found[1:7, 1:-1, 1:-1].min() > 0.6 > 0.5 > found[9:-1, 1:-1, 1:-1].mean()


def test_a_wrong_turn_is_behind_a_weak_edge() -> None:
    steps = np.pi * np.array([0, 0, 0, 0, 0, 0, 0, 0, 1.3, 0, 0, 0, 0, 0, 0], np.float32)
    field = np.ascontiguousarray(np.broadcast_to(np.cumsum(steps)[:, None, None], SHAPE), np.float32)
    field += 0.05 * np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    found = grow(wrap(field), np.ones(SHAPE, np.float32), np.ones(SHAPE, bool))
    shift = turns(found.phase - field)
    right = np.abs(shift - np.round(np.median(shift[:6]))) < 0.5
    left, wrong = found.reach[:6], found.reach[~right]
    assert found.piece.max() == 1 and right[:6].all() and not right[10:].any()
    assert min(np.median(left), np.median(wrong)) < 40 < 150 < max(np.median(left), np.median(wrong))


def test_reach_is_that_of_the_weakest_edge_on_the_best_way() -> None:
    phase, magnitude = np.zeros((9, 3, 3), np.float32), np.ones((9, 3, 3), np.float32)
    magnitude[4] = 0.3
    found = grow(phase, magnitude, np.ones(phase.shape, bool))
    weights = edge_weights(phase, magnitude, np.ones(phase.shape, bool), phase, 0.0)
    bridge = weights[3, ..., 0].max()
    assert bridge < weights[1, 1, 1, 0]
    ends = sorted((int(found.reach[0].min()), int(found.reach[-1].min())))
    assert ends[0] <= bridge < ends[1]


@pytest.mark.parametrize("criterion", ["magnitude", "step", "bend", "later"])
def test_the_published_weights(criterion: str) -> None:
    phase, magnitude, later = np.zeros((5, 3, 3), np.float32), np.ones((5, 3, 3), np.float32), np.zeros((5, 3, 3))
    expected = 1.0
    if criterion == "magnitude":
        magnitude[3:] = 0.5
        expected = 0.1 + 0.9 * 0.25
    elif criterion == "step":  # of a straight slope
        phase = np.broadcast_to(0.5 * np.arange(5, dtype=np.float32)[:, None, None], phase.shape)
        expected = 0.1 + 0.9 * (1 - 0.5 / np.pi)
    elif criterion == "bend":
        phase[3:] = 0.5
        expected = (0.1 + 0.9 * (1 - 0.5 / np.pi)) * (0.1 + 0.9 * (1 - 0.25) ** 2)
    else:
        later[3:] = 1.2
        expected = 0.1 + 0.9 * (1 - 0.6)
    everywhere = np.ones(phase.shape, bool)
    second, ratio = (later.astype(np.float32), 0.5) if criterion == "later" else (np.ascontiguousarray(phase), 0.0)
    weights = edge_weights(np.ascontiguousarray(phase), magnitude, everywhere, second, ratio)
    assert weights[2, 1, 1, 0] == pytest.approx(255 * expected, abs=1)
