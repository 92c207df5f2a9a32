"""Publication: what stands in the output, and that it stands there whole, whatever happens meanwhile."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import pipeline.publish as publishing
from pipeline import ledger
from pipeline.errors import ChironError, Decision, Notice
from pipeline.find import Scan, SetAside
from pipeline.lock import locked
from pipeline.publish import already_published, prepare, publish, read_manifests, record_set_aside, swap, verify
from pipeline.publish.nifti import image_bytes
from pipeline.publish.sidecars import ALLOWED, RESEARCH_USE, sidecar
from pipeline.recipe import Job
from pipeline.report import write_report
from pipeline.settings import load
from pipeline.volumes import Grid
from pipeline.work import Made

SHAPE = (6, 5, 4)
OBLIQUE = [[-0.9, 0.0, 0.3, 20.0], [0.0, 1.2, 0.0, -30.0], [0.3, 0.0, 0.9, 5.0], [0.0, 0.0, 0.0, 1.0]]
EXCHANGE = swap._exchange


@pytest.fixture(autouse=True)
def _plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has tests of its own; here it is a page that names the scan."""
    monkeypatch.setattr(publishing, "write_report", lambda work, label, settings, failure=None: f"<html>{label}</html>")


def make_job(folder: Path, run: str = "", session: str = "a", value: float = 0.1, **settings: Any) -> Job:
    """A job with every stage done, `value` everywhere in its map."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"image{run}"
    source.write_bytes(f"{run} {value}".encode())
    name = f"{'0' * 10}{run or '0':0>2}"
    scan = Scan(name, "x", session, run, "dicom", "Siemens", (3,), (0.004, 0.008), ("magnitude", "phase"), (source,))
    job = Job(scan, load(**{"method": "tv", "also": ("tkd",), **settings}), folder / f"work{run}")
    _do_all_stages(job, value)
    return job


def _do_all_stages(job: Job, value: float) -> None:
    grid = Grid.from_affine(SHAPE, OBLIQUE)
    ones, mask = torch.ones(SHAPE), torch.ones(SHAPE, dtype=torch.uint8)
    facts = {"grid": grid.json(), "echo_times_s": [0.004, 0.008], "b0_tesla": 3.0, "vendor": "Siemens"}
    facts["content_digest"] = job.scan.content_digest()
    reference = {"region": "final mask", "mean_ppm": 0.012, "sd_ppm": 0.04}
    echoes = torch.stack([3 * ones, 4 * ones])
    decision, notice = Decision("phase", "radians", "the range"), Notice("E007", "one echo")
    made = {
        "convert": Made({"magnitude": echoes, "phase_rad": echoes}, {}, facts, [decision], [notice]),
        "mask": Made({"mask": mask, "quality": ones}),
        "unwrap": Made({"unwrapped_rad": echoes, "offset_rad": ones}),
        "field": Made({"total_ppm": value * ones, "sd_ppm": ones, "mask": mask, "residual": ones}),
        "background": Made({"local_ppm": value * ones, "mask": mask}),
        "r2star": Made(
            {"r2star": 20 * ones, "t2star_s": 0.05 * ones, "residual": 0 * ones}, facts={"method": "loglinear"}
        ),
        "swi": Made({"swi": ones, "minip": 0.9 * ones}, facts={"slab_mm": 12.0, "slab_axis": 2, "slab_slices": 12}),
        "invert-tv": Made({"chi_ppm": value * ones}, facts={"method": "tv", "reference": reference}),
        "invert-tkd": Made({"chi_ppm": 2 * value * ones}, facts={"method": "tkd", "reference": reference}),
        "quality": Made(
            facts={"verdict": {"level": "check", "reasons": ["a test"]}, "primary": "tv", "streak": float("nan")}
        ),
    }
    for stage, result in made.items():
        measured = {"stage": stage, "version": 1, "device": "cpu", "seconds": 0.5, "peak_memory_bytes": 1000}
        job.work.write(stage, f"key of {stage}", result, measured)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path / "in")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def sidecar_of(output: Path, suffix: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / f"sub-x/ses-a/anat/sub-x_ses-a_{suffix}.json").read_text())
    return found


def test_a_session_holds_maps_fields_mask_magnitude_report_and_manifest(job: Job, output: Path) -> None:
    done = publish(job, output)
    stem = "anat/sub-x_ses-a_"
    maps = ["Chimap", "desc-tkd_Chimap"]
    images = [*maps, "desc-brain_mask", "desc-total_fieldmap", "desc-local_fieldmap", "part-mag_T2starw"]
    images += ["R2starmap", "T2starmap", "swi", "minIP"]
    expected = {f"{stem}{image}.{kind}" for image in images for kind in ("nii.gz", "json")}
    assert content(done.folder).keys() == expected | {f"{stem}qc.json", "sub-x_ses-a_qsm.html", "manifest.json"}
    assert (done.state, done.verdict, done.label) == ("published", "check", "sub-x_ses-a")
    assert done.report.read_text() == "<html>sub-x_ses-a</html>"
    assert json.loads((done.folder / f"{stem}qc.json").read_text())["streak"] is None
    assert {".bidsignore", "CITATION.md", "dataset_description.json"} <= {p.name for p in output.iterdir()}
    assert not (output / ".chiron" / "publish" / "sub-x_ses-a").exists()


def test_the_true_report_is_published(job: Job, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "write_report", write_report)
    page = publish(job, output).report.read_text()
    assert page.lstrip().lower().startswith("<!doctype html>") and "sub-x_ses-a" in page
    failed = publish(job, output, FAILED).report.read_text()
    assert "E002" in failed and FAILED.found in failed


def test_values_and_geometry_reach_the_images(job: Job, output: Path) -> None:
    anat = publish(job, output).folder / "anat"
    beside = (("R2starmap", 20.0), ("T2starmap", 0.05), ("swi", 1.0), ("minIP", 0.9))
    for suffix, value in (("Chimap", 0.1), ("desc-tkd_Chimap", 0.2), ("part-mag_T2starw", 5.0), *beside):
        image = nib.load(anat / f"sub-x_ses-a_{suffix}.nii.gz")
        assert image.get_data_dtype() == np.float32
        np.testing.assert_allclose(image.get_fdata(), value, rtol=1e-6)
    assert nib.load(anat / "sub-x_ses-a_desc-brain_mask.nii.gz").get_data_dtype() == np.uint8


@pytest.mark.parametrize("flip", [1, -1])
def test_header_says_millimetres_and_the_same_place_twice(flip: int) -> None:
    affine = np.array(OBLIQUE) @ np.diag([flip, 1, 1, 1])
    image = nib.Nifti1Image.from_bytes(
        gzip.decompress(image_bytes(torch.zeros(SHAPE), Grid.from_affine(SHAPE, affine)))
    )
    qform, qcode = image.get_qform(coded=True)
    sform, scode = image.get_sform(coded=True)
    assert (qcode, scode, image.header.get_xyzt_units()[0]) == (1, 1, "mm")
    np.testing.assert_allclose(qform, sform, atol=1e-5)
    np.testing.assert_allclose(sform, affine, atol=1e-4)


def test_a_result_that_is_not_finite_is_never_written() -> None:
    volume = torch.zeros(SHAPE)
    volume[1, 2, 3] = float("nan")
    with pytest.raises(ChironError, match="P006"):
        image_bytes(volume, Grid.simple(SHAPE, (1, 1, 1)))


def test_sidecars_say_what_is_needed_and_nothing_else(job: Job, output: Path) -> None:
    folder = publish(job, output).folder
    chi, local = sidecar_of(output, "Chimap"), sidecar_of(output, "desc-local_fieldmap")
    assert chi["Units"] == "ppm" and chi["Method"] == "tv" and chi["IntendedUse"] == RESEARCH_USE
    assert chi["MethodParameters"]["strength"] == job.settings.tv.strength
    assert chi["ReferenceRegion"] == {"region": "final mask", "mean_ppm": 0.012, "sd_ppm": 0.04}
    assert chi["EchoTimes"] == [0.004, 0.008] and chi["MagneticFieldStrength"] == 3.0
    assert chi["B0Direction"] == pytest.approx(Grid.from_affine(SHAPE, OBLIQUE).b0_dir)
    assert local["HzPerPpm"] == pytest.approx(127.732434)
    for path in folder.glob("anat/*.json"):
        if not path.name.endswith("_qc.json"):
            assert json.loads(path.read_text()).keys() <= ALLOWED
    for uri in chi["Sources"] + local["Sources"]:
        assert uri.startswith("bids::") and (output / uri.removeprefix("bids::")).is_file()


def test_images_beside_the_map_say_unit_and_method(job: Job, output: Path) -> None:
    publish(job, output)
    units = {suffix: sidecar_of(output, suffix)["Units"] for suffix in ("R2starmap", "T2starmap", "swi", "minIP")}
    assert units == {"R2starmap": "1/s", "T2starmap": "s", "swi": "arbitrary", "minIP": "arbitrary"}
    r2star, minip = sidecar_of(output, "R2starmap"), sidecar_of(output, "minIP")
    assert r2star["Method"] == "loglinear" and r2star["MethodParameters"]["highest"] == job.settings.r2star.highest
    assert (minip["SlabThickness"], minip["SlabAxis"], minip["SkullStripped"]) == (12.0, "k", True)
    assert minip["Sources"][0].endswith("_swi.nii.gz") and sidecar_of(output, "swi")["SkullStripped"] is False
    for suffix in units:
        for uri in sidecar_of(output, suffix)["Sources"]:
            assert (output / uri.removeprefix("bids::")).is_file()


@pytest.mark.parametrize(
    ("stage", "gone"), [("r2star", {"R2starmap", "T2starmap"}), ("swi", {"swi", "minIP"})], ids=["r2star", "swi"]
)
def test_an_image_beside_the_map_that_was_not_made_is_left_out_and_said_so(
    stage: str, gone: set[str], job: Job, output: Path
) -> None:
    result = job.work.find(stage)
    assert result is not None
    lost = Made(facts={"missing": "why"}, notices=[Notice("M002", "none was made: why")])
    job.work.write(stage, result.record["key"], lost, {"stage": stage, "device": "cpu"})
    folder = publish(job, output).folder
    there = {path.name.removesuffix(".nii.gz").split("_")[-1] for path in folder.glob("anat/*.nii.gz")}
    assert there == {"Chimap", "R2starmap", "T2starmap", "swi", "minIP", "mask", "fieldmap", "T2starw"} - gone
    assert {"stage": stage, "code": "M002", "text": "none was made: why"} in read_manifests(output)[0]["warnings"]
    assert verify(output) == []


def test_a_map_that_holds_no_numbers_is_left_out_and_said_so(job: Job, output: Path) -> None:
    stage = job.work.find("invert-tkd")
    assert stage is not None
    lost = Made({"chi_ppm": torch.full(SHAPE, float("nan"))}, facts=stage.facts)
    job.work.write("invert-tkd", stage.record["key"], lost, {"stage": "invert-tkd", "device": "cpu"})
    folder = publish(job, output).folder
    assert not list(folder.glob("anat/*tkd*")) and list(folder.glob("anat/*ses-a_Chimap.nii.gz"))
    assert read_manifests(output)[0]["warnings"][-1]["code"] == "M001"


def with_uncertainty(job: Job, method: str, value: float) -> None:
    """Give the map of `method` an uncertainty, `value` everywhere."""
    stage = job.work.find(f"invert-{method}")
    assert stage is not None
    arrays = {"chi_ppm": stage.array("chi_ppm"), "uncertainty_ppm": torch.full(SHAPE, value)}
    job.work.write(f"invert-{method}", stage.record["key"], Made(arrays, facts=stage.facts), {"stage": method})


def test_an_uncertainty_stands_beside_the_map_it_is_of(job: Job, output: Path) -> None:
    for method, value in (("tv", 0.01), ("tkd", 0.02)):
        with_uncertainty(job, method, value)
    anat = publish(replace(job, settings=load(method="tv", also=("tkd",), tv={"strength": 9})), output).folder / "anat"
    for suffix, method, value in (("Chiuncertainty", "tv", 0.01), ("desc-tkd_Chiuncertainty", "tkd", 0.02)):
        image = nib.load(anat / f"sub-x_ses-a_{suffix}.nii.gz")
        np.testing.assert_allclose(image.get_fdata(), value, rtol=1e-6)
        said = sidecar_of(output, suffix)
        assert said["Units"] == "ppm" and said["Method"] == method
        assert said["Description"].startswith(f"Standard deviation that {method} gives to its own")
        assert all((output / uri.removeprefix("bids::")).is_file() for uri in said["Sources"])
    assert sidecar_of(output, "Chiuncertainty")["MethodParameters"]["strength"] == 9
    files = read_manifests(output)[0]["files"]
    assert {f"anat/sub-x_ses-a_{n}.nii.gz" for n in ("Chiuncertainty", "desc-tkd_Chiuncertainty")} <= files.keys()
    assert verify(output) == []


def test_a_map_without_uncertainty_has_no_such_file(job: Job, output: Path) -> None:
    with_uncertainty(job, "tkd", 0.02)
    publish(job, output)
    assert [name for name in content(output) if "ncertainty" in name]
    folder = publish(make_job(job.folder.parent), output).folder
    assert not [name for name in content(folder) if "ncertainty" in name]


def test_a_sidecar_refuses_what_is_not_on_the_list() -> None:
    convert = {"grid": Grid.simple(SHAPE, (1, 1, 1)).json(), "echo_times_s": [0.01], "b0_tesla": 3.0}
    with pytest.raises(KeyError, match="PatientName"):
        sidecar(convert, Units="ppm", PatientName="x")


def test_manifest_tells_what_was_done(job: Job, output: Path) -> None:
    publish(job, output)
    (found,) = read_manifests(output)
    assert found["folder"] == "sub-x/ses-a" and found["state"] == "published" and found["verdict"] == "check"
    assert found["input_digest"] == job.scan.content_digest()
    assert found["methods"] == ["tv", "tkd"] and found["settings"]["tv"]["strength"] == job.settings.tv.strength
    assert [s["stage"] for s in found["stages"]][:2] == ["convert", "mask"]
    assert all(s["seconds"] == 0.5 and s["peak_memory_bytes"] == 1000 for s in found["stages"])
    assert found["decisions"][0]["decided"] == "radians" and found["warnings"][0]["code"] == "E007"
    assert found["software"]["chiron"] and found["software"]["torch"] and found["device"] == "cpu"
    assert found["citations"] and all(paper in (output / "CITATION.md").read_text() for paper in found["citations"])
    assert verify(output) == []


def test_nothing_written_tells_a_path(job: Job, output: Path, tmp_path: Path) -> None:
    own = tmp_path / "in" / "mask of Doe.nii"
    own.write_bytes(b"a mask")
    publish(replace(job, settings=load(method="tv", also=("tkd",), mask={"file": str(own)})), output)
    everything = b"".join(content(output).values())
    assert b"Doe" not in everything and str(tmp_path).encode() not in everything


def test_the_same_work_gives_the_same_bytes(job: Job, tmp_path: Path) -> None:
    one, two = (content(publish(job, tmp_path / name).folder) for name in ("one", "two"))
    del one["manifest.json"], two["manifest.json"]  # it tells the time
    assert one == two


def test_publishing_again_leaves_one_whole_version(job: Job, output: Path) -> None:
    publish(job, output)
    before = content(output)
    publish(job, output)
    after = content(output)
    assert before.keys() == after.keys() and verify(output) == []
    assert all(before[n] == after[n] for n in before if not n.endswith("manifest.json"))


def test_maps_of_methods_no_longer_asked_for_go(tmp_path: Path, output: Path) -> None:
    publish(make_job(tmp_path / "in"), output)
    done = publish(make_job(tmp_path / "in", also=()), output)
    assert not list(done.folder.glob("anat/*tkd*")) and verify(output) == []


def test_two_runs_of_a_session_stand_side_by_side(tmp_path: Path, output: Path) -> None:
    first, second = make_job(tmp_path / "in", run="1"), make_job(tmp_path / "in", run="2", value=0.3)
    publish(first, output)
    before = content(output / "sub-x/ses-a")
    publish(second, output)
    after = content(output / "sub-x/ses-a")
    assert [r["label"] for r in read_manifests(output)] == ["sub-x_ses-a_run-1", "sub-x_ses-a_run-2"]
    assert all(after[name] == before[name] for name in before if name != "manifest.json")
    assert already_published(output, first) and already_published(output, second) and verify(output) == []


def test_a_subject_without_sessions_keeps_its_sessions(tmp_path: Path, output: Path) -> None:
    publish(make_job(tmp_path / "one", session="a"), output)
    publish(make_job(tmp_path / "two", session=""), output)
    assert [r["folder"] for r in read_manifests(output)] == ["sub-x", "sub-x/ses-a"] and verify(output) == []


def test_files_of_others_in_a_session_stay(job: Job, output: Path) -> None:
    note = publish(job, output).folder / "accepted.txt"
    note.write_text("yes")
    publish(job, output)
    assert note.read_text() == "yes"


def test_runs_published_at_once_do_not_lose_each_other(tmp_path: Path, output: Path) -> None:
    jobs = [make_job(tmp_path / "in", run=str(n)) for n in range(1, 5)]
    threads = [threading.Thread(target=publish, args=(job, output)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_manifests(output)) == 4 and verify(output) == []


def test_already_published_only_if_proven(
    job: Job, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not already_published(output, job)
    folder = publish(job, output).folder
    assert already_published(output, job)
    assert already_published(output, replace(job, settings=load(method="tv", also=("tkd",), keep_work=True)))
    assert not already_published(output, replace(job, settings=load(method="tv", also=("tkd",), tv={"strength": 30.0})))
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.__version__", "9.9")
        assert not already_published(output, job)
    image = folder / "anat/sub-x_ses-a_Chimap.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not already_published(output, job)
    image.write_bytes(whole)
    assert already_published(output, job)
    other = tmp_path / "another scan"
    other.write_bytes(b"another scan")
    assert not already_published(output, replace(job, scan=replace(job.scan, files=(other,))))


def test_verify_names_what_is_changed_or_missing(job: Job, output: Path) -> None:
    folder = publish(job, output).folder
    (folder / "anat/sub-x_ses-a_Chimap.nii.gz").write_bytes(b"")
    (folder / "sub-x_ses-a_qsm.html").unlink()
    assert {(d.file, d.what) for d in verify(output)} == {
        ("sub-x/ses-a/anat/sub-x_ses-a_Chimap.nii.gz", "changed"),
        ("sub-x/ses-a/sub-x_ses-a_qsm.html", "missing"),
    }


def test_a_damaged_stage_is_not_published(job: Job, output: Path) -> None:
    with (job.folder / "invert-tv" / "chi_ppm.npy").open("ab") as stream:
        stream.write(b"0")
    with pytest.raises(ChironError, match="R005"):
        publish(job, output)
    assert read_manifests(output) == []


FAILED = ChironError("E002", "position 7 of echo 2 has no slice", "53 slices")


def test_a_failure_is_recorded_beside_and_touches_nothing(job: Job, output: Path) -> None:
    publish(job, output)
    before = content(output / "sub-x")
    done = publish(job, output, FAILED)
    assert content(output / "sub-x") == before
    assert done.state == "failed" and done.folder == output / "failed" / "sub-x_ses-a" and done.report.is_file()
    failed = read_manifests(output)[1]
    assert failed["state"] == "failed" and failed["failure"]["code"] == "E002"
    assert failed["failure"]["sentence"] == FAILED.sentence() and failed["failure"]["todo"] == FAILED.todo
    assert verify(output) == []


def test_a_failure_of_the_first_stage_is_recorded(job: Job, output: Path) -> None:
    job.work.remove()
    vanished = replace(job, scan=replace(job.scan, files=(job.folder / "vanished",)))
    publish(vanished, output, FAILED)
    (failed,) = read_manifests(output)
    assert failed["stages"] == [] and failed["input_digest"] is None and not (output / "sub-x").exists()


def test_a_report_that_fails_does_not_hide_the_failure(job: Job, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(publishing, "write_report", broken)
    publish(job, output, FAILED)
    (failed,) = read_manifests(output)
    assert failed["failure"]["code"] == "E002" and failed["warnings"][-1]["code"] == "R005" and failed["files"] == {}


def test_a_success_takes_the_failure_away(job: Job, output: Path) -> None:
    publish(job, output, FAILED)
    publish(job, output)
    assert not (output / "failed" / "sub-x_ses-a").exists()
    assert [r["state"] for r in read_manifests(output)] == ["published"]


def test_a_failure_that_a_success_outdates_is_not_told(job: Job, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(job, output, FAILED)
    stale = output / "failed/sub-x_ses-a/manifest.json"
    text = stale.read_text()
    publish(job, output)
    stale.parent.mkdir()
    stale.write_text(text.replace('"finished": "2', '"finished": "1'))
    assert [r["state"] for r in read_manifests(output)] == ["published"]


def test_what_is_set_aside_is_recorded_with_its_reason(job: Job, output: Path) -> None:
    publish(job, output)
    before = content(output / "sub-x")
    found = [
        SetAside("sub-x_ses-a", "P001", "no phase", 12),
        SetAside("sub-y", "E002", "no slice 7", 48),
        SetAside("sub-y", "E003", "a gap", 3),
    ]
    for _ in range(2):
        record_set_aside(output, found)
        aside = [r for r in read_manifests(output) if r["state"] == "set aside"]
        assert sorted((r["label"], r["failure"]["code"], r["input_files"]) for r in aside) == [
            (one.label, one.code, one.files) for one in found
        ]
    assert content(output / "sub-x") == before and verify(output) == [] and already_published(output, job)


# Faults at every call to the system


class Killed(BaseException):
    """The process is gone: nothing it would have done after this happens."""


CALLS = ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync")


@contextmanager
def fault(
    monkeypatch: pytest.MonkeyPatch, nth: int, what: Callable[[], BaseException], lasting: bool
) -> Iterator[list[str]]:
    """From the nth call to the system that changes the disk: every one raises (`lasting`), or only that one."""
    seen: list[str] = []

    def guard(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            if len(seen) == nth or (lasting and len(seen) > nth):
                raise what()
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, guard(name, getattr(os, name)))
        patch.setattr(swap, "_exchange", guard("exchange", swap._exchange))
        yield seen


@pytest.fixture(params=["exchange", "two renames"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # hundreds of them: only where they fail matters here
    if request.param == "two renames":
        monkeypatch.setattr(swap, "_exchange", lambda a, b: False)
    return str(request.param)


def steps_of(monkeypatch: pytest.MonkeyPatch, job: Job, output: Path) -> int:
    with fault(monkeypatch, 0, Killed, False) as seen:
        publish(job, output)
    return len(seen)


def start(folder: Path, jobs: list[Job]) -> Callable[[str], Path]:
    """A function that makes, by name, another output in which `jobs` are published."""
    prepare(folder / "start")
    for job in jobs:
        publish(job, folder / "start")
    shutil.rmtree(folder / "start" / ".chiron" / "locks", ignore_errors=True)
    return lambda name: Path(shutil.copytree(folder / "start", folder / name))


def states(output: Path) -> list[float]:
    """The value of every run's map that stands in the output, each proven whole."""
    assert verify(output) == []
    found = []
    for record in read_manifests(output):
        if record["state"] == "published":
            image = nib.load(output / record["folder"] / f"anat/{record['label']}_Chimap.nii.gz")
            found.append(round(float(np.asarray(image.dataobj)[0, 0, 0]), 3))
    return found


