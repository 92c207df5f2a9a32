"""An output folder -> the records of all manifests in it. It imports nothing heavy: who only looks is answered at once.

A manifest is `{"format": 1, "scans": [record, ...]}`, one in each session's folder. It is the only ledger.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

FORMAT = 1
NAME = "manifest.json"
NEXT, TAKEN = "next.json", "job.json"  # of a scan's work folder: the job to be done, and the one done or under way
KEPT = ".chiron/versions"  # what stood published before, until it is pruned

Record = dict[str, Any]


def read_manifests(output: Path) -> list[Record]:
    """Every record below `output`, with its `folder` relative to it: what is published, then what failed since."""
    return _told(output, _folders(output, "sub-*", "sub-*/ses-*"), _folders(output, "failed/*", "set-aside/*"))


def records_of(output: Path, label: str) -> list[Record]:
    """What `read_manifests` tells of one scan; only its session's folder and what failed under its label are read."""
    failed = [output / "failed" / label, output / "set-aside" / label]
    return [r for r in _told(output, [output / session_of(label)], failed) if r["label"] == label]


def records_of_subject(output: Path, subject: str) -> list[Record]:
    """What `read_manifests` tells of one subject, whose label is without `sub-`; set-aside scans have no label yet."""
    name = f"sub-{subject}"
    failed = _folders(output, f"failed/{name}", f"failed/{name}_*")
    return _told(output, _folders(output, name, f"{name}/ses-*"), failed)


def versions(output: Path, label: str) -> list[Record]:
    """Records of what stood published before for a scan, oldest first, each with the `folder` that it is kept in."""
    kept = [r for folder in _folders(output / KEPT / _flat(label), "*") for r in _located(output, folder)]
    now = [_bare(r) for r in records_of(output, label)]
    mine = [r for r in kept if r["label"] == label and _bare(r) not in now]
    return sorted(mine, key=lambda r: (str(r["finished"]), _kept_at(output / r["folder"])))  # they tell seconds only


def _kept_at(folder: Path) -> int:
    try:
        return (folder / NAME).stat().st_mtime_ns
    except OSError:
        return 0


def session_of(label: str) -> str:
    """The folder that holds a scan, relative to the output: `sub-x/ses-y`, or `sub-x` where there is no session."""
    return "/".join(part for part in label.split("_") if part.startswith(("sub-", "ses-")))


def version_folder(record: Record, content: bytes) -> str:
    """Where a published scan is kept once another result takes its place; `content` is the manifest of it alone."""
    moment = "".join(c for c in record["finished"][:19] if c in "0123456789T")
    return f"{KEPT}/{_flat(record['label'])}/{moment}-{hashlib.sha256(content).hexdigest()[:8]}"


def read(folder: Path) -> list[Record]:
    """The records of the manifest in `folder`; none where there is no manifest that can be read."""
    try:
        manifest = json.loads((folder / NAME).read_text())
        scans = manifest["scans"] if manifest["format"] == FORMAT else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [record for record in scans if isinstance(record, dict) and "label" in record and "state" in record]


def _told(output: Path, published: list[Path], failed: list[Path]) -> list[Record]:
    """The records in folders of results, and of the failures those that no later result outdates."""
    stand = [r for folder in published for r in _located(output, folder)]
    with_result = {sign for r in stand for sign in signs(r)}
    latest = {r["label"]: r["finished"] for r in stand}
    since = [r for folder in failed for r in _located(output, folder)]
    return stand + [r for r in since if not _is_outdated(r, latest, with_result)]


def _is_outdated(record: Record, latest: dict[str, str], with_result: set[str]) -> bool:
    """Whether a failure counts no longer: a later result of its label, or a result of what was set aside then."""
    if record["state"] == "set aside" and signs(record):
        return bool(signs(record) & with_result)
    return bool(record["finished"] < latest.get(record["label"], ""))


def _folders(output: Path, *patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in output.glob(pattern) if path.is_dir())


def _located(output: Path, folder: Path) -> list[Record]:
    return [{**r, "folder": folder.relative_to(output).as_posix()} for r in read(folder)]


def signs(record: Record) -> set[str]:
    """By what a scan is known again, whatever its label."""
    return {str(sign) for sign in (record.get("scan"), *(record.get("identity") or ())) if sign}


def _bare(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "folder"}


def _flat(label: str) -> str:
    return session_of(label).replace("/", "_")
