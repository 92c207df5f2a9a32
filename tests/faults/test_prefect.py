"""Row 78: Prefect's server away, restarted, gone for good; its worker or its run killed. What is published is right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import stand_in
from make_site import make_site, processes_of, serving, wait_until, with_stand_ins
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType

import flows.ask
import flows.engine
from flows.claim import is_claimed
from flows.cli import execute
from flows.deploy import SILENT_S, Times, deploy
from flows.pools import GPU
from flows.serve.child import Child
from flows.site import Site
from pipeline.publish import read_manifests, verify
from pipeline.recipe import Job

HANG_S = 4.0
EXITS_WITHIN_S = 30.0  # of its work's end


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = make_site(tmp_path)
    stand_in.export(site.input, a="")
    return site


@contextmanager
def at_work(site: Site, output: Path, hang_s: float = HANG_S) -> Iterator[subprocess.Popen[str]]:
    """`chiron run` in a process of its own that hangs in its second stage by now."""
    command = [sys.executable, stand_in.__file__, "run", str(site.input), str(output), "--method", "tkd"]
    environment = {**os.environ, "CHIRON_TEST_HANG": str(hang_s), "CHIRON_KEY_FILE": str(site.input.parent / "key")}
    with subprocess.Popen([*command, "--device", "cpu"], env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: stages(output)[-1:] == ["a unwrap"])
            yield process
        finally:
            process.kill()


def stages(output: Path) -> list[str]:
    file = output / ".chiron" / "stages.txt"
    return file.read_text().splitlines() if file.exists() else []


def chi(output: Path) -> bytes:
    return (output / "sub-a" / "anat" / "sub-a_Chimap.nii.gz").read_bytes()


@pytest.mark.parametrize("command", ["run", "deploy", "worker"])
def test_78_a_server_that_is_away_at_the_start_is_named(
    command: str, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.install(monkeypatch.setattr)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("CHIRON_OUTPUT", "")
    monkeypatch.setenv("CHIRON_KEY_FILE", str(site.input.parent / "key"))
    monkeypatch.setattr(flows.engine, "REMOTE_S", 0.3)
    folders = [str(site.output)] if command == "worker" else [str(site.input), str(site.output)]
    assert execute([command, *folders]) == 18
    said = "".join(capsys.readouterr())
    assert "R007" in said and stand_in.SENTINEL not in said and str(site.input) not in said
    assert stages(site.output) == [] and read_manifests(site.output) == []
    stand_in.dismiss_all()


@pytest.mark.slow
def test_78_a_server_that_restarts_meanwhile_changes_nothing(site: Site, tmp_path: Path) -> None:
    with serving(site) as server:
        with at_work(site, tmp_path / "through") as process:
            server.end(0)
            server.start()
            assert process.wait(HANG_S + EXITS_WITHIN_S + 60) == 0
        with at_work(site, tmp_path / "calm", 0.1) as process:
            assert process.wait(90) == 0
    assert chi(tmp_path / "through") == chi(tmp_path / "calm")
    assert verify(tmp_path / "through") == [] and stages(tmp_path / "through") == ["a convert", "a unwrap"]


@pytest.mark.slow
def test_78_a_server_that_is_gone_for_good_costs_no_result(site: Site, tmp_path: Path) -> None:
    with serving(site) as server, at_work(site, tmp_path / "out") as process:
        server.end(0)
        code = process.wait(HANG_S + 3 * EXITS_WITHIN_S)  # to find out, and to do without
    assert code == 0 and verify(tmp_path / "out") == []
    assert [record["state"] for record in read_manifests(tmp_path / "out")] == ["published"]


@pytest.fixture
def asked(site: Site, tmp_path: Path) -> Iterator[tuple[str, Child]]:
    """A run of `work` that a worker of the gpu pool has begun, and that hangs in its second stage by now."""
    scan = stand_in.scan_of(site.input / f"{stand_in.SENTINEL}-a")
    Job(scan, site.parsed_settings(), site.output / ".chiron" / "work" / scan.id).save()
    with serving(site):
        deploy(Times())
        hanging = {**os.environ, **with_stand_ins(tmp_path / "hook"), "CHIRON_TEST_HANG": "3600"}
        worker = Child("worker gpu", ["flows.serve.worker", GPU], hanging)
        worker.start()
        try:
            (run,) = flows.ask.hand_out([scan.id], "scheduled")
            wait_until(lambda: stages(site.output)[-1:] == ["a unwrap"], 120)
            yield str(run.id), worker
        finally:
            worker.end(0)


def ended(run: str) -> StateType | None:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run).state  # type: ignore[arg-type]
    return state.type if state and state.is_final() else None


@pytest.mark.slow
def test_78_a_worker_that_is_killed_takes_its_runs_along_and_frees_their_scans(
    asked: tuple[str, Child], site: Site
) -> None:
    run, worker = asked
    (scan,) = (site.output / ".chiron" / "work").iterdir()
    assert is_claimed(scan) and ended(run) is None and worker.process
    os.kill(worker.process.pid, signal.SIGKILL)
    wait_until(lambda: not is_claimed(scan), 15)
    wait_until(lambda: all("flows.server" in words for words in processes_of(site.output).values()), 15)
    assert read_manifests(site.output) == []
    wait_until(lambda: ended(run) is not None, SILENT_S + 60)
    assert ended(run) == StateType.CRASHED
    assert flows.ask.hand_out([scan.name], "scheduled") != []  # its scan is to be asked for again
    worker.end(0)
    worker.environment = {**worker.environment, "CHIRON_TEST_HANG": "0"}
    worker.start()
    wait_until(lambda: [r["state"] for r in read_manifests(site.output)] == ["published"], 120)
    assert stages(site.output) == ["a convert", "a unwrap", "a unwrap"] and verify(site.output) == []


@pytest.mark.slow
def test_78_a_run_that_is_killed_is_crashed_at_once(asked: tuple[str, Child], site: Site) -> None:
    run, _ = asked
    (engine,) = (pid for pid, words in processes_of(site.output).items() if "prefect.engine" in words)
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: ended(run) == StateType.CRASHED, 60)
    (scan,) = (site.output / ".chiron" / "work").iterdir()
    wait_until(lambda: not is_claimed(scan), 15)
    assert read_manifests(site.output) == []
