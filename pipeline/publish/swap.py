"""A folder composed aside -> the folder in its place, by one rename or one exchange, safe against a power cut.

Everything that touches the disk during a publication stands here, so that a fault can be put at every call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Container, Mapping
from pathlib import Path

from pipeline.work import flush

AT_FDCWD = -100  # "relative to the working directory" of the *at system calls
RENAME_EXCHANGE = 2
NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}  # kernel or file system without it
NO_LINK = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}


def put(aside: Path, final: Path, files: Mapping[str, bytes], drop: frozenset[str] = frozenset()) -> None:
    """Make `final` hold `files` (relative name -> content) and all it held before but for the names in `drop`.

    The last of `files` is written last. Whoever looks at `final` meanwhile sees nothing, the old or the new content,
    never a part. `aside` is scratch on the same file system, owned by whoever holds the lock and cleared by `recover`
    before. Raises OSError, and `final` is then as it was.
    """
    try:
        new = aside / "new"
        new.mkdir(parents=True)
        _carry(final, new, lambda name: name not in drop and name not in files)
        for name, content in files.items():
            write(new / name, content)
        _flush_folders(new)
        if not final.parent.exists():
            final.parent.mkdir()
            flush(final.parent.parent)
        _swap(new, final, aside / "old")
        flush(final.parent)
    finally:
        if not (aside / "old").exists() or final.exists():
            shutil.rmtree(aside, ignore_errors=True)


def keep(aside: Path, old: Path, names: Container[str], files: Mapping[str, bytes], version: Path) -> None:
    """Make `version` hold the files of `old` that have these `names`, as links, and `files`.

    It appears by one rename. Where it stands, an interrupted publication made it, and only its time is set anew: it
    counts from now. `aside` is scratch as for `put`. Raises OSError, and there is then no new version.
    """
    try:
        if version.exists():
            os.utime(version)
            return
        new = aside / "version"
        new.mkdir(parents=True)
        _carry(old, new, lambda name: name in names)
        for name, content in files.items():
            write(new / name, content)
        _flush_folders(new)
        version.parent.mkdir(parents=True, exist_ok=True)
        new.rename(version)
        for folder in version.parents[:3]:
            flush(folder)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def recover(aside: Path, final: Path) -> None:
    """Clear what an interrupted publication left; where it died between two renames, the old content comes back."""
    if (aside / "old").exists() and not final.exists():
        (aside / "old").rename(final)
    shutil.rmtree(aside, ignore_errors=True)


def write(path: Path, content: bytes) -> None:
    """A new file with `content`, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def put_once(aside: Path, final: Path) -> None:
    """Give the file `aside` the name `final` as well, or where there are no links only that; FileExistsError."""
    try:
        os.link(aside, final)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        if final.exists():
            raise FileExistsError(final) from None
        aside.replace(final)


def write_in_place(path: Path, content: bytes, scratch: Path) -> None:
    """Replace one file as a whole, by way of the folder `scratch`, unless it holds `content` already."""
    if path.is_file() and path.read_bytes() == content:
        return
    aside = scratch / f"{path.name}.{secrets.token_hex(8)}"
    try:
        write(aside, content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    flush(path.parent)


def _carry(old: Path, new: Path, wanted: Callable[[str], bool]) -> None:
    """Link the files below `old` whose names are wanted into `new`."""
    for path in sorted(old.rglob("*")):
        name = path.relative_to(old)
        if path.is_symlink() or not path.is_file() or not wanted(name.as_posix()):
            continue
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, new / name)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            write(new / name, path.read_bytes())


def _swap(new: Path, final: Path, old: Path) -> None:
    if not final.exists():
        new.rename(final)
    elif not _exchange(new, final):
        final.rename(old)
        try:
            new.rename(final)
        except OSError:
            old.rename(final)
            raise


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code))


def _flush_folders(top: Path) -> None:
    for folder in [top, *(path for path in top.rglob("*") if path.is_dir())]:
        flush(folder)
