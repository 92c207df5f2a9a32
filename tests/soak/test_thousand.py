"""A night of a thousand scans, a tenth of them faulty: the faulty ones alone are set aside, and nothing grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from soak.many import FAULTS, copy, write_patterns

from pipeline.ledger import read_manifests
from pipeline.publish import verify

SCANS = int(os.environ.get("CHIRON_SOAK_SCANS", 1000))
LIGHT = ["--method", "tkd", "--device", "cpu", "--set", "background.method=vsharp"]

pytestmark = pytest.mark.slow


def test_a_thousand_scans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = _export(tmp_path / "in", tmp_path / "patterns")
    chiron = str(Path(sys.executable).with_name("chiron"))
    command = [chiron, "run", str(tmp_path / "in"), str(tmp_path / "out"), *LIGHT, "--workers", "2", "--json"]
    started = time.monotonic()
    environment = {**os.environ, "CHIRON_KEY_FILE": str(tmp_path / "key")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    memory: list[tuple[int, int]] = []
    threading.Thread(target=_sample, args=[process, tmp_path / "out", memory], daemon=True).start()
    outcomes = json.loads(process.communicate(timeout=6 * 3600)[0])
    seconds = time.monotonic() - started
    assert process.returncode == 10
    assert Counter(o["code"] for o in outcomes) == expected
    records = read_manifests(tmp_path / "out")
    assert len(records) == SCANS and not verify(tmp_path / "out")
    late = [rss for done, rss in memory if done >= SCANS // 10]
    work = [sum(stage["seconds"] for stage in r["stages"]) for r in records if r["state"] == "published"]
    with capsys.disabled():
        print(f"\n{SCANS} scans in {seconds:.0f} s; a worker had {2 * seconds / len(work):.2f} s for each it computed,")
        print(f"of which stages {sum(work) / len(work):.2f} s; runner {late[0] / 2**20:.0f} MiB after a tenth of them,")
        print(f"{late[-1] / 2**20:.0f} MiB at the end")
    assert max(late) <= 1.05 * late[0]


def _export(folder: Path, patterns: Path) -> Counter[str]:
    """Write the exports; how often each code is to come."""
    made = write_patterns(patterns)
    siemens = [path for path in made if path.name.startswith("siemens")]
    codes = list(FAULTS)
    expected: Counter[str] = Counter()
    for number in range(SCANS):
        if number % 10 == 3:
            code = codes[number // 10 % len(codes)]
            FAULTS[code](copy(siemens[number % len(siemens)], folder / f"exam{number:04}", number))
        else:
            code = ""
            copy(made[number % len(made)], folder / f"exam{number:04}", number)
        expected[code] += 1
    return expected


def _sample(process: subprocess.Popen[Any], output: Path, memory: list[tuple[int, int]]) -> None:
    """Scans published, and resident bytes of the runner, every few seconds."""
    while process.poll() is None:
        time.sleep(2)
        done = len(list(output.glob("sub-*")))
        with suppress(OSError):  # it has just ended
            lines = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            if "VmRSS" in lines:
                memory.append((done, int(lines["VmRSS"].split()[0]) * 1024))
