"""Standard output and error of a command -> the same, but one that takes no more text never stops the work."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from flows import show
from pipeline.disk import is_full
from pipeline.errors import ChironError


class Stream:
    """A text stream that drops what follows a failed write, and keeps the failure."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        if self.failure is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self.failure = error
        return len(text)

    def flush(self) -> None:
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self.failure = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarded() -> Iterator[Stream]:
    """Standard output and error as `Stream`s while the context lasts; yields that of the output."""
    _open_closed()
    before = sys.stdout, sys.stderr
    out, err = Stream(before[0]), Stream(before[1])
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def exit_code(code: int, out: Stream) -> int:
    """The command's code; of a command that went well, 14 where its output is lost, which is then told.

    A reader that closes its end, as `head` does, has what it wants: nothing is told.
    """
    if out.failure is None or out.failure.errno == errno.EPIPE:
        return code
    why = os.strerror(out.failure.errno or errno.EIO)
    lost = "S001" if is_full(out.failure) else "S002"
    fault = ChironError(lost, f"output that cannot be written ({why})", "", "Write it to a place with room.")
    with suppress(OSError):
        show.error(fault)
    return code or fault.fault.exit


def _open_closed() -> None:
    """Bind a closed standard stream to nothing: else the next file that is opened would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