@pytest.mark.parametrize("fresh", [True, False])
def test_killed_at_any_step_leaves_absent_previous_or_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _both_ways: str, fresh: bool
) -> None:
    other, old = make_job(tmp_path / "other", run="1", value=0.7), make_job(tmp_path / "old", run="2", value=0.1)
    new = make_job(tmp_path / "new", run="2", value=0.2)
    before = start(tmp_path, [] if fresh else [other, old])
    count = steps_of(monkeypatch, new, before("probe"))
    assert count > 40
    seen = set()
    for nth in range(1, count + 1):
        output = before(f"out{nth}")
        with fault(monkeypatch, nth, Killed, True), pytest.raises(Killed):
            publish(new, output)
        found = states(output)
        seen.add(tuple(found))
        allowed = [[], [0.2]] if fresh else [[0.7, 0.1], [0.7, 0.2], *([[]] if _both_ways == "two renames" else [])]
        assert found in allowed
        publish(new, output)
        assert states(output) == ([0.2] if fresh else [0.7, 0.2])
        assert not (output / ".chiron/publish/sub-x_ses-a").exists()
    assert len(seen) == (2 if fresh or _both_ways == "exchange" else 3)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_full_disk_at_any_step_is_told_and_leaves_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _both_ways: str, fresh: bool
) -> None:
    old, new = make_job(tmp_path / "old", value=0.1), make_job(tmp_path / "new", value=0.2)
    before = start(tmp_path, [] if fresh else [old])
    count = steps_of(monkeypatch, new, before("probe"))
    told = 0
    for nth in range(1, count + 1):
        output = before(f"out{nth}")
        with fault(monkeypatch, nth, lambda: OSError(errno.ENOSPC, "no space"), False):
            try:
                publish(new, output)
            except ChironError as error:
                told += 1
                assert error.code == "S001" and str(tmp_path) not in str(error)
                assert not list((output / ".chiron").glob("publish/*"))
        assert states(output) in ([[], [0.2]] if fresh else [[0.1], [0.2]])
        publish(new, output)
        assert states(output) == [0.2]
    assert told > 20


