"""A GPU is one process's at a time, whoever asks, and a holder that dies lets go. No GPU is needed to show it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import stand_in
import torch

import flows.crew
import flows.crew.process
import pipeline.card
from flows.batch import Batch, run
from flows.crew import Terms
from pipeline.card import card
from pipeline.errors import ChironError

GPU = torch.device("cuda", 0)

HOLD = """
import sys, time, torch, pipeline.card
pipeline.card._name = lambda device: "test"
with pipeline.card.card(torch.device("cuda", 0)):
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def _locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIRON_LOCKS", str(tmp_path))
    monkeypatch.setattr(pipeline.card, "_name", lambda device: "test")


def holding(seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_a_card_is_waited_for_and_the_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own, that goes on by a second with each look at it; another has the card for five tries."""
    clock, tries = count(100.0), count()
    monkeypatch.setattr(pipeline.card, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda s: None))
    monkeypatch.setattr(pipeline.card, "try_lock", lambda handle: next(tries) >= 5)
    with card(GPU) as held:
        assert held.waited_s == 6.0  # each of five tries looked at the clock once, the sum once more
    assert held.seconds == 1.0


def test_a_card_that_another_process_has_is_not_taken() -> None:
    with holding(600) as process:
        with pytest.raises(ChironError, match="R001"), card(GPU, wait_s=0.0):
            pass
        process.kill()
    with card(GPU, wait_s=60):
        pass


def test_a_holder_that_dies_lets_go() -> None:
    with holding(600) as process:
        os.kill(process.pid, signal.SIGKILL)
        with card(GPU, wait_s=60):  # else R001
            pass


def test_a_card_that_does_not_become_free_is_named() -> None:
    with holding(600) as process:
        with pytest.raises(ChironError) as caught, card(GPU, wait_s=0.1):
            pass
        process.kill()
    assert caught.value.code == "R001"


def test_the_cpu_is_nobodys(tmp_path: Path) -> None:
    with card(torch.device("cpu")) as outer, card(torch.device("cpu")):
        pass
    assert outer.waited_s == 0 and not list(tmp_path.iterdir())


def test_a_lock_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIRON_LOCKS", "/proc/none")
    with pytest.raises(ChironError) as caught, card(GPU):
        pass
    assert caught.value.code == "R001"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_a_card_does_not_idle_while_one_scan_computes_and_the_next_is_read(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stages that sleep: two seconds on the cores, three on what is taken for a card."""
    monkeypatch.setenv("CHIRON_TEST_CORES", "2")
    monkeypatch.setenv("CHIRON_TEST_CARD", "3")
    stand_in.install(monkeypatch.setattr)
    monkeypatch.setattr(flows.crew, "Worker", flows.crew.process.Worker)
    (tmp_path / "in").mkdir()
    stand_in.export(tmp_path / "in", **{f"n{i}": "" for i in range(8)})
    batch = Batch(tmp_path / "out", terms=Terms(workers))
    run(batch, tmp_path / "in", stand_in.SETTINGS, stand_in.KEY)
    assert [outcome.state for outcome in batch.outcomes] == ["published"] * 8
    begun = (tmp_path / "out" / ".chiron" / "stages.txt").read_text().split("\n")
    assert begun[1].endswith("convert") == (workers == 3)  # the next one is read before the first has its map
    assert f"{100 * batch.card_s / batch.wall_s:.0f} %" in " ".join(batch.remarks())
