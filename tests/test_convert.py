"""Conversion gives back what the scanner wrote, wherever the head lies and however files are coded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from make_bids import bids
from make_dicom import KEY, SENTINEL, TIMES, digests, edit, oblique, phase_error, read, search, signal, store, write
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from pipeline.convert import Acquisition, convert
from pipeline.convert.dcm2niix import run
from pipeline.errors import ChironError
from pipeline.find import find
from pipeline.phase import Phase, to_radians

VENDORS = ("siemens", "philips", "philips-enhanced", "ge")


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (0, 2, 1)], ids=["axial", "sagittal", "coronal"])
def test_phase_and_b0_come_back_from_every_vendor_in_every_plane(
    vendor: str, axes: tuple[int, int, int], tmp_path: Path
) -> None:
    grid, truth = oblique(axes=axes), signal()
    write(tmp_path / "in", vendor, grid=grid, values=truth, shuffle=True)
    echoes = read(search(tmp_path / "in").scans[0], tmp_path / "scratch")
    assert phase_error(echoes, truth, grid).max() < 2e-3
    assert echoes.echo_times_s == pytest.approx(TIMES) and echoes.b0_tesla == 3
    scanner_b0 = np.asarray(echoes.grid.affine)[:3, :3] / echoes.grid.voxel_size_mm @ echoes.grid.b0_dir
    assert np.allclose(scanner_b0, (0, 0, 1), atol=1e-5) and echoes.grid.obliquity_deg == pytest.approx(12, abs=1e-3)
    assert sorted(echoes.grid.voxel_size_mm) == pytest.approx([1.0, 1.1, 2.0], abs=1e-4)


def test_magnitudes_come_back_in_proportion(tmp_path: Path) -> None:
    grid, truth = oblique(), signal()
    write(tmp_path / "in", "philips", grid=grid, values=truth)
    stored = store(search(tmp_path / "in").scans[0], tmp_path / "scratch")
    ratio = stored.first.abs().sum((1, 2, 3)) / torch.from_numpy(np.abs(truth)).sum((1, 2, 3))
    assert np.allclose(ratio / ratio[0], 1, atol=5e-3)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEG2000Lossless,
    ],
)
def test_the_coding_of_the_pixels_changes_nothing(syntax: str, tmp_path: Path) -> None:
    for name, options in (("plain", {}), ("coded", {"transfer_syntax": syntax})):
        write(tmp_path / name, shape=(34, 36, 4), **options)
    plain, coded = (store(search(tmp_path / n).scans[0], tmp_path / "scratch") for n in ("plain", "coded"))
    assert torch.equal(plain.first, coded.first) and torch.equal(plain.second, coded.second)
    assert plain.grid == coded.grid


def test_a_file_without_preamble_is_read(tmp_path: Path) -> None:
    """Datasets as old archives write them: no preamble, no file meta."""
    paths = write(tmp_path / "in", transfer_syntax=ImplicitVRLittleEndian)
    whole = store(search(tmp_path / "in").scans[0], tmp_path / "scratch")
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[144 + int.from_bytes(content[140:144], "little") :])
    bare = store(search(tmp_path / "in").scans[0], tmp_path / "scratch")
    assert torch.equal(whole.second, bare.second)


def test_nothing_that_identifies_is_in_the_facts(tmp_path: Path) -> None:
    write(tmp_path / SENTINEL)
    scan = search(tmp_path).scans[0]
    stored = store(scan, tmp_path / "scratch")
    told = repr((stored.facts, stored.decisions, stored.notices, stored.stored_phase))
    assert SENTINEL not in told and "2026" not in told and "Hospital" not in told
    assert stored.facts["manufacturer"] == "SIEMENS" and stored.facts["flip_angle_deg"] == 15


def test_inputs_are_only_read(tmp_path: Path) -> None:
    write(tmp_path / "in", transfer_syntax=RLELossless)
    before = digests(tmp_path / "in")
    store(search(tmp_path / "in").scans[0], tmp_path / "scratch")
    assert digests(tmp_path / "in") == before


def test_scratch_is_cleaned_after_a_failure_too(tmp_path: Path) -> None:
    write(tmp_path / "in")
    scan = search(tmp_path / "in").scans[0]
    scan.files[3].unlink()
    with pytest.raises(ChironError, match="F016"):
        convert(scan, Acquisition(), tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("what", ["pixels", "place", "echo time", "nothing"])
def test_a_converter_that_is_wrong_is_found_out(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(files: list[Path], scratch: Path) -> list[Any]:
        (made,) = run(files, scratch)
        affine = made.affine.copy()
        affine[:3, 3] += 1
        flaws = {
            "pixels": replace(made, values=made.values[::-1]),
            "place": replace(made, affine=affine),
            "echo time": replace(made, echo_time_s=0.1),
        }
        return [flaws.get(what, made)] if what != "nothing" else [made, made]

    write(tmp_path / "in")
    monkeypatch.setattr("pipeline.convert.dicom.run", wrong)
    with pytest.raises(ChironError, match="E014"):
        convert(search(tmp_path / "in").scans[0], Acquisition(), tmp_path / "scratch")


def test_a_converter_that_fails_is_told_without_its_words(tmp_path: Path) -> None:
    (tmp_path / SENTINEL).write_text(f"{SENTINEL} is no DICOM file" + 200 * " ")
    with pytest.raises(ChironError, match=r"[EF]0") as error:
        run([tmp_path / SENTINEL], tmp_path / "scratch")
    assert SENTINEL not in str(error.value)


def test_given_echo_times_and_field_are_believed_and_recorded(tmp_path: Path) -> None:
    write(tmp_path / "in")
    given = Acquisition(echo_times_s=(0.005, 0.01, 0.015), b0_tesla=2.89)
    stored = store(search(tmp_path / "in").scans[0], tmp_path / "scratch", given)
    assert stored.echo_times_s == given.echo_times_s and stored.b0_tesla == 2.89
    assert [d.override for d in stored.decisions] == ["--echo-times", "--b0"]


def test_a_rescale_of_each_slice_is_applied(tmp_path: Path) -> None:
    """Philips may give every slice another slope; the phase is the same."""
    grid, truth = oblique(), signal()

    def other_slope(dataset: Any) -> None:
        factor = 1 + dataset.InstanceNumber % 5 / 4
        pixels = np.frombuffer(dataset.PixelData, "<u2")
        value = (pixels * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)) / factor
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{1.6 * factor:.9g}", f"{-3142 * factor:.9g}"
        dataset.PixelData = np.rint((value * factor + 3142 * factor) / (1.6 * factor)).astype("<u2").tobytes()

    paths = write(tmp_path / "in", "philips", grid=grid, values=truth)
    edit(paths, other_slope, lambda d: "P" in d.ImageType)
    assert phase_error(read(search(tmp_path / "in").scans[0], tmp_path / "scratch"), truth, grid).max() < 3e-3


def test_a_bids_dataset_is_read_as_it_stands(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01")
    echoes = read(search(tmp_path).scans[0], tmp_path / "scratch")
    assert np.allclose(echoes.phase_rad.numpy(), np.angle(signal()), atol=1e-5)
    assert np.allclose(echoes.magnitude.numpy(), np.abs(signal()), rtol=1e-5)
    assert np.allclose(echoes.grid.voxel_size_mm, (1, 1.1, 2)) and echoes.grid.b0_dir == (0, 0, 1)


def test_bids_may_tell_the_direction_of_b0(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01")
    (tmp_path / "MEGRE.json").write_text(json.dumps({"B0_dir": [0, 3, 4]}))
    assert read(search(tmp_path).scans[0], tmp_path / "scratch").grid.b0_dir == pytest.approx((0, 0.6, 0.8))


def test_a_truncated_nifti_is_set_aside(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01")
    scan = search(tmp_path).scans[0]
    scan.files[0].write_bytes(scan.files[0].read_bytes()[:-200])
    with pytest.raises(ChironError, match="F003"):
        convert(scan, Acquisition(), tmp_path / "scratch")


@pytest.mark.real_data
@pytest.mark.parametrize(("folder", "short"), [("classic", "cl"), ("enhanced", "enh")])
def test_philips_agrees_with_the_reference(folder: str, short: str, shared_data: Path, tmp_path: Path) -> None:
    (scan,) = find(shared_data / "philips_3t_brain" / folder, KEY).scans
    echoes = read(scan, tmp_path / "scratch")
    for number in (1, 2):
        for suffix, values in (("_ph", echoes.phase_rad), ("", echoes.magnitude)):
            (file,) = (shared_data / "philips_3t_brain" / "reference_nifti").glob(f"*_{short}_e{number}{suffix}.nii.gz")
            reference = nib.load(file)
            assert np.abs(reference.affine - np.asarray(echoes.grid.affine)).max() < 1e-4
            own, theirs = values[number - 1].numpy(), reference.get_fdata()
            assert (
                np.abs(own - theirs).max() < 1e-3
                if suffix
                else np.corrcoef(own.ravel(), theirs.ravel())[0, 1] > 0.999999
            )


@pytest.mark.real_data
def test_philips_classic_and_enhanced_give_the_same_echoes(shared_data: Path, tmp_path: Path) -> None:
    scans = [find(shared_data / "philips_3t_brain" / folder, KEY).scans[0] for folder in ("classic", "enhanced")]
    one, other = (read(scan, tmp_path / "scratch") for scan in scans)
    assert torch.equal(one.magnitude, other.magnitude) and torch.equal(one.phase_rad, other.phase_rad)
    assert np.allclose(one.grid.affine, other.grid.affine, atol=1e-5) and one.echo_times_s == other.echo_times_s


def test_every_choice_is_recorded(tmp_path: Path) -> None:
    write(tmp_path / "in", "ge")
    _, decisions, notices = to_radians(store(search(tmp_path / "in").scans[0], tmp_path / "scratch"), Phase())
    assert [d.what for d in decisions] == ["phase", "alternating slices", "phase sign"] and not notices
    assert all(d.because for d in decisions) and [d.decided for d in decisions[1:]] == ["undone", "inverted"]
