"""Lines that stay and rows that change -> both on one terminal, so that neither overwrites the other.

The rows stand below an empty line, and the cursor rests on that line. What anything else prints (the ^C of a key, a
warning of a library) takes the empty line. The cursor is never hidden, so a process that is killed leaves nothing to
put right.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO, Any, TextIO

from rich.console import Console, RenderableType

from flows.engine import BEFORE_LEAVING, ON_PAUSE

TICK_S = 0.5  # between two drawings while nothing changes: the time left passes, and a window may change its size
PAUSE_S = 0.05  # after a drawing
CLOSE_S = 2.0  # for a terminal that takes no output
CLEAR = "\r\x1b[J"  # the line of the cursor and all below it
NO_WRAP, WRAP = "\x1b[?7l", "\x1b[?7h"  # a key echoed amid a row makes no further row of it


def can_draw(stream: IO[str]) -> bool:
    """Whether `stream` is a terminal that moves its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb").lower() not in ("", "dumb", "unknown")


def is_pipe(stream: IO[str]) -> bool:
    """Whether `stream` leads to another program, which may print to the same terminal (`| tee log`)."""
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


class Screen:
    """The terminal of `console`. While it is open, lines on standard output and error appear above the rows.

    One thread does all the writing: an interrupt, which arrives in the main thread, cuts no drawing short. `remains`
    leaves the last rows on the terminal, all of them, when it is closed; else they go.
    """

    def __init__(self, console: Console, rows: Callable[[int], RenderableType], remains: bool = False) -> None:
        self.console, self.rows, self.remains = console, rows, remains
        self._stream, self._handle = console.file, console.file.fileno()
        self._messages: SimpleQueue[str] = SimpleQueue()  # lines to print; nothing: draw again
        self._lines = ""  # taken from the queue, not yet on the terminal
        self._lock = threading.Lock()  # of the terminal
        self._replaced: dict[str, TextIO] = {}
        self._drawn: tuple[RenderableType, int] = ("", 0)
        self._rendered: list[str] = []
        self._before: Any = signal.SIG_DFL  # what Ctrl-Z did
        self._closing = False
        self._drops = False  # whether the terminal drops output at Ctrl-C by itself
        self._painter = threading.Thread(target=self._paint, daemon=True)

    def open(self) -> None:
        if self._abandon in BEFORE_LEAVING:
            return
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if _is_same(stream, self._stream):
                stream.flush()
                self._replaced[name] = stream
                setattr(sys, name, _Above(stream, self._messages))
        BEFORE_LEAVING.append(self._abandon)
        self._keep_output(True)
        self._before = signal.signal(signal.SIGTSTP, self._suspend)
        self._painter.start()

    def refresh(self) -> None:
        """Draw soon, for a row has changed."""
        self._messages.put("")

    def close(self) -> None:
        """Print what still waits, and let the rows go or remain."""
        if self._abandon not in BEFORE_LEAVING:
            return
        for name, stream in self._replaced.items():
            getattr(sys, name).finish()
            setattr(sys, name, stream)
        self._closing = True
        self._messages.put("")
        self._painter.join(CLOSE_S)
        self._abandon()
        BEFORE_LEAVING.remove(self._abandon)
        signal.signal(signal.SIGTSTP, self._before)

    def _paint(self) -> None:
        while not self._closing:
            with suppress(Empty):
                self._lines += self._messages.get(timeout=TICK_S)
            self._draw()
            time.sleep(PAUSE_S)
        self._draw(last=True)

    def _draw(self, last: bool = False) -> None:
        with self._lock:
            if not self._is_ours():
                self._write(self._take())
                return
            rows = self._rows(last) if self.remains or not last else []
            below = ""
            if rows:
                below = NO_WRAP + "\n".join(rows) + WRAP
                below = f"{below}\n" if last else f"\n{below}\x1b[{len(rows)}A\r"
            self._write(CLEAR + self._take() + below)

    def _rows(self, last: bool) -> list[str]:
        """As they fit the terminal now, whatever its size was before."""
        columns, lines = self._size()
        thing = self.rows(columns - 1)
        if (thing, columns) != self._drawn:
            with self.console.capture() as text:
                self.console.print(thing, width=columns - 1, soft_wrap=False)
            self._drawn, self._rendered = (thing, columns), text.get().splitlines()
        return self._rendered if last else self._rendered[: max(lines - 2, 0)]

    def _is_ours(self) -> bool:
        """Whether this process is in the foreground; in the background, another's prompt stands where rows would."""
        try:
            return os.tcgetpgrp(self._handle) == os.getpgrp()
        except OSError:  # a terminal without a foreground: nobody's prompt is on it
            return True

    def _size(self) -> tuple[int, int]:
        """Columns and lines, now; of a terminal that does not say, or is gone, as the environment has them."""
        try:
            size = os.get_terminal_size(self._handle)
        except OSError:
            return self.console.width, self.console.height
        return size.columns or self.console.width, size.lines or self.console.height

    def _take(self) -> str:
        """The lines that wait."""
        with suppress(Empty):
            while True:
                self._lines += self._messages.get_nowait()
        lines, self._lines = self._lines, ""
        return lines

    def _write(self, text: str) -> None:
        """To the terminal, at once; one that is gone is of no concern."""
        rest = text.encode(self.console.encoding, "replace")
        with suppress(OSError):
            while rest:
                try:
                    rest = rest[os.write(self._handle, rest) :]
                except BlockingIOError:  # a terminal that others have made so
                    time.sleep(0.01)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets the terminal without rows; they are drawn again once the process goes on."""
        if self._lock.acquire(timeout=0.2):
            self._write(CLEAR + self._take())
            for pause in ON_PAUSE:
                pause(True)
            os.kill(os.getpid(), signal.SIGSTOP)
            for pause in ON_PAUSE:
                pause(False)
            self._lock.release()

    def _abandon(self) -> None:
        """Print what waits and leave no row behind; nothing is drawn any more."""
        if self._lock.acquire(timeout=CLOSE_S):
            self._write(CLEAR + self._take())  # the lock is not released
        self._keep_output(False)

    def _keep_output(self, keep: bool) -> None:
        """At Ctrl-C a terminal drops what it has not shown yet, which may be the cursor's way back from the rows."""
        with suppress(OSError, termios.error):
            if not self._is_ours():
                return  # in the background, where a change of the terminal would stop the process
            attributes = termios.tcgetattr(self._handle)
            if keep:
                self._drops = not attributes[3] & termios.NOFLSH
            if self._drops:
                attributes[3] = attributes[3] | termios.NOFLSH if keep else attributes[3] & ~termios.NOFLSH
                termios.tcsetattr(self._handle, termios.TCSANOW, attributes)


