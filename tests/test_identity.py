"""Keys are private, pseudonyms are keyed and BIDS-safe."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_dicom import KEY, SENTINEL, TIMES, search, write

from pipeline.errors import ChironError
from pipeline.identity import existing_key, key_file, label_of, load_key, load_labels, pseudonym


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHIRON_KEY_FILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    first = load_key()
    assert len(first) >= 32 and load_key() == first
    assert key_file() == tmp_path / "chiron" / "pseudonym.key"
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    assert [p.name for p in key_file().parent.iterdir()] == ["pseudonym.key"]


def test_the_named_key_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "own.key"))
    assert load_key() == (tmp_path / "own.key").read_bytes()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "key"
    load_key(file)
    file.chmod(mode)
    with pytest.raises(ChironError, match="X002") as error:
        load_key(file)
    assert str(tmp_path) not in str(error.value)


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"short")
    file.chmod(0o600)
    with pytest.raises(ChironError, match="X002"):
        load_key(file)


def test_a_key_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ChironError, match=r"[SX]002"):
        load_key(tmp_path / "file" / "key")


def test_a_key_that_is_there_is_read_and_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "absent" / "key"))
    (tmp_path / "file").write_text("in the way")
    for place in (None, tmp_path / "key", tmp_path / "file" / "key", tmp_path / ("x" * 300)):
        assert existing_key(place) is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    key = load_key(tmp_path / "key")
    assert existing_key(tmp_path / "key") == key
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(ChironError, match="X002"):
        existing_key(tmp_path / "key")


def test_without_a_home_there_is_no_key_and_none_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHIRON_KEY_FILE", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert existing_key() is None
    with pytest.raises(ChironError, match="S002") as caught:
        load_key()
    assert "CHIRON_KEY_FILE" in caught.value.todo


@pytest.mark.parametrize(("code", "expected"), [(errno.ENOSPC, "S001"), (errno.EDQUOT, "S001"), (errno.EROFS, "S002")])
def test_a_disk_without_room_for_the_key_is_told(
    code: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ChironError, match=expected):
        load_key(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=40), st.text(max_size=40))
def test_labels_are_bids_safe_and_tell_texts_and_keys_apart(a: str, b: str) -> None:
    label = pseudonym(b"k" * 32, a, b)
    assert re.fullmatch(r"[a-z2-7]{10}", label)
    assert label != pseudonym(b"l" * 32, a, b)
    assert label == pseudonym(b"k" * 32, a, b)
    assert label != pseudonym(b"k" * 32, a + "x", b)


def test_parts_do_not_run_into_each_other() -> None:
    assert pseudonym(b"k" * 32, "ab", "c") != pseudonym(b"k" * 32, "a", "bc")


def table(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "labels.tsv"
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
    return file


@pytest.mark.parametrize(
    "text", ["A 1\tone\nB,2\ttwo\n", "\ufeffPatientID\tlabel\r\nA 1\tone\r\n\r\nB,2\ttwo\r\nA 1\tone"]
)
def test_a_table_of_labels_is_read(tmp_path: Path, text: str) -> None:
    assert load_labels(table(tmp_path, text)) == {"A 1": "one", "B,2": "two"}


def test_commas_serve_where_there_are_no_tabs(tmp_path: Path) -> None:
    assert load_labels(table(tmp_path, 'Patient ID,Label\n"A, B",one\nC,two')) == {"A, B": "one", "C": "two"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Zaphod\tone\nFord\tONE", "G005"),
        ("Zaphod\tone\nZaphod\ttwo", "G005"),
        ("Zaphod\tsub-one", "X002"),
        ("Zaphod\t../x", "X002"),
        ("Zaphod\t" + 65 * "a", "X002"),
        ("Zaphod\tone\tmore", "X002"),
        ("Zaphod", "X002"),
        ("\tone", "X002"),
        ("Zaphod," + 200_000 * "a", "X002"),
    ],
)
def test_a_table_that_is_ambiguous_or_none_is_refused(tmp_path: Path, text: str, code: str) -> None:
    with pytest.raises(ChironError) as caught:
        load_labels(table(tmp_path, text))
    assert caught.value.code == code and "Zaphod" not in str(caught.value)


def test_a_table_must_be_text_and_private(tmp_path: Path) -> None:
    with pytest.raises(ChironError, match=r"X002.*others may read"):
        load_labels(table(tmp_path, "A\tone", 0o640))
    table(tmp_path, "").write_bytes(b"A\tone\xff")
    for file in (tmp_path / "labels.tsv", tmp_path / "absent"):
        with pytest.raises(ChironError, match="X002") as caught:
            load_labels(file)
        assert str(tmp_path) not in str(caught.value)


def test_a_label_is_found_with_and_without_who_issued_the_identity() -> None:
    labels = {"A": "one", "B\\Ward": "two"}
    assert [label_of(labels, patient) for patient in ("A", "A\\Ward", "B\\Ward", "B")] == ["one", "one", "two", None]


def test_labels_stand_in_place_of_pseudonyms(tmp_path: Path) -> None:
    write(tmp_path / "a", patient="a", times=TIMES[:1])
    write(tmp_path / "b", patient="b", times=TIMES[:1])
    of_b = pseudonym(KEY, "patient", f"{SENTINEL}-b")
    found = search(tmp_path, labels={f"{SENTINEL}-a": "P01", "nobody": "P02"})
    assert [scan.subject for scan in found.scans] == ["P01", of_b]
    both = search(tmp_path, labels={f"{SENTINEL}-a": of_b.upper()})
    assert not both.scans and {aside.code for aside in both.set_aside} == {"G005"}
    (given,) = search(tmp_path / "a", subject="P7", labels={f"{SENTINEL}-a": "P01"}).scans
    assert given.subject == "P7"
