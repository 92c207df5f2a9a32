"""A GPU is one process's at a time, whoever asks, and a holder that dies lets go. No GPU is needed to show it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def test_a_card_is_waited_for_and_the_time_is_told() -> None:
    with holding(1.0), card(GPU) as held:
        assert held.waited_s > 0.3
    assert held.seconds < 0.5


def test_a_holder_that_dies_lets_go() -> None:
    with holding(600) as process:
        os.kill(process.pid, signal.SIGKILL)
        began = time.monotonic()
        with card(GPU, wait_s=20):
            assert time.monotonic() - began < 10


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
@pytest.mark.parametrize(("workers", "least", "most"), [(1, 0.3, 0.7), (3, 0.8, 1.2)])
def test_a_card_does_not_idle_while_one_scan_computes_and_the_next_is_read(
    workers: int, least: float, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stages that sleep: two seconds on the cores, three on what is taken for a card."""
    monkeypatch.setenv("CHIRON_TEST_CORES", "2")
    monkeypatch.setenv("CHIRON_TEST_CARD", "3")
    stand_in.install(monkeypatch.setattr)
    monkeypatch.setattr(flows.crew, "Worker", flows.crew.process.Worker)
    (tmp_path / "in").mkdir()
    stand_in.export(tmp_path / "in", **{f"n{i}": "" for i in range(8)})
    ends: list[float] = []
    batch = Batch(
        tmp_path / "out", on_outcome=lambda outcome: ends.append(time.monotonic()), terms=Terms(workers, prefect=False)
    )
    run(batch, tmp_path / "in", stand_in.SETTINGS, stand_in.KEY)
    assert [outcome.state for outcome in batch.outcomes] == ["published"] * 8
    share = batch.card_s / 8 * 6 / (ends[-1] - ends[1])  # from when all workers are at it
    assert least < share < most and f"{100 * batch.card_s / batch.wall_s:.0f} %" in " ".join(batch.remarks())