@contextmanager
def shown(console: Console) -> Iterator[Callable[[RenderableType], None]]:
    """Show one thing that changes, and let it remain at the end; yields what is called with it as it is now.

    Where nothing can be drawn, it is printed when it changes.
    """
    if not can_draw(console.file):
        yield _printed(console)
        return
    now: list[RenderableType] = [""]
    screen = Screen(console, lambda columns: now[0], remains=True)

    def update(thing: RenderableType) -> None:
        now[0] = thing
        screen.refresh()

    screen.open()
    try:
        yield update
    finally:
        screen.close()


def _printed(console: Console) -> Callable[[RenderableType], None]:
    before = ""

    def update(thing: RenderableType) -> None:
        nonlocal before
        with console.capture() as text:
            console.print(thing)
        if text.get() != before:
            before = text.get()
            print(before, end="", flush=True)

    return update


class _Above:
    """A standard stream whose whole lines appear above the rows."""

    def __init__(self, stream: TextIO, messages: SimpleQueue[str]) -> None:
        self._stream, self._messages, self._begun = stream, messages, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            self._messages.put("\n".join(lines) + "\n")
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        """Whole lines are on their way."""

    def finish(self) -> None:
        """Print a line that was begun, and end it."""
        if self._begun:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_same(stream: TextIO, terminal: IO[str]) -> bool:
    """Whether both lead to one terminal."""
    try:
        return stream.isatty() and os.fstat(stream.fileno()).st_rdev == os.fstat(terminal.fileno()).st_rdev
    except (OSError, ValueError):
        return False
