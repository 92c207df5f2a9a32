"""Folders that cannot be read or written: told by their code before anything is made, whoever the user is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_dicom import write

from flows.batch import Batch, run
from flows.cli import execute
from pipeline.disk import check_folder
from pipeline.errors import ChironError
from pipeline.find import find
from pipeline.find.listing import check_readable
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
