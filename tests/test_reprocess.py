"""Which scans are done again, with what settings, from which stage; and that no other data comes under their label."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from stand_in import KEY, dismiss_all, install
from stand_in import export as export_to
from test_publish import FAILED, _plain_report, make_job

import flows.batch
import flows.reprocess
from flows.batch import Batch, run
from flows.claim import claimed
from flows.cli import execute
from flows.crew import Terms
from flows.reprocess import Wanted, choose, readied, ready, select, stages_from
from pipeline.errors import ChironError
from pipeline.find import SetAside
from pipeline.ledger import records_of, versions
from pipeline.publish import publish, record_set_aside
from pipeline.recipe import Job, recipe, run_stage
from pipeline.settings import load

__all__ = ["_plain_report"]  # a fixture


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans published, published and then failed, failed, begun, and set aside: inputs and output."""
    folder = tmp_path_factory.mktemp("made")
    output = folder / "out"
    known(output, "a", session="1")
    known(output, "a", session="2")
    known(output, "b", session="1", strength=30.0)
    publish(known(output, "b", session="1", done=False), output, FAILED)
    known(output, "c", failure=FAILED)
    known(output, "d", done=False)
    record_set_aside(output, [SetAside("sub-e", "P001", "no phase", 3)])
    return folder


@pytest.fixture
def output(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Such an output of this test alone; its stages were made by the versions that are there now."""
    monkeypatch.setattr(flows.reprocess, "recipe", lambda settings: [replace(s, version=1) for s in recipe(settings)])
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("out/.chiron/work/*/job.json"):
        file.write_text(file.read_text().replace(str(made), str(tmp_path)))
    return tmp_path / "out"


def known(
    output: Path,
    subject: str,
    session: str = "",
    failure: ChironError | None = None,
    done: bool = True,
    strength: float = 20.0,
) -> Job:
    """A scan as it stands in an output after it was worked on there."""
    made = make_job(output.parent / "in" / f"{subject}{session}", session=session, tv={"strength": strength})
    name = (subject + session).encode().hex().ljust(12, "0")
    job = replace(made, scan=replace(made.scan, subject=subject, id=name))
    if done:
        publish(job, output, failure)
    kept = replace(job, folder=output / ".chiron" / "work" / name)
    kept.save()
    Job.take(kept.folder)
    return kept


def labels(jobs: list[Job]) -> list[str]:
    return [job.scan.label for job in jobs]


ALL = ["sub-a_ses-1", "sub-a_ses-2", "sub-b_ses-1", "sub-c", "sub-d"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, ALL),
        ({"subject": "a"}, ["sub-a_ses-1", "sub-a_ses-2"]),
        ({"subject": "sub-a", "session": "ses-2"}, ["sub-a_ses-2"]),
        ({"session": "1"}, ["sub-a_ses-1", "sub-b_ses-1"]),
        ({"subject": "c", "session": "1"}, []),
        ({"run": "1"}, []),
        ({"state": "published"}, ["sub-a_ses-1", "sub-a_ses-2", "sub-b_ses-1"]),
        ({"state": "failed"}, ["sub-b_ses-1", "sub-c"]),
        ({"state": "interrupted"}, ["sub-d"]),
        ({"state": "failed", "verdict": "check"}, []),
        ({"verdict": "check"}, ["sub-a_ses-1", "sub-a_ses-2", "sub-b_ses-1"]),
        ({"code": "E002"}, ["sub-b_ses-1", "sub-c"]),
        ({"code": "E007", "session": "2"}, ["sub-a_ses-2"]),
        ({"older": True}, ["sub-b_ses-1"]),
    ],
)
def test_filters_name_scans(output: Path, wanted: dict[str, Any], expected: list[str]) -> None:
    assert labels(select(output, **wanted, force=True)) == expected


def test_filters_together_name_what_each_of_them_does(output: Path) -> None:
    def named(subject: str, session: str) -> set[str]:
        return set(labels(select(output, subject, session, force=True)))

    for subject, session in product(["", "a", "b", "c"], ["", "1", "2"]):
        assert named(subject, session) == named(subject, "") & named("", session)


def test_a_state_that_is_none_is_told(output: Path) -> None:
    with pytest.raises(ChironError, match="one of published, failed"):
        select(output, state="done")


def test_what_is_published_just_so_is_left_unless_it_is_to_be_done_again(output: Path) -> None:
    chosen = choose(output, Wanted(subject="a"))
    assert (chosen.jobs, chosen.standing) == ([], ["sub-a_ses-1", "sub-a_ses-2"])
    for more in (dict[str, Any](force=True), {"stage": "mask"}):
        jobs = select(output, "a", **more)
        assert len(jobs) == 2 and all(job.again for job in jobs)
    assert labels(select(output, "a", method="rts")) == ["sub-a_ses-1", "sub-a_ses-2"]
    assert all(job.again for job in select(output, "a", method="rts"))


def test_what_another_version_or_stage_made_is_older(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert select(output, "a", older=True) == []
    changed = load(method="tv", also=("tkd",), tv={"strength": 7.0})
    assert len(select(output, "a", older=True, settings=changed)) == 2
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.__version__", "9.9")
        assert len(select(output, "a", older=True)) == 2
    newer = [replace(stage, version=stage.version + 1) for stage in recipe(changed)]
    monkeypatch.setattr(flows.reprocess, "recipe", lambda settings: newer)
    assert len(select(output, "a", older=True)) == 2


def test_settings_are_those_of_before_but_for_what_is_changed(output: Path) -> None:
    (job,) = select(output, "b", method="rts")
    assert (job.settings.method, job.settings.tv.strength, job.settings.also) == ("rts", 20.0, ("tkd",))
    whole = load(method="tkd", tv={"strength": 4.0})
    assert select(output, "b", settings=whole)[0].settings == whole
    (job,) = choose(output, Wanted("b"), lambda old: load(None, ["rts.strength=7"], old)).jobs
    assert (job.settings.rts.strength, job.settings.tv.strength, job.settings.method) == (7.0, 20.0, "tv")


def test_scans_whose_job_is_gone_are_counted_and_told(output: Path) -> None:
    for file in output.glob(".chiron/work/*/job.json"):
        if Job.load(file.parent).scan.label == "sub-a_ses-1":
            file.unlink()
    chosen = choose(output, Wanted(), force=True)
    assert chosen.lost == ["sub-a_ses-1", "sub-e"] and labels(chosen.jobs) == ALL[1:]
    assert labels(select(output, "a", force=True)) == ["sub-a_ses-2"]
    with pytest.raises(ChironError, match="X002: 1 scans"):
        select(output, "a", "1")
    assert select(output, "nobody") == []


def test_a_stage_that_is_none_is_told_with_those_there_are(output: Path) -> None:
    with pytest.raises(ChironError, match=r"X002.*convert, mask, unwrap.*invert-tv.*quality"):
        select(output, "a", stage="inversion")
    (job, _) = select(output, "a", stage="invert")
    names = [stage.name for stage in recipe(job.settings)]
    assert stages_from(job, "invert") == names[names.index("invert-tv") :] and stages_from(job, "convert") == names


def test_from_a_stage_on_its_results_go_and_those_before_stay(output: Path) -> None:
    job = select(output, "a", "1", stage="background")[0]
    for stage in recipe(job.settings):
        (job.folder / stage.name).mkdir()
        (job.folder / stage.name / "stage.json").write_text("{}")
    ready(job, "background")
    left = {path.name for path in job.folder.iterdir() if path.is_dir()}
    assert left == {"convert", "mask", "unwrap", "field"}
    assert Job.load(job.folder, next=True) == job and job.again


def test_a_scan_that_is_worked_on_is_left_and_stops_no_other(output: Path) -> None:
    jobs, told = select(output, "a", stage="mask"), list[str]()
    with claimed(jobs[0].folder):
        done = list(readied(jobs, "mask", lambda job, why: told.append(f"{job.scan.label} {why.code}")))
    assert labels(done) == ["sub-a_ses-2"] and told == ["sub-a_ses-1 R006"]


def test_other_files_are_never_taken_for_the_scan_of_a_label(output: Path) -> None:
    (job,) = select(output, "a", "1", force=True)
    assert job.expects == job.scan.content_digest()
    job.scan.files[0].write_bytes(b"another patient's")
    for wanted in (dict[str, Any](force=True), {"method": "rts"}):
        (job,) = select(output, "a", "1", **wanted)
        with pytest.raises(ChironError, match="F016: other files") as caught:
            run_stage(recipe(job.settings)[0], job)
        assert "Run the export again" in caught.value.todo
    job.scan.files[0].unlink()
    (job,) = select(output, "a", "1")
    with pytest.raises(ChironError, match="F016"):
        run_stage(recipe(job.settings)[0], job)


def test_what_is_expected_is_what_was_seen_last(output: Path) -> None:
    (before,) = select(output, "a", "2", force=True)
    job = known(output, "a", session="2")
    job.scan.files[0].write_bytes(b"late files came")
    later = replace(job, scan=replace(job.scan))
    later.work.remove()
    later.save()
    publish(later, output, FAILED)
    (job,) = select(output, "a", "2", force=True)
    assert job.expects == later.scan.content_digest() != before.expects


# The command


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An output in which a, b are published and c failed, by stages that take no time, without Prefect."""
    install(monkeypatch.setattr)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(flows.batch, "machine_terms", lambda *_, **__: Terms(wait_s=0))
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    export_to(source, a="", b="", c="fail")
    monkeypatch.setenv("CHIRON_OUTPUT", str(output))
    run(Batch(output, terms=Terms()), source, load(method="tkd", device="cpu"), KEY)
    yield output
    dismiss_all()


def stages_run(output: Path) -> list[str]:
    return (output / ".chiron" / "stages.txt").read_text().splitlines()


def test_for_programs_it_prints_a_list_whatever_there_is_to_do(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["reprocess", str(site), "a", "--json"]) == 11
    assert json.loads(capsys.readouterr().out) == []
    assert execute(["reprocess", str(site), "a", "--force", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"label": "sub-a", "state": "to do"}]


@pytest.mark.parametrize("words", [["reprocess"], ["reconcile"], ["prune"]])
def test_files_of_another_user_are_told_as_that(
    words: list[str], site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert execute([*words, str(site)]) == 14
    assert "another user" in capsys.readouterr().err


def test_the_command_does_again_what_it_is_asked_to_and_no_more(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(stages_run(site))
    assert execute(["reprocess", str(site), "a"]) == 11 and execute(["reprocess", str(site), "nobody"]) == 11
    assert execute(["reprocess", str(site), "a", "--method", "rts", "--dry-run"]) == 0
    assert capsys.readouterr().out == "sub-a\n" and len(stages_run(site)) == before
    assert execute(["reprocess", str(site), "a", "--set", "tkd.threshold=0.2"]) == 0
    assert stages_run(site)[before:] == ["a convert", "a unwrap"]
    (record,) = records_of(site, "sub-a")
    assert record["settings"]["tkd"]["threshold"] == 0.2 and record["settings"]["method"] == "tkd"
    assert len(versions(site, "sub-a")) == 1 and versions(site, "sub-b") == []
    assert execute(["reprocess", str(site), "a", "--from", "unwrap"]) == 0  # the same bytes: nothing to keep
    assert len(versions(site, "sub-a")) == 1 and len(stages_run(site)) == before + 4
    next(p for p in (tmp_path / "in").iterdir() if p.name.endswith("-c")).write_text("c")
    assert execute(["reprocess", str(site), "--state", "failed", "--json"]) == 12
    said = capsys.readouterr().out
    told = json.loads(said[said.index("[") :])
    assert told[0]["code"] == "F016"
