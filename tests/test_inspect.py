"""`inspect` looks and changes nothing: no key, no home, no cache; its labels are those of a run, or said not to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from make_dicom import digests, write

from flows.cli import execute
from pipeline.find import find
from pipeline.identity import load_key

ROOT = Path(__file__).resolve().parents[1]
SAYS_LOADED = "import sys, flows.cli; code = flows.cli.execute(['inspect', sys.argv[1], '--json']); "
SAYS_LOADED += "print('prefect' in sys.modules, code)"


def inspected(source: Path, folder: Path, **environment: str) -> tuple[dict[str, Any], str]:
    """What a process of its own prints in `folder`, with that environment alone; and whether it loaded Prefect."""
    plain = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-c", SAYS_LOADED, str(source)]
    done = subprocess.run(command, cwd=folder, env=plain, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    text, _, last = done.stdout.rstrip().rpartition("\n")
    return json.loads(text), last


@pytest.mark.parametrize("home", ["its own", "none", "absent", "a file"])
def test_nothing_is_written_anywhere(home: str, tmp_path: Path) -> None:
    write(tmp_path / "export")
    (tmp_path / "home").mkdir()
    (tmp_path / "file").write_text("in the way")
    places = {"its own": tmp_path / "home", "absent": tmp_path / "absent", "a file": tmp_path / "file"}
    environment = {"HOME": str(places[home])} if home in places else {}
    temporary = {"TMPDIR": str(tmp_path / "home")}
    if home == "none":  # there may be a key of this user, who is asked of the system then
        environment["CHIRON_KEY_FILE"] = str(tmp_path / "absent" / "key")
    before = digests(tmp_path), sorted(tmp_path.rglob("*"))
    said, last = inspected(tmp_path / "export", tmp_path / "home", **environment, **temporary)
    assert last == "False 0"
    assert said["provisional_labels"] is True and len(said["scans"]) == 1
    assert (digests(tmp_path), sorted(tmp_path.rglob("*"))) == before


def test_with_a_key_the_labels_are_those_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "export")
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "key"))
    assert execute(["inspect", str(tmp_path / "export")]) == 0
    before = capsys.readouterr().out
    assert "provisional" in before and "no key" in before
    (scan,) = find(tmp_path / "export", load_key()).scans
    assert scan.label not in before
    assert execute(["inspect", str(tmp_path / "export")]) == 0
    after = capsys.readouterr().out
    assert scan.label in after and "provisional" not in after
    assert execute(["inspect", str(tmp_path / "export"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provisional_labels"] is False


def test_a_key_that_others_may_read_is_refused_as_by_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "export")
    (tmp_path / "key").write_bytes(b"k" * 32)
    (tmp_path / "key").chmod(0o644)
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "key"))
    assert execute(["inspect", str(tmp_path / "export")]) == 2
