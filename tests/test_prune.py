"""What goes with time and what never does: nothing that a manifest names, nothing that is at work, no input."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from test_publish import FAILED, Killed, _plain_report, content, fault, states
from test_reconcile import make_job_like
from test_reprocess import known
from test_versions import values

from flows.claim import claimed
from flows.cli import execute
from flows.prune import DAY_S, prune
from flows.reprocess import select
from pipeline.find import SetAside
from pipeline.ledger import KEPT, read_manifests
from pipeline.lock import locked
from pipeline.publish import publish, record_set_aside, verify, versions
from pipeline.recipe import Job

__all__ = ["_plain_report"]  # a fixture

KEEP = 30.0


def later(days: float) -> float:
    return time.time() + days * DAY_S


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An old version, a published scan, a failed one, one that was begun, one of which nothing is recorded."""
    output = tmp_path / "out"
    job = known(output, "a")
    (tmp_path / "in/a/image").write_bytes(b"late files")
    publish(make_job_like(job, tmp_path), output)
    for name in ("a", "b", "c", "d"):
        job = known(output, name, failure=FAILED if name == "c" else None, done=name in "bc") if name != "a" else job
        _worked(job, time.time() + (30 if name in "bd" else -30))
    record_set_aside(output, [SetAside("sub-e", "P001", "no phase", 3)])
    (output / ".chiron/trace.txt").write_text("a trace")
    return output


def _worked(job: Job, when: float) -> None:
    """Results of two stages, made at that time."""
    for name in ("convert", "mask"):
        (job.folder / name).mkdir()
        (job.folder / name / "array.npy").write_bytes(b"0" * 1000)
        (job.folder / name / "stage.json").write_text("{}")
        os.utime(job.folder / name / "stage.json", (when, when))


def work(output: Path) -> dict[str, set[str]]:
    """What stands in the work folder of each scan, but for its lock."""
    folders = sorted((output / ".chiron/work").iterdir())
    return {bytes.fromhex(f.name).rstrip(b"\0").decode(): {p.name for p in f.iterdir()} - {"lock"} for f in folders}


def public(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(output).items() if not name.startswith(".chiron/")}


@pytest.mark.parametrize("days", [0.0, KEEP - 1, KEEP + 1, 10000.0])
@pytest.mark.parametrize("keep", [0.0, KEEP])
def test_nothing_that_a_manifest_names_ever_goes(output: Path, tmp_path: Path, days: float, keep: float) -> None:
    before, records, inputs = public(output), read_manifests(output), content(tmp_path / "in")
    prune(output, keep, later(days))
    assert public(output) == before and read_manifests(output) == records and verify(output) == []
    assert content(tmp_path / "in") == inputs
    assert [job.scan.label for job in select(output, state="published", force=True)] == ["sub-a", "sub-b"]


def test_only_what_is_of_no_use_goes_at_once(output: Path) -> None:
    kept = {"job.json", "convert", "mask"}
    found = prune(output, KEEP)
    assert work(output) == {"a": {"job.json"}, "b": kept, "c": kept, "d": kept}
    assert found.counts == {"old versions": 0, "leavings of scans": 2, "traces": 0, "locks": 0}
    assert len(versions(output, "sub-a")) == 1 and found.freed_bytes >= 2000


def test_in_time_all_goes_but_the_jobs_of_scans_that_stand_somewhere(output: Path) -> None:
    version = versions(output, "sub-a")[0]
    size = sum(entry["bytes"] for entry in version["files"].values())
    found = prune(output, KEEP, later(KEEP + 1))
    assert work(output) == {name: {"job.json"} for name in "abc"}
    assert versions(output, "sub-a") == [] and not list((output / KEPT).iterdir())
    assert not (output / ".chiron/trace.txt").exists() and not list((output / ".chiron/locks").iterdir())
    assert found.counts["old versions"] == 1 and found.freed_bytes > size + 8000
    assert not any(prune(output, KEEP, later(KEEP + 1)).counts.values())


def test_a_version_counts_from_when_it_was_replaced(output: Path) -> None:
    assert prune(output, KEEP, later(KEEP - 1)).counts["old versions"] == 0
    assert prune(output, KEEP, later(KEEP + 1)).counts["old versions"] == 1


def test_what_is_asked_to_be_kept_stays_for_its_time(output: Path) -> None:
    job = Job.load(next((output / ".chiron/work").glob(f"{b'a'.hex()}*")))
    Job(job.scan, job.settings.model_copy(update={"keep_work": True}), job.folder).save()
    Job.take(job.folder)
    prune(output, KEEP)
    assert work(output)["a"] == {"job.json", "convert", "mask"}
    prune(output, KEEP, later(KEEP + 1))
    assert work(output)["a"] == {"job.json"}


def test_what_is_at_work_or_being_published_is_left(output: Path) -> None:
    before = work(output)
    with claimed(output / ".chiron/work" / b"a".hex().ljust(12, "0")):
        with locked(output / ".chiron/locks/sub-a.lock"):
            found = prune(output, KEEP, later(KEEP + 1))
        assert work(output)["a"] == before["a"] and found.counts["old versions"] == 0
    assert (output / ".chiron/locks/sub-a.lock").exists() and len(versions(output, "sub-a")) == 1


def test_a_dry_run_counts_the_same_and_removes_nothing(output: Path) -> None:
    before = content(output)
    told = prune(output, KEEP, later(KEEP + 1), dry_run=True)
    assert {name: data for name, data in content(output).items() if not name.endswith("/lock")} == before
    assert told == prune(output, KEEP, later(KEEP + 1))


def test_killed_at_any_step_it_leaves_whole_versions_or_none(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, nth = public(output), 0
    while True:
        nth += 3
        with fault(monkeypatch, nth, Killed, True) as seen:
            try:
                prune(output, KEEP, later(KEEP + 1))
            except Killed:
                pass
            else:
                break
        assert values(output, "sub-a") in ([0.1], []) and public(output) == before
        assert len(seen) >= nth
    assert states(output) == [0.1, 0.1] and not list((output / KEPT).iterdir())


def test_a_hard_link_to_what_stands_frees_nothing(output: Path) -> None:
    version = output / versions(output, "sub-a")[0]["folder"]
    image = version / "anat/sub-a_Chimap.nii.gz"
    freed = prune(output, KEEP, later(KEEP + 1), dry_run=True).freed_bytes
    (output / "mine.nii.gz").hardlink_to(image)
    assert prune(output, KEEP, later(KEEP + 1)).freed_bytes == freed - (output / "mine.nii.gz").stat().st_size


def test_the_command_tells_what_it_freed(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["prune", str(output), "--keep-days", "0", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"]["old versions"] == 1 and len(versions(output, "sub-a")) == 1
    assert execute(["prune", str(output), "--keep-days", "0"]) == 0
    said = capsys.readouterr().out
    assert "1  old versions" in said and "MB freed" in said and versions(output, "sub-a") == []
    assert execute(["prune", str(output.parent)]) == 13
