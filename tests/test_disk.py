"""A disk without room, from the first write of a run on: S001 and exit 14, whatever was written when it was met."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_dicom import write

import flows.demo
import flows.engine
from flows import cli
from flows.cli import execute
from flows.engine import trial_server
from flows.serve import served
from flows.site import Site
from pipeline.convert import dcm2niix
from pipeline.disk import disk_error, try_write
from pipeline.errors import ChironError
from pipeline.publish import prepare
from pipeline.work import Made, Work


def refuse(code: int) -> Any:
    def call(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "S001"), (errno.EDQUOT, "S001"), (errno.EROFS, "S002"), (errno.EACCES, "S002"), (None, "S002")],
)
def test_a_failed_write_has_its_code(number: int | None, code: str) -> None:
    error = OSError(number, "text", "/secret") if number else OSError("no number")
    assert disk_error(error).code == code and "secret" not in str(disk_error(error))


def test_a_trial_leaves_no_trace_and_tells_what_the_disk_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try_write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ChironError, match="S002"):
        try_write(tmp_path / "absent")
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(ChironError, match="S001"):
        try_write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_prefect_is_not_started_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.engine, "_start", lambda listener: pytest.fail("a server was started"))
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(ChironError, match="S001"), trial_server(tmp_path / "prefect"):
        pass


class Dead:
    """A server that has ended, as it does on a disk that it has filled."""

    def poll(self) -> int:
        os.fsync = refuse(errno.ENOSPC)
        return 1


def test_a_server_that_a_full_disk_ends_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(flows.engine, "_start", lambda listener: Dead())
    monkeypatch.setattr(flows.engine, "_stop", lambda server: None)
    monkeypatch.setattr(os, "fsync", os.fsync)  # to be put back in the end
    with pytest.raises(ChironError, match="S001"), trial_server(tmp_path / "prefect"):
        pass
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(Dead, "poll", lambda self: 1)
    with pytest.raises(ChironError, match="R007"), trial_server(tmp_path / "prefect"):
        pass


def test_a_site_is_not_served_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path / "out")
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(ChironError, match="S001"):
        served(Site(tmp_path, tmp_path / "out"), 4200)


@pytest.mark.parametrize(("number", "exit", "code"), [(errno.ENOSPC, 14, "S001"), (errno.EROFS, 14, "S002")])
def test_a_full_disk_that_no_step_expected_is_none_of_our_errors(
    number: int,
    exit: int,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli.show, "night", refuse(number))
    prepare(tmp_path / "out")
    assert execute(["status", str(tmp_path / "out")]) == exit
    assert capsys.readouterr().err.startswith(code)


def test_an_array_that_the_disk_cannot_hold_is_a_full_disk(tmp_path: Path) -> None:
    """NumPy by itself loses the number of the error where it writes to a file of the system."""
    work = Work(tmp_path / "work")
    written = work.write("stage", "key", Made({"a": torch.arange(7.0)[1:].reshape(2, 3).T}), {})
    assert np.array_equal(written.array("a").numpy(), np.arange(1.0, 7).reshape(2, 3).T)
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "work" / f".full.{os.getpid()}").mkdir()
    real = Path.open

    def full(path: Path, *args: Any, **options: Any) -> Any:
        return real(Path("/dev/full") if path.name == "a.npy" else path, *args, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ChironError, match="S001"):
        patch.setattr(Path, "open", full)
        work.write("full", "key", Made({"a": torch.zeros(100000)}), {})


def test_a_demo_that_finds_no_room_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(made: flows.demo.Simulated, *_: Any) -> None:
        made.export.mkdir()
        (made.export / "1.dcm").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(flows.demo, "_write", half)
    with pytest.raises(ChironError, match="S001"):
        flows.demo.simulate(tmp_path, "siemens", 6.0, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Any]:
    """Mounts a disk of some size; the test skips where this user may not."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        try:
            done = subprocess.run(words, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("no mount on this system")
        if done.returncode:
            pytest.skip("this user may not mount a small disk")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


@pytest.mark.parametrize("size", ["4k", "64k", "1m"])
def test_a_run_on_a_disk_that_is_full_ends_at_once(
    size: str, small_disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "key"))
    write(tmp_path / "export")
    output = small_disk(size) / "out"
    assert execute(["run", str(tmp_path / "export"), str(output), "--method", "tkd", "--device", "cpu"]) == 14
    assert "S001" in capsys.readouterr().err


def test_a_conversion_that_finds_no_room_is_no_fault_of_the_images(
    small_disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write(tmp_path / "export")
    disk = small_disk("256k")
    for folder in (disk / "work" / "in", disk / "work" / "out"):
        folder.mkdir(parents=True)
    with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)  # they stand already
    with pytest.raises(ChironError, match="S001"):
        dcm2niix.run(files, disk / "work")


def test_a_key_on_a_disk_that_is_full(
    small_disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk("8k")
    (disk / "filler").write_bytes(b"x" * 8192)
    monkeypatch.setenv("CHIRON_KEY_FILE", str(disk / "chiron" / "key"))
    write(tmp_path / "export")
    assert execute(["inspect", str(tmp_path / "export")]) == 0  # it needs no room
    assert execute(["run", str(tmp_path / "export"), str(tmp_path / "out"), "--device", "cpu"]) == 14
    assert "S001" in capsys.readouterr().err
