"""Scans through Prefect with stages that take no time: isolation, continuation, locks, privacy, an end to every wait.

Run as a script, this file is the command `chiron` with these stages, for tests that need a process to kill.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import flows.batch
import flows.engine
import flows.watch
import pipeline.publish
import pipeline.recipe.stages
from flows.batch import Batch, Outcome, _claimed, apart, run
from flows.engine import Watchdog, orchestrator
from flows.watch import Bar, Forecast, Lines, watch
from pipeline.errors import ChironError
from pipeline.find import Export, Scan, SetAside
from pipeline.publish import read_manifests
from pipeline.recipe import Inputs, Job
from pipeline.settings import load
from pipeline.volumes import Grid
from pipeline.work import Made

SENTINEL = "Zebedee^Quixotic"
SHAPE = (5, 4, 3)
KEY = b"k" * 32
SETTINGS = load(method="tkd", device="cpu")


def find(folder: Path, key: bytes, subject: str | None = None, *, acquisition: Any = None) -> Export:
    """Every file is a scan; the one called `aside` is set aside."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    scans = tuple(_scan(path) for path in files if path.name != "aside")
    aside = tuple(SetAside("sub-aside", "P001", "no phase", 1) for path in files if path.name == "aside")
    return Export(scans, aside, (), len(files))


def _scan(path: Path) -> Scan:
    label = path.read_text().split()[0]
    name = label.encode().hex().ljust(12, "0")[:12]
    return Scan(name, label, "", "", "dicom", "Siemens", (1,), (0.004, 0.008), ("magnitude", "phase"), (path,))


def _convert(inputs: Inputs) -> Made:
    _note(inputs, "convert")
    facts = {"grid": Grid.simple(SHAPE, (1, 1, 1)).json(), "echo_times_s": [0.004, 0.008], "b0_tesla": 3.0}
    facts |= {"vendor": "Siemens", "content_digest": inputs.job.scan.content_digest(), "acquisition": {}}
    echoes = torch.ones(2, *SHAPE)
    return Made({"magnitude": echoes, "phase_rad": echoes}, facts=facts)


def _mask(inputs: Inputs) -> Made:
    return Made({"mask": torch.ones(SHAPE, dtype=torch.uint8), "quality": torch.ones(SHAPE)})


def _unwrap(inputs: Inputs) -> Made:
    """Does what the scan's file says: fail, be surprised, or hang once."""
    _note(inputs, "unwrap")
    said = inputs.job.scan.files[0].read_text()
    if "fail" in said:
        raise ChironError("P007", "an empty mask", "a brain")
    if "surprise" in said:
        raise ValueError(f"the file {inputs.job.scan.files[0]} of {SENTINEL}")
    time.sleep(float(os.environ.get("CHIRON_TEST_HANG", 0)))
    echoes = torch.ones(2, *SHAPE)
    return Made({"unwrapped_rad": echoes, "offset_rad": echoes[0]})


def _field(inputs: Inputs) -> Made:
    ones = torch.ones(SHAPE)
    return Made({"total_ppm": ones, "sd_ppm": ones, "mask": ones.to(torch.uint8), "residual": ones})


def _background(inputs: Inputs) -> Made:
    ones = torch.ones(SHAPE)
    return Made({"local_ppm": ones, "sd_ppm": ones, "mask": ones.to(torch.uint8)})


def _invert(method: str, inputs: Inputs) -> Made:
    inputs.progress(0.5, "half way")
    reference = {"region": "final mask", "mean_ppm": 0.0, "sd_ppm": 0.1}
    chi = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return Made({"chi_ppm": chi}, facts={"method": method, "reference": reference})


def _note(inputs: Inputs, stage: str) -> None:
    with (inputs.job.folder.parent.parent / "stages.txt").open("a") as stream:
        stream.write(f"{inputs.job.scan.subject} {stage}\n")


def install(put: Callable[[Any, str, Any], None]) -> None:
    """Put the stages above in place of the true ones, and files in place of exports."""
    for stage in (_convert, _mask, _unwrap, _field, _background, _invert):
        put(pipeline.recipe.stages, stage.__name__.removeprefix("_"), stage)
    put(flows.batch, "find", find)
    put(pipeline.publish, "write_report", lambda work, label, settings, failure=None: f"<html>{label}</html>")


