"""Rows 38 to 55 of the faults: echoes, slices, orientation, and what the header says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from exports import GOOD, bad_of, beside, drop, is_phase, only_good, put
from make_dicom import (
    TIMES,
    edit,
    oblique,
    phase_error,
    read,
    search,
    signal,
    store,
    write,
)

from pipeline.convert import Acquisition


@pytest.mark.parametrize("vendor", ["siemens", "philips"])
@pytest.mark.parametrize("part", ["M", "P"])
def test_38_an_echo_is_missing_in_one_part(vendor: str, part: str, tmp_path: Path) -> None:
    paths = beside(tmp_path, vendor)
    lost = drop(paths, lambda d: part in d.ImageType and d.EchoNumbers == 2)
    found = only_good(tmp_path, "E001", "8 ms", files=len(paths) - lost)
    assert ("3 echoes" in found.set_aside[0].text and "2 of" in found.set_aside[0].text) or "2 echoes" in str(found)


@pytest.mark.parametrize("k", [0, 2, 5])
def test_39_a_slice_is_missing_in_one_volume(k: int, tmp_path: Path) -> None:
    paths = beside(tmp_path, grid=oblique(tilt_deg=0))
    z = sorted({float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in paths})[k]
    lost = drop(paths, lambda d: is_phase(d) and d.EchoNumbers == 3 and float(d.ImagePositionPatient[2]) == z)
    assert lost == 1
    only_good(tmp_path, "E002", f"no slice {k + 1} of 6 in the phase of echo 3", files=len(paths) - 1)


def test_39_the_last_slice_is_missing_in_all_volumes(tmp_path: Path) -> None:
    """Nothing but the header's count can tell."""
    paths = beside(tmp_path, "philips", grid=oblique(tilt_deg=0))
    z = max(float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in paths)
    lost = drop(paths, lambda d: float(d.ImagePositionPatient[2]) == z)
    only_good(tmp_path, "E002", "5 slices in every volume where the header tells of 6", files=len(paths) - lost)


def test_40_a_gap_in_all_volumes(tmp_path: Path) -> None:
    paths = beside(tmp_path, grid=oblique(tilt_deg=0))
    z = sorted({float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in paths})[3]
    lost = drop(paths, lambda d: float(d.ImagePositionPatient[2]) == z)
    only_good(tmp_path, "E003", "a gap of 1 slices after slice 3", files=len(paths) - lost)


def test_40_slices_thinner_than_their_distance(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(SliceThickness="1.6"))
    only_good(tmp_path, "E003", "slices of 1.6 mm every 2 mm", files=len(paths))


def test_41_uneven_spacing(tmp_path: Path) -> None:
    paths = beside(tmp_path, grid=oblique(tilt_deg=0))
    top = max(float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in paths)

    def lift(dataset: pydicom.Dataset) -> None:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, float(z) + 0.5]

    edit(paths, lift, lambda d: float(d.ImagePositionPatient[2]) == top)
    only_good(tmp_path, "E004", "2.500 mm after slice 5", files=len(paths))


def test_42_unsorted_echoes_are_sorted(tmp_path: Path) -> None:
    truth = signal()
    paths = beside(tmp_path, values=truth[[2, 0, 1]])
    edit(paths, lambda d: put(EchoTime=f"{1000 * TIMES[(int(d.EchoNumbers) + 1) % 3]:g}")(d))
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert scan.echo_times_s == pytest.approx(TIMES)
    assert phase_error(read(scan, tmp_path / "scratch"), truth, oblique()).max() < 2e-3


@pytest.mark.parametrize("vendor", ["siemens", "ge"])
def test_43_all_echo_times_equal_until_the_true_ones_are_given(vendor: str, tmp_path: Path) -> None:
    truth = signal()
    paths = beside(tmp_path, vendor, values=truth)
    edit(paths, put(EchoTime="4"))
    only_good(tmp_path, "E005", "3 echoes that all say 4 ms", "--echo-times", files=len(paths))
    given = Acquisition(echo_times_s=TIMES)
    (scan,) = [s for s in search(tmp_path, acquisition=given).scans if s.subject != GOOD]
    assert scan.echo_times_s == TIMES
    assert phase_error(read(scan, tmp_path / "scratch", given), truth, oblique()).max() < 2e-3


def test_43_all_echo_times_equal_without_echo_numbers(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(EchoTime="4", EchoNumbers=None))
    only_good(tmp_path, "E005", "3 images at each place", files=len(paths))


@pytest.mark.parametrize("times", [(0.004, 0.008), (0.004, 0.012, 0.008), (4, 8, 12)])
def test_43_senseless_given_times_are_refused(times: tuple[float, ...], tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(EchoTime="4"))
    found = search(tmp_path / paths[0].parent.name, acquisition=Acquisition(echo_times_s=times))
    assert not found.scans and {aside.code for aside in found.set_aside} <= {"E005", "E006"}


