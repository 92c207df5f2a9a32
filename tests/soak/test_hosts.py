"""Two hosts that share nothing but two folders: no scan is done twice, none is lost, and two are faster than one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from soak.many import copy, write_patterns

from pipeline.publish import verify

SCANS = 24
CHIRON = str(Path(sys.executable).with_name("chiron"))
WORDS = ["--method", "rts", "--device", "cpu", "--workers", "1", "--json"]
ALONE = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]

pytestmark = pytest.mark.slow


def test_two_hosts_share_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if len(os.sched_getaffinity(0)) < 2 or not _can_be_hosts():
        pytest.skip("two cores and network namespaces are needed")
    patterns = write_patterns(tmp_path / "patterns", seeds=2)
    for number in range(SCANS):
        copy(patterns[number % len(patterns)], tmp_path / "in" / f"exam{number}", number)
    alone_s, alone = _race(tmp_path, "one", [0])
    together_s, together = _race(tmp_path, "two", [0, 1])
    for each in (alone, together):
        done = [label for outcomes in each for label, state in outcomes.items() if state == "published"]
        assert len(done) == len(set(done)) == SCANS
    assert not verify(tmp_path / "two")
    shares = [list(outcomes.values()).count("published") for outcomes in together]
    with capsys.disabled():
        print(f"\none host {alone_s:.0f} s, two {together_s:.0f} s: {alone_s / together_s:.2f} times as fast, {shares}")
    assert min(shares) > 0


def _race(folder: Path, name: str, cores: list[int]) -> tuple[float, list[dict[str, str]]]:
    """Seconds until the hosts, one a core, are done, and what each says of every scan."""
    environment = {**os.environ, "CHIRON_KEY_FILE": str(folder / "key")}
    began = time.monotonic()
    hosts = []
    for core in cores:
        command = ["taskset", "--cpu-list", str(core), *ALONE, CHIRON, "run", str(folder / "in"), str(folder / name)]
        hosts.append(subprocess.Popen([*command, *WORDS], env=environment, stdout=subprocess.PIPE, text=True))
    said = [json.loads(host.communicate(timeout=3600)[0]) for host in hosts]
    seconds = time.monotonic() - began
    assert all(host.returncode in (0, 11) for host in hosts)
    return seconds, [{outcome["label"]: outcome["state"] for outcome in each} for each in said]


def _can_be_hosts() -> bool:
    if not shutil.which("unshare") or not shutil.which("ip"):
        return False
    return subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