@pytest.fixture(scope="module", autouse=True)
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One server for all flows of this file; its state lies where the tests look for what must not be in it."""
    home = tmp_path_factory.mktemp("prefect")
    with orchestrator(home):
        yield home


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(monkeypatch.setattr)
    folder = tmp_path / SENTINEL
    folder.mkdir()
    return folder


def export(folder: Path, **scans: str) -> Path:
    for name, said in scans.items():
        (folder / f"{SENTINEL}-{name}").write_text(f"{name} {said}")
    return folder


def outcomes(source: Path, output: Path, **settings: Any) -> tuple[dict[str, Outcome], int]:
    batch = Batch(output)
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
    assert (found["sub-a"].state, code) == ("published", 0)


def test_the_work_folder_is_private_and_goes_with_success(source: Path, tmp_path: Path) -> None:
    outcomes(export(source, a="", b="fail"), tmp_path / "out")
    left = list((tmp_path / "out" / ".chiron" / "work").iterdir())
    assert [folder.name for folder in left] == [_scan(source / f"{SENTINEL}-b").id]
    assert left[0].stat().st_mode & 0o77 == 0
    outcomes(export(source, a=""), tmp_path / "kept", keep_work=True)
    assert len(list((tmp_path / "kept" / ".chiron" / "work").iterdir())) == 2


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
        ([("failed", "R005")], 1),
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
    scan = _scan(export(source, a="") / f"{SENTINEL}-a")
    with _claimed(Job(scan, SETTINGS, tmp_path / "out" / ".chiron" / "work" / scan.id)):
        found, code = outcomes(source, tmp_path / "out")
    assert (found["sub-a"].code, code) == ("R006", 17)
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
    source: Path, tmp_path: Path, _server: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcomes(export(source, a="", b="surprise"), tmp_path / "out")
    trace = next((tmp_path / "out" / ".chiron" / "work").rglob("trace.txt"))
    assert SENTINEL in trace.read_text()  # so it was there to leak
    deadline = time.monotonic() + 10
    while len(_task_runs(_server)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ("Failed",) in _task_runs(_server) and ("Completed",) in _task_runs(_server)
    for file in _server.rglob("*"):
        assert not file.is_file() or SENTINEL.encode() not in file.read_bytes(), file.name
    public = {name: content for name, content in tree(tmp_path / "out").items() if not name.startswith(".chiron/work")}
    assert not [name for name, content in public.items() if SENTINEL.encode() in content]
    assert SENTINEL not in "".join(capfd.readouterr())


def _task_runs(home: Path) -> list[tuple[str]]:
    with sqlite3.connect(f"file:{home / 'prefect.db'}?mode=ro", uri=True) as database:
        return database.execute("select state_name from task_run").fetchall()


def test_a_killed_run_continues_and_ends_as_if_nothing_had_been(source: Path, tmp_path: Path, _server: Path) -> None:
    with hanging(export(source, a=""), tmp_path / "out", own_server(_server)) as process:
        server = _children(process.pid)
        process.kill()
    assert server and not (tmp_path / "out" / "sub-a").exists()
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in server))  # none is left behind
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


def own_server(home: Path) -> dict[str, str]:
    """An environment whose process starts a server of its own, on the database of ours: that one need not be made."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return plain | {"PREFECT_HOME": str(home)}


@contextmanager
def hanging(
    source: Path, output: Path, environment: dict[str, str], seconds: float = 60
) -> Iterator[subprocess.Popen[str]]:
    """`chiron run` with the stages of this file, in a process that hangs in its second stage by now."""
    environment |= {"CHIRON_TEST_HANG": str(seconds), "CHIRON_KEY_FILE": str(output.parent / "key")}
    command = [sys.executable, __file__, "run", str(source), str(output), "--method", "tkd", "--device", "cpu"]
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


