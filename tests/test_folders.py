"""Folders that cannot be read or written: told by their code before anything is made, whoever the user is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_dicom import write

import flows.doctor
from flows.batch import Batch, run
from flows.cli import execute
from pipeline.disk import check_folder, disk_error
from pipeline.errors import ChironError
from pipeline.find import find
from pipeline.find.listing import check_readable
from pipeline.publish import prepare
from pipeline.settings import Settings

READERS = {
    "run": ["run", "IN", "OUT"],
    "inspect": ["inspect", "IN"],
    "inspect --json": ["inspect", "IN", "--json"],
    "serve": ["serve", "IN", "OUT"],
    "deploy": ["deploy", "IN", "OUT"],
    "step": ["step", "dipole", "IN", "OUT"],
    "status": ["status", "IN"],
    "report": ["report", "IN", "sub-a"],
    "reprocess": ["reprocess", "IN"],
    "reconcile": ["reconcile", "IN"],
    "prune": ["prune", "IN"],
    "grid": ["grid", "--quick", "--labels", "IN"],
    "train": ["train", "dip", "OUT", "--labels", "IN"],
    "train, fields": ["train", "cyclegan", "OUT", "--fields", "IN"],
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "key"))


def refusing(real: Callable[..., Any], refused: set[str], code: int) -> Callable[..., Any]:
    """The call of the system, but for these folders, which it does not list."""

    def call(path: Any, *more: Any) -> Any:
        if Path(os.fspath(path)).name in refused:
            raise OSError(code, os.strerror(code), os.fspath(path))
        return real(path, *more)

    return call


def unreadable(kind: str, folder: Path) -> None:
    """Make `folder` something that no export can be read from."""
    match kind:
        case "a file":
            folder.write_text("in the way")
        case "a link to nothing":
            folder.symlink_to(folder.parent / "gone")
        case "a circle":
            folder.symlink_to(folder)


@pytest.mark.parametrize("command", READERS, ids=str)
@pytest.mark.parametrize("kind", ["absent", "a file", "a link to nothing", "a circle"])
def test_a_folder_that_is_none_is_told_before_anything_is_made(
    kind: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unreadable(kind, tmp_path / "IN")
    before = sorted(tmp_path.rglob("*"))
    assert execute(READERS[command]) == 13
    assert capsys.readouterr().err.startswith("S003") and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", [name for name in READERS if not name.startswith(("grid", "train"))], ids=str)
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_listed_is_told_before_anything_is_made(
    code: int, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "IN").mkdir()
    monkeypatch.setattr(os, "scandir", refusing(os.scandir, {"IN"}, code))
    assert execute(READERS[command]) == 13
    said = capsys.readouterr().err
    assert said.startswith("S003") and os.strerror(code) in said and str(tmp_path) not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["IN"]


@pytest.mark.parametrize("command", ["run", "inspect", "status", "report", "reprocess", "reconcile", "prune", "step"])
def test_an_empty_word_is_not_the_working_folder(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["" if word == "IN" else word for word in READERS[command]]) == 13
    assert "empty path" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["run", "IN", ""], ["demo", ""], ["step", "dipole", "IN", " "]])
def test_an_empty_word_for_the_output_is_not_the_working_folder(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "IN").mkdir()
    assert execute(words) == 14
    assert sorted(path.name for path in tmp_path.iterdir()) == ["IN"]


def test_a_folder_of_folders_none_of_which_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / "IN" / name).mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refusing(os.scandir, {"a", "b"}, errno.EACCES))
        assert execute(["run", "IN", "OUT"]) == 13 and execute(["inspect", "IN"]) == 13
        assert "2 folders" in capsys.readouterr().err and not (tmp_path / "OUT").exists()
        (tmp_path / "IN" / "note.txt").write_text("something that can be read")
        check_readable(tmp_path / "IN")
    check_readable(tmp_path / "IN")


def test_a_folder_that_can_be_read_in_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "IN" / "a")
    (tmp_path / "IN" / "b").mkdir()
    monkeypatch.setattr(os, "scandir", refusing(os.scandir, {"b"}, errno.EACCES))
    export = find(tmp_path / "IN", b"k" * 32)
    assert len(export.scans) == 1 and [i.code for i in export.ignored] == ["F015"]


def test_a_batch_refuses_an_input_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "IN").mkdir()
    monkeypatch.setattr(os, "scandir", refusing(os.scandir, {"IN"}, errno.EACCES))
    with pytest.raises(ChironError, match="S003"):
        run(Batch(tmp_path / "OUT"), tmp_path / "IN", Settings(), b"k" * 32)
    assert not (tmp_path / "OUT").exists()


def test_an_empty_folder_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "IN").mkdir()
    check_folder(tmp_path / "IN")
    check_readable(tmp_path / "IN")


def doctored(output: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """What `doctor` exits with, and its line on the output folder."""
    before = sorted(output.parent.rglob("*"))
    code = execute(["doctor", str(output), "--device", "cpu"])
    assert sorted(output.parent.rglob("*")) == before
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "output folder:" in line]
    return code, line


def failing(code: int, place: Path) -> Callable[..., Any]:
    """`try_write` of a system that refuses that folder alone, whoever the user is."""

    def call(folder: Path, *_: Any) -> None:
        if folder == place:
            raise disk_error(OSError(code, os.strerror(code)))

    return call


def test_doctor_finds_that_an_output_folder_can_be_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctored(tmp_path / "a" / "b", capsys) == (0, "ok    output folder: can be made")
    prepare(tmp_path / "out")
    assert doctored(tmp_path / "out", capsys) == (0, "ok    output folder: can be written to")


@pytest.mark.parametrize(
    ("code", "fault"), [(errno.EACCES, "S002"), (errno.EROFS, "S002"), (errno.ENOSPC, "S001"), (errno.EDQUOT, "S001")]
)
@pytest.mark.parametrize("where", ["the folder", "its parent", "the private folder"])
def test_doctor_finds_an_output_folder_that_refuses_a_write(
    where: str,
    code: int,
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    if where != "its parent":
        prepare(output)
    place = {"the folder": output, "its parent": tmp_path, "the private folder": output / ".chiron"}[where]
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "elsewhere" / "key"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(flows.doctor, "try_write", failing(code, place))
    exit_code, line = doctored(output, capsys)
    assert exit_code == 14 and line.startswith("fail") and fault in line and os.strerror(code) in line


@pytest.mark.parametrize("kind", ["a file", "a link to nothing", "below a file", "another's dataset"])
def test_doctor_finds_what_stands_in_the_way(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    if kind == "another's dataset":
        output.mkdir()
        (output / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    elif kind == "below a file":
        output.write_text("in the way")
        output /= "results"
    else:
        unreadable(kind, output)
    exit_code, line = doctored(output, capsys)
    assert exit_code == 14 and line.startswith("fail") and "S002" in line


def test_doctor_tells_of_a_folder_that_is_read_only_for_everyone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("this system has no folder that refuses root too")
    code = execute(["doctor", "/proc/self", "--device", "cpu"])
    assert code == 14 and "fail  output folder: S002" in capsys.readouterr().out


def test_doctor_tells_where_no_key_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "file" / "key"))
    assert execute(["doctor", str(tmp_path), "--device", "cpu"]) == 15
    assert "none can be made" in capsys.readouterr().out
