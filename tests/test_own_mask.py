"""A site's own masks: what is wrong with one is told before anything is computed, and each scan gets its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from make_bids import bids
from make_dicom import KEY, SHAPE, oblique, read, search, write

from flows.batch import Batch, plan
from flows.cli import execute
from pipeline.errors import ChironError
from pipeline.find import Export, Scan, find
from pipeline.mask.own import check_source, find_mask, scan_grid, with_own_mask
from pipeline.publish import prepare
from pipeline.publish.manifest import plain_settings
from pipeline.settings import Settings, load
from pipeline.work import file_digest


def patient(folder: Path, name: str, tilt_deg: float = 12.0, vendor: str = "siemens") -> Scan:
    write(folder, vendor, patient=name, grid=oblique(tilt_deg=tilt_deg))
    (scan,) = search(folder).scans
    return scan


def save(file: Path, scan: Scan, edit: Any = lambda values: values, affine: Any = lambda affine: affine) -> Path:
    """A mask of a block in the middle of the scan, on the grid of its conversion."""
    grid = read(scan, file.parent / "scratch").grid
    values = np.zeros(grid.shape, np.float32)
    values[2:-2, 2:-2, 2:-2] = 1
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(edit(values), affine(np.array(grid.affine))), file)
    return file


def masked(file: Path | str) -> Settings:
    return load(words=["method=tkd", "device=cpu"]).model_copy(update={"mask": load().mask.__class__(file=str(file))})


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Scan]:
    """Two patients whose heads lie differently."""
    folder = tmp_path_factory.mktemp("scans")
    return [patient(folder / "a", "a"), patient(folder / "b", "b", tilt_deg=20.0)]


@pytest.mark.parametrize("vendor", ["siemens", "philips", "philips-enhanced", "ge"])
def test_the_headers_tell_the_grid_of_the_conversion(vendor: str, tmp_path: Path) -> None:
    scan = patient(tmp_path / "export", "a", vendor=vendor)
    file = save(tmp_path / "mask.nii.gz", scan)
    assert scan_grid(scan) is not None
    settings = with_own_mask(masked(file), scan)
    assert settings.mask.file == str(file)


def shifted(affine: Any) -> Any:
    affine[0, 3] += 3
    return affine


WRONG: dict[str, tuple[Any, Any, str]] = {
    "shape": (lambda v: v[:-1], lambda a: a, "shape"),
    "place": (lambda v: v, shifted, "place"),
    "voxel size": (lambda v: v, lambda a: a @ np.diag([1.5, 1, 1, 1]), "place"),
    "empty": (lambda v: 0 * v, lambda a: a, "empty"),
    "not binary": (
        lambda v: v * np.linspace(0.1, 1, v.size).reshape(v.shape).astype(np.float32),
        lambda a: a,
        "binary",
    ),
    "not numbers": (lambda v: np.where(v > 0, np.nan, 0).astype(np.float32), lambda a: a, "binary"),
    "4D": (lambda v: np.stack([v, v], -1), lambda a: a, "4 dimensions"),
    "2D": (lambda v: v[:, :, 4], lambda a: a, "2 dimensions"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_mask_is_told_before_anything_is_computed(kind: str, scans: list[Scan], tmp_path: Path) -> None:
    edit, affine, told = WRONG[kind]
    file = save(tmp_path / "mask.nii.gz", scans[0], edit, affine)
    with pytest.raises(ChironError, match="X002") as caught:
        with_own_mask(masked(file), scans[0])
    assert told in caught.value.found and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "not binary", "4D", "absent", "text", "a folder without masks", "pattern"])
def test_what_needs_no_scan_is_told_before_the_input_is_read(
    kind: str, scans: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setattr("flows.batch.find", lambda *_, **__: pytest.fail("the input was read"))
    (tmp_path / "in").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.nii").write_text("no image")
    named = {
        "absent": "absent.nii",
        "text": "text.nii",
        "a folder without masks": "folder",
        "pattern": "no/{label}.nii",
    }
    if kind in WRONG:
        save(tmp_path / "mask.nii.gz", scans[0], *WRONG[kind][:2])
    mask = tmp_path / named.get(kind, "mask.nii.gz")
    assert execute(["run", str(tmp_path / "in"), str(tmp_path / "out"), "--mask", str(mask), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("X002") and not (tmp_path / "out").exists()
    with pytest.raises(ChironError, match="X002"):
        check_source(str(mask))


def planned(scans: list[Scan], settings: Settings, output: Path) -> tuple[dict[str, Settings], dict[str, str]]:
    """Settings of each scan that is to be done; code of each that is not."""
    prepare(output)
    batch = Batch(output)
    jobs = plan(batch, Export(tuple(scans), (), (), 0), settings)
    return {job.scan.label: job.settings for job in jobs}, {aside.label: aside.code for aside in batch.aside}


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("{label}_desc-brain_mask.nii.gz", ""),
        ("{label}_mask.nii.gz", ""),
        ("{label}.nii", ""),
        ("sub-{subject}/ses-{session}/anat/{label}_desc-brain_mask.nii.gz", ""),
        ("{label}.nii.gz", "{label}.nii.gz"),
        ("of {subject}/brain {session}.nii.gz", "of {subject}/brain {session}.nii.gz"),
    ],
)
def test_each_scan_has_its_own_mask(named: str, asked: str, scans: list[Scan], tmp_path: Path) -> None:
    files = {}
    for scan in scans:
        name = named.format(label=scan.label, subject=scan.subject, session=scan.session)
        files[scan.label] = save(tmp_path / "masks" / name, scan)
    settings, aside = planned(scans, masked(tmp_path / "masks" / asked), tmp_path / "out")
    assert aside == {} and {label: each.mask.file for label, each in settings.items()} == {
        label: str(file) for label, file in files.items()
    }
    for label, each in settings.items():
        assert plain_settings(each)["mask"]["file"] == f"sha256:{file_digest(files[label])}"


def test_a_scan_without_its_mask_is_set_aside_and_the_others_go_on(scans: list[Scan], tmp_path: Path) -> None:
    save(tmp_path / "masks" / f"{scans[0].label}.nii.gz", scans[0])
    settings, aside = planned(scans, masked(tmp_path / "masks"), tmp_path / "out")
    assert list(settings) == [scans[0].label] and aside == {scans[1].label: "X002"}


def test_one_mask_for_several_scans_is_refused_unless_it_fits_one(scans: list[Scan], tmp_path: Path) -> None:
    mask = save(tmp_path / "mask.nii.gz", scans[0])
    settings, aside = planned(scans, masked(mask), tmp_path / "out")
    assert list(settings) == [scans[0].label] and aside == {scans[1].label: "X002"}
    twin = patient(tmp_path / "twin", "twin")
    with pytest.raises(ChironError, match="X002") as caught:
        planned([scans[0], twin], masked(mask), tmp_path / "out")
    assert "fits 2" in caught.value.found and "{label}" in caught.value.expected
    alone, _ = planned([twin], masked(mask), tmp_path / "out")
    assert alone[twin.label].mask.file == str(mask)


def test_no_mask_is_asked_for_and_none_is_looked_for(scans: list[Scan]) -> None:
    settings = load()
    assert with_own_mask(settings, scans[0]) is settings
    with pytest.raises(ChironError, match="X002"):
        find_mask("/absent/{label}.nii.gz", scans[0])


def test_a_bids_scan_is_compared_by_its_image(tmp_path: Path) -> None:
    from test_find import bids

    (tmp_path / "bids").mkdir()
    bids(tmp_path / "bids", "sub-01")
    (scan,) = search(tmp_path / "bids").scans
    shape, affine = scan_grid(scan) or ((), np.eye(4))
    mask = np.zeros(shape, np.uint8)
    mask[1:] = 255
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "mask.nii.gz")
    assert with_own_mask(masked(tmp_path / "mask.nii.gz"), scan).mask.file.endswith("mask.nii.gz")
    nib.save(nib.Nifti1Image(mask, shifted(affine.copy())), tmp_path / "mask.nii.gz")
    with pytest.raises(ChironError, match="X002"):
        with_own_mask(masked(tmp_path / "mask.nii.gz"), scan)


@pytest.mark.parametrize("damage", ["stream", "type"])
def test_a_damaged_mask_is_told_as_that(damage: str, scans: list[Scan], tmp_path: Path) -> None:
    file = save(tmp_path / f"mask.nii{'.gz' if damage == 'stream' else ''}", scans[0])
    content = bytearray(file.read_bytes())
    if damage == "stream":
        content[len(content) // 2] ^= 0xFF
    else:
        content[70:72] = (999).to_bytes(2, "little")
    file.write_bytes(content)
    with pytest.raises(ChironError, match="X002"):
        with_own_mask(masked(file), scans[0])


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_a_mask_in_mm_fits_a_scan_in_other_units(unit: str, tmp_path: Path) -> None:
    bids(tmp_path / "in", "sub-01")
    for path in (tmp_path / "in").rglob("*.nii.gz"):
        image = nib.load(path)
        image.header.set_xyzt_units(unit)
        scale = {"meter": 1e-3, "micron": 1e3}[unit]
        scaled = nib.Nifti1Image(
            np.asarray(image.dataobj), np.diag([scale, scale, scale, 1]) @ image.affine, image.header
        )
        nib.save(scaled, path)
    (scan,) = find(tmp_path / "in", KEY).scans
    values = np.ones(SHAPE, np.uint8)
    nib.save(nib.Nifti1Image(values, np.diag([1, 1.1, 2, 1])), tmp_path / "mask.nii.gz")
    assert with_own_mask(masked(tmp_path / "mask.nii.gz"), scan).mask.file == str(tmp_path / "mask.nii.gz")


@pytest.mark.parametrize("pattern", ["{label}", "{subject}", "{session}", "mine{run}"])
def test_each_part_of_a_label_may_stand_in_a_pattern(pattern: str, scans: list[Scan], tmp_path: Path) -> None:
    scan = scans[0].named(f"{scans[0].label}_run-3")
    name = pattern.format(label=scan.label, subject=scan.subject, session=scan.session, run=scan.run)
    file = save(tmp_path / f"{name}.nii.gz", scans[0])
    check_source(str(tmp_path / f"{pattern}.nii.gz"))
    assert with_own_mask(masked(tmp_path / f"{pattern}.nii.gz"), scan).mask.file == str(file)
