"""Commands in a folder that holds what Python, Prefect and Numba would take for theirs: none of it is opened."""

from __future__ import annotations

import ast
import ctypes
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from make_site import free_port, make_site, serving, wait_until
from test_terminal import step

from flows.deploy import Times, deploy
from flows.pools import CPU
from pipeline import child
from pipeline.child import closed, elsewhere, python
from pipeline.settings import load

CHIRON = str(Path(sys.executable).with_name("chiron"))
PACKAGES = ("flows", "pipeline", "models", "prefect", "numpy", "rich", "typer")
MODULES = ("torch", "numba", "json", "re", "pickle", "random", "sitecustomize", "usercustomize", "multiprocessing")
SETTINGS = {
    ".env": "PREFECT_API_REQUEST_TIMEOUT=never\nPREFECT_PROFILES_PATH=profiles.toml\n",
    "prefect.toml": "this is = no TOML\n",
    "pyproject.toml": "[tool.prefect]\nhome = \n",
    "profiles.toml": "this is = no TOML\n",
    "prefect.yaml": "{",
    ".numba_config.yaml": "disable_jit: 1\n",
    "matplotlibrc": "backend: none of it\n",
    "setup.cfg": "[",
    "pydistutils.cfg": "[",
    "logging.yml": "{",
}
OPEN = 0x20  # IN_OPEN of inotify(7)


