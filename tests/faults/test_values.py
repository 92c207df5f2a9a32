"""Rows 56 to 65 of the faults: whether there is phase, in which unit, and what its values are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from exports import Damage, bad_of, beside, drop, good_of, is_phase, only_good, put
from make_dicom import (
    TIMES,
    edit,
    oblique,
    phase_error,
    read,
    search,
    signal,
    write,
)
from test_find import bids

from pipeline.errors import ChironError


def test_56_magnitude_only(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    drop(paths, is_phase)
    only_good(tmp_path, "P001", "only magnitude images", files=len(paths) // 2)


@pytest.mark.parametrize("with_magnitude", [True, False])
def test_56_phase_difference_only(with_magnitude: bool, tmp_path: Path) -> None:
    paths = beside(tmp_path, times=TIMES[:2])
    drop(paths, lambda d: is_phase(d) and d.EchoNumbers == 1)
    if not with_magnitude:
        drop([path for path in paths if path.exists()], lambda d: not is_phase(d))
    only_good(tmp_path, "P001", "only the phase difference of two echoes")


def test_56_field_map_only(tmp_path: Path) -> None:
    paths = beside(tmp_path, "philips", times=TIMES[:1])
    edit(paths, put(ImageType=["ORIGINAL", "PRIMARY", "B0 MAP", "B0", "UNSPECIFIED"]), is_phase)
    only_good(tmp_path, "P001", "only a field map in Hz", files=len(paths))


def test_56_other_scans_of_the_study_are_not_called_faults(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    other = write(tmp_path / "t1", series_number=30, times=TIMES[:1], protocol="mprage")
    drop(other, is_phase)
    edit([path for path in other if path.exists()], put(ScanningSequence=["GR", "IR"]))
    found = search(tmp_path)
    assert set(bad_of(found, tmp_path)[0].files) == set(paths) and not found.set_aside
    assert {(i.code, "inversion recovery" in i.text) for i in found.ignored} == {("F002", True)}


def _phase_as(slope: float, intercept: float, stored: Callable[[Any], Any], unit: str = "US") -> Damage:
    """Store Siemens phase (0..4095) in another way."""

    def change(dataset: pydicom.Dataset) -> None:
        radians = (np.frombuffer(dataset.PixelData, "<u2").astype(float) - 2048) * np.pi / 2048
        dataset.PixelData = np.rint(stored(radians)).astype("<u2").tobytes()
        dataset.BitsStored, dataset.HighBit = 16, 15
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = str(slope), str(intercept), unit

    return lambda paths: edit(paths, change, is_phase)


WAYS = {
    "0..4095": _phase_as(1, 0, lambda p: (p / np.pi + 1) * 2047.5),
    "+-4096": _phase_as(2, -4096, lambda p: (p / np.pi + 1) * 2047),
    "radians": _phase_as(0.0001, -3.1416, lambda p: (p + 3.1416) / 0.0001, "rad"),
    "degrees": _phase_as(0.01, -180, lambda p: (p / np.pi + 1) * 18000),
    "half range": _phase_as(1, -2048, lambda p: (p / np.pi + 1) * 2048),
    "milliradians": _phase_as(1, -3142, lambda p: (p / np.pi + 1) * 3142, "mrad"),
}


@pytest.mark.parametrize("way", WAYS)
def test_57_60_every_way_of_storing_phase_gives_the_same(way: str, tmp_path: Path) -> None:
    truth = signal()
    WAYS[way](beside(tmp_path, values=truth))
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert phase_error(read(scan, tmp_path / "scratch"), truth, oblique()).max() < 4e-3


def test_58_a_range_that_contradicts_its_header(tmp_path: Path) -> None:
    """Milliradians stored, and a header that says +-4096."""
    _phase_as(2, -4096, lambda p: p / np.pi * 1571 + 2048)(paths := beside(tmp_path))
    edit(paths, put(BitsStored=12, HighBit=11), is_phase)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    with pytest.raises(ChironError, match=r"P002.*--phase-range"):
        read(scan, tmp_path / "scratch")
    read(good_of(search(tmp_path), tmp_path), tmp_path / "scratch")


@pytest.mark.parametrize("part", ["M", "P"])
def test_64_a_part_without_content(part: str, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, lambda d: put(PixelData=bytes(len(d.PixelData)))(d), lambda d: part in d.ImageType)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    with pytest.raises(ChironError, match="P005"):
        read(scan, tmp_path / "scratch")
    read(good_of(search(tmp_path), tmp_path), tmp_path / "scratch")


def test_65_values_that_are_not_finite(tmp_path: Path) -> None:
    """DICOM integers cannot hold them, but a rescale can make them, and NIfTI can."""
    for name in ("sub-01", "sub-02"):
        bids(tmp_path, name)
    (file,) = (tmp_path / "sub-02").rglob("*echo-2_part-phase_MEGRE.nii.gz")
    values = nib.load(file).get_fdata(dtype=np.float32)
    values[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(values, np.diag([1, 1.1, 2, 1])), file)
    good, bad = search(tmp_path).scans
    with pytest.raises(ChironError, match="P006: 1 values of the phase"):
        read(bad, tmp_path / "scratch")
    assert np.isfinite(read(good, tmp_path / "scratch").phase_rad.numpy()).all()
