"""A command -> a process of it, started again when it dies, and ended with this one, however this one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from pipeline.child import python

STEADY_S = 60.0  # a process that lived so long is started again at once
LONGEST_WAIT_S = 60.0


class Child:
    """One process of the site. Its standard input is a pipe that ends with this process, and so does it."""

    def __init__(
        self, name: str, words: Sequence[str], environment: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        self.name, self.words, self.environment, self.pass_fds = name, words, environment, pass_fds
        self.wait_s = 1.0
        self.due = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        silent = None if os.environ.get("CHIRON_TRACE") else subprocess.DEVNULL
        self.since = time.monotonic()
        self.process = subprocess.Popen(
            **python(*self.words, environment=self.environment),
            stdin=subprocess.PIPE,
            stdout=silent,
            stderr=silent,
            pass_fds=self.pass_fds,
            start_new_session=True,  # a Ctrl-C is for the site, which ends its processes in order
        )

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def mind(self, say: Callable[[str], None]) -> None:
        """Start it again where it has died: at once the first time, later and later where it keeps dying."""
        now = time.monotonic()
        if self.process is not None and not self.alive:
            self.wait_s = 1.0 if now - self.since > STEADY_S else min(2 * self.wait_s, LONGEST_WAIT_S)
            self.due = now + self.wait_s
            say(f"{self.name} ended ({_how(self.process.returncode)}); it starts again in {self.wait_s:.0f} s")
            self._forget()
        if self.process is None and now >= self.due:
            self.start()

    def ask(self) -> None:
        """To end by itself."""
        if self.process and self.alive:
            self.process.send_signal(signal.SIGTERM)

    def end(self, wait_s: float) -> None:
        """Let its input end, wait for it so long, then kill it."""
        if not self.process:
            return
        assert self.process.stdin
        if wait_s:
            with suppress(OSError):
                self.process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(wait_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._forget()

    def _forget(self) -> None:
        if self.process and self.process.stdin:
            with suppress(OSError):
                self.process.stdin.close()
        self.process = None


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
