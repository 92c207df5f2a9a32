"""A worker as its crew sees it: a process that is given scans, says how they go, and can be ended at any time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flows.watch import Silent, Watcher
from pipeline import child
from pipeline.errors import ChironError
from pipeline.recipe import Job

START = partial(child.python, "flows.crew.worker")
STOP_S = 10.0


@dataclass
class Task:
    """A scan on its way to its end."""

    job: Job
    failure: ChironError | None = None  # to be recorded by a worker: the one that was at it could not
    died: int = 0  # processes, at this scan
    held_since: float = 0.0
    not_before: float = 0.0


class Worker:
    """One worker process; `replies` is the file descriptor that it answers on."""

    def __init__(self, threads: int, card: int | None) -> None:
        self.replies, writer = os.pipe()
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        if card is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(card)
        self.process = subprocess.Popen(
            **START(str(writer), str(threads), environment=environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=None if os.environ.get("CHIRON_TRACE") else subprocess.DEVNULL,
            pass_fds=[writer],
            start_new_session=True,  # a Ctrl-C is for the crew, and what hangs is killed with all that it started
        )
        os.close(writer)
        self.task: Task | None = None
        self.watch: Watcher = Silent()
        self.scans = 0
        self.overdue = False
        self._since = self._paused = 0.0
        self._heard = b""

    def give(self, task: Task, output: Path, prefect: bool, watch: Watcher) -> None:
        self.task, self.watch, self._since = task, watch, time.monotonic()
        failure = task.failure
        words = {
            "folder": str(task.job.folder),
            "output": str(output),
            "prefect": prefect,
            "failure": failure and (failure.code, failure.found, failure.expected, failure.todo),
        }
        assert self.process.stdin
        with suppress(OSError):  # it has just died, which its replies will tell
            self.process.stdin.write(json.dumps(words).encode() + b"\n")
            self.process.stdin.flush()

    def hear(self) -> Iterator[dict[str, Any]]:
        """How scans ended, and at last, once, that the process did; progress is passed on to the watcher."""
        said = os.read(self.replies, 65536)
        *lines, self._heard = (self._heard + said).split(b"\n")
        for line in lines:
            reply = json.loads(line)
            if reply["say"] == "end":
                self.scans += 1
                yield reply
            else:
                self._pass_on(**reply)
        if not said:
            yield {"how": "overdue" if self.overdue else "died", "text": str(self.bury(STOP_S))}

    def done(self) -> Task | None:
        """The task it had; it has none now."""
        task, self.task = self.task, None
        watch, self.watch = self.watch, Silent()
        watch.close()
        return task

    def hurry(self, limit_s: float) -> None:
        """Kill it where its scan takes longer than that."""
        if self.task and time.monotonic() - self._since > limit_s:
            self.overdue = True
            self.end()

    def pause(self, stop: bool) -> None:
        """Stop it with all that it started, or let it go on; its scan's time stands still meanwhile."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGSTOP if stop else signal.SIGCONT)
        if stop:
            self._paused = time.monotonic()
        else:
            self._since += time.monotonic() - self._paused

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill it with all that it started, or ask it to stop."""
        with suppress(ProcessLookupError, PermissionError):
            (os.killpg if number == signal.SIGKILL else os.kill)(self.process.pid, number)

    def bury(self, wait_s: float) -> int:
        """Wait for its end, kill it if that does not come, and close what led to it; its exit code."""
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.end()
            self.process.wait()
        self.end()  # what it had started, and left
        assert self.process.stdin
        with suppress(OSError):
            self.process.stdin.close()
        return self.process.returncode

    def _pass_on(self, say: str, name: str = "", title: str = "", share: float = 0.0, word: str = "") -> None:
        if say == "ready":
            self._since = time.monotonic()  # its own start is not the scan's time
        elif say == "began":
            self.watch.began(name, title)
        elif say == "moved":
            self.watch.moved(share, word)
        elif say == "ended":
            self.watch.ended(name)
