"""A site on one machine: what is refused, what stays secret, what is started again, and that nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from make_site import free_port, make_site, processes_of, wait_until

from flows.cli import execute
from flows.deploy import Times
from flows.engine import QUIET
from flows.pools import CPU, GPU
from flows.serve import _alone, _workers, serve, served
from flows.serve.child import Child
from flows.serve.worker import _children
from flows.site import Site
from pipeline.errors import ChironError
from pipeline.publish import read_manifests, verify

STOPS_WITHIN_S = 30


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


def test_an_output_is_served_once(site: Site) -> None:
    said = (site.output / ".chiron" / "site.json").read_bytes()
    other = Site(site.input.parent, site.output)
    with _alone(site.output), pytest.raises(ChironError) as caught:
        serve(other, Times(), free_port(), print)
    assert (caught.value.code, caught.value.fault.exit) == ("R006", 17)
    assert (site.output / ".chiron" / "site.json").read_bytes() == said


def test_a_port_that_is_taken_is_refused(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ChironError) as caught:
        serve(site, Times(), taken.getsockname()[1], print)
    assert (caught.value.code, caught.value.fault.exit) == ("R007", 18)


def test_the_server_is_for_this_machine_and_asks_for_a_password(site: Site) -> None:
    said = served(site, 4200)
    assert QUIET.items() <= said.items()
    assert said["PREFECT_SERVER_API_HOST"] == "127.0.0.1" and "127.0.0.1" in said["PREFECT_API_URL"]
    assert said["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    file = site.output / ".chiron" / "prefect" / "password"
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o077 == 0
    assert said["PREFECT_SERVER_API_AUTH_STRING"] == file.read_text().strip() and len(file.read_text()) > 30
    assert served(site, 4200) == said
    assert not [name for name, value in said.items() if str(site.input) in value]


def test_there_is_a_worker_for_each_card_and_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for cards, words in ((2, [[CPU], [GPU, "0"], [GPU, "1"]]), (0, [[CPU], [GPU]])):
        monkeypatch.setattr("flows.serve.cards", lambda cards=cards: cards)
        assert [worker.words[1:] for worker in _workers({})] == words


def test_what_dies_is_started_again_later_and_later() -> None:
    """`python -m site` ends by itself, again and again."""
    said: list[str] = []
    child = Child("it", ["site"], os.environ)
    child.start()
    for wait_s in (2.0, 4.0):
        wait_until(lambda: not child.alive, 20)
        child.mind(said.append)
        assert (child.wait_s, child.process) == (wait_s, None)
        child.mind(said.append)
        assert child.process is None  # it is not due yet
        child.due = time.monotonic()
        child.mind(said.append)
        assert child.process is not None
    child.end(0)
    assert said == [f"it ended (exit code 0); it starts again in {wait} s" for wait in (2, 4)]


def test_a_child_ends_with_its_input() -> None:
    """`python -m code` reads until its input ends."""
    child = Child("it", ["code"], os.environ)
    child.start()
    assert child.process and child.process.pid in _children()
    process = child.process
    child.end(60)  # it would be killed then
    assert process.returncode == 0
    assert process.pid not in _children()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["serve", "{in}", "{in}/out"], 14),
        (["serve", "{in}/absent", "{out}"], 13),
        (["serve", "{in}", "{out}", "--every", "often"], 15),
        (["serve", "{in}", "{out}", "--at", "25:00"], 15),
        (["serve", "{in}", "{out}", "--set", "tkd.threshold=9"], 15),
        (["serve", "{in}", "{out}", "--labels", "{in}/absent"], 2),
        (["deploy", "{in}", "{out}"], 18),
        (["worker", "{out}", "--pool", "tpu"], 2),
        (["worker", "{in}"], 14),
        (["worker", "{out}"], 18),
    ],
)
def test_what_cannot_be_served_is_refused(
    words: list[str], code: int, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PREFECT_API_URL", "CHIRON_OUTPUT"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("CHIRON_KEY_FILE", str(site.input.parent / "key"))
    before = (site.output / ".chiron" / "site.json").read_bytes()
    places = {"{in}": str(site.input), "{out}": str(site.output)}
    for name, path in places.items():
        words = [word.replace(name, path) for word in words]
    assert execute(words) == code
    assert str(site.input) not in "".join(capsys.readouterr())
    assert (site.output / ".chiron" / "site.json").read_bytes() == before


@contextmanager
def being_served(site: Site, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`chiron serve` in a process of its own, which says by now where Prefect is found; killed at the end."""
    command = [sys.executable, "-c", "from flows.cli import main; main()", "serve", str(site.input), str(site.output)]
    options = ["--port", str(free_port()), "--method", "tkd", "--device", "cpu", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["CHIRON_KEY_FILE"] = str(site.input.parent / "key")
    with subprocess.Popen([*command, *options], env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr and "http://127.0.0.1" in process.stderr.readline()
            yield process
        finally:
            process.kill()


def published(output: Path) -> list[str]:
    return sorted(record["label"] for record in read_manifests(output) if record["state"] == "published")


@pytest.mark.slow
def test_a_served_folder_is_worked_on_through_a_server_that_dies(site: Site) -> None:
    """Real stages: what arrives is published, before and after the server is killed; then all of it ends in time."""
    from flows.demo import simulate

    first, second = (simulate(site.input.parent / f"made{seed}", "siemens", 6.0, seed).export for seed in (1, 2))
    with being_served(site, "--every", "10s", "--quiet", "2") as process:
        shutil.copytree(first, site.input / "first")
        wait_until(lambda: len(published(site.output)) == 1, 300)
        (server,) = (pid for pid, words in processes_of(site.output).items() if "flows.server" in words)
        os.kill(server, signal.SIGKILL)
        shutil.copytree(second, site.input / "second")
        wait_until(lambda: len(published(site.output)) == 2, 300)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=2 * STOPS_WITHIN_S)
        assert process.returncode == 0
    assert "server ended (signal 9)" in said and "Traceback" not in said
    assert processes_of(site.output) == {}
    assert verify(site.output) == []


@pytest.mark.slow
def test_a_served_folder_that_is_killed_leaves_no_process(site: Site) -> None:
    with being_served(site, "--every", "5s") as process:
        wait_until(lambda: any("prefect.engine" in words for words in processes_of(site.output).values()), 120)
        with pytest.raises(ChironError):
            serve(site, Times(), free_port(), print)
        process.kill()
        wait_until(lambda: processes_of(site.output) == {}, 15)
