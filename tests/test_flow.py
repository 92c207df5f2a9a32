"""Runs with stages that take no time: isolation, continuation, locks, privacy, and what a Prefect server is told."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import stand_in
from stand_in import KEY, SENTINEL, SETTINGS, dismiss_all, export, install, scan_of

import flows.crew
import flows.engine
from flows.batch import Batch, Outcome, apart, run
from flows.claim import claimed, is_claimed
from flows.crew import Terms
from flows.engine import Watchdog, connect, trial_server
from pipeline.errors import ChironError
from pipeline.find import Export
from pipeline.publish import read_manifests
from pipeline.recipe import Job
from pipeline.settings import load


@pytest.fixture(autouse=True, scope="module")
def _workers() -> Iterator[None]:
    yield
    dismiss_all()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    """The state of a Prefect server that runs are reported to, where the tests look for what must not be in it."""
    dismiss_all()  # their environment names none
    with trial_server(tmp_path / "prefect"):
        yield tmp_path / "prefect"
        dismiss_all()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(monkeypatch.setattr)
    folder = tmp_path / SENTINEL
    folder.mkdir()
    return folder


def outcomes(source: Path, output: Path, limit_s: float = 600, **settings: Any) -> tuple[dict[str, Outcome], int]:
    batch = Batch(output, terms=Terms(wait_s=0, time_limit_s=limit_s))
    run(batch, source, load(**{"method": "tkd", "device": "cpu", **settings}), KEY)
    return {outcome.label: outcome for outcome in batch.outcomes}, batch.exit_code()


def stages_run(output: Path) -> list[str]:
    return (output / ".chiron" / "stages.txt").read_text().splitlines()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_failing_scan_stops_no_other_and_changes_none(source: Path, tmp_path: Path) -> None:
    found, code = outcomes(export(source, a="", b="fail", c="surprise", d=""), tmp_path / "out")
    assert {label: (o.state, o.code) for label, o in found.items()} == {
        "sub-a": ("published", ""),
        "sub-b": ("failed", "P007"),
        "sub-c": ("failed", "R005"),
        "sub-d": ("published", ""),
    }
    assert code == 10
    assert all((tmp_path / "out" / o.report).is_file() for o in found.values())
    (tmp_path / "one").mkdir()
    assert outcomes(export(tmp_path / "one", a=""), tmp_path / "alone")[1] == 0
    maps = [path.read_bytes() for path in tmp_path.glob("*/sub-a/anat/sub-a_Chimap.nii.gz")]
    assert len(maps) == 2 and maps[0] == maps[1]


def test_the_input_is_not_touched(source: Path, tmp_path: Path) -> None:
    before = tree(export(source, a="", b="surprise"))
    outcomes(source, tmp_path / "out")
    assert tree(source) == before


def test_what_is_published_is_not_done_again(source: Path, tmp_path: Path) -> None:
    export(source, a="")
    outcomes(source, tmp_path / "out")
    found, code = outcomes(source, tmp_path / "out")
    assert (found["sub-a"].state, code, len(stages_run(tmp_path / "out"))) == ("already published", 11, 2)
    assert found["sub-a"].verdict and (tmp_path / "out" / found["sub-a"].report).is_file()
    found, code = outcomes(source, tmp_path / "out", tkd={"threshold": 0.2})
    assert (found["sub-a"].state, code) == ("already published", 11)
    wanted = f"chiron reprocess {tmp_path / 'out'} sub-a --set tkd.threshold=0.2"
    assert "was made by tkd, tv on" in found["sub-a"].text and found["sub-a"].text.endswith(wanted)
    assert len(stages_run(tmp_path / "out")) == 2


def test_the_work_folder_is_private_and_goes_with_success(source: Path, tmp_path: Path) -> None:
    outcomes(export(source, a="", b="fail"), tmp_path / "out")
    done, failed = (tmp_path / "out" / ".chiron" / "work" / scan_of(source / f"{SENTINEL}-{n}").id for n in "ab")
    assert {path.name for path in done.iterdir()} == {"job.json", "lock", "plan.lock"}
    assert {"convert", "mask", "trace.txt"} - {path.name for path in failed.iterdir()} == {"trace.txt"}
    assert done.stat().st_mode & 0o77 == failed.stat().st_mode & 0o77 == 0
    outcomes(export(source, a=""), tmp_path / "kept", keep_work=True)
    assert (tmp_path / "kept" / ".chiron" / "work" / done.name / "quality").is_dir()


def test_a_failed_scan_continues_after_its_last_good_stage(source: Path, tmp_path: Path) -> None:
    outcomes(export(source, a="fail"), tmp_path / "out")
    outcomes(source, tmp_path / "out")
    assert stages_run(tmp_path / "out") == ["a convert", "a unwrap", "a unwrap"]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], 11),
        ([("published", "")], 0),
        ([("already published", "")], 11),
        ([("already published", ""), ("published", "")], 0),
        ([("published", ""), ("set aside", "P001")], 10),
        ([("already published", ""), ("failed", "P007")], 10),
        ([("set aside", "P001")], 12),
        ([("failed", "P007"), ("failed", "R006")], 12),
        ([("failed", "R006")], 17),
        ([("failed", "S001"), ("failed", "S001")], 14),
        ([("failed", "R005")], 12),
        ([("failed", "R005"), ("failed", "R005")], 12),
        ([("failed", "R005"), ("published", "")], 10),
    ],
)
def test_exit_codes(states: list[tuple[Any, str]], expected: int) -> None:
    batch = Batch(Path(), outcomes=[Outcome(f"sub-{i}", state, code=code) for i, (state, code) in enumerate(states)])
    assert batch.exit_code() == expected


def test_a_result_not_to_be_used_fails_the_command_where_asked(source: Path) -> None:
    red, fine = (Outcome("sub-a", "published", verdict) for verdict in ("do not use", "check"))
    assert Batch(Path(), outcomes=[red]).exit_code() == 0
    assert Batch(Path(), fail_on_qc=True, outcomes=[red]).exit_code() == 19
    assert Batch(Path(), fail_on_qc=True, outcomes=[fine]).exit_code() == 0


def test_scans_set_aside_are_outcomes_too(source: Path, tmp_path: Path) -> None:
    (export(source, a="") / "aside").write_text("")
    found, code = outcomes(source, tmp_path / "out")
    assert (found["sub-aside"].state, found["sub-aside"].code, code) == ("set aside", "P001", 10)
    assert {r["label"]: r["state"] for r in read_manifests(tmp_path / "out")} == {
        "sub-a": "published",
        "sub-aside": "set aside",
    }


def test_a_scan_that_another_run_holds_is_busy(source: Path, tmp_path: Path) -> None:
    scan = scan_of(export(source, a="") / f"{SENTINEL}-a")
    folder = tmp_path / "out" / ".chiron" / "work" / scan.id
    with claimed(folder):
        assert is_claimed(folder)
        found, code = outcomes(source, tmp_path / "out")
    assert (found["sub-a"].code, code) == ("R006", 17) and not is_claimed(folder)
    assert outcomes(source, tmp_path / "out")[1] == 0


@pytest.mark.parametrize("output", ["", "results", ".."])
def test_input_and_output_must_lie_apart(tmp_path: Path, output: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ChironError) as caught:
        apart(tmp_path / "in", tmp_path / "in" / output)
    assert caught.value.code == "S002"


def test_folders_that_cannot_be_used_are_refused_before_anything_is_done(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ChironError) as caught:
        run(Batch(tmp_path / "out"), tmp_path / "absent", SETTINGS, KEY)
    assert caught.value.code == "S003" and not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ChironError) as caught:
        run(Batch(tmp_path / "file"), export(source, a=""), SETTINGS, KEY)
    assert caught.value.code == "S002"


def test_nothing_that_identifies_reaches_prefect_or_the_output(
    source: Path, tmp_path: Path, server: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found, _ = outcomes(export(source, a="", b="surprise"), tmp_path / "out")
    assert (found["sub-a"].state, found["sub-b"].code) == ("published", "R005")
    trace = next((tmp_path / "out" / ".chiron" / "work").rglob("trace.txt"))
    assert SENTINEL in trace.read_text()  # so it was there to leak
    deadline = time.monotonic() + 10
    while ("Failed",) not in _task_runs(server) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ("Failed",) in _task_runs(server) and ("Completed",) in _task_runs(server)
    with sqlite3.connect(f"file:{server / 'prefect.db'}?mode=ro", uri=True) as database:
        runs = dict(database.execute("select name, parameters from flow_run").fetchall())
    assert {name: json.loads(parameters) for name, parameters in runs.items()} == {
        f"sub-{name}": {"job": scan_of(source / f"{SENTINEL}-{name}").id, "label": f"sub-{name}"} for name in "ab"
    }
    for file in server.rglob("*"):
        assert not file.is_file() or SENTINEL.encode() not in file.read_bytes(), file.name
    public = {name: content for name, content in tree(tmp_path / "out").items() if not name.startswith(".chiron/work")}
    assert not [name for name, content in public.items() if SENTINEL.encode() in content]
    assert SENTINEL not in "".join(capfd.readouterr())


def _task_runs(home: Path) -> list[tuple[str]]:
    with sqlite3.connect(f"file:{home / 'prefect.db'}?mode=ro", uri=True) as database:
        return database.execute("select state_name from task_run").fetchall()


def test_a_killed_run_continues_and_ends_as_if_nothing_had_been(source: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(KEY)
    key.chmod(0o600)
    environment = dict(os.environ) | {"CHIRON_KEY_FILE": str(key)}
    with hanging(export(source, a=""), tmp_path / "out", environment) as process:
        started = _children(process.pid)
        assert ["worker" in _command(child) for child in started] == [True]  # and no server
        process.kill()
    assert not (tmp_path / "out" / "sub-a").exists()
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in started))  # none is left behind
    assert outcomes(source, tmp_path / "out")[1] == 0
    assert stages_run(tmp_path / "out") == ["a convert", "a unwrap", "a unwrap"]
    outcomes(source, tmp_path / "other")
    name = "sub-a/anat/sub-a_Chimap.nii.gz"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_ends(source: Path, tmp_path: Path, number: signal.Signals) -> None:
    with hanging(export(source, a=""), tmp_path / "out", dict(os.environ)) as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, "continues" in said) == (130, True)
    assert stages_run(tmp_path / "out") == ["a convert", "a unwrap"]
    assert not (tmp_path / "out" / "sub-a").exists() and not (tmp_path / "out" / "failed").exists()


@contextmanager
def hanging(
    source: Path, output: Path, environment: dict[str, str], seconds: float = 60
) -> Iterator[subprocess.Popen[str]]:
    """`chiron run` with the stages of this file, in a process that hangs in its second stage by now."""
    environment |= {"CHIRON_TEST_HANG": str(seconds), "CHIRON_KEY_FILE": str(output.parent / "key")}
    command = [sys.executable, stand_in.__file__, "run", str(source), str(output), "--method", "tkd", "--device", "cpu"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: (output / ".chiron" / "stages.txt").exists() and len(stages_run(output)) == 2)
        yield process


def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


def test_a_prefect_that_is_lost_costs_no_result(source: Path, tmp_path: Path) -> None:
    with trial_server(tmp_path / "prefect") as server:
        environment = dict(os.environ) | {"CHIRON_TEST_PATIENCE": "3"}
        with hanging(export(source, a="", b=""), tmp_path / "out", environment, 2) as process:
            server.kill()
            _, said = process.communicate(timeout=60)
    assert (process.returncode, "Prefect was lost" in said) == (0, True)
    assert all((tmp_path / "out" / f"sub-{name}" / "manifest.json").is_file() for name in "ab")


def test_a_scan_whose_files_vanish_is_recorded_and_stops_no_other(source: Path, tmp_path: Path) -> None:
    export(source, a="", b="")

    def vanish(found: Export) -> None:
        (source / f"{SENTINEL}-a").unlink()

    batch = Batch(tmp_path / "out", on_found=vanish)
    run(batch, source, SETTINGS, KEY)
    assert [(o.label, o.state, o.code) for o in batch.outcomes] == [
        ("sub-a", "failed", "F016"),
        ("sub-b", "published", ""),
    ]


def test_a_work_folder_that_cannot_be_made_fails_the_scan_alone(source: Path, tmp_path: Path) -> None:
    scan = scan_of(export(source, a="", b="") / f"{SENTINEL}-a")
    (tmp_path / "out" / ".chiron" / "work").mkdir(parents=True)
    (tmp_path / "out" / ".chiron" / "work" / scan.id).write_text("in the way")
    found, code = outcomes(source, tmp_path / "out")
    assert (found["sub-a"].code, found["sub-b"].state, code) == ("S002", "published", 10)


def test_a_prefect_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(flows.engine, "REMOTE_S", 0.3)
    with pytest.raises(ChironError) as caught:
        connect()
    assert (caught.value.code, caught.value.fault.exit) == ("R007", 18)


def test_the_watchdog_ends_a_process_that_is_held_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(flows.engine, "leave", left.append)
    watchdog = Watchdog(lambda: 18)
    watchdog.arm(0.05)
    watchdog.disarm()
    time.sleep(0.15)
    assert left == []
    watchdog.arm(0.05)
    wait_for(lambda: left == [18], 5)
    assert threading.active_count() < 50


def test_jobs_come_back_as_they_were_saved(source: Path, tmp_path: Path) -> None:
    scan = scan_of(export(source, a="") / f"{SENTINEL}-a")
    job = Job(scan, SETTINGS, tmp_path / "job", tmp_path / "truth.nii.gz")
    job.save()
    assert Job.load(job.folder) == job


def test_a_scan_that_hangs_is_killed_at_its_limit_and_stops_no_other(source: Path, tmp_path: Path) -> None:
    export(source, a="hang", b="")
    found, code = outcomes(source, tmp_path / "out", limit_s=8)
    assert (found["sub-a"].code, found["sub-b"].state, code) == ("R003", "published", 10)
    assert "8 s" in found["sub-a"].text and (tmp_path / "out" / found["sub-a"].report).is_file()


def test_a_process_that_dies_is_replaced_and_its_scan_tried_once_more(source: Path, tmp_path: Path) -> None:
    export(source, a="die", b="", c="once")
    found, code = outcomes(source, tmp_path / "out")
    assert {label: (o.state, o.code) for label, o in found.items()} == {
        "sub-a": ("failed", "R008"),
        "sub-b": ("published", ""),
        "sub-c": ("published", ""),
    }
    assert "-9" in found["sub-a"].text and code == 10


def test_a_scan_that_another_run_holds_is_waited_for(source: Path, tmp_path: Path) -> None:
    """As two crews that share the folder do: here the other one is this test."""
    scan = scan_of(export(source, a="", b="") / f"{SENTINEL}-a")
    with ExitStack() as other:
        other.enter_context(claimed(tmp_path / "out" / ".chiron" / "work" / scan.id))
        batch = Batch(tmp_path / "out", on_outcome=lambda outcome: other.close(), terms=Terms(wait_s=60))
        run(batch, source, SETTINGS, KEY)
    assert [(o.label, o.state) for o in batch.outcomes] == [("sub-b", "published"), ("sub-a", "published")]


def test_two_crews_share_the_work_and_do_nothing_twice(source: Path, tmp_path: Path) -> None:
    export(source, **{f"n{i}": "" for i in range(12)})
    environment = dict(os.environ) | {"CHIRON_KEY_FILE": str(tmp_path / "key"), "CHIRON_TEST_HANG": "0.3"}
    command = [sys.executable, stand_in.__file__, "run", str(source), str(tmp_path / "out"), "--method", "tkd"]
    command += ["--device", "cpu", "--json"]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [json.loads(each.communicate(timeout=120)[0]) for each in runs]
    assert sorted(stages_run(tmp_path / "out")) == sorted(f"n{i} {s}" for i in range(12) for s in ("convert", "unwrap"))
    states = [{o["label"]: o["state"] for o in each} for each in said]
    assert all(set(each.values()) <= {"published", "already published"} and len(each) == 12 for each in states)
    assert all(sorted(each[label] for each in states) == ["already published", "published"] for label in states[0])
    assert [each.returncode for each in runs] == [0, 0] and min(list(e.values()).count("published") for e in states) > 2


def test_jobs_saved_meanwhile_do_not_disturb_the_one_at_work(source: Path, tmp_path: Path) -> None:
    scan = scan_of(export(source, a="") / f"{SENTINEL}-a")
    job, other = (Job(scan, load(method=m, device="cpu"), tmp_path / "job", None) for m in ("tkd", "rts"))
    job.save()
    assert Job.take(job.folder)
    other.save()
    assert (Job.load(job.folder), Job.load(job.folder, next=True)) == (job, other)
    assert Job.take(job.folder) and Job.load(job.folder) == other and not Job.take(job.folder)


def test_workers_are_started_quiet(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They read the settings of Prefect when they begin: before anything is reported."""
    for name in flows.engine.QUIET:
        monkeypatch.delenv(name, raising=False)
    hired: list[dict[str, str]] = []
    true = flows.crew.Crew.start
    monkeypatch.setattr(flows.crew.Crew, "start", lambda crew, n: (hired.append(dict(os.environ)), true(crew, n)))
    outcomes(export(source, a=""), tmp_path / "out")
    assert hired and all(flows.engine.QUIET.items() <= environment.items() for environment in hired)


def test_an_interrupt_that_a_script_ignores_is_not_heeded(source: Path, tmp_path: Path) -> None:
    """As in a shell script, for `chiron run ... &`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hanging(export(source, a=""), tmp_path / "out", dict(os.environ), 3) as process:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.returncode == 0 and (tmp_path / "out" / "sub-a").is_dir()
