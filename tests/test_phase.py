"""Every way of storing phase gives the same radians, or is refused with what it is missing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_dicom import TIMES, oblique, signal

from pipeline.convert.stored import Stored, StoredPhase
from pipeline.errors import ChironError
from pipeline.phase import RANGES, Phase, to_radians, wrap
from pipeline.volumes import Grid

SHAPE = (12, 12, 8)
TRUTH = torch.from_numpy(signal(SHAPE))
RADIANS = TRUTH.angle()


def stored(second: torch.Tensor, vendor: str = "Siemens", **said: Any) -> Stored:
    """Magnitude and phase in the unit of `second`; `said` is what the header says of it."""
    grid = oblique(SHAPE)
    phase = StoredPhase(**said)
    return Stored("magnitude-phase", TRUTH.abs(), second.float(), TIMES, 3.0, grid, vendor, {}, phase)


def parts(vendor: str, values: torch.Tensor) -> Stored:
    return replace(stored(RADIANS, vendor), kind="real-imaginary", first=values.real, second=values.imag)


def angle_off(found: torch.Tensor, truth: torch.Tensor = RADIANS) -> float:
    """Largest angle between two phases, without a common offset."""
    away = torch.polar(torch.ones_like(truth), found - truth)
    return float((away * away.mean().conj()).angle().abs().max())


UNITS = {
    "radians": lambda p: p,
    "degrees": torch.rad2deg,
    "milliradians": lambda p: p * 3142 / math.pi,
    "0-4095": lambda p: torch.round((p / math.pi + 1) * 2047.5),
    "+-4096": lambda p: torch.round(p / math.pi * 2047) * 2,
}


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_is_told_by_its_values_alone(unit: str) -> None:
    echoes, decisions, notices = to_radians(stored(UNITS[unit](RADIANS)), Phase())
    assert angle_off(echoes.phase_rad) < 4e-3 and not notices
    assert decisions[0].decided == unit and decisions[0].override == "--phase-range"


@pytest.mark.parametrize("unit", UNITS)
def test_a_stated_range_wins_over_the_header(unit: str) -> None:
    told = stored(UNITS[unit](RADIANS), range=(-3142, 3142))
    echoes, decisions, _ = to_radians(told, Phase(range=unit))
    assert angle_off(echoes.phase_rad) < 4e-3 and "asked for" in decisions[0].because


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ("0-4095", {"range": (0.0, 4095.0), "bits": 12}),
        ("+-4096", {"range": (-4096.0, 4094.0), "slope": 2.0, "intercept": -4096.0}),
        ("milliradians", {"unit": "mrad"}),
        ("milliradians", {"unit": "US", "range": (-3142.0, 3142.0)}),
        ("radians", {"unit": "rad"}),
    ],
)
def test_header_and_values_agree(unit: str, said: dict[str, Any]) -> None:
    echoes, decisions, _ = to_radians(stored(UNITS[unit](RADIANS), **said), Phase())
    assert decisions[0].decided == unit and "agree" in decisions[0].because
    assert angle_off(echoes.phase_rad) < 4e-3


def test_a_header_is_believed_where_smooth_phase_does_not_fill_its_range() -> None:
    """An object without wraps whose surroundings were set to the lowest value."""
    smooth = TRUTH.abs() / TRUTH.abs().max()
    smooth[TRUTH.abs() < 30] = -3
    echoes, decisions, _ = to_radians(stored(smooth * 1000, unit="mrad"), Phase())
    assert decisions[0].decided == "milliradians"
    assert torch.allclose(echoes.phase_rad, smooth, atol=1e-3)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (RADIANS * 2000 / math.pi, {"range": (-4096.0, 4094.0)}),  # wraps at +-2000 where the header says 4096
        (UNITS["milliradians"](RADIANS), {"range": (-4096.0, 4094.0)}),
        (RADIANS * 0.863 - 0.43, {}),  # Philips after a wrong rescale: -3.14 to 2.28
        (RADIANS * 0.863 - 0.43, {"unit": "rad"}),
        (RADIANS * 4096 / math.pi, {"unit": "mrad"}),  # beyond what the header says
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_the_option(second: torch.Tensor, said: dict[str, Any]) -> None:
    with pytest.raises(ChironError, match=r"P002.*--phase-range") as error:
        to_radians(stored(second, **said), Phase())
    assert "values from" in error.value.found


def test_the_wrong_philips_range_is_read_when_asked_for() -> None:
    echoes, _, _ = to_radians(stored(RADIANS * 0.863 - 0.43), Phase(range="full"))
    assert angle_off(echoes.phase_rad) < 0.02


def test_a_stated_range_that_the_values_leave_is_refused() -> None:
    with pytest.raises(ChironError, match="P002"):
        to_radians(stored(UNITS["0-4095"](RADIANS)), Phase(range="degrees"))


@given(st.floats(1e-4, 1e4).filter(lambda s: all(abs(s * math.pi / high - 1) > 0.1 for _, high in RANGES.values())))
def test_any_symmetric_range_is_read_where_it_wraps(scale: float) -> None:
    echoes, decisions, _ = to_radians(stored(RADIANS * scale), Phase())
    assert angle_off(echoes.phase_rad) < 0.02 and "wrap there" in decisions[0].because


@pytest.mark.parametrize("said", [{}, {"unit": "rad"}])
def test_unwrapped_phase_is_set_aside(said: dict[str, Any]) -> None:
    x = torch.linspace(-9, 12, SHAPE[0])[:, None, None].expand(3, *SHAPE)
    with pytest.raises(ChironError, match=r"P004.*without wraps"):
        to_radians(stored(x, **said), Phase())


def test_ge_is_inverted_and_its_alternating_slices_undone() -> None:
    chopped = TRUTH.conj() * torch.tensor([1, -1]).repeat(4)
    echoes, decisions, _ = to_radians(parts("GE", chopped), Phase())
    assert angle_off(echoes.phase_rad) < 1e-3
    assert torch.allclose(echoes.magnitude, TRUTH.abs(), rtol=1e-5)
    assert {d.what: d.decided for d in decisions} == {
        "phase": "angle of real and imaginary parts",
        "alternating slices": "undone",
        "phase sign": "inverted",
    }


def test_a_ge_scan_that_does_not_alternate_is_left_so() -> None:
    echoes, decisions, _ = to_radians(parts("GE", TRUTH.conj()), Phase())
    assert angle_off(echoes.phase_rad) < 1e-3 and decisions[1].decided == "none"


def test_alternating_slices_are_found_along_any_axis() -> None:
    signs = torch.tensor([1, -1]).repeat(6)[:, None, None]
    echoes, decisions, _ = to_radians(replace(parts("GE", TRUTH.conj() * signs), slice_axis=0), Phase())
    assert angle_off(echoes.phase_rad) < 1e-3 and decisions[1].decided == "undone"


def test_sign_and_chopper_can_be_stated() -> None:
    same, *_ = to_radians(parts("GE", TRUTH), Phase(sign="+", chopper="off"))
    assert angle_off(same.phase_rad) < 1e-3
    inverted, decisions, _ = to_radians(stored(-RADIANS), Phase(sign="-"))
    assert angle_off(inverted.phase_rad) < 1e-3 and decisions[2].decided == "inverted"
    chopped, decisions, _ = to_radians(stored(RADIANS), Phase(chopper="on"))
    assert angle_off(chopped.phase_rad[..., ::2], RADIANS[..., ::2]) < 1e-3
    assert angle_off(chopped.phase_rad[..., 1::2], RADIANS[..., 1::2]) < 1e-3
    assert angle_off(chopped.phase_rad) > 1 and decisions[1].decided == "undone"


def test_phase_stays_within_pi() -> None:
    for phase in (Phase(), Phase(chopper="on"), Phase(sign="-")):
        assert to_radians(stored(RADIANS), phase)[0].phase_rad.abs().max() <= math.pi + 1e-6


@given(st.floats(-100, 100))
def test_wrap_keeps_the_angle(angle: float) -> None:
    found = float(wrap(torch.tensor(angle, dtype=torch.float64)))
    assert -math.pi <= found <= math.pi and math.cos(found - angle) > 1 - 1e-9


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["first", "second"])
def test_values_that_are_not_finite_are_set_aside(bad: float, which: str) -> None:
    sound = stored(RADIANS)
    values = getattr(sound, which).clone()
    values[1, 2, 3, 4] = bad
    with pytest.raises(ChironError, match="P006: 1 values"):
        to_radians(replace(sound, **{which: values}), Phase())


@pytest.mark.parametrize("which", ["first", "second"])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_part_without_content_is_set_aside(which: str, value: float) -> None:
    sound = stored(RADIANS)
    values = getattr(sound, which).clone()
    values[2] = value
    with pytest.raises(ChironError, match=r"P005.*echo 3"):
        to_radians(replace(sound, **{which: values}), Phase())


def test_real_and_imaginary_parts_of_zero_are_set_aside() -> None:
    with pytest.raises(ChironError, match="P005"):
        to_radians(parts("GE", TRUTH * torch.tensor([1, 0, 1])[:, None, None, None]), Phase())


@pytest.mark.real_data
def test_phase_of_an_arbitrary_range_is_read(shared_data: Path) -> None:
    """+-0.00367, with wraps there."""
    folder = shared_data / "romeo_3echo_crop"
    first, second = (
        torch.from_numpy(nib.load(folder / name).get_fdata(dtype=np.float32)).movedim(3, 0)
        for name in ("Mag.nii", "Phase.nii")
    )
    grid = Grid.simple(first.shape[1:], (0.47, 0.47, 1))
    scan = Stored("magnitude-phase", first, second, TIMES, 7.0, grid, "other", {}, StoredPhase())
    echoes, decisions, _ = to_radians(scan, Phase())
    assert torch.allclose(echoes.phase_rad, second * math.pi / 0.0036743771, atol=1e-4)
    assert "wrap there" in decisions[0].because


@pytest.mark.real_data
def test_phase_with_nan_is_set_aside(shared_data: Path) -> None:
    values = nib.load(shared_data / "romeo_3echo_crop" / "phase_with_nan.nii").get_fdata(dtype=np.float32)
    second = torch.from_numpy(values).movedim(3, 0)
    grid = Grid.simple(second.shape[1:], (1, 1, 1))
    first = torch.rand(second.shape)
    scan = Stored("magnitude-phase", first, second, (0.004, 0.008), 3.0, grid, "other", {}, StoredPhase())
    with pytest.raises(ChironError, match="P006"):
        to_radians(scan, Phase())