class Watched:
    """Folders; the names of what any process opens directly in them."""

    def __init__(self, *folders: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.handle = libc.inotify_init1(os.O_NONBLOCK)
        self.folders = {libc.inotify_add_watch(self.handle, os.fsencode(folder), OPEN): folder for folder in folders}
        assert self.handle >= 0 and min(self.folders) > 0

    def opened(self) -> set[str]:
        """Since the last call; a folder that is listed has its own name."""
        names = set()
        while events := self._events():
            while events:
                number, _, _, length = struct.unpack_from("iIII", events)
                name = events[16 : 16 + length].rstrip(b"\0").decode()
                names.add(name or self.folders[number].name)
                events = events[16 + length :]
        return names

    def _events(self) -> bytes:
        try:
            return os.read(self.handle, 1 << 16)
        except BlockingIOError:
            return b""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The hostile one."""
    path = tmp_path / "data"
    path.mkdir()
    trap = (
        f"open({str(tmp_path / 'trapped')!r}, 'a').write(__file__)\nraise SystemExit('taken from the working folder')\n"
    )
    for name in PACKAGES:
        (path / name).mkdir()
        (path / name / "__init__.py").write_text(trap)
    for name in MODULES:
        (path / f"{name}.py").write_text(trap)
    for name, text in SETTINGS.items():
        (path / name).write_text(text)
    return path


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """Without a Prefect of its own; the key's path is a relative one, and children could search the working folder."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return plain | {"CHIRON_KEY_FILE": "key", "PYTHONPATH": os.pathsep.join(["", ".", "models"])}


@pytest.fixture
def watched(folder: Path, tmp_path: Path) -> Iterator[Watched]:
    """Nothing of the folder but what the command was given may be opened in a test."""
    watched = Watched(folder, *(folder / name for name in PACKAGES))
    yield watched
    opened = {name for name in watched.opened() if not name.startswith((".key.", "#"))}  # aside, or nameless: ours
    assert opened <= {"in", "out", "demo", "key", "artefacts", "made"}
    assert not (tmp_path / "trapped").exists()
    os.close(watched.handle)


def chiron(folder: Path, environment: dict[str, str], *words: str | Path) -> list[str]:
    """Run the command there; returns the lines printed. `-E` keeps $PYTHONPATH from it, not from its children."""
    command = [sys.executable, "-E", CHIRON, *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.usefixtures("watched")
def test_a_scan_is_done_from_the_demo_to_its_reprocessing(folder: Path, surroundings: dict[str, str]) -> None:
    few = ["--device", "cpu", "--set", "dip.iterations=0"]
    chiron(folder, surroundings, "demo", "demo", "--voxel-size", "6", "--method", "tkd", *few)
    (export,) = (folder / "demo" / "sourcedata").glob("*/export")
    export.rename(folder / "in")
    assert "will be run" in " ".join(chiron(folder, surroundings, "inspect", "in"))
    printed = chiron(
        folder, surroundings, "run", "in", "out", "--method", "tkd", "--device", "cpu", "--set", "keep_work=true"
    )
    assert any(Path(line.strip()).is_relative_to(folder / "out") for line in printed)
    chiron(folder, surroundings, "reprocess", "out", "--method", "rts", "--device", "cpu")
    (report,) = chiron(folder, surroundings, "report", "out", printed[0].split()[0].partition("_")[0])
    assert Path(report).is_file() and (folder / "key").is_file()
    chiron(folder, surroundings, "reconcile", "out")
    chiron(folder, surroundings, "prune", "out")
    chiron(folder, surroundings, "status", "out")


@pytest.mark.usefixtures("watched")
def test_a_step_reads_and_writes_where_it_was_told(folder: Path, surroundings: dict[str, str]) -> None:
    step(folder)
    made = chiron(folder, surroundings, "step", "dipole", "artefacts", "made", "--method", "tkd", "--device", "cpu")
    assert made == [str(folder / "made" / "chimap.nii.gz")] and Path(made[0]).is_file()


@pytest.mark.usefixtures("watched")
def test_the_doctor_finds_the_installation(folder: Path, surroundings: dict[str, str]) -> None:
    said = chiron(folder, surroundings, "doctor", "out", "--device", "cpu", "--deep")
    assert any(line.startswith("ok") and "Prefect" in line for line in said)


@pytest.mark.slow
@pytest.mark.usefixtures("watched")
def test_the_module_is_the_command_and_its_children_are_as_safe(folder: Path, surroundings: dict[str, str]) -> None:
    command = [sys.executable, "-E", "-P", "-m", "flows.cli", "doctor", "--device", "cpu", "--deep"]
    assert subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("watched")
def test_a_bench_starts_its_processes_elsewhere(folder: Path, surroundings: dict[str, str]) -> None:
    words = ["--size", "24x24x24", "--echoes", "3", "--step", "invert-tkd", "--repeat", "1", "--device", "cpu"]
    assert any("`invert-tkd`" in line for line in chiron(folder, surroundings, "bench", *words))


def test_a_site_is_served_from_there(folder: Path, surroundings: dict[str, str], watched: Watched) -> None:
    (folder / "in").mkdir()
    words = ["serve", "in", "out", "--port", str(free_port()), "--every", "5s", "--device", "cpu", "--method", "tkd"]
    command = [sys.executable, "-E", CHIRON, *words]
    with subprocess.Popen(command, cwd=folder, env=surroundings, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: completed(folder / "out"), 240)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def test_a_worker_takes_nothing_from_there(
    folder: Path, surroundings: dict[str, str], watched: Watched, tmp_path: Path
) -> None:
    site = make_site(tmp_path)
    with serving(site):
        deploy(Times(intake_s=5))
        environment = {**os.environ, **{name: surroundings[name] for name in ("PYTHONPATH",)}}
        command = [sys.executable, "-E", CHIRON, "worker", str(site.output), "--pool", CPU]
        with subprocess.Popen(command, cwd=folder, env=environment) as process:
            try:
                wait_until(lambda: completed(site.output), 240)
            finally:
                process.send_signal(signal.SIGTERM)


def completed(output: Path) -> bool:
    """Whether a scheduled run has come to its end."""
    database = output / ".chiron" / "prefect" / "prefect.db"
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            query = "select count(*) from flow_run where auto_scheduled and state_type = 'COMPLETED'"
            return bool(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return False


def test_children_search_no_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/somewhere"])
    given = {"PYTHONPATH": f":{tmp_path}:relative:", "PATH": ".:/usr/bin:", "LD_LIBRARY_PATH": ":", "TMPDIR": "scratch"}
    with monkeypatch.context() as here:
        here.chdir(tmp_path)
        assert closed(given) == {
            "PYTHONPATH": str(tmp_path),
            "PATH": "/usr/bin",
            "TMPDIR": str(tmp_path / "scratch"),
            "PYTHONSAFEPATH": "1",
        }
    start = python("flows.server", "3", environment={})
    assert start["args"] == [sys.executable, "-P", "-m", "flows.server", "3"] and start["cwd"] == child.NOWHERE


def test_a_checkout_that_is_not_installed_is_found_by_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(child.ROOT)])
    assert closed({}) == {"PYTHONPATH": str(child.ROOT), "PYTHONSAFEPATH": "1"}


def test_the_first_process_forgets_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {"PYTHONPATH": f"::relative:{tmp_path / 'meant'}"})
    paths = [str(tmp_path), str(tmp_path / "relative"), str(tmp_path / "meant"), "/usr/lib"]
    monkeypatch.setattr(sys, "path", paths)
    child.close()
    assert sys.path == [str(tmp_path / "meant"), "/usr/lib"]
    assert os.environ == {"PYTHONPATH": str(tmp_path / "meant"), "PYTHONSAFEPATH": "1"}


def test_relative_paths_are_those_of_the_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with elsewhere():
        assert Path.cwd() == Path(child.NOWHERE)
        assert child.absolute([Path("a"), Path("/b"), "c", None]) == [tmp_path / "a", Path("/b"), "c", None]
        assert load(None, ["mask.file=own.nii"]).mask.file == str(tmp_path / "own.nii")
    assert Path.cwd() == tmp_path


SOURCES = [path for floor in ("pipeline", "flows", "models") for path in (child.ROOT / floor).rglob("*.py")]
STARTS = {f"{module}{name}" for module in ("subprocess.", "") for name in ("Popen", "check_call", "check_output")}
STARTS |= {"subprocess.run", "subprocess.call"}
OTHERS = {
    "sys.executable",
    "multiprocessing.get_context",
    "multiprocessing.Process",
    "os.system",
    "os.popen",
    "os.fork",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(child.ROOT)))
def test_every_process_is_started_as_one_module_says(path: Path) -> None:
    if path == Path(child.__file__):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Attribute) or ast.unparse(node) not in OTHERS
        if isinstance(node, ast.Call) and ast.unparse(node.func) in STARTS:
            assert any(word.arg is None for word in node.keywords), ast.unparse(node)
