"""The recipe: stages in order; a result is made once, reused while proven, made again with all that rests on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import recipe as module
from pipeline.errors import ChironError
from pipeline.find import Scan
from pipeline.recipe import Inputs, Job, recipe, reconstruct, run_stage
from pipeline.settings import load
from pipeline.work import Made, digest

ORDER = ["convert", "mask", "unwrap", "field", "background", "r2star", "invert-tkd", "invert-tv", "swi", "quality"]
CPU: dict[str, Any] = {"method": "tkd", "device": "cpu"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that were run; each makes an array of what it was given."""
    made: list[str] = []

    def stand_in(name: str) -> Callable[..., Made]:
        def run(*args: Any) -> Made:
            inputs: Inputs = args[-1]
            stage = f"{name}-{args[0]}" if len(args) > 1 else name
            made.append(stage)
            total = sum(float(inputs.array(before, "sum")) for before in inputs.done)
            reads = next(s.reads for s in recipe(inputs.settings) if s.name == stage)
            settings = int(digest([str(getattr(inputs.settings, r, "")) for r in reads])[:4], 16)
            return Made({"sum": torch.tensor(1 + total + settings)}, facts={"after": sorted(inputs.done)})

        return run

    for name in ("convert", "mask", "unwrap", "field", "background", "r2star", "invert", "swi", "quality"):
        monkeypatch.setattr(module, f"_{name}", stand_in(name))
    return made


@pytest.fixture
def job(tmp_path: Path) -> Job:
    files = (tmp_path / "one", tmp_path / "two")
    for file in files:
        file.write_text(file.name)
    scan = Scan("0123456789ab", "01", "", "", "dicom", "other", (1,), (0.004, 0.01), ("magnitude", "phase"), files)
    return Job(scan, load(**CPU), tmp_path / "work")


def changed(job: Job, *words: str, **given: Any) -> Job:
    return replace(job, settings=load(words=words, **{**CPU, **given}))


def test_the_stages_stand_in_order_and_read_only_what_came_before(job: Job) -> None:
    stages = recipe(job.settings)
    assert [s.name for s in stages] == ORDER
    for place, stage in enumerate(stages):
        assert set(stage.after) <= set(ORDER[:place]), stage.name
        assert stage.title and stage.version >= 1
    fields = set(type(job.settings).model_fields)
    assert all(set(stage.reads) <= fields for stage in stages)


def test_every_section_of_the_settings_is_read_by_a_stage() -> None:
    settings = load(method="tkd", also=("tikhonov", "rts", "tv", "dip"), device="cpu")
    read = {name for stage in recipe(settings) for name in stage.reads}
    assert set(type(settings).model_fields) - read <= {"also", "keep_work"}


def test_a_second_run_reuses_everything(job: Job, calls: list[str]) -> None:
    reconstruct(job)
    assert calls == ORDER
    calls.clear()
    work = reconstruct(job)
    assert calls == [] and all(work.find(name) for name in ORDER)


@pytest.mark.parametrize(
    ("word", "first"),
    [
        ("phase.sign=-", "convert"),
        ("mask.threshold=0.5", "mask"),
        ("unwrap.bipolar=no", "unwrap"),
        ("vsharp.step_mm=2", "background"),
        ("tkd.threshold=0.3", "invert-tkd"),
        ("tv.strength=3", "invert-tv"),
    ],
)
def test_a_setting_makes_only_what_rests_on_it_again(word: str, first: str, job: Job, calls: list[str]) -> None:
    reconstruct(job)
    calls.clear()
    reconstruct(changed(job, word))
    after = {s.name: s.after for s in recipe(job.settings)}
    expected = [first]
    for name in ORDER[ORDER.index(first) + 1 :]:
        if set(after[name]) & set(expected):
            expected.append(name)
    assert calls == expected and calls[-1] == "quality"


def test_a_setting_of_a_method_that_does_not_run_changes_nothing(job: Job, calls: list[str]) -> None:
    reconstruct(job)
    calls.clear()
    reconstruct(changed(job, "rts.delta=0.2", keep_work=True))
    assert calls == []


@pytest.mark.parametrize(("word", "stage"), [("r2star.method=arlo", "r2star"), ("swi.slab_mm=8", "swi")])
def test_the_images_beside_the_map_rest_on_nothing_but_their_own_settings(
    word: str, stage: str, job: Job, calls: list[str]
) -> None:
    reconstruct(job)
    calls.clear()
    reconstruct(changed(job, word))
    assert calls == [stage]


def test_another_reference_makes_the_maps_again_and_nothing_before_them(job: Job, calls: list[str]) -> None:
    reconstruct(job)
    calls.clear()
    reconstruct(changed(job, "reference.region=csf"))
    assert calls == ["invert-tkd", "invert-tv", "quality"]


