"""A command -> the same on a pseudo-terminal, with what a person would see on its screen."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyte
import pyte.modes

INTERRUPT = b"\x03"  # what the key Ctrl-C sends: the terminal makes SIGINT of it, for all of the foreground


class Display(pyte.HistoryScreen):
    """A screen that notes which texts ran over the right edge, and which rows go on in the next one."""

    def __init__(self, columns: int, lines: int) -> None:
        self.wrapped: list[str] = []
        super().__init__(columns, lines, history=10_000, ratio=0.01)

    def draw(self, data: str) -> None:
        wraps = pyte.modes.DECAWM in self.mode
        if wraps and self.cursor.x + len(data) > self.columns:
            self.wrapped.append(self.display[self.cursor.y][: self.cursor.x] + data)
        for character in data:
            self.buffer[self.cursor.y].goes_on = wraps and self.cursor.x == self.columns  # type: ignore[attr-defined]
            super().draw(character)


def _at_home_on(terminal: int) -> None:
    """Make it the process' own; its Ctrl-C is heeded, though whoever runs the tests in the background may heed none."""
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A process whose standard streams, but for those that are given as files, are one pseudo-terminal."""

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        cwd: Path | None = None,
        columns: int = 80,
        lines: int = 24,
        stdout: IO[Any] | None = None,
        stderr: IO[Any] | None = None,
    ) -> None:
        self.screen = Display(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.sent = b""  # all that the process wrote to the terminal
        self.master, slave = os.openpty()
        self.resize(columns, lines)
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave if stderr is None else stderr,
            env={"TERM": "xterm-256color", **environment},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=lambda: _at_home_on(slave),
        )
        os.close(slave)

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def see(self, expected: str | Callable[[], bool], within_s: float = 120) -> None:
        """Read until the text is on the screen, or the condition holds."""
        deadline = time.monotonic() + within_s
        while not (expected() if callable(expected) else expected in self.text):
            assert time.monotonic() < deadline and self._read(0.1), f"not seen: {expected}\n{self.text}"

    def end(self, within_s: float = 120) -> int:
        """Read until the process has ended and the terminal is closed; returns the exit code."""
        deadline = time.monotonic() + within_s
        while self._read(0.1):
            assert time.monotonic() < deadline, f"does not end\n{self.text}"
        return self.process.wait(10)

    @property
    def rows(self) -> list[str]:
        """All rows, those that have left the screen at its top included, without empty ones at the end."""
        rows = [self._row(line) for line in self._lines]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def unwrapped(self) -> str:
        """The text as it was written: what ran over the edge is one line again."""
        parts = [self._row(line) + ("" if getattr(line, "goes_on", False) else "\n") for line in self._lines]
        return "".join(parts).rstrip("\n") + "\n"

    @property
    def _lines(self) -> list[Any]:
        return [*self.screen.history.top, *(self.screen.buffer[y] for y in range(self.screen.lines))]

    def _row(self, line: Any) -> str:
        return "".join(line[x].data for x in range(self.screen.columns)).rstrip()

    @property
    def text(self) -> str:
        return "\n".join(self.rows)

    def _read(self, wait_s: float) -> bool:
        """Take what comes within a while; False at the end."""
        if select.select([self.master], [], [], wait_s)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # Linux says so where the last process has closed the terminal
                return False
            self.sent += data
            self.stream.feed(data)
            return bool(data)
        return True


@contextmanager
def on_terminal(*command: str | Path, **more: Any) -> Iterator[Terminal]:
    """The command on a terminal; it and its whole session are killed in the end."""
    terminal = Terminal(command, **more)
    try:
        yield terminal
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(terminal.process.pid, 9)
        terminal.process.wait()
        os.close(terminal.master)
