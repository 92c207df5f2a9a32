"""Rows 80 to 83: what B0 is computed from, and where the voxels of NIfTI images lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from exports import GOOD, bad_of, beside, only_good, put
from make_dicom import edit, read, search, store
from test_find import bids

from pipeline.acquisition import Acquisition

MHZ_PER_T = 42.577478518


@pytest.mark.parametrize(
    ("frequency", "tesla"),
    [
        (None, 3.0),
        ("0", 3.0),
        ("127740000", 127.74 / MHZ_PER_T),
        ("127740", 127.74 / MHZ_PER_T),
        ("115", 115 / MHZ_PER_T),
    ],
)
@pytest.mark.parametrize("vendor", ["philips", "ge"])
def test_80_an_odd_imaging_frequency_is_a_warning(
    vendor: str, frequency: str | None, tesla: float, tmp_path: Path
) -> None:
    edit(beside(tmp_path, vendor), put(ImagingFrequency=frequency))
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert scan.b0_tesla == pytest.approx(tesla, rel=1e-6)
    assert "E020" in [notice.code for notice in scan.notices]
    assert read(scan, tmp_path / "scratch").b0_tesla == scan.b0_tesla


@pytest.mark.parametrize("vendor", ["siemens", "philips-enhanced", "ge"])
def test_54_a_frequency_of_another_scanner_until_b0_is_given(vendor: str, tmp_path: Path) -> None:
    def change(dataset: Any) -> None:
        if "SharedFunctionalGroupsSequence" in dataset:
            group = dataset.SharedFunctionalGroupsSequence[0]
            group.MRImagingModifierSequence[0].TransmitterFrequency = 63.6
        else:
            dataset.ImagingFrequency = "63.6"

    paths = beside(tmp_path, vendor)
    edit(paths, change)
    only_good(tmp_path, "E012", "63.6 MHz", "3 T", "--b0", files=len(paths))
    override = Acquisition(b0_tesla=1.4937)
    (scan,) = [s for s in search(tmp_path, acquisition=override).scans if s.subject != GOOD]
    assert scan.b0_tesla == 1.4937


@pytest.mark.parametrize("nucleus", ["23NA", "31P"])
def test_81_another_nucleus_is_set_aside(nucleus: str, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(ImagedNucleus=nucleus))
    only_good(tmp_path, "E021", nucleus, "hydrogen", files=len(paths))


def without_orientation(folder: Path, size: tuple[float, float, float], unit: str = "mm") -> None:
    folder.mkdir()
    bids(folder, "sub-01")
    for path in folder.rglob("*.nii.gz"):
        image = nib.Nifti1Image(nib.load(path).get_fdata(dtype=np.float32), None)
        image.header.set_zooms(size)
        image.header.set_xyzt_units(unit, "sec")
        nib.save(image, path)


def test_82_nifti_images_without_orientation_until_it_is_given(tmp_path: Path) -> None:
    without_orientation(tmp_path / "in", (1, 1.1, 2))
    (aside,) = search(tmp_path / "in").set_aside
    assert aside.code == "E022" and "--orientation" in aside.text
    override = Acquisition(orientation="ARS")
    (scan,) = search(tmp_path / "in", acquisition=override).scans
    assert [notice.code for notice in scan.notices if notice.code != "E020"] == ["E022"]
    stored = store(scan, tmp_path / "scratch", override)
    assert nib.aff2axcodes(stored.grid.affine) == ("A", "R", "S")
    assert json.loads(json.dumps([d.json() for d in stored.decisions]))[-1]["decided"] == "ARS"


@pytest.mark.parametrize(("size", "unit"), [((0.003, 0.003, 0.003), "mm"), ((3, 3, 3), "meter"), ((1e-9, 1, 1), "mm")])
def test_83_a_voxel_size_that_cannot_be(size: tuple[float, float, float], unit: str, tmp_path: Path) -> None:
    without_orientation(tmp_path / "in", size, unit)
    (aside,) = search(tmp_path / "in", acquisition=Acquisition(orientation="RAS")).set_aside
    assert aside.code == "E023"


def test_83_an_affine_in_metres_is_read(tmp_path: Path) -> None:
    without_orientation(tmp_path / "in", (0.001, 0.0011, 0.002), "meter")
    override = Acquisition(orientation="RAS")
    (scan,) = search(tmp_path / "in", acquisition=override).scans
    assert store(scan, tmp_path / "scratch", override).grid.voxel_size_mm == pytest.approx((1, 1.1, 2), rel=1e-5)
