"""`chiron status`: what runs, then what needs a look, then how many are well; for a person, a program, a watcher."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from make_night import claim, failure, make, record, write

from flows.cli import execute
from pipeline.ledger import read_manifests
from pipeline.publish import prepare

COMMAND = [sys.executable, "-c", "from flows.cli import main; main()", "status"]


def note() -> str:
    return json.dumps({"stage": "invert-dip", "title": "fitting the network", "since": time.time() - 75})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return make(tmp_path / "out", 40)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert execute(["status", *words]) == 0
    return capsys.readouterr().out


def test_running_scans_stand_first_then_the_worst(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claim(output, "a", "sub-runner_ses-1", now=note(), held=True):
        text = said(capsys, str(output))
    order = ("sub-runner_ses-1", "│ failed", "│ set aside", r"published +│ do not use", r"published +│ check")
    places = [re.search(word, text).start() for word in order]  # type: ignore[union-attr]
    assert places == sorted(places)
    assert re.search(r"fitting the network +│ (7|8)\d s", text)
    assert "usable, 2 to check" in text and "1 running" in text and "34 usable ones are not listed" in text


def test_usable_scans_are_listed_where_all_are_asked_for(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {found["label"] for found in read_manifests(output)}
    some, every = said(capsys, str(output)), said(capsys, str(output), "--all")
    assert sum(label in some for label in labels) == 6 and all(label in every for label in labels)


def test_a_program_is_told_records_counts_and_what_runs(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claim(output, "a", "sub-runner_ses-1", now=note(), held=True):
        told = json.loads(said(capsys, str(output), "--json"))
    assert told["scans"] == read_manifests(output)
    assert told["counts"]["published"]["usable"] == 34 and told["counts"]["running"] == 1
    assert told["running"][0]["label"] == "sub-runner_ses-1" and told["running"][0]["stage"] == "invert-dip"


def test_an_output_in_which_nothing_was_done_is_said_to_be_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "out")
    assert said(capsys, str(tmp_path / "out")).strip() == "No scan has ended yet."
    (tmp_path / "mistyped").mkdir()
    assert execute(["status", str(tmp_path / "mistyped")]) == 13


def test_watching_ends_where_nobody_reads(output: Path) -> None:
    words = f"{shlex.quote(sys.executable)} -m flows.cli status {shlex.quote(str(output))} --watch | head -1"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "scans" in done.stdout


def test_markup_in_a_label_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = failure("P007", "a mask of [bold]3[/bold] ml")
    write(tmp_path / "failed/a", record("sub-[red]a[/red]", "failed", "do not use", failure=broken))
    text = said(capsys, str(tmp_path))
    assert "[red]a[/red]" in text and "[bold]3[/bold]" in text


def test_a_watcher_and_a_program_are_not_the_same(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["status", str(output), "--json", "--watch"]) == 2
    assert execute(["status", str(output / "absent"), "--watch"]) == 13


def test_watching_shows_what_changes_until_it_is_interrupted(output: Path) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "140", "LINES": "60"}
    with subprocess.Popen(
        [*COMMAND, str(output), "--watch"], stdin=slave, stdout=slave, stderr=slave, env=environment
    ) as process:
        os.close(slave)
        try:
            seen = read_until(master, "40 scans")
            write(output / "sub-new", record("sub-new"))
            seen += read_until(master, "41 scans")
            process.send_signal(signal.SIGINT)
            seen += read_until(master, "")  # a full terminal would hold it up
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()  # else what watches would be waited for without end
            os.close(master)
    assert "Traceback" not in seen


def read_until(master: int, word: str) -> str:
    """What a terminal is shown until there is a word, or until its end where none is given."""
    text, until = "", time.monotonic() + 60
    while not word or word not in text:
        ready, _, _ = select.select([master], [], [], max(0.0, until - time.monotonic()))
        assert ready, text
        try:
            text += os.read(master, 4096).decode("utf-8", "replace")
        except OSError:  # the other end is closed
            assert not word, text
            break
    return text


def test_it_answers_at_once_for_a_thousand_scans(tmp_path: Path) -> None:
    """The time of the processor, so that a busy machine does not matter; nothing that computes is loaded."""
    make(tmp_path, 1000, picture=None)
    code = (
        f"import sys, time; sys.argv[1:] = ['status', {str(tmp_path)!r}]; from flows.cli import execute\n"
        "assert execute(sys.argv[1:]) == 0 and not {'torch', 'numpy', 'prefect'} & set(sys.modules)\n"
        "assert time.process_time() < 1.5, time.process_time()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1,000 scans: 850 usable" in done.stdout
