"""The recipe: stages in order; a result is made once, reused while proven, made again with all that rests on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.gre import simulate_scan
from pipeline.background import METHODS as BACKGROUND
from pipeline.errors import ChironError
from pipeline.find import Scan
from pipeline.phase import wrap
from pipeline.quality.accuracy import pearson
from pipeline.recipe import Inputs, Job, recipe, reconstruct, run_stage
from pipeline.recipe import stages as module
from pipeline.settings import load
from pipeline.volumes import Grid
from pipeline.work import Made, Result, digest

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
        monkeypatch.setattr(module, name, stand_in(name))
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
    inversions: dict[str, Any] = {
        "method": "tkd",
        "also": ("tikhonov", "rts", "tv", "nltv", "medi", "tfi", "dip", "cyclegan"),
        "device": "cpu",
        "upsample": 2,
    }
    each = [load(**inversions, background={"method": method}) for method in BACKGROUND]
    read = {name for settings in each for stage in recipe(settings) for name in stage.reads}
    assert set(type(each[0]).model_fields) - read <= {"also", "keep_work"}


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
        ("tfi.ball_mm=5", "background"),
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


def measured(job: Job, echoes: int = 3) -> None:
    """The results that R2*, SWI and the maps rest on: a ball of tissue with a smaller one of fluid in its middle."""
    grid = Grid.simple((20, 22, 18), (4.0, 4.0, 4.0))
    axes = [torch.arange(n) - n / 2 for n in grid.shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    r = (x**2 + y**2 + z**2).sqrt()
    times, mask = [0.004 * (e + 1) for e in range(echoes)], r < 8
    r2star = torch.where(r < 3, 2.0, 20.0)
    magnitude = torch.stack([500 * torch.exp(-t * r2star) for t in times])
    facts = {"grid": grid.json(), "echo_times_s": times, "b0_tesla": 3.0}
    local = {"local_ppm": 0.02 * (r < 3) * mask, "sd_ppm": 0.01 * torch.ones_like(r), "mask": mask.to(torch.uint8)}
    found = {
        "convert": Made({"magnitude": magnitude, "phase_rad": 0 * magnitude}, facts=facts),
        "mask": Made({"mask": mask.to(torch.uint8)}),
        "unwrap": Made({"unwrapped_rad": 0 * magnitude}),
        "field": Made({"sd_ppm": 0.001 * mask}, facts={"signal_noise": 1.0}),
        "background": Made(local),
    }
    for stage, result in found.items():
        job.work.write(stage, "key", result, {"stage": stage})


def run_named(job: Job, name: str) -> Result:
    return run_stage(next(stage for stage in recipe(job.settings) if stage.name == name), job)


def test_the_last_digits_of_the_phase_change_neither_mask_nor_map_visibly(job: Job) -> None:
    shape, size = (58, 69, 52), (3.0, 3.1, 3.5)
    scan = simulate_scan(shape, size, echo_times_s=(0.005, 0.012, 0.019), b0_dir=(0.1, -0.2, 1), snr=80, seed=4)
    facts = {"grid": Grid.simple(shape, size, scan.b0_dir).json(), "echo_times_s": scan.echo_times_s, "b0_tesla": 3.0}
    phase = scan.signal.angle()
    digits = 4e-4 * (2 * torch.rand(phase.shape, generator=torch.Generator().manual_seed(0)) - 1)
    maps, masks = [], []
    for run, given in enumerate((phase, wrap(phase + digits))):
        here = replace(changed(job, method="tv"), folder=job.folder / str(run))
        echoes = Made({"magnitude": scan.signal.abs(), "phase_rad": given}, facts=facts)
        here.work.write("convert", "simulated", echoes, {"stage": "convert"})
        made = {name: run_named(here, name) for name in ("mask", "unwrap", "field", "background", "invert-tv")}
        maps.append(made["invert-tv"].array("chi_ppm"))
        masks.append(made["background"].array("mask").bool())
    both = masks[0] & masks[1]
    assert not torch.equal(maps[0], maps[1]) and both.sum() > 0.9 * scan.head.brain.sum()
    assert 2 * int(both.sum()) > 0.9995 * int(masks[0].sum() + masks[1].sum())
    assert pearson(maps[0], maps[1], both) > 0.9995


def test_images_beside_the_map_are_made_of_real_echoes(job: Job) -> None:
    measured(job)
    decay, weighted = run_named(job, "r2star"), run_named(job, "swi")
    assert decay.array("r2star")[10, 11, 9] == pytest.approx(2.0, abs=0.1)
    assert decay.array("t2star_s")[10, 11, 16] == pytest.approx(0.05, abs=0.001)
    assert weighted.has("swi") and weighted.has("minip") and weighted.facts["slab_slices"] == 3
    assert decay.record["notices"] == [] and weighted.record["notices"] == []


def test_from_one_echo_comes_swi_but_no_r2star_and_it_is_said(job: Job) -> None:
    measured(job, echoes=1)
    decay, weighted = run_named(job, "r2star"), run_named(job, "swi")
    assert not decay.has("r2star") and weighted.has("swi")
    assert [(n["code"], "no R2* map" in n["text"]) for n in decay.record["notices"]] == [("E007", True)]


@pytest.mark.parametrize(("stage", "name"), [("r2star", "map_r2star"), ("swi", "weight_susceptibility")])
def test_what_fails_beside_the_map_costs_only_itself(
    stage: str, name: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise ZeroDivisionError("/secret/Doe")

    measured(job)
    monkeypatch.setattr(module, name, fail)
    result = run_named(job, stage)
    (notice,) = result.record["notices"]
    assert notice["code"] == "M002" and "ZeroDivisionError" in notice["text"] and "Doe" not in notice["text"]
    assert "ZeroDivisionError" in result.file("trace.txt").decode() and "missing" in result.facts
    assert not any(file.endswith(".npy") for file in result.record["files"])
    assert run_named(job, "invert-tkd").has("chi_ppm")


def test_an_image_that_is_not_finite_is_not_handed_on(job: Job) -> None:
    measured(job)
    local = job.work.find("background")
    assert local
    broken = Made(
        {"local_ppm": torch.full((20, 22, 18), float("nan")), **{n: local.array(n) for n in ("sd_ppm", "mask")}}
    )
    job.work.write("background", "key", broken, {"stage": "background"})
    result = run_named(job, "swi")
    assert not result.has("swi") and [n["code"] for n in result.record["notices"]] == ["M002"]


def test_a_map_is_referred_to_the_ventricles_where_asked(job: Job) -> None:
    measured(job)
    mean = run_named(job, "invert-tkd")
    asked = changed(job, "reference.region=csf")
    run_named(asked, "r2star")
    csf = run_named(asked, "invert-tkd")
    mask = job.work.folder / "mask" / "mask.npy"
    fluid = run_named(asked, "r2star").array("r2star").lt(5) & torch.from_numpy(np.load(mask)).bool()
    assert csf.facts["reference"]["region"] == "cerebrospinal fluid of the ventricles"
    assert csf.facts["reference"]["voxels"] == int(fluid.sum())
    assert float(csf.array("chi_ppm")[fluid].mean()) == pytest.approx(0, abs=1e-6)
    assert csf.facts["reference"]["mean_ppm"] != mean.facts["reference"]["mean_ppm"]
    assert csf.record["decisions"][0]["decided"] == csf.facts["reference"]["region"]


def test_without_r2star_a_map_keeps_its_mean_and_says_so(job: Job) -> None:
    measured(job, echoes=1)
    asked = changed(job, "reference.region=csf")
    run_named(asked, "r2star")
    found = run_named(asked, "invert-tkd")
    assert found.facts["reference"]["region"] == "mean of the final mask"
    assert [n["code"] for n in found.record["notices"]] == ["P009"]
    (decision,) = found.record["decisions"]
    assert decision["decided"] == "mean of the final mask" and "no fluid" in decision["because"]


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


def test_where_the_true_brain_is_counts_as_well(job: Job, calls: list[str], tmp_path: Path) -> None:
    known = replace(job, truth=tmp_path / "true_Chimap.nii")
    (tmp_path / "true_Chimap.nii").write_bytes(b"a")
    reconstruct(known)
    for content in (b"b", b"c"):
        calls.clear()
        (tmp_path / "true_desc-brain_mask.nii").write_bytes(content)
        reconstruct(known)
        reconstruct(known)
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

    monkeypatch.setattr(module, "field", speak)
    said: list[tuple[str, float, str]] = []
    reconstruct(job, lambda *words: said.append(words))
    assert said == [("field", 0.5, "half")]
    assert isinstance(recipe(job.settings)[ORDER.index("invert-tkd")].run, partial)


def test_a_record_says_how_it_was_made(job: Job, calls: list[str]) -> None:
    result = run_stage(recipe(job.settings)[0], job)
    assert result.record["stage"] == "convert" and result.record["device"] == "cpu"
    assert result.record["seconds"] >= 0 and result.record["peak_memory_bytes"] > 1e6 and result.record["software"]
