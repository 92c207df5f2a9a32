"""A folder -> every entry in it, sorted, each a readable file or a reason why not. Links are never followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ChironError


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing found: its place in the sorted listing, counted from 1; `code` is empty for a regular file."""

    ordinal: int
    path: Path
    code: str = ""
    text: str = ""


def list_files(folder: Path) -> list[Entry]:
    """Entries of `folder` and all below, sorted by their paths; S003 where the folder itself cannot be read."""
    if not folder.is_dir():
        raise ChironError("S003", "no such input folder", "a folder of DICOM files, or a BIDS dataset")
    found = sorted(_walk(os.fspath(folder), top=True))
    return [Entry(number, Path(path), code, text) for number, (path, code, text) in enumerate(found, 1)]


def _walk(folder: str, top: bool = False) -> Iterator[tuple[str, str, str]]:
    """Depth first, by descriptors of the kernel's own kind of each entry; opens nothing but folders."""
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except FileNotFoundError:
        yield folder, "F016", "a folder that vanished while it was read"
        return
    except OSError as error:
        if top:
            raise ChironError("S003", f"an input folder that cannot be read ({error.strerror})") from None
        yield folder, "F015", f"a folder that cannot be read ({error.strerror})"
        return
    for entry in listed:
        if entry.is_symlink():
            yield entry.path, "F014", "a link, which is not followed"
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        else:
            yield entry.path, *_kind(entry)


def _kind(entry: os.DirEntry[str]) -> tuple[str, str]:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return "F016", "a file that vanished while it was read"
    if not stat.S_ISREG(status.st_mode):
        return "F015", "a pipe, socket or device"
    return ("F001", "an empty file") if status.st_size == 0 else ("", "")