def test_a_prefect_that_is_lost_costs_no_result(
    source: Path, tmp_path: Path, _server: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What happens in `give_up` must happen in a process of its own, for it ends the process."""
    environment = own_server(_server) | {"CHIRON_TEST_PATIENCE": "3"}
    with hanging(export(source, a="", b=""), tmp_path / "out", environment, 2) as process:
        (server,) = _children(process.pid)
        os.kill(server, signal.SIGKILL)
        process.wait(timeout=40)
    assert process.returncode == 10
    assert (tmp_path / "out" / "sub-a").is_dir() and not (tmp_path / "out" / "sub-b").exists()
    said = capfd.readouterr().out
    assert re.search(r"sub-a +published", said) and re.search(r"sub-b +failed\n +R007", said)


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
    scan = _scan(export(source, a="", b="") / f"{SENTINEL}-a")
    (tmp_path / "out" / ".chiron" / "work").mkdir(parents=True)
    (tmp_path / "out" / ".chiron" / "work" / scan.id).write_text("in the way")
    found, code = outcomes(source, tmp_path / "out")
    assert (found["sub-a"].code, found["sub-b"].state, code) == ("S002", "published", 10)


def test_a_prefect_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(flows.engine, "REMOTE_S", 0.3)
    with pytest.raises(ChironError) as caught, orchestrator(tmp_path):
        pass
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
    scan = _scan(export(source, a="") / f"{SENTINEL}-a")
    job = Job(scan, SETTINGS, tmp_path / "job", tmp_path / "truth.nii.gz")
    job.save()
    assert Job.load(job.folder) == job


def test_the_forecast_learns_from_this_machine() -> None:
    forecast = Forecast(["convert", "invert-dip"])
    before = forecast.seconds_left("convert", 0.0, 0.0)
    forecast.done("convert", 10 * 2.0)
    assert forecast.seconds_left("invert-dip", 0.0, 0.0) > 5 * (before - 2.0)
    assert forecast.seconds_left("invert-dip", 0.5, 30.0) == pytest.approx(30.0)
    assert 0 < forecast.share("invert-dip", 0.0) < forecast.share("invert-dip", 0.5) < 1
    assert forecast.share("invert-dip", 1.0) == pytest.approx(1.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until it is set."""
    hand = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(flows.watch, "time", SimpleNamespace(monotonic=lambda: hand.now))
    return hand


def left(bar: Bar) -> str:
    """The time left that the bar shows."""
    return str(bar.progress.tasks[0].fields["left"])


def test_the_bar_tells_the_time_left_from_the_share_done(clock: SimpleNamespace) -> None:
    bar = Bar(Console(file=StringIO(), force_terminal=True), "sub-a", ["invert-dip"])
    bar.began("invert-dip", "inverting")
    assert left(bar) == "about 2 min left", "nothing is done: what such a stage usually takes"
    for now, share, expected in ((20, 0.25, "60 s"), (50, 0.5, "50 s"), (300, 0.6, "3 min"), (499, 0.998, "1 s")):
        clock.now = 1000.0 + now
        bar.moved(share, "step")
        assert left(bar) == f"about {expected} left"
    bar.moved(1.0, "step")
    assert left(bar) == ""
    bar.close()


def test_a_slow_stage_is_no_longer_said_to_end_soon_once_the_usual_time_is_over(clock: SimpleNamespace) -> None:
    bar = Bar(Console(file=StringIO(), force_terminal=True), "sub-a", ["invert-dip"])
    bar.began("invert-dip", "inverting")
    clock.now += 150
    bar.moved(0.01, "step")
    assert left(bar) == f"about {150 * 99 / 60:.0f} min left"
    bar.close()


def test_a_second_pass_is_timed_anew(clock: SimpleNamespace) -> None:
    bar = Bar(Console(file=StringIO(), force_terminal=True), "sub-a", ["invert-dip"])
    bar.began("invert-dip", "inverting")
    for seconds, share in ((100, 1.0), (0, 0.01), (40, 0.5)):
        clock.now += seconds
        bar.moved(share, "step")
    assert left(bar) == "about 40 s left"
    bar.close()


def test_a_log_hears_of_a_long_stage_now_and_then(clock: SimpleNamespace) -> None:
    said = StringIO()
    lines = Lines(Console(file=said, width=100), "sub-a", ["invert-dip"])
    lines.began("invert-dip", "inverting (dip)")
    for step in range(1, 101):
        clock.now += 1
        lines.moved(step / 100, f"step {step}")
    lines.ended("invert-dip")
    words = [" ".join(line.split()) for line in said.getvalue().splitlines()]
    assert words == [
        "sub-a",
        "inverting (dip) 30 %, step 30, about 70 s left",
        "inverting (dip) 60 %, step 60, about 40 s left",
        "inverting (dip) 90 %, step 90, about 10 s left",
        "inverting (dip) 100.0 s",
    ]


def test_progress_is_a_bar_for_a_person_and_lines_for_a_log() -> None:
    for terminal, expected in ((True, Bar), (False, Lines)):
        said = StringIO()
        shown = watch(Console(file=said, force_terminal=terminal), "sub-a", ["convert"])
        assert isinstance(shown, expected)
        shown.began("convert", "reading the images")
        shown.moved(0.5, "half")
        shown.ended("convert")
        shown.close()
        assert "sub-a" in said.getvalue() and "reading the images" in said.getvalue()


def test_prefect_gets_no_more_than_ids_and_labels(source: Path, tmp_path: Path, _server: Path) -> None:
    outcomes(export(source, z=""), tmp_path / "out")
    with sqlite3.connect(f"file:{_server / 'prefect.db'}?mode=ro", uri=True) as database:
        runs = database.execute("select name, parameters from flow_run where name = 'sub-z'").fetchall()
    assert [json.loads(parameters) for _, parameters in runs] == [
        {"job": _scan(source / f"{SENTINEL}-z").id, "label": "sub-z"}
    ]


if __name__ == "__main__":
    from flows.cli import main

    install(setattr)
    flows.batch.PREFECT_MAY_HOLD_S = float(os.environ.get("CHIRON_TEST_PATIENCE", flows.batch.PREFECT_MAY_HOLD_S))
    main()
