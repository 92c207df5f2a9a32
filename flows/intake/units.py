"""What lies in an inbox now, and what a look saw before -> the files that belong together, and when they changed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from flows.intake.state import Unit, Units
from pipeline.errors import ChironError
from pipeline.find.listing import Entry
from pipeline.find.study import study_of
from pipeline.identity import pseudonym

# What the name of a unit begins with.
STUDY, SUBJECT = "study ", "subject "
LOOSE = "loose "  # one file that is no image
UNREAD = "unread "  # one file that cannot be read, or not yet
_SUBJECT = re.compile(r"(?:.*?/)??sub-[A-Za-z0-9]+(?=[/_])")  # a folder of a BIDS dataset, or how its files begin
_VANISHED, _EMPTY = "F016", "F001"


def update(units: Units, entries: list[Entry], inbox: Path, key: bytes, now: float) -> None:
    """Bring the units up to what `entries` are now. Only files that are new, changed or unread are opened."""
    known = {path: name for name, unit in units.items() for path in unit.files}
    there = by_path([entry for entry in entries if entry.code != _VANISHED], inbox)
    for unit in units.values():
        unit.changed = min(unit.changed, now)  # a clock that was set back must not make us wait until it is there again
    for path in known.keys() - there.keys():
        _drop(units, known[path], path, now)
    for path, entry in there.items():
        name = known.get(path, "")
        same = bool(name) and units[name].files[path] == [entry.size, entry.mtime_ns]
        if not same or name.startswith(UNREAD):
            _place(units, name, same, _home(entry, path, key), path, entry, now)


def by_path(entries: list[Entry], inbox: Path) -> dict[str, Entry]:
    """Entries by their paths below the inbox."""
    start = len(os.fspath(inbox / "x")) - 1
    return {os.fspath(entry.path)[start:]: entry for entry in entries}


def folder(path: str) -> str:
    return path.rpartition("/")[0]


def _drop(units: Units, name: str, path: str, now: float) -> None:
    """Forget a file. Of a study that was taken as scans this is tidying up, and no reason to look at the rest again."""
    unit = units[name]
    del unit.files[path]
    if not unit.files:
        del units[name]
    elif not (unit.done and unit.scans):
        unit.touch(now)


def _place(units: Units, old: str, same: bool, new: str, path: str, entry: Entry, now: float) -> None:
    if same and old == new:
        return
    if old and old != new:
        _drop(units, old, path, now)
    unit = units.setdefault(new, Unit(now))
    unit.files[path] = [entry.size, entry.mtime_ns]
    unit.touch(now)


def _home(entry: Entry, path: str, key: bytes) -> str:
    """The unit that a file belongs to."""
    if entry.code:
        return f"{UNREAD if entry.code == _EMPTY else LOOSE}{path}"
    try:
        return STUDY + pseudonym(key, "intake", study_of(entry.path), length=20)
    except ChironError as error:
        if error.code in ("F003", "F015", _VANISHED):
            return UNREAD + path
    subject = _SUBJECT.match(path)
    return SUBJECT + subject[0] if subject else LOOSE + path
