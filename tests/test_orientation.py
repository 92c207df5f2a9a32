"""NIfTI images without orientation are refused until the user gives it; their map then lies where that says."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from make_dicom import TIMES, search, signal
from test_find import bids

from flows.cli import execute
from flows.step import Artefacts, run_step
from pipeline.acquisition import Acquisition
from pipeline.convert import convert
from pipeline.errors import ChironError
from pipeline.find.orientation import orientation
from pipeline.mask import read_mask
from pipeline.publish.nifti import image_bytes
from pipeline.settings import load, parse
from pipeline.volumes import Grid

SIZE = (1.0, 1.1, 2.0)
Change = Callable[[Any], None]


def rewrite(paths: list[Path], change: Change) -> None:
    """Change the stored headers, which nibabel would mend when it writes them."""
    for path in paths:
        content = gzip.decompress(path.read_bytes())
        header = nib.Nifti1Header(content[:348], check=False)
        change(header)
        path.write_bytes(gzip.compress(header.binaryblock + content[348:]))


def dataset(folder: Path, change: Change, which: str = "*") -> list[Path]:
    folder.mkdir(exist_ok=True)
    bids(folder, "sub-01")
    paths = sorted(folder.rglob("*.nii.gz"))
    rewrite([path for path in paths if path.match(f"{which}.nii.gz")], change)
    return paths


def uncoded(header: Any) -> None:
    header["qform_code"] = header["sform_code"] = 0


def sform(rows: Any, code: int = 1) -> Change:
    def change(header: Any) -> None:
        header["qform_code"], header["sform_code"] = 0, code
        for name, row in zip(("srow_x", "srow_y", "srow_z"), rows, strict=True):
            header[name] = row

    return change


def qform(*quaternion: float) -> Change:
    def change(header: Any) -> None:
        header["qform_code"], header["sform_code"] = 1, 0
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = quaternion

    return change


def flat(header: Any) -> None:
    sform([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 2, 0]])(header)


WITHOUT: dict[str, Change] = {
    "codes of zero": uncoded,
    "a matrix of zeros": sform(np.zeros((3, 4))),
    "a column of zeros": sform([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0]]),
    "two equal columns": flat,
    "numbers that are not finite": sform(np.full((3, 4), np.nan)),
    "a quaternion that is no rotation": qform(0.9, 0.9, 0.9),
    "a quaternion that is not finite": qform(np.nan, 0, 0),
}


@pytest.mark.parametrize("kind", WITHOUT)
def test_images_without_orientation_are_refused_until_it_is_given(kind: str, tmp_path: Path) -> None:
    dataset(tmp_path, WITHOUT[kind])
    (aside,) = search(tmp_path).set_aside
    assert aside.code == "E022" and "--orientation LAS" in aside.text
    override = Acquisition(orientation="PSL")
    (scan,) = search(tmp_path, acquisition=override).scans
    assert any(notice.code == "E022" and "PSL" in notice.text for notice in scan.notices)
    stored = convert(scan, override, tmp_path / "scratch")
    assert nib.aff2axcodes(stored.grid.affine) == ("P", "S", "L")
    assert stored.grid.voxel_size_mm == pytest.approx(SIZE) and stored.grid.b0_dir == pytest.approx((0, 1, 0))
    (decision,) = [d for d in stored.decisions if d.what == "orientation"]
    assert decision.decided == "PSL" and "back, head, left" in decision.because and decision.override == "--orientation"
    assert np.allclose(stored.first[0], np.abs(signal())[0], rtol=1e-5)


def test_what_is_published_states_the_given_orientation(tmp_path: Path) -> None:
    dataset(tmp_path / "in", uncoded)
    override = Acquisition(orientation="las")
    (scan,) = search(tmp_path / "in", acquisition=override).scans
    grid = convert(scan, override, tmp_path / "scratch").grid
    (tmp_path / "out.nii.gz").write_bytes(image_bytes(torch.ones(grid.shape), grid))
    image = nib.load(tmp_path / "out.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S") and image.header["sform_code"] == 1
    centre = image.affine @ [*((np.array(grid.shape) - 1) / 2), 1]
    assert np.allclose(centre[:3], 0, atol=1e-4)


@pytest.mark.parametrize("which", ["*part-phase*", "*echo-2_part-mag*"])
def test_a_part_without_orientation_is_no_better(which: str, tmp_path: Path) -> None:
    dataset(tmp_path, uncoded, which)
    (aside,) = search(tmp_path).set_aside
    assert aside.code == "E022" and "of 6 NIfTI images" in aside.text
    override = Acquisition(orientation="RAS")
    (scan,) = search(tmp_path, acquisition=override).scans
    assert nib.aff2axcodes(convert(scan, override, tmp_path / "scratch").grid.affine) == ("R", "A", "S")
    (aside,) = search(tmp_path, acquisition=Acquisition(orientation="LAS")).set_aside  # a mirrored map
    assert aside.code == "E022" and "RAS" in aside.text


def test_an_orientation_that_the_images_state_is_kept(tmp_path: Path) -> None:
    paths = dataset(tmp_path, lambda header: None)
    assert not orientation(paths, "RAS").notices and not orientation(paths).notices
    result = orientation(paths, "LPS")
    assert [notice.code for notice in result.notices] == ["E022"] and "RAS" in result.notices[0].text
    assert all(np.allclose(affine, np.diag([*SIZE, 1])) for affine in result.affines.values())


def test_the_sform_counts_and_a_bad_one_leaves_the_qform(tmp_path: Path) -> None:
    """qform and sform may differ, as after a registration; one that spans no space states nothing."""

    def both(header: Any) -> None:
        sform([[0, 0, 2, 0], [1, 0, 0, 0], [0, 1.1, 0, 0]])(header)
        header["qform_code"] = 1

    paths = dataset(tmp_path / "both", both)
    assert {nib.aff2axcodes(a) for a in orientation(paths).affines.values()} == {("A", "S", "R")}

    def second(header: Any) -> None:
        sform(np.zeros((3, 4)))(header)
        header["qform_code"] = 1
        header["quatern_b"] = header["quatern_c"] = header["quatern_d"] = 0
        header["pixdim"][0] = 1

    paths = dataset(tmp_path / "second", second)
    assert {nib.aff2axcodes(a) for a in orientation(paths).affines.values()} == {("R", "A", "S")}


def test_parts_that_lie_apart_are_refused(tmp_path: Path) -> None:
    dataset(tmp_path, sform([[-1, 0, 0, 0], [0, 1.1, 0, 0], [0, 0, 2, 0]]), "*part-phase*")
    (scan,) = search(tmp_path).scans
    with pytest.raises(ChironError, match="E011"):
        convert(scan, Acquisition(), tmp_path / "scratch")


def test_b0_of_a_sidecar_does_not_tell_the_side(tmp_path: Path) -> None:
    dataset(tmp_path, uncoded)
    for path in tmp_path.rglob("sub-*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "B0_dir": [0, 0.2, 1]}))
    (aside,) = search(tmp_path).set_aside
    assert aside.code == "E022" and "B0_dir does not tell" in aside.text
    override = Acquisition(orientation="LAS")
    (scan,) = search(tmp_path, acquisition=override).scans
    assert convert(scan, override, tmp_path / "scratch").grid.b0_dir == pytest.approx((0, 0.196, 0.981), abs=1e-3)
    (aside,) = search(tmp_path, acquisition=Acquisition(orientation="ASL")).set_aside
    assert aside.code == "E022" and "degrees from the sidecar's B0_dir" in aside.text


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_headers_of_every_kind_are_read(kind: Any, order: str, name: str, tmp_path: Path) -> None:
    header = kind.header_class(endianness=order)
    for affine in (None, np.diag([-2.0, 2, 3, 1])):
        image = kind(np.ones((4, 5, 6), np.float32), affine, header)
        if affine is None:
            image.header.set_zooms((2, 2, 3))
        nib.save(image, tmp_path / name)
        assert nib.load(tmp_path / name).header.endianness == order
        if affine is None:
            with pytest.raises(ChironError, match="E022"):
                orientation([tmp_path / name])
        codes = "PSR" if affine is None else ""
        (placed,) = orientation([tmp_path / name], codes).affines.values()
        assert "".join(nib.aff2axcodes(placed)) == (codes or "LAS")
        assert np.linalg.norm(placed[:3, :3], axis=0).tolist() == [2, 2, 3]


def test_a_file_that_is_no_nifti_is_left_to_its_conversion(tmp_path: Path) -> None:
    for name, content in (("empty.nii", b""), ("text.nii.gz", b"no image"), ("short.nii", bytes(200))):
        (tmp_path / name).write_bytes(content)
        assert orientation([tmp_path / name]).affines == {}


# Sizes


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -1, 1), (1, np.nan, 1), (0.003, 0.003, 0.003), (1, 1, 3000)])
def test_a_voxel_size_that_cannot_be_is_refused(sizes: tuple[float, ...], tmp_path: Path) -> None:
    def change(header: Any) -> None:
        uncoded(header)
        header["pixdim"][1:4] = sizes

    dataset(tmp_path, change)
    (aside,) = search(tmp_path, acquisition=Acquisition(orientation="LAS")).set_aside
    assert aside.code == "E023" and " mm" in aside.text


@pytest.mark.parametrize(("unit", "scale"), [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_an_affine_in_another_unit_is_brought_to_mm(unit: str, scale: float, tmp_path: Path) -> None:
    def change(header: Any) -> None:
        sform(np.diag([*SIZE, 1])[:3] / scale)(header)
        header["pixdim"][1:4] = np.asarray(SIZE) / scale
        header.set_xyzt_units(unit, "sec")

    dataset(tmp_path, change)
    (scan,) = search(tmp_path).scans
    assert convert(scan, Acquisition(), tmp_path / "scratch").grid.voxel_size_mm == pytest.approx(SIZE, rel=1e-4)


def test_metres_that_the_file_calls_mm_are_refused(tmp_path: Path) -> None:
    dataset(tmp_path, sform(np.diag([*SIZE, 1])[:3] / 1000))
    (aside,) = search(tmp_path).set_aside
    assert aside.code == "E023" and "0.001 x 0.0011 x 0.002 mm" in aside.text


# Settings, masks and single steps


@pytest.mark.parametrize("codes", ["LA", "LAX", "LRS", "LASS", "las ", "1,2,3"])
def test_words_that_are_no_orientation_are_refused(codes: str) -> None:
    with pytest.raises(ChironError, match=r"X001.*LAS"):
        load(None, [f"acquisition.orientation={json.dumps(codes)}"])
    assert load(None, ["acquisition.orientation=rpi"]).acquisition.orientation == "rpi"


def test_inspect_follows_its_own_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(tmp_path / "in", uncoded)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    answers = []
    for more in ([], ["--orientation", "LAS"]):
        execute(["inspect", str(tmp_path / "in"), "--json", *more])
        answers.append(json.loads(capsys.readouterr().out))
    assert [len(one["scans"]) for one in answers] == [0, 1] and answers[0]["set_aside"][0]["code"] == "E022"


def test_a_mask_without_orientation_lies_as_the_codes_say(tmp_path: Path) -> None:
    shape = (5, 6, 7)
    mask = np.zeros(shape, np.uint8)
    mask[1:3, 2:6, 1:4] = 1
    image = nib.Nifti1Image(mask, None)
    image.header.set_zooms(SIZE)
    uncoded(image.header)
    nib.save(image, tmp_path / "mask.nii.gz")
    grid = Grid.simple(shape, SIZE)
    with pytest.raises(ChironError, match=r"X002: a mask without orientation.*--orientation"):
        read_mask(tmp_path / "mask.nii.gz", grid)
    assert np.array_equal(read_mask(tmp_path / "mask.nii.gz", grid, "RAS").numpy(), mask > 0)
    assert np.array_equal(read_mask(tmp_path / "mask.nii.gz", grid, "LPS").numpy(), mask[::-1, ::-1] > 0)
    with pytest.raises(ChironError, match="X002"):
        read_mask(tmp_path / "mask.nii.gz", grid, "ARS")


@pytest.mark.parametrize("change", [uncoded, sform(np.zeros((3, 4)))])
def test_a_single_step_needs_no_orientation(change: Change, tmp_path: Path) -> None:
    """The parameters have voxel size and direction of B0; without the latter nobody knows it."""
    shape, source = (12, 14, 10), tmp_path / "in"
    source.mkdir()
    values = np.random.default_rng(0).normal(0, 0.01, shape).astype(np.float32)
    for name, volume in (("localfield", values), ("mask", np.ones(shape, np.uint8))):
        nib.save(nib.Nifti1Image(volume, np.eye(4)), source / f"{name}.nii.gz")
    rewrite(list(source.glob("*.nii.gz")), change)
    facts: dict[str, Any] = {"TE": [TIMES[0]], "B0": 3.0, "B0_dir": [0, 1, 0], "voxel_size": list(SIZE)}
    (source / "params.json").write_text(json.dumps(facts))
    run_step("dipole", source, tmp_path / "out", parse({"method": "tkd", "device": "cpu"}))
    image = nib.load(tmp_path / "out" / "chimap.nii.gz")
    assert image.shape == shape and image.header["sform_code"] == image.header["qform_code"] == 0
    grid = Artefacts(source, torch.device("cpu")).grid
    assert grid.b0_dir == (0, 1, 0) and grid.voxel_size_mm == SIZE
    del facts["B0_dir"]
    (source / "params.json").write_text(json.dumps(facts))
    with pytest.raises(ChironError, match=r"E022.*params.json"):
        run_step("dipole", source, tmp_path / "again", parse({"method": "tkd", "device": "cpu"}))