@pytest.mark.parametrize("value", [None, "", "0", "-3", "NaN", "short"])
def test_44_echo_times_that_are_missing_or_senseless(value: str | None, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    for path in paths:
        _raw_echo_time(path, value)
    only_good(tmp_path, "E006", "--echo-times", files=len(paths))
    given = Acquisition(echo_times_s=TIMES)
    (scan,) = [s for s in search(tmp_path, acquisition=given).scans if s.subject != GOOD]
    assert read(scan, tmp_path / "scratch", given).echo_times_s == TIMES


def _raw_echo_time(path: Path, value: str | None) -> None:
    """Write what pydicom would refuse to."""
    dataset = pydicom.dcmread(path)
    if value is None:
        del dataset.EchoTime
    else:
        dataset.EchoTime = "99999999"
    dataset.save_as(path)
    if value is not None:
        path.write_bytes(path.read_bytes().replace(b"99999999", value.ljust(8).encode()))


def test_44_echo_times_in_seconds_are_named(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, lambda d: put(EchoTime=f"{float(d.EchoTime) / 1000:g}")(d))
    only_good(tmp_path, "E006", "an echo time of 0.004 ms, which looks like 4 ms written in seconds", files=len(paths))


def test_45_a_single_echo_is_a_warning(tmp_path: Path) -> None:
    beside(tmp_path, times=TIMES[:1])
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert [notice.code for notice in scan.notices] == ["E007"]
    assert len(read(scan, tmp_path / "scratch").phase_rad) == 1


@pytest.mark.parametrize("change", [{"EchoNumbers": None}, {"EchoNumbers": 1}])
def test_46_without_echo_numbers_echoes_are_told_by_time(change: dict[str, Any], tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(**change))
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert scan.echo_times_s == pytest.approx(TIMES) and set(scan.files) == set(paths)


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("tilt_deg", [0, 30])
def test_47_48_any_orientation_has_the_right_b0(axes: tuple[int, int, int], tilt_deg: float, tmp_path: Path) -> None:
    grid, truth = oblique(axes=axes, tilt_deg=tilt_deg), signal()
    beside(tmp_path, grid=grid, values=truth)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    echoes = read(scan, tmp_path / "scratch")
    turned = np.asarray(echoes.grid.affine)[:3, :3] / echoes.grid.voxel_size_mm
    assert np.allclose(turned @ echoes.grid.b0_dir, (0, 0, 1), atol=1e-5)
    assert phase_error(echoes, truth, grid).max() < 2e-3


@pytest.mark.parametrize(
    "change",
    [
        {"ImageOrientationPatient": None},
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": ["1", "0", "0", "0.3", "0.954", "0"]},
        {"ImageOrientationPatient": ["2", "0", "0", "0", "2", "0"]},
        {"ImageOrientationPatient": ["0"] * 6},
    ],
)
@pytest.mark.parametrize("one", [True, False])
def test_49_an_orientation_that_is_absent_or_not_orthonormal(change: dict[str, Any], one: bool, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths[5:6] if one else paths, put(**change))
    only_good(tmp_path, "E008", files=len(paths))


def test_50_of_conflicting_positions_the_public_one_counts(tmp_path: Path) -> None:
    truth = signal()
    paths = beside(tmp_path, "philips-enhanced", values=truth)

    def displace(dataset: pydicom.Dataset) -> None:
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            frame[0x2005, 0x140F].value[0].ImagePositionPatient = ["1", "2", "3"]

    edit(paths, displace)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert [notice.code for notice in scan.notices] == ["E009"]
    assert phase_error(read(scan, tmp_path / "scratch"), truth, oblique()).max() < 2e-3


def test_51_enhanced_and_classic_give_the_same(tmp_path: Path) -> None:
    beside(tmp_path, "philips-enhanced")
    write(tmp_path / "classic", "philips", patient="classic")
    one, other = (store(scan, tmp_path / "scratch") for scan in bad_of(search(tmp_path), tmp_path))
    assert (one.first == other.first).all() and (one.second == other.second).all()


def test_52_a_mosaic(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, lambda d: put(ImageType=[*d.ImageType, "MOSAIC"])(d))
    only_good(tmp_path, "E010", files=len(paths))


def test_53_matrices_differ_between_magnitude_and_phase(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    small = write(tmp_path / "small", shape=(8, 8, 6))
    drop(paths, is_phase)
    drop(small, lambda d: not is_phase(d))
    only_good(tmp_path, "E011", "matrices of", files=len(paths) // 2 + len(small) // 2)


@pytest.mark.parametrize("value", [None, "30000", "0", "-3"])
def test_54_a_senseless_field_strength_until_it_is_given(value: str | None, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(MagneticFieldStrength=value, **({} if value else {"ImagingFrequency": None})))
    only_good(tmp_path, "E012", "--b0", files=len(paths))
    given = Acquisition(b0_tesla=3)
    (scan,) = [s for s in search(tmp_path, acquisition=given).scans if s.subject != GOOD]
    assert read(scan, tmp_path / "scratch", given).b0_tesla == 3


def test_55_a_bipolar_readout_is_a_warning(tmp_path: Path) -> None:
    beside(tmp_path, protocol="qsm_Bipolar_6echo")
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert [notice.code for notice in scan.notices] == ["E013"]
