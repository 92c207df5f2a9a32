"""Runner, worker or both killed at random instants: what is published is whole, always."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import stand_in
from soak.processes import below
from stand_in import export

from pipeline.publish import verify

KILLS = int(os.environ.get("CHIRON_SOAK_KILLS", 200))
A_LIFE = 6  # kills before a run is left to end
TARGETS = {"runner": "stand_in.py run", "worker": "stand_in.py worker", "all": ""}

pytestmark = pytest.mark.slow


def test_kills_at_random(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    export(source, **{f"n{i}": "" for i in range(8)})
    _run(source, tmp_path / "calm").wait(300)
    calm = _maps(tmp_path / "calm")
    usual = _seconds(source, tmp_path)
    dice, killed, output = random.Random(5), Counter[str](), tmp_path / "out"
    began = time.monotonic()
    while sum(killed.values()) < KILLS:
        for _ in range(A_LIFE):
            killed[_one(source, output, dice, usual)] += 1
            assert not verify(output)
            found = _maps(output)
            assert found.items() <= calm.items()
        assert _run(source, output).wait(300) in (0, 11)
        assert _maps(output) == calm and not verify(output)
        shutil.rmtree(output)
    with capsys.disabled():
        print(f"\n{dict(killed)} in {time.monotonic() - began:.0f} s")


def _one(source: Path, output: Path, dice: random.Random, usual_s: float) -> str:
    """Start a run, kill one of its processes, or all, at an instant of its usual span; what is left of it ends."""
    target = dice.choice(list(TARGETS))
    process = _run(source, output)
    time.sleep(dice.uniform(0.2, usual_s))
    victims = below(process.pid, TARGETS[target])
    for victim in victims if target == "all" else victims[:1]:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    try:
        process.wait(90)  # without its runner at once; else it goes on, and must end by itself
    finally:
        process.kill()
    return target if victims else "too late"


def _run(source: Path, output: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"CHIRON_KEY_FILE": str(source.parent / "key"), "CHIRON_TEST_HANG": "0.2"}
    command = [sys.executable, stand_in.__file__, "run", str(source), str(output), "--method", "tkd", "--device", "cpu"]
    return subprocess.Popen(
        [*command, "--workers", "2"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _seconds(source: Path, scratch: Path) -> float:
    began = time.monotonic()
    _run(source, scratch / "timed").wait(300)
    return time.monotonic() - began


def _maps(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.glob("sub-*/**/*.nii.gz"))}
