"""A folder -> whether it can be listed and written to; a failed write -> its coded error, without the path."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ChironError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
TRIAL_BYTES = 2**20
READABLE = "a folder that exists and may be read"


def is_full(error: OSError) -> bool:
    """Whether the write failed for want of room: a full disk, or a quota that is used up."""
    return error.errno in FULL


def disk_error(error: OSError) -> ChironError:
    """The coded error of a failed write: S001 where there is no room, else S002."""
    code = "S001" if is_full(error) else "S002"
    return ChironError(code, f"writing failed ({os.strerror(error.errno or errno.EIO)})", "an output folder with room")


@contextmanager
def coded_disk() -> Iterator[None]:
    """A failed write becomes S001 or S002."""
    try:
        yield
    except OSError as error:
        raise disk_error(error) from error


def try_write(folder: Path, size: int = TRIAL_BYTES) -> None:
    """Write `size` bytes to a nameless file in `folder`, which leaves no trace; S001 or S002 where that fails.

    Permission bits and free blocks promise less: a mount may be read-only, a quota used up, a server gone.
    """
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".chiron-trial-") as stream:
            stream.write(b"\0" * size)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise disk_error(error) from error


def check_folder(folder: Path) -> None:
    """S003, with the reason, where `folder` is none, or cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except FileNotFoundError:
        found = "a link that leads nowhere" if folder.is_symlink() else "no such folder"
    except NotADirectoryError:
        found = "a file where a folder was expected" if os.path.lexists(folder) else "no such folder"
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno or errno.EIO) if isinstance(error, OSError) else "not a path"
        found = f"a folder that cannot be read ({why})"
    else:
        return
    raise ChironError("S003", found, READABLE)
