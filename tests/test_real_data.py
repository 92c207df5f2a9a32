"""Real scans from export to publication: two exports of one brain give one map, and inputs stay as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from flows.cli import execute
from pipeline.convert import convert
from pipeline.errors import ChironError
from pipeline.field import total_field
from pipeline.find import Export, find
from pipeline.phase import Phase, to_radians, wrap
from pipeline.publish import publish, read_manifests, verify
from pipeline.quality.accuracy import pearson
from pipeline.recipe import Job, reconstruct
from pipeline.settings import parse
from pipeline.unwrap import unwrap
from pipeline.volumes import Echoes, Grid
from pipeline.work import Result, file_digest

pytestmark = pytest.mark.real_data

KEY = b"a key of tests" * 3
Reconstructed = Callable[[str], tuple[Export, Job]]


@pytest.fixture(scope="module")
def philips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], tuple[Export, Job]]:
    """(shared data, classic or enhanced) -> what was found, and its job, run once."""

    @cache
    def reconstructed(data: Path, form: str) -> tuple[Export, Job]:
        export = find(data / "philips_3t_brain" / form, KEY)
        (scan,) = export.scans
        job = Job(scan, parse({"method": "tv", "device": "cpu"}), tmp_path_factory.mktemp(form))
        job.save()
        reconstruct(job)
        return export, job

    return reconstructed


@pytest.fixture
def brain(philips: Callable[[Path, str], tuple[Export, Job]], shared_data: Path) -> Reconstructed:
    return lambda form: philips(shared_data, form)


def stage(brain: Reconstructed, form: str, name: str) -> Result:
    """The stage's result, which must be there."""
    result = brain(form)[1].work.find(name)
    assert result
    return result


def test_two_exports_of_one_scan_give_one_map(brain: Reconstructed) -> None:
    maps, masks = [], []
    for form in ("classic", "enhanced"):
        maps.append(stage(brain, form, "invert-tv").array("chi_ppm"))
        masks.append(stage(brain, form, "background").array("mask").bool())
    assert torch.equal(masks[0], masks[1])
    assert pearson(maps[0], maps[1], masks[0]) > 0.9999
    assert maps[0][masks[0]].std() > 0.01


def test_all_but_the_raw_data_object_is_used(brain: Reconstructed) -> None:
    classic, enhanced = brain("classic")[0], brain("enhanced")[0]
    assert not classic.ignored and not classic.set_aside and not enhanced.set_aside
    assert [(i.code, "Raw Data" in i.text) for i in enhanced.ignored] == [("F002", True)]


@pytest.mark.parametrize(("form", "short"), [("classic", "cl"), ("enhanced", "enh")])
def test_echoes_and_place_are_those_of_the_reference(
    brain: Reconstructed, form: str, short: str, shared_data: Path
) -> None:
    made = stage(brain, form, "convert")
    grid = Grid.from_json(made.facts["grid"])
    references = shared_data / "philips_3t_brain" / "reference_nifti"
    for echo, time in enumerate((0.0023, 0.0046)):
        stem = references / f"2001_WIP_fcMRI_Field_Mapping_{short}_e{echo + 1}"
        phase, magnitude = (nib.load(f"{stem}{part}.nii.gz") for part in ("_ph", ""))
        assert np.abs(phase.affine - np.asarray(grid.affine)).max() < 1e-4
        assert json.loads(Path(f"{stem}.json").read_text())["EchoTime"] == pytest.approx(time)
        assert made.facts["echo_times_s"][echo] == pytest.approx(time)
        assert np.abs(made.array("phase_rad")[echo].numpy() - phase.get_fdata()).max() < 1e-3
        own, theirs = made.array("magnitude")[echo].numpy().ravel(), magnitude.get_fdata().ravel()
        assert np.abs(own * (own @ theirs) / (own @ own) - theirs).max() < 1e-3 * theirs.max()


def test_the_field_points_along_the_scanner_in_an_oblique_grid(brain: Reconstructed) -> None:
    """B0 is the third row of the image axes in scanner coordinates: oblique here, so no voxel axis."""
    facts = stage(brain, "classic", "convert").facts
    axes = np.asarray(facts["grid"]["affine"])[:3, :3]
    assert facts["grid"]["b0_dir"] == pytest.approx((axes / np.linalg.norm(axes, axis=0))[2], abs=1e-4)
    assert 0.5 < facts["obliquity_deg"] < 20


def test_the_brain_has_the_volume_of_a_brain(brain: Reconstructed) -> None:
    assert 1100 < stage(brain, "classic", "mask").facts["volume_ml"] < 1900
    mask = stage(brain, "classic", "mask").array("mask").bool()
    eroded = stage(brain, "classic", "background").array("mask").bool()
    assert not (eroded & ~mask).any() and eroded.sum() > 0.6 * mask.sum()


def test_deep_grey_matter_is_paramagnetic(brain: Reconstructed) -> None:
    """Millilitres above 0.1 ppm on either side of the brain's middle, about as many left as right: not a rim."""
    chi = stage(brain, "classic", "invert-tv").array("chi_ppm").numpy()
    mask = stage(brain, "classic", "background").array("mask").bool().numpy()
    affine = np.asarray(stage(brain, "classic", "convert").facts["grid"]["affine"])
    from_middle = np.argwhere(mask) @ affine[:3, :3].T
    from_middle -= from_middle.mean(0)
    within = (np.abs(from_middle) < (40, 35, 35)).all(1)
    bright = within & (chi[mask] > 0.10)
    left, right = (from_middle[bright & (side * from_middle[:, 0] > 5)] for side in (-1, 1))
    assert min(len(left), len(right)) * 0.027 > 1.5  # ml
    assert 0.5 < len(left) / len(right) < 2


