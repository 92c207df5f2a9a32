"""Rows 56 to 67 of the faults: whether there is phase, in which unit, what its values and its mask are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from exports import Damage, bad_of, beside, drop, good_of, is_phase, only_good, put
from make_bids import bids
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

from pipeline.errors import ChironError
from pipeline.find import Scan
from pipeline.mask import Mask, make_mask
from pipeline.phase import Phase, to_radians
from pipeline.volumes import Echoes


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


def test_61_a_rescale_that_changes_from_slice_to_slice(tmp_path: Path) -> None:
    """The converter takes one rescale for all; the second decoding of some slices tells, and the scan is set aside."""
    paths = beside(tmp_path)
    heights = sorted({float(pydicom.dcmread(path).SliceLocation) for path in paths})

    def change(dataset: pydicom.Dataset) -> None:
        slope = 0.5 + 0.25 * heights.index(float(dataset.SliceLocation))
        radians = (np.frombuffer(dataset.PixelData, "<u2").astype(float) - 2048) * np.pi / 2048
        dataset.PixelData = np.rint((radians + 3.1416) / 0.001 / slope).astype("<u2").tobytes()
        dataset.BitsStored, dataset.HighBit = 16, 15
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = str(0.001 * slope), "-3.1416", "rad"

    edit(paths, change, is_phase)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    with pytest.raises(ChironError, match=r"E014.*decoded a second way"):
        read(scan, tmp_path / "scratch")
    read(good_of(search(tmp_path), tmp_path), tmp_path / "scratch")


def test_62_a_sign_that_nobody_tells_is_a_warning_until_it_is_given(tmp_path: Path) -> None:
    truth = signal()
    paths = beside(tmp_path, values=np.conj(truth))
    edit(paths, put(Manufacturer="Own Scanner"))
    (scan,) = bad_of(search(tmp_path), tmp_path)
    stored = store(scan, tmp_path / "scratch")
    echoes, decisions, notices = to_radians(stored, Phase())
    assert [notice.code for notice in notices] == ["P003"] and "--phase-sign" in notices[0].text
    assert ("phase sign", "as stored") in {(decision.what, decision.decided) for decision in decisions}
    assert phase_error(echoes, truth, oblique()).max() > 1
    echoes, _, notices = to_radians(stored, Phase(sign="-"))
    assert not notices and phase_error(echoes, truth, oblique()).max() < 2e-3


def test_62_vendors_whose_sign_is_known_are_not_warned_of(tmp_path: Path) -> None:
    for vendor in ("siemens", "philips", "ge"):
        write(tmp_path / vendor, vendor, patient=vendor)
    for scan in search(tmp_path).scans:
        assert to_radians(store(scan, tmp_path / "scratch"), Phase())[2] == []


def test_63_phase_that_is_already_unwrapped(tmp_path: Path) -> None:
    paths = beside(tmp_path)

    def unwrap(dataset: pydicom.Dataset) -> None:
        rows = np.linspace(0, 8 * np.pi, int(dataset.Rows))[:, None] * np.ones(int(dataset.Columns))
        dataset.PixelData = np.rint((rows + float(dataset.EchoTime)) / 0.001).astype("<u2").tobytes()
        dataset.BitsStored, dataset.HighBit = 16, 15
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "0.001", "0", "rad"

    edit(paths, unwrap, is_phase)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    with pytest.raises(ChironError, match=r"P004.*without wraps"):
        read(scan, tmp_path / "scratch")
    read(good_of(search(tmp_path), tmp_path), tmp_path / "scratch")


def test_63_phase_that_is_high_passed_leaves_a_scan_without_phase(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    filtered = edit(paths, put(ImageType=["ORIGINAL", "PRIMARY", "P", "HPF"]), is_phase)
    found = only_good(tmp_path, "P001", "only magnitude images", files=len(paths) - filtered)
    assert [ignored.code for ignored in found.ignored] == ["G007"] * filtered


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


def own_mask(scan: Scan, folder: Path, where: Callable[[np.ndarray[Any, Any]], Any]) -> tuple[Echoes, Mask]:
    """The scan's echoes, and settings with a mask that `where` draws into zeros."""
    echoes = read(scan, folder / "scratch")
    values = np.zeros(echoes.grid.shape, np.uint8)
    where(values)
    nib.save(nib.Nifti1Image(values, np.asarray(echoes.grid.affine)), folder / "mask.nii.gz")
    return echoes, Mask(file=str(folder / "mask.nii.gz"))


@pytest.mark.parametrize("where", ["empty", "tiny", "full"])
def test_66_a_mask_that_is_no_brain(where: str, tmp_path: Path) -> None:
    def draw(values: np.ndarray[Any, Any]) -> None:
        values[{"empty": slice(0, 0), "tiny": (5, 5, slice(3)), "full": slice(None)}[where]] = 1

    beside(tmp_path)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    with pytest.raises(ChironError, match=r"P007.*--mask"):
        make_mask(*own_mask(scan, tmp_path.parent, draw))


def test_67_a_mask_in_pieces_is_a_warning(tmp_path: Path) -> None:
    def draw(values: np.ndarray[Any, Any]) -> None:
        values[1:4], values[6:8] = 1, 1

    beside(tmp_path)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    found = make_mask(*own_mask(scan, tmp_path.parent, draw))
    assert [notice.code for notice in found.notices] == ["P008"] and found.facts["components"] == 2