def test_a_map_waits_for_r2star_only_where_it_is_referred_to_fluid(job: Job) -> None:
    for region, waits in (("mean", False), ("csf", True)):
        stages = {s.name: s for s in recipe(changed(job, f"reference.region={region}").settings)}
        assert all(("r2star" in stages[f"invert-{m}"].after) == waits for m in ("tkd", "tv"))


def test_a_further_method_leaves_the_others_as_they_are(job: Job, calls: list[str]) -> None:
    reconstruct(job)
    calls.clear()
    reconstruct(changed(job, also=("rts",)))
    assert calls == ["invert-rts", "quality"]


@pytest.mark.parametrize("stage", ORDER)
def test_a_flipped_byte_is_noticed_and_the_stage_made_again(stage: str, job: Job, calls: list[str]) -> None:
    work = reconstruct(job)
    before = work.find("quality")
    path = work.folder / stage / "sum.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    calls.clear()
    after = reconstruct(job).find("quality")
    assert calls == [stage] and before is not None and after is not None and before.digest == after.digest


def test_other_content_of_the_scan_makes_everything_again_and_other_names_nothing(job: Job, calls: list[str]) -> None:
    reconstruct(job)
    calls.clear()
    renamed = tuple(file.rename(file.with_name(f"{file.name}-moved")) for file in job.scan.files)
    reconstruct(replace(job, scan=replace(job.scan, files=renamed)))
    assert calls == []
    renamed[0].write_text("another image")
    reconstruct(replace(job, scan=replace(job.scan, files=renamed)))
    assert calls[0] == "convert"


@pytest.mark.parametrize("killed", range(len(ORDER)))
def test_a_run_that_was_killed_goes_on_where_it_stood(killed: int, job: Job, calls: list[str]) -> None:
    for stage in recipe(job.settings)[:killed]:
        run_stage(stage, job)
    job.save()
    calls.clear()
    reconstruct(Job.load(job.folder))
    assert calls == ORDER[killed:]


def test_a_new_version_of_a_stage_is_made_again(job: Job, calls: list[str]) -> None:
    reconstruct(job)
    calls.clear()
    stage = recipe(job.settings)[3]
    run_stage(replace(stage, version=stage.version + 1), job)
    assert calls == ["field"]


def test_a_stage_without_those_before_it_is_a_fault(job: Job, calls: list[str]) -> None:
    with pytest.raises(ChironError, match="R005"):
        run_stage(recipe(job.settings)[2], job)
    assert calls == []


def test_an_own_mask_is_known_by_its_content(job: Job, calls: list[str], tmp_path: Path) -> None:
    own = tmp_path / "own.nii"
    own.write_bytes(b"a")
    reconstruct(changed(job, f"mask.file={own}"))
    calls.clear()
    reconstruct(changed(job, f"mask.file={own}"))
    assert calls == []
    own.write_bytes(b"b")
    reconstruct(changed(job, f"mask.file={own}"))
    assert calls[0] == "mask" and "convert" not in calls


def test_the_truth_counts_for_the_quality_alone(job: Job, calls: list[str], tmp_path: Path) -> None:
    reconstruct(job)
    (tmp_path / "truth.nii").write_bytes(b"a")
    calls.clear()
    reconstruct(replace(job, truth=tmp_path / "truth.nii"))
    assert calls == ["quality"]


def test_a_job_is_read_back_as_it_was_and_is_private(job: Job, tmp_path: Path) -> None:
    full = replace(changed(job, "tv.strength=3", "dip.channels=[2, 4]"), truth=tmp_path / "truth.nii")
    for each in (job, full):
        each.save()
        assert Job.load(each.folder) == each
    assert job.folder.stat().st_mode & 0o077 == 0


def test_progress_names_the_stage(job: Job, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def speak(inputs: Inputs) -> Made:
        inputs.progress(0.5, "half")
        return Made({"sum": torch.ones(())})

    monkeypatch.setattr(module, "_field", speak)
    said: list[tuple[str, float, str]] = []
    reconstruct(job, lambda *words: said.append(words))
    assert said == [("field", 0.5, "half")]
    assert isinstance(recipe(job.settings)[ORDER.index("invert-tkd")].run, partial)


def test_a_record_says_how_it_was_made(job: Job, calls: list[str]) -> None:
    result = run_stage(recipe(job.settings)[0], job)
    assert result.record["stage"] == "convert" and result.record["device"] == "cpu"
    assert result.record["seconds"] >= 0 and result.record["peak_memory_bytes"] > 1e6 and result.record["software"]
