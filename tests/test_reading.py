"""What `find` reads of an export, and what is read of a file that may still be being written."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pydicom
import pytest
from make_dicom import KEY, edit, write
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

import pipeline.find.reading
from pipeline.child import program
from pipeline.errors import ChironError
from pipeline.find import find
from pipeline.find.listing import list_files
from pipeline.find.study import study_of

SHAPE, TIMES = (4, 4, 2), (0.004, 0.008)


@pytest.fixture
def export(tmp_path: Path) -> list[Path]:
    return sorted(write(tmp_path / "export", shape=SHAPE, times=TIMES))


def study(path: Path) -> str:
    return str(pydicom.dcmread(path).StudyInstanceUID)


def test_the_number_of_processes_changes_nothing(
    export: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "export" / "more", "ge", patient="two", shape=SHAPE, times=TIMES)
    export[0].write_bytes(export[0].read_bytes()[:500])
    (tmp_path / "export" / "readme").write_text("x")
    (tmp_path / "export" / "link").symlink_to("readme")
    alone = find(tmp_path / "export", KEY)
    monkeypatch.setattr(pipeline.find.reading, "AT_ONCE", 3)
    monkeypatch.setattr(pipeline.find.reading, "WORTH_ONE", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    told: list[tuple[float, str]] = []
    assert find(tmp_path / "export", KEY, progress=lambda share, word: told.append((share, word))) == alone
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) > 3
    assert len(alone.scans) == 1 and {one.code for one in alone.ignored} == {"F002", "F014"}


def test_a_process_that_dies_is_told(export: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.find.reading, "WORTH_ONE", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(pipeline.find.reading, "python", lambda *words: program("/bin/false"))
    with pytest.raises(ChironError, match="R008"):
        find(export[0].parent, KEY)


def test_some_files_of_a_folder_are_as_a_folder_of_them(export: list[Path], tmp_path: Path) -> None:
    other = write(tmp_path / "export" / "other", "philips", patient="two", shape=SHAPE, times=TIMES)
    (some,) = find(tmp_path / "export", KEY, files=export).scans
    (alone,) = find(tmp_path / "export" / "other", KEY).scans
    assert set(some.files) == set(export) and find(tmp_path / "export", KEY, files=[*other, *other]).scans == (alone,)
    export[0].write_bytes(b"")
    export[1].unlink()
    export[2].unlink()
    export[2].symlink_to(other[0])
    export[3].unlink()
    os.mkfifo(export[3])
    found = find(tmp_path / "export", KEY, files=export)
    assert {one.ordinal: one.code for one in found.ignored} == {1: "F001", 3: "F014", 4: "F015"}
    assert {aside.code for aside in found.set_aside} >= {"F016"} and found.files_seen == len(export)
    assert [entry.ordinal for entry in list_files(tmp_path / "export", export)] == list(range(1, len(export) + 1))
    with pytest.raises(ChironError, match="S003"):
        find(tmp_path / "nowhere", KEY, files=export)


@pytest.mark.parametrize("preamble", [True, False])
@pytest.mark.parametrize("syntax", ["", ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_cut_anywhere_is_of_its_study_or_not_read_yet(tmp_path: Path, preamble: bool, syntax: str) -> None:
    """Never of another, as one whose identifier is cut short would be."""
    options = {"transfer_syntax": syntax} if syntax else {}
    path = write(tmp_path, shape=SHAPE, times=TIMES, **options)[0]
    wanted, whole = study(path), path.read_bytes()
    if not preamble:
        whole = whole[132:]
    seen = []
    for length in range(0, len(whole), 1 if preamble and not syntax else 7):
        path.write_bytes(whole[:length])
        try:
            seen.append(study_of(path))
        except ChironError as error:
            assert error.code == "F003" and not seen, length
        if len(seen) > 40:
            break
    assert set(seen) == {wanted} and len(seen) > 40


def test_a_study_is_known_however_long_the_header(export: list[Path]) -> None:
    wanted = study(export[0])

    def lengthen(dataset: pydicom.Dataset) -> None:
        dataset.private_block(0x0009, "LONG", create=True).add_new(1, "OB", bytes(2**20))

    edit(export[:1], lengthen)
    assert study_of(export[0]) == wanted


def test_a_deflated_file_is_of_its_study_or_not_read_yet(tmp_path: Path) -> None:
    path = write(tmp_path, shape=SHAPE, times=TIMES)[0]
    dataset = pydicom.dcmread(path)
    wanted = dataset.StudyInstanceUID
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    assert study_of(path) == wanted
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ChironError, match="F003"):
        study_of(path)


def test_what_is_no_image_of_a_study_is_told_apart(export: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x" * 1000)
    (tmp_path / "packed").write_bytes(zlib.compress(bytes(1000)))
    directory = pydicom.dcmread(export[0])
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    del directory.StudyInstanceUID
    directory.save_as(tmp_path / "DICOMDIR")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(export[0])
    for name, code in (("text", "F002"), ("packed", "F002"), ("DICOMDIR", "F002"), ("pipe", "F015"), ("link", "F015")):
        with pytest.raises(ChironError, match=code):
            study_of(tmp_path / name)
    with pytest.raises(ChironError, match="F016"):
        study_of(tmp_path / "nothing")
