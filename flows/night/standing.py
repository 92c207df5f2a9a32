"""An output folder -> what stands in it now: every scan that has ended, those being worked on, those that wait.

The manifests tell what has ended. A scan is being worked on while the lock of its work folder is held; it waits while
a job lies there that no process has and no manifest tells of.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from flows.claim import NOW, is_claimed
from pipeline.entities import label_of as scan_label
from pipeline.errors import CATALOGUE
from pipeline.ledger import NEXT, TAKEN, Record, read_manifests

WORK = ".chiron/work"
KINDS = ("failed", "set aside", "do not use", "check", "usable")  # the worst first: what a person must see to
UNKNOWN = "unknown"  # in place of a code or a verdict that no version of ours writes


@dataclass(frozen=True)
class Entry:
    """One scan that has ended, by its record; `earlier` where a former map still stands though the last try failed."""

    output: Path
    record: Record
    earlier: bool = False

    @property
    def label(self) -> str:
        return str(self.record["label"])

    @property
    def kind(self) -> str:
        """One of `KINDS`: the state where nothing is published, else the verdict."""
        said = self.record["verdict"] if self.record["state"] == "published" else self.record["state"]
        return said if said in KINDS else "check"

    @property
    def code(self) -> str:
        """Of the failure; empty where there is none."""
        code = (self.record["failure"] or {}).get("code", "")
        return code if not code or code in CATALOGUE else UNKNOWN

    @property
    def finished(self) -> float:
        """Seconds since 1970."""
        return datetime.fromisoformat(self.record["finished"]).timestamp()

    @property
    def when(self) -> str:
        """When it ended, as a clock in this place tells it."""
        return clock(self.finished)

    @property
    def seconds(self) -> float | None:
        """That its stages took; None where it failed, for what the last one took is then not recorded."""
        if self.record["state"] != "published":
            return None
        took = [stage.get("seconds") for stage in self.record.get("stages", [])]
        return sum(s for s in took if s is not None) if took else None

    @property
    def report(self) -> str:
        """Its page, relative to the output; empty where there is none."""
        names = (name for name in self.record["files"] if name.endswith(".html"))
        return next((f"{self.record['folder']}/{name}" for name in names), "")

    @cached_property
    def quality(self) -> dict[str, Any]:
        """The numbers published beside the map; empty where there are none."""
        name = next((name for name in self.record["files"] if name.endswith("_qc.json")), "")
        found = _json(self.output / self.record["folder"] / name) if name else {}
        return found if isinstance(found, dict) else {}

    @property
    def reasons(self) -> list[str]:
        """Why the scan needs a look, in sentences: the failure, or what its quality lacks, and codes of warnings."""
        if self.record["failure"]:
            said = [str(self.record["failure"].get("sentence", "")).removeprefix(f"{self.code}: ")]
            return [*said, "The map of an earlier run still stands."] if self.earlier else said
        verdict = self.quality.get("verdict") or {} if self.kind != "usable" else {}
        return [str(reason) for reason in verdict.get("reasons", [])]

    @property
    def warnings(self) -> list[str]:
        """The codes of what was lived with, each once."""
        return sorted({str(warning["code"]) for warning in self.record["warnings"]})


@dataclass(frozen=True)
class Running:
    """A scan that a process works on: its stage and since when (seconds since 1970), where these are known."""

    label: str
    stage: str = ""
    title: str = ""
    since: float | None = None


@dataclass(frozen=True)
class Night:
    """Entries with the worst first, the running scans, and the work folders of those that wait."""

    entries: tuple[Entry, ...]
    running: tuple[Running, ...]
    waiting: tuple[Path, ...]
    records: tuple[Record, ...]

    def of(self, kind: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == kind]

    @property
    def waiting_labels(self) -> list[str]:
        return sorted(map(label_of, self.waiting))


def look(output: Path, since: float | None = None) -> Night:
    """What stands in `output`; with `since` (seconds since 1970), of what has ended only what ended later."""
    records = read_manifests(output)
    entries = [e for e in _entries(output, records) if since is None or e.finished >= int(since)]  # they tell seconds
    known = {str(record.get("scan")) for record in records}
    running, waiting = [], []
    for folder in _work_folders(output):
        if is_claimed(folder):
            running.append(_running(folder))
        elif (folder / NEXT).exists() or (folder.name not in known and (folder / TAKEN).exists()):
            waiting.append(folder)
    ordered = sorted(entries, key=lambda e: (KINDS.index(e.kind), e.label, e.code))
    return Night(tuple(ordered), tuple(sorted(running, key=lambda r: r.label)), tuple(waiting), tuple(records))


def label_of(folder: Path) -> str:
    """The pseudonymous label of the scan that a work folder is for; its id where the job cannot be read."""
    for name in (TAKEN, NEXT):
        try:
            changed = (folder / name).stat().st_mtime_ns
        except OSError:
            continue
        return _label(folder / name, changed)
    return folder.name


@lru_cache(maxsize=10_000)
def _label(file: Path, changed: int) -> str:
    """Of a job that was written at `changed`; a job names each of its files, so it is read once."""
    found = _json(file)
    scan = found.get("scan") if isinstance(found, dict) else None
    if not isinstance(scan, dict):
        return file.parent.name
    return scan_label(scan.get("subject", ""), scan.get("session", ""), scan.get("run", ""), scan.get("entities", ()))


def clock(moment: float) -> str:
    """`21 Nov 05:16`, of seconds since 1970."""
    return datetime.fromtimestamp(moment).strftime("%-d %b %H:%M")


def _entries(output: Path, records: Iterable[Record]) -> Iterator[Entry]:
    """One a scan: a failure outdates what is published under the same label, which still stands."""
    records = list(records)
    failed = {record["label"] for record in records if record["state"] == "failed"}
    published = {record["label"] for record in records if record["state"] == "published"}
    for record in records:
        if record["state"] == "failed":
            yield Entry(output, record, record["label"] in published)
        elif record["state"] != "published" or record["label"] not in failed:
            yield Entry(output, record)


def _work_folders(output: Path) -> list[Path]:
    """None where the private folder is another user's: who may not look into it sees what is published."""
    try:
        with os.scandir(output / WORK) as found:
            return sorted(Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, PermissionError):
        return []


def _running(folder: Path) -> Running:
    now = _json(folder / NOW)
    if not isinstance(now, dict):
        return Running(label_of(folder))
    since = now.get("since")
    moment = float(since) if isinstance(since, int | float) else None
    return Running(label_of(folder), str(now.get("stage", "")), str(now.get("title", "")), moment)


def _json(file: Path) -> Any:
    """The content of a file, or an empty dict where it is gone, or was being written by a process that was killed."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