def test_a_truncated_write_never_reaches_the_final_name(
    job: Job, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "no space")

    prepare(output)
    monkeypatch.setattr(swap, "write", full)
    with pytest.raises(ChironError, match="S001"):
        publish(job, output)
    assert not (output / "sub-x").exists() and read_manifests(output) == []


def test_without_links_other_runs_are_copied(tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: Any) -> None:
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "link", no_links)
    publish(make_job(tmp_path / "in", run="1"), output)
    publish(make_job(tmp_path / "in", run="2"), output)
    assert len(read_manifests(output)) == 2 and verify(output) == []


def test_exchange_swaps_two_folders_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    if not EXCHANGE(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two folders")
    assert (tmp_path / "a/is").read_text() == "b" and (tmp_path / "b/is").read_text() == "a"
    with pytest.raises(FileNotFoundError):
        EXCHANGE(tmp_path / "a", tmp_path / "absent")


def test_a_held_lock_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(ChironError, match="R006"), locked(tmp_path / "lock", 0.1):
        pass
    with locked(tmp_path / "lock", 0.1):
        pass


# The dataset's top


def test_another_programs_dataset_is_refused(output: Path) -> None:
    output.mkdir()
    (output / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    with pytest.raises(ChironError, match="S002"):
        prepare(output)
    assert [p.name for p in output.iterdir()] == ["dataset_description.json"]


def test_a_file_in_place_of_the_output_is_refused(output: Path) -> None:
    output.write_text("")
    with pytest.raises(ChironError, match="S002"):
        prepare(output)


def test_an_output_that_may_not_be_written_is_refused(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(output)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != output)
    with pytest.raises(ChironError, match="S002"):
        prepare(output)


def test_preparing_twice_changes_nothing(output: Path) -> None:
    prepare(output)
    before = {p: p.stat().st_mtime_ns for p in output.iterdir()}
    prepare(output)
    assert {p: p.stat().st_mtime_ns for p in output.iterdir()} == before


def test_unfinished_work_is_private_and_results_follow_the_umask(job: Job, output: Path) -> None:
    old = os.umask(0o027)
    try:
        folder = publish(job, output).folder
    finally:
        os.umask(old)
    assert (output / ".chiron").stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_mode & 0o777 == 0o750
    assert {p.stat().st_mode & 0o777 for p in folder.rglob("*") if p.is_file()} == {0o640}


def test_a_manifest_of_another_format_is_no_manifest(output: Path) -> None:
    folder = output / "sub-x"
    folder.mkdir(parents=True)
    for text in ("", "[]", '{"format": 99, "scans": [{}]}', "\x00"):
        (folder / ledger.NAME).write_text(text)
        assert read_manifests(output) == []
