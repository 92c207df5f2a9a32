"""pyproject.toml and constraints.txt -> lock.txt: each file that the image installs, by version and SHA-256.

Run by `make lock` on the machine that the image is for (Linux on x86-64, CPython 3.11), where constraints.txt changed.
Nothing is installed and no file is fetched but the index's own notes on it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEAD = "# Written by docker/lock.py. Linux on x86-64, CPython 3.11, torch with CUDA.\n"


def main() -> None:
    """Ask pip what it would install for Chiron alone, and write that down."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        ask = ["install", "--dry-run", "--ignore-installed", "--only-binary=:all:", "--quiet", f"--report={report}"]
        subprocess.run([sys.executable, "-m", "pip", *ask, "-c", ROOT / "constraints.txt", ROOT], check=True)
        found = json.loads(report.read_text())["install"]
    lines = sorted(line(each) for each in found if each["metadata"]["name"] != "chiron-qsm")
    (ROOT / "docker" / "lock.txt").write_text(HEAD + "".join(lines))


def line(package: dict[str, Any]) -> str:
    """One package as pip reads it; an index that gives no hash is an error."""
    name, version = package["metadata"]["name"].lower().replace("_", "-"), package["metadata"]["version"]
    return f"{name}=={version} --hash=sha256:{package['download_info']['archive_info']['hashes']['sha256']}\n"


if __name__ == "__main__":
    main()
