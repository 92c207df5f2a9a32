"""A folder, or some files of it -> its entries, sorted, each a readable file or a reason why not; follows no links."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.disk import READABLE, check_folder
from pipeline.errors import ChironError

BARRED = "a folder that cannot be read"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing found: its place in the sorted listing, counted from 1; `code` is empty for a regular file."""

    ordinal: int
    path: Path
    code: str = ""
    text: str = ""
    size: int = 0
    mtime_ns: int = 0


_Found = tuple[str, str, str, int, int]  # path and what follows it in an entry


def list_files(folder: Path, files: Collection[Path] | None = None) -> list[Entry]:
    """Entries of `folder` and all below, or of `files` alone, by their paths; S003 where the folder cannot be read."""
    check_folder(folder)
    found = _walk(os.fspath(folder), top=True) if files is None else map(_named, map(os.fspath, set(files)))
    return [Entry(number, Path(one[0]), *one[1:]) for number, one in enumerate(sorted(found), 1)]


def check_readable(folder: Path) -> None:
    """S003 where nothing can be read in `folder`: it cannot be listed, or it holds folders alone and none of them can.

    An empty folder is fine. The search ends at the first entry that can be used.
    """
    check_folder(folder)
    barred = 0
    for _, code, text, *_ in _walk(os.fspath(folder), top=True):
        if not (code == "F015" and text.startswith(BARRED)):
            return
        barred += 1
    if barred:
        raise ChironError("S003", f"a folder that holds {barred} folders, none of which can be read", READABLE)


def _walk(folder: str, top: bool = False) -> Iterator[_Found]:
    """Depth first, by descriptors of the kernel's own kind of each entry; opens nothing but folders."""
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except FileNotFoundError:
        yield folder, "F016", "a folder that vanished while it was read", 0, 0
        return
    except OSError as error:
        if top:
            raise ChironError("S003", f"an input folder that cannot be read ({error.strerror})") from None
        yield folder, "F015", f"{BARRED} ({error.strerror})", 0, 0
        return
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        else:
            yield _judged(entry.path, partial(entry.stat, follow_symlinks=False))


def _named(path: str) -> _Found:
    return _judged(path, partial(os.lstat, path))


def _judged(path: str, look: Callable[[], os.stat_result]) -> _Found:
    try:
        status = look()
    except FileNotFoundError:
        return path, "F016", "a file that vanished while it was read", 0, 0
    except OSError as error:
        return path, "F015", f"a file that cannot be read ({error.strerror})", 0, 0
    if stat.S_ISLNK(status.st_mode):
        return path, "F014", "a link, which is not followed", 0, 0
    if stat.S_ISDIR(status.st_mode):
        return path, "F015", BARRED, 0, 0
    if not stat.S_ISREG(status.st_mode):
        return path, "F015", "a pipe, socket or device", 0, 0
    code = ("", "") if status.st_size else ("F001", "an empty file")
    return path, *code, status.st_size, status.st_mtime_ns
