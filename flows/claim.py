"""A scan's work folder -> held for one process, on any machine that shares it, by a lock that dies with its holder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from pipeline.errors import ChironError
from pipeline.lock import locked, still_at, try_lock

LOCK, NOW = "lock", "now.json"  # of a scan: held by whoever works on it, who writes beside it what it is doing
PLAN = "plan.lock"  # held by whoever decides on its next job
LOOKS = 3  # someone who only looks whether it is held has it for an instant


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the scan of this work folder; R006 where another process has it, S001 or S002 where that cannot be told."""
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            stream = held.enter_context((folder / LOCK).open("a"))
            if not _locked(stream.fileno(), folder / LOCK):
                raise ChironError("R006", "another run works on this scan", "one at a time")
        except OSError as error:
            from pipeline.work import disk_error  # which is heavy, and rarely needed

            raise disk_error(error) from None
        yield


def planning(folder: Path) -> AbstractContextManager[None]:
    """Hold the choice of this work folder's next job; R006 where another process has it for minutes."""
    return locked(folder / PLAN, held="another run plans this scan")


def is_claimed(folder: Path) -> bool:
    """Whether a process, here or on another machine, works on the scan now."""
    try:
        with (folder / LOCK).open() as stream:
            return not try_lock(stream.fileno(), shared=True)
    except OSError:
        return False


def _locked(handle: int, path: Path) -> bool:
    """Whether the lock is ours; not where it is held, nor where its holder has just ended and tidied up."""
    for look in range(LOOKS):
        if try_lock(handle):
            return still_at(handle, path)
        time.sleep(0.01 if look < LOOKS - 1 else 0)
    return False
