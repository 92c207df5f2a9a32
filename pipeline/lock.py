"""An open file -> locked for this process, or not: a lock that dies with its holder, wherever the file is shared."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from pipeline.errors import ChironError


def try_lock(handle: int, shared: bool = False) -> bool:
    """Lock the open file, without waiting; False where another process has it. `shared` bears others that share."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def still_at(handle: int, path: Path) -> bool:
    """Whether the open file still has its name: a lock whose file was removed meanwhile keeps nobody out."""
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


@contextmanager
def locked(file: Path, wait_s: float = 120, held: str = "the scan is being published by another run") -> Iterator[None]:
    """Hold an exclusive lock on `file`; R006 where another process holds it for longer than `wait_s`."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    deadline = time.monotonic() + wait_s
    while True:
        with file.open("a") as stream:
            if try_lock(stream.fileno()) and still_at(stream.fileno(), file):
                yield  # closing the file releases the lock, as does the end of the process
                return
        if time.monotonic() > deadline:
            raise ChironError("R006", held, "one at a time")
        time.sleep(0.05)


@contextmanager
def if_free(lock: AbstractContextManager[None]) -> Iterator[bool]:
    """Hold what raises R006 where another process has it; False is yielded then."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except ChironError as error:
            if error.code != "R006":
                raise
            yield False
        else:
            yield True
