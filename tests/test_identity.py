"""Keys are private, pseudonyms are keyed and BIDS-safe."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ChironError
from pipeline.identity import key_file, load_key, pseudonym


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


@given(st.text(max_size=40), st.text(max_size=40))
def test_labels_are_bids_safe_and_tell_texts_and_keys_apart(a: str, b: str) -> None:
    label = pseudonym(b"k" * 32, a, b)
    assert re.fullmatch(r"[a-z2-7]{10}", label)
    assert label != pseudonym(b"l" * 32, a, b)
    assert label == pseudonym(b"k" * 32, a, b)
    assert label != pseudonym(b"k" * 32, a + "x", b)


def test_parts_do_not_run_into_each_other() -> None:
    assert pseudonym(b"k" * 32, "ab", "c") != pseudonym(b"k" * 32, "a", "bc")
