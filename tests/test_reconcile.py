"""What killed runs left is put right, what is at work is not touched, and Prefect hears how its dead runs ended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from test_publish import FAILED, _plain_report, make_job
from test_reprocess import known

import flows.reconcile
from flows.claim import NOW, claimed
from flows.cli import execute
from flows.engine import trial_server
from flows.prune import DAY_S, prune_runs
from flows.reconcile import MUTE_S, SCRAP_S, SILENT_S, reconcile, reconcile_runs
from pipeline.errors import ChironError
from pipeline.publish import publish
from pipeline.recipe import Job

__all__ = ["_plain_report"]  # a fixture


def begun(job: Job, stage: str = "mask", later_s: float = 5.0) -> None:
    """Leave the job as if its process had been killed at a stage, some seconds from now."""
    (job.folder / "lock").touch()
    (job.folder / NOW).write_text(json.dumps({"stage": stage, "title": "", "since": time.time() + later_s}))
    (job.folder / f".{stage}.99999").mkdir()
    (job.folder / f".{stage}.99999" / "half.npy").write_bytes(b"half")


def test_a_scan_that_was_killed_is_told_and_its_leavings_go(tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = known(output, "a")
    (job.folder / "convert").mkdir()
    begun(job)
    found = reconcile(output)
    assert (found.interrupted, found.cleared) == (("sub-a",), 2)
    assert {path.name for path in job.folder.iterdir()} == {"job.json", "lock", "convert"}
    again = reconcile(output)
    assert again.cleared == 0


def test_a_scan_at_work_is_not_touched(tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = known(output, "a", done=False)
    (output / ".chiron/publish/failed_sub-a").mkdir(parents=True)
    begun(job)
    before = sorted(path.name for path in job.folder.iterdir())
    with claimed(job.folder):
        found = reconcile(output)
    assert (found.interrupted, found.cleared, found.recovered) == ((), 0, ("sub-a",))
    assert sorted(path.name for path in job.folder.iterdir()) == before


@pytest.mark.parametrize("failure", [None, FAILED])
def test_a_scan_with_an_outcome_is_not_told(tmp_path: Path, failure: ChironError | None) -> None:
    output = tmp_path / "out"
    job = known(output, "a", done=False)
    begun(job, later_s=0)
    publish(make_job_like(job, tmp_path), output, failure)
    assert reconcile(output).interrupted == ()


def make_job_like(job: Job, folder: Path) -> Job:
    """The job with all its stages done, elsewhere."""
    made = make_job(folder / "again", session="")
    return Job(job.scan, made.settings, made.folder)


def test_work_since_the_last_outcome_is_told_by_its_stages_alone(tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = known(output, "a")
    (job.folder / "lock").touch()
    (job.folder / "convert").mkdir()
    stage = job.folder / "convert" / "stage.json"
    stage.write_text("{}")
    for offset, expected in ((-60, ()), (60, ("sub-a",))):
        os.utime(stage, (time.time() + offset,) * 2)
        assert reconcile(output).interrupted == expected


def test_what_was_written_aside_and_never_renamed_goes_in_time(tmp_path: Path) -> None:
    output = tmp_path / "out"
    known(output, "a")
    scraps = [output / ".chiron" / f"site.json.{'0a' * 8}", output / ".chiron" / f"CITATION.md.{'1b' * 8}"]
    others = [output / ".chiron" / "site.json", output / ".chiron" / "trace.txt"]
    for path in [*scraps, *others]:
        path.write_text("")
    assert reconcile(output).cleared == 0
    assert reconcile(output, time.time() + SCRAP_S + 1).cleared == 2
    assert [path.exists() for path in [*scraps, *others]] == [False, False, True, True]


def test_the_command_tells_what_is_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    begun(known(output, "a", done=False))
    assert execute(["reconcile", str(output)]) == 0
    assert capsys.readouterr().out.split() == ["sub-a", "interrupted"]
    assert execute(["reconcile", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"recovered": [], "cleared": 0, "interrupted": [], "runs": []}
    assert execute(["reconcile", str(tmp_path)]) == 13


# Prefect


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with trial_server(tmp_path_factory.mktemp("prefect")):
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            yield client


def run_of(client: Any, name: str, parameters: dict[str, Any], deployed: bool = True) -> Any:
    """A run of ours that Prefect takes to be at work, with no process behind it."""
    from prefect import flow
    from prefect.states import Running

    def plain(**given: Any) -> None: ...

    made = flow(name=name, validate_parameters=False)(plain)
    if not deployed:
        return client.create_flow_run(made, parameters=parameters, state=Running())
    ours = client.create_deployment(flow_id=client.create_flow(made), name="chiron")
    run = client.create_flow_run_from_deployment(ours, parameters=parameters)
    client.set_flow_run_state(run.id, Running(), force=True)
    return run


def state(client: Any, run: Any) -> tuple[str, str]:
    found = client.read_flow_run(run.id).state
    return found.name, (found.message or "")[:4]


def test_dead_runs_of_scans_get_the_end_that_the_ledger_tells(server: Any, tmp_path: Path) -> None:
    output = tmp_path / "out"
    jobs = {name: known(output, name, done=False) for name in ("done", "failed", "dead", "alive")}
    runs = {
        name: run_of(server, "scan", {"job": job.scan.id, "label": job.scan.label}, deployed=False)
        for name, job in jobs.items()
    }
    elsewhere = run_of(server, "scan", {"job": "f" * 12, "label": "sub-z"}, deployed=False)
    foreign = run_of(server, "scan", {"path": "theirs"}, deployed=False)
    publish(make_job_like(jobs["done"], tmp_path), output)
    publish(make_job_like(jobs["failed"], tmp_path), output, FAILED)
    with claimed(jobs["alive"].folder):
        assert sorted(reconcile_runs(output)) == ["scan: Completed", "scan: Crashed R008", "scan: Failed E002"]
        assert reconcile_runs(output) == []
    assert {name: state(server, run) for name, run in runs.items()} == {
        "done": ("Completed", "publ"),
        "failed": ("Failed", "E002"),
        "dead": ("Crashed", "R008"),
        "alive": ("Running", ""),
    }
    assert [state(server, run)[0] for run in (elsewhere, foreign)] == ["Running", "Running"]


def test_a_record_of_before_is_no_end_of_this_run(server: Any, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = known(output, "a")
    manifest = output / "sub-a" / "manifest.json"
    before = (datetime.now().astimezone() - timedelta(days=1)).isoformat(timespec="seconds")
    finished = json.loads(manifest.read_text())["scans"][0]["finished"]
    manifest.write_text(manifest.read_text().replace(finished, before))
    run = run_of(server, "scan", {"job": job.scan.id, "label": job.scan.label}, deployed=False)
    assert "scan: Crashed R008" in reconcile_runs(output)
    assert state(server, run)[0] == "Crashed"


def test_dead_runs_of_work_end_once_they_have_been_silent(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    done, left = known(output, "a", done=False), known(output, "b", done=False)
    settled = run_of(server, "work", {"jobs": [done.scan.id]})
    unsettled = run_of(server, "work", {"jobs": [done.scan.id, left.scan.id]})
    elsewhere = run_of(server, "work", {"jobs": ["f" * 12]})
    publish(make_job_like(done, tmp_path), output)
    soon, later = time.time() + SILENT_S / 2, time.time() + SILENT_S + 5
    assert reconcile_runs(output, soon) == []
    with claimed(done.folder):
        assert reconcile_runs(output, later) == []
    assert reconcile_runs(output, later) == ["work: Completed"]
    moment = time.time()
    monkeypatch.setattr(flows.reconcile, "_last_beat", lambda client, run: moment if run.id == unsettled.id else 0.0)
    assert reconcile_runs(output, time.time() + SILENT_S / 2) == []
    assert reconcile_runs(output, later + 60) == ["work: Crashed R008"]
    assert [state(server, run)[0] for run in (settled, unsettled, elsewhere)] == ["Completed", "Crashed", "Running"]


def test_a_run_that_died_before_its_first_heartbeat_frees_its_pool(server: Any, tmp_path: Path) -> None:
    """As one does whose worker is killed while it starts: nothing else would ever end it, and none after it begin."""
    output = tmp_path / "out"
    job = known(output, "a", done=False)
    runs = [run_of(server, "work", {"jobs": [job.scan.id]}), run_of(server, "batch", {})]
    assert reconcile_runs(output, time.time() + MUTE_S / 2) == []
    with claimed(job.folder):
        assert reconcile_runs(output, time.time() + 10 * MUTE_S) == []
    assert reconcile_runs(output, time.time() + MUTE_S + 5) == ["work: Crashed R008"]
    assert [state(server, run)[0] for run in runs] == ["Crashed", "Running"]


def test_a_prefect_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.reconcile, "our_runs", lambda client, wanted: client.read_flow_runs())
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    refused = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(refused), pytest.raises(ChironError, match="R007"):
        reconcile_runs(tmp_path)


def test_only_our_own_ended_runs_go(server: Any) -> None:
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Completed

    prune_runs(30, time.time() + 31 * DAY_S)  # what other tests left
    mine, theirs = {"job": "a" * 12, "label": "sub-a"}, {"path": "theirs"}
    ended = [run_of(server, "scan", mine, deployed=False), run_of(server, "work", {"jobs": []})]
    others = [run_of(server, "scan", theirs, deployed=False), run_of(server, "batch", {}, deployed=False)]
    for run in (*ended, *others):
        server.set_flow_run_state(run.id, Completed(), force=True)
    others.append(run_of(server, "scan", mine, deployed=False))  # still at work
    assert prune_runs(30, time.time()) == 0
    assert prune_runs(30, time.time() + 31 * DAY_S, dry_run=True) == 2
    assert prune_runs(30, time.time() + 31 * DAY_S) == 2 and prune_runs(30, time.time() + 31 * DAY_S) == 0
    for run in ended:
        with pytest.raises(ObjectNotFound):
            server.read_flow_run(run.id)
    assert all(server.read_flow_run(run.id) for run in others)
