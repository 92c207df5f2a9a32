"""What Prefect costs a scan: the same scans, whose stages take no time, with it and without."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import stand_in

import flows.crew
import flows.crew.process
from flows.batch import Batch, run
from flows.crew import Terms
from flows.engine import trial_server

SCANS = 25

pytestmark = pytest.mark.slow


def test_what_prefect_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.install(monkeypatch.setattr)
    monkeypatch.setattr(flows.crew, "Worker", flows.crew.process.Worker)
    (tmp_path / "in").mkdir()
    stand_in.export(tmp_path / "in", **{f"n{i}": "" for i in range(SCANS)})
    alone = _seconds_a_scan(tmp_path / "in", tmp_path / "alone")
    with trial_server(tmp_path / "prefect"):
        with_prefect = _seconds_a_scan(tmp_path / "in", tmp_path / "reported")
    database = tmp_path / "prefect" / "prefect.db"
    with capsys.disabled():
        print(f"\n{with_prefect:.3f} s a scan with Prefect, {alone:.3f} s without;")
        print(f"its database {database.stat().st_size / 2**20:.2f} MiB after {SCANS} scans")
    assert database.stat().st_size < SCANS * 2**19


def _seconds_a_scan(source: Path, output: Path) -> float:
    """Of the later ones: the first wait for imports."""
    ends: list[float] = []
    batch = Batch(output, on_outcome=lambda outcome: ends.append(time.monotonic()), terms=Terms(1, 1))
    run(batch, source, stand_in.SETTINGS, stand_in.KEY)
    assert not batch.prefect_lost and len(ends) == SCANS
    return (ends[-1] - ends[4]) / (SCANS - 5)
