"""An open file -> locked for this process, or not: a lock that dies with its holder, wherever the file is shared."""

from __future__ import annotations

import fcntl
import os
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