def test_a_scan_of_two_short_echoes_is_not_usable(brain: Reconstructed) -> None:
    """It is one for the correction of field maps: the acquisition cannot carry a map of susceptibility."""
    verdict = stage(brain, "classic", "quality").facts["verdict"]
    said = " ".join(verdict["reasons"])
    assert verdict["level"] != "usable"
    for text in ("echoes is 2 (below 3)", "4.6 ms (below 11.0 ms)", "3.00 mm (above 2.75 mm)"):
        assert text in said
    assert "in the lowest 30 mm of the map" in said  # the mask takes in soft tissue at the base of the skull


def test_the_result_is_published_with_its_report(
    brain: Reconstructed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "key"))
    before = {path: file_digest(path) for form in ("classic", "enhanced") for path in brain(form)[1].scan.files}
    job = brain("enhanced")[1]
    published = publish(job, tmp_path / "out")
    assert published.state == "published" and published.verdict == "check"
    page = published.report.read_text()
    assert published.label in page and page.rstrip().endswith("</html>") and "data:image" in page
    (entry,) = read_manifests(tmp_path / "out")
    assert not verify(tmp_path / "out") and any(name.endswith("_Chimap.nii.gz") for name in entry["files"])
    (chimap,) = (tmp_path / "out").rglob("*_Chimap.nii.gz")
    assert np.allclose(
        nib.load(chimap).get_fdata(), stage(brain, "enhanced", "invert-tv").array("chi_ppm").numpy(), atol=1e-5
    )
    assert before == {path: file_digest(path) for path in before}


def test_what_is_not_qsm_is_declined_each_with_its_own_reason(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "key"))
    reasons = {}
    for folder in ("siemens_phase_difference", "ge_fieldmap_hz", "philips_fieldmap_hz"):
        execute(["inspect", str(shared_data / "not_qsm" / folder), "--json"])
        said = json.loads(capsys.readouterr().out)
        assert not said["scans"]
        reasons[folder] = " ".join(aside["text"] for aside in said["set_aside"])
    assert "phase difference" in reasons["siemens_phase_difference"]
    assert "field map in Hz" in reasons["ge_fieldmap_hz"] and "field map in Hz" in reasons["philips_fieldmap_hz"]


def as_bids(folder: Path, magnitude: Any, phase: Any, affine: Any) -> Path:
    """Echoes (X, Y, Z, E) as a BIDS dataset, each a file with its sidecar; echo times 4, 8, 12 ms."""
    (folder / "sub-crop" / "anat").mkdir(parents=True)
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "crop", "BIDSVersion": "1.10.0"}))
    for part, values in (("mag", magnitude), ("phase", phase)):
        for echo in range(values.shape[3]):
            stem = folder / "sub-crop" / "anat" / f"sub-crop_echo-{echo + 1}_part-{part}_MEGRE"
            nib.save(nib.Nifti1Image(values[..., echo].astype(np.float32), affine), f"{stem}.nii")
            sidecar = {"EchoTime": 0.004 * (echo + 1), "MagneticFieldStrength": 7.0, "B0_dir": [0, 0, 1]}
            Path(f"{stem}.json").write_text(json.dumps(sidecar))
    return folder


def echoes_of(folder: Path, scratch: Path) -> Echoes:
    (scan,) = find(folder, KEY).scans
    return to_radians(convert(scan, parse({}).acquisition, scratch), Phase())[0]


def test_a_crop_of_three_echoes_unwraps_congruently(shared_data: Path, tmp_path: Path) -> None:
    magnitude, phase = (nib.load(shared_data / "romeo_3echo_crop" / name) for name in ("Mag.nii", "Phase.nii"))
    echoes = echoes_of(
        as_bids(tmp_path / "in", magnitude.get_fdata(), phase.get_fdata(), phase.affine), tmp_path / "scratch"
    )
    assert echoes.echo_times_s == (0.004, 0.008, 0.012) and echoes.phase_rad.abs().max() > 3.1
    mask = echoes.magnitude[0] > 0.2 * echoes.magnitude[0].max()
    unwrapped = unwrap(echoes, mask)
    back = wrap(unwrapped.echoes.phase_rad + unwrapped.offset_rad - echoes.phase_rad)
    assert back[:, mask].abs().max() < 1e-3
    assert unwrapped.echoes.phase_rad[:, mask].abs().max() > 3.2
    fitted = total_field(unwrapped.echoes, mask)
    assert fitted.residual[mask].median() < 0.01 and fitted.residual[mask].quantile(0.95) < 0.1


def test_phase_with_nan_is_refused(shared_data: Path, tmp_path: Path) -> None:
    image = nib.load(shared_data / "romeo_3echo_crop" / "phase_with_nan.nii")
    phase = image.get_fdata()
    magnitude = np.random.default_rng(0).uniform(1, 2, phase.shape)
    with pytest.raises(ChironError, match="P006"):
        echoes_of(as_bids(tmp_path / "in", magnitude, phase, image.affine), tmp_path / "scratch")
