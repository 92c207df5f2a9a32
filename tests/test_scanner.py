"""The simulated scanner, judged by programs that know nothing of it: dcm2niix and pydicom."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dcm2niix
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from nibabel.affines import apply_affine
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
)

from pipeline.errors import ChironError
from pipeline.scanner import VENDORS, Patient, write_export
from pipeline.volumes import GAMMA_MHZ_PER_T, Grid

TIMES = (0.0041, 0.0085, 0.0127)
SHAPE = (9, 11, 7)
SUFFIXES = {
    "siemens": ["", "_ph"],
    "philips": ["", "_ph"],
    "philips-enhanced": ["", "_ph"],
    "ge": ["_real", "_imaginary"],
}


def grid(tilt_deg: float = 0, axes: tuple[int, int, int] = (1, 2, 3), shape: tuple[int, int, int] = SHAPE) -> Grid:
    """Anisotropic voxels; `axes` names the scanner axis (1 to 3, negative for the other way) of each voxel axis."""
    matrix = np.eye(4)
    for column, axis in enumerate(axes):
        matrix[:3, column] = np.eye(3)[abs(axis) - 1] * np.sign(axis)
    c, s = np.cos(np.radians(tilt_deg)), np.sin(np.radians(tilt_deg))
    about_x, about_z = (
        np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        np.array([[c, -s / 2, 0], [s / 2, c, 0], [0, 0, 1]]),
    )
    turn = np.linalg.qr(about_x @ about_z)[0]
    turn *= np.sign(np.diag(turn))
    matrix[:3, :3] = turn @ matrix[:3, :3] @ np.diag([0.9, 1.3, 2.1])
    matrix[:3, 3] = [-11.5, 17.25, -33.0]
    return Grid.from_affine(shape, matrix)


def head(shape: tuple[int, int, int] = SHAPE) -> np.ndarray[Any, Any]:
    """Complex echoes that differ in every voxel, with many wraps."""
    x, y, z = np.indices(shape)
    magnitude = 50 + x + 9 * y + 5 * z + np.random.default_rng(1).random(shape)
    rate = 120 * x - 90 * y + 250 * z + 40 * np.sin(x * y)
    signal = [magnitude * np.exp(-t / 0.03) * np.exp(1j * (rate * t + 0.4)) for t in TIMES]
    return np.stack(signal).astype(np.complex64)


def convert(folder: Path, out: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """What dcm2niix makes of an export: name -> (image, sidecar)."""
    out.mkdir()
    command = [dcm2niix.bin, "-b", "y", "-z", "n", "-f", "e%e", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return {f.stem: (nib.load(f), json.loads(f.with_suffix(".json").read_text())) for f in out.glob("*.nii")}


def on_grid(image: Any, grid: Grid) -> np.ndarray[Any, Any]:
    """The image's values where the grid's voxels are, found through scanner coordinates alone."""
    wanted = apply_affine(np.asarray(grid.affine), np.moveaxis(np.indices(grid.shape), 0, -1))
    index = apply_affine(np.linalg.inv(image.affine), wanted)
    assert np.abs(index - np.rint(index)).max() < 1e-4
    return np.asarray(image.get_fdata()[tuple(np.moveaxis(np.rint(index).astype(int), -1, 0))])


def check(found: dict[str, tuple[Any, dict[str, Any]]], signal: np.ndarray[Any, Any], grid: Grid, vendor: str) -> None:
    """Echo times, suffixes, and complex values within the steps of the quantisation, up to one scale."""
    assert sorted(found) == sorted(f"e{e}{s}" for e in (1, 2, 3) for s in SUFFIXES[vendor])
    for e, time in enumerate(TIMES):
        values, sidecars = zip(*(found[f"e{e + 1}{suffix}"] for suffix in SUFFIXES[vendor]), strict=True)
        assert [s["EchoTime"] for s in sidecars] == pytest.approx([time, time])
        assert sidecars[0]["MagneticFieldStrength"] == 3  # the strength that a magnet of 2.89 T is sold as
        assert sidecars[0]["ImagingFrequency"] == pytest.approx(2.89 * GAMMA_MHZ_PER_T, rel=1e-6)
        first, second = (on_grid(v, grid) for v in values)
        if vendor == "ge":
            chopper = np.where(np.arange(grid.shape[2]) % 2, -1, 1)
            seen = np.conj(first + 1j * second) * chopper * np.abs(signal).max() / 16000
            step = np.abs(signal).max() / 16000
        else:
            scale = 1 if vendor.startswith("philips") else np.abs(signal).max() / 4000
            phase = second if vendor.startswith("philips") else second / 4096 * np.pi
            seen = first * scale * np.exp(1j * phase)
            step = np.abs(signal).max() * (1 / 4000 + np.pi / 4096)
        assert np.abs(seen - signal[e]).max() < step


@pytest.mark.parametrize("tilt_deg", [0, 30])
@pytest.mark.parametrize("vendor", VENDORS)
def test_dcm2niix_gives_the_signal_back(tmp_path: Path, vendor: Any, tilt_deg: float) -> None:
    where, signal = grid(tilt_deg), head()
    files = write_export(torch.from_numpy(signal), where, TIMES, 2.89, tmp_path / "in", vendor=vendor)
    assert len(files) == (1 if vendor == "philips-enhanced" else 2 * 3 * 7)
    check(convert(tmp_path / "in", tmp_path / "out"), signal, where, vendor)


@pytest.mark.parametrize("axes", [(2, 3, 1), (2, -3, -1), (1, 3, 2), (-3, 1, -2), (-1, 2, 3), (2, 1, 3), (-1, -2, 3)])
@pytest.mark.parametrize("vendor", VENDORS)
def test_slices_may_lie_any_way(tmp_path: Path, vendor: Any, axes: tuple[int, int, int]) -> None:
    where, signal = grid(12, axes), head()
    write_export(signal, where, TIMES, 2.89, tmp_path / "in", vendor=vendor)
    check(convert(tmp_path / "in", tmp_path / "out"), signal, where, vendor)


@pytest.mark.parametrize("options", [{"shuffle": True}, {"slice_order": "descending"}, {"slice_order": "interleaved"}])
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_order_of_instances_does_not_matter(tmp_path: Path, vendor: Any, options: dict[str, Any]) -> None:
    where, signal = grid(30), head()
    plain = write_export(signal, where, TIMES, 2.89, tmp_path / "plain", vendor=vendor)
    files = write_export(signal, where, TIMES, 2.89, tmp_path / "in", vendor=vendor, **options)
    assert [f.name for f in files] == [f.name for f in plain]
    assert any(a.read_bytes() != b.read_bytes() for a, b in zip(files, plain, strict=True))
    check(convert(tmp_path / "in", tmp_path / "out"), signal, where, vendor)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless],
)
@pytest.mark.parametrize("vendor", VENDORS)
def test_transfer_syntaxes_keep_every_pixel(tmp_path: Path, vendor: Any, syntax: UID) -> None:
    shape = (35, 33, 3)  # too small an image is no image to JPEG 2000
    arguments = (head(shape), grid(0, shape=shape), TIMES, 2.89)
    plain = write_export(*arguments, tmp_path / "plain", vendor=vendor)
    files = write_export(*arguments, tmp_path / "other", vendor=vendor, transfer_syntax=syntax)
    for a, b in list(zip(plain, files, strict=True))[::9]:
        one, other = pydicom.dcmread(a), pydicom.dcmread(b)
        assert other.file_meta.TransferSyntaxUID == syntax
        assert one.SOPInstanceUID == other.SOPInstanceUID
        assert np.array_equal(one.pixel_array, other.pixel_array)


@pytest.mark.parametrize("vendor", VENDORS)
def test_headers_are_valid(tmp_path: Path, vendor: Any) -> None:
    files = write_export(head(), grid(30), TIMES, 2.89, tmp_path, vendor=vendor, series_number=4)
    datasets = [pydicom.dcmread(f) for f in files]
    kind = EnhancedMRImageStorage if vendor == "philips-enhanced" else MRImageStorage
    for dataset in datasets:
        assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == kind
        assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
        uids = [e.value for e in dataset.iterall() if e.VR == "UI" and isinstance(e.value, UID)]
        assert all(uid.is_valid for uid in uids)
        decimals = [e.value for e in dataset.iterall() if e.VR == "DS"]
        assert all(
            len(str(n)) <= 16 for value in decimals for n in (value if isinstance(value, MultiValue) else [value])
        )
        assert dataset.pixel_array.shape[-2:] == (dataset.Rows, dataset.Columns) == (11, 9)
    assert len({d.SOPInstanceUID for d in datasets}) == len(files)
    assert {d.SeriesNumber for d in datasets} == ({4, 5} if vendor == "siemens" else {4})
    assert len({d.SeriesInstanceUID for d in datasets}) == len({d.SeriesNumber for d in datasets})
    assert len({d.StudyInstanceUID for d in datasets}) == 1


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, vendor: Any) -> None:
    arguments = (head(), grid(30), TIMES, 2.89)
    one, two, other = (
        write_export(*arguments, tmp_path / str(i), vendor=vendor, seed=seed, shuffle=True)
        for i, seed in enumerate((7, 7, 8))
    )
    assert [f.read_bytes() for f in one] == [f.read_bytes() for f in two]
    uids = [{pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in files} for files in (one, other)]
    assert not uids[0] & uids[1]


def test_identity_and_edits_reach_every_file(tmp_path: Path) -> None:
    patient = Patient(name="Zyx^Wvu", id="ID-77", institution="Clinic Q")

    def spoil(dataset: pydicom.Dataset) -> None:
        dataset.ProtocolName = "spoilt"

    for vendor in VENDORS:
        files = write_export(head(), grid(), TIMES, 2.89, tmp_path / vendor, vendor=vendor, patient=patient, edit=spoil)
        for file in files:
            dataset = pydicom.dcmread(file)
            assert (dataset.PatientName, dataset.PatientID) == ("Zyx^Wvu", "ID-77")
            assert (dataset.InstitutionName, dataset.ProtocolName) == ("Clinic Q", "spoilt")


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    signal = head()
    with pytest.raises(ChironError, match="E011"):
        write_export(signal[:2], grid(), TIMES, 3, tmp_path, vendor="ge")
    with pytest.raises(ChironError, match="E005"):
        write_export(signal, grid(), (0.01, 0.01, 0.02), 3, tmp_path, vendor="ge")
    with pytest.raises(ChironError, match="P006"):
        write_export(signal * np.nan, grid(), TIMES, 3, tmp_path, vendor="ge")
    with pytest.raises(ValueError, match="B0"):
        write_export(signal, Grid.simple(SHAPE, (1, 1, 1), (0, 1, 1)), TIMES, 3, tmp_path, vendor="ge")
    assert not any(tmp_path.iterdir())


@pytest.mark.real_data
@pytest.mark.parametrize(("vendor", "kind"), [("philips", "classic"), ("philips-enhanced", "enhanced")])
def test_philips_headers_agree_with_real_ones(tmp_path: Path, shared_data: Path, vendor: Any, kind: str) -> None:
    """What tells magnitude from phase, and stored values from radians, is written as a real scanner wrote it."""
    ours = [pydicom.dcmread(f) for f in write_export(head(), grid(), TIMES, 2.89, tmp_path, vendor=vendor)]
    real = [pydicom.dcmread(f) for f in sorted((shared_data / "philips_3t_brain" / kind).iterdir())]
    real = [d for d in real if d.SOPClassUID == ours[0].SOPClassUID]
    assert _identifying(ours) == _identifying(real)


def _identifying(datasets: Sequence[pydicom.Dataset]) -> set[tuple[str, ...]]:
    frames = [g for d in datasets for g in d.get("PerFrameFunctionalGroupsSequence", [])]
    if not frames:
        return {(*d.ImageType, d.RescaleType, _phase_slope(d), d[0x2005, 0x1011].value) for d in datasets}
    found = set()
    for frame in frames:
        kind, rescale = frame.MRImageFrameTypeSequence[0], frame.PixelValueTransformationSequence[0]
        private = frame[0x2005, 0x140F].value[0][0x2005, 0x1011].value
        dimension = str(frame.FrameContentSequence[0].DimensionIndexValues[2])
        found.add((*kind.FrameType, kind.ComplexImageComponent, _phase_slope(rescale), dimension, private))
    return found


def _phase_slope(dataset: pydicom.Dataset) -> str:
    phase = float(dataset.RescaleIntercept) != 0
    return f"{float(dataset.RescaleSlope):.4f}, {float(dataset.RescaleIntercept):.0f}" if phase else "any, 0"
