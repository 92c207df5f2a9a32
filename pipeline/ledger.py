"""An output folder -> the records of all manifests in it. It imports nothing heavy: who only looks is answered at once.

A manifest is `{"format": 1, "scans": [record, ...]}`, one in each session's folder. It is the only ledger.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORMAT = 1
NAME = "manifest.json"

Record = dict[str, Any]


def read_manifests(output: Path) -> list[Record]:
    """Every record below `output`, with its `folder` relative to it: what is published, then what failed since."""
    published = [r for folder in _folders(output, "sub-*", "sub-*/ses-*") for r in _located(output, folder)]
    latest = {r["label"]: r["finished"] for r in published}
    failed = [r for folder in _folders(output, "failed/*", "set-aside/*") for r in _located(output, folder)]
    return published + [r for r in failed if r["finished"] >= latest.get(r["label"], "")]


def read(folder: Path) -> list[Record]:
    """The records of the manifest in `folder`; none where there is no manifest that can be read."""
    try:
        manifest = json.loads((folder / NAME).read_text())
        scans = manifest["scans"] if manifest["format"] == FORMAT else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return list(scans)


def _folders(output: Path, *patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in output.glob(pattern) if path.is_dir())


def _located(output: Path, folder: Path) -> list[Record]:
    return [{**r, "folder": folder.relative_to(output).as_posix()} for r in read(folder)]
