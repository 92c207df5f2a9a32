"""Scans to do -> how each ended: worker processes that take one scan after another, killed and replaced where need be.

The ledger is the output folder and the claim of a scan is a lock in it, so any number of crews, on any machines that
share the folder, can be given the same scans: each is done once.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.crew.process import STOP_S, Task, Worker
from flows.crew.worker import PREFECT_LOST
from flows.engine import ON_PAUSE, is_reported
from flows.watch import Silent, Watcher
from pipeline.errors import ChironError
from pipeline.recipe import Job

SCANS_EACH = 200  # of a worker, before a fresh one takes its place: what leaks in a library ends with the process
TRIES = 2  # of a scan whose process dies
ASK_AGAIN_S = 2.0  # for a scan that another run holds


@dataclass(frozen=True)
class Terms:
    """How a crew works: processes at once, threads of each, cards that they share, and how long they wait."""

    workers: int = 1
    threads: int = 1
    cards: int = 0
    time_limit_s: float = 7200.0  # of one scan
    wait_s: float = 7200.0  # for a scan that another run holds


@dataclass(frozen=True)
class End:
    """How a scan ended: published, already published, or failed with code and sentence."""

    job: Job
    how: str
    code: str = ""
    text: str = ""
    card_s: float = 0.0  # that it had a GPU


def terms_for(workers: int, cards: int, **more: Any) -> Terms:
    """Terms for this machine, all of whose cores are shared out.

    `workers` 0 is three a card, so that one computes on it while others read and write, or, without a card, one for
    every two cores.
    """
    cores = len(os.sched_getaffinity(0))
    several = workers or (3 * cards or max(1, cores // 2))
    return Terms(several, max(1, cores // several), cards, **more)


class Crew:
    """The workers of one run on one machine. Use as a context: they end with it."""

    def __init__(self, output: Path, terms: Terms, watch: Callable[[Job], Watcher] = lambda job: Silent()) -> None:
        self.output, self.terms, self.watch = output, terms, watch
        self.prefect = is_reported()  # to Prefect, until that is lost: scans are then done without
        self.prefect_lost = False
        self._workers: list[Worker] = []
        self._hired = 0

    def __enter__(self) -> Crew:
        ON_PAUSE.append(self._pause)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        ON_PAUSE.remove(self._pause)
        for worker in self._workers:
            worker.end(signal.SIGINT if kind else signal.SIGKILL)
        until = time.monotonic() + STOP_S
        for worker in self._workers:
            worker.done()
            worker.bury(max(0.0, until - time.monotonic()))

    def _pause(self, stop: bool) -> None:
        for worker in self._workers:
            worker.pause(stop)

    def start(self, scans: int) -> None:
        """Have workers for so many scans, as far as the terms allow; each takes seconds until it is ready."""
        while len(self._workers) < min(scans, self.terms.workers):
            card = self._hired % self.terms.cards if self.terms.cards > 1 else None
            self._workers.append(Worker(self.terms.threads, card))
            self._hired += 1

    def work(self, jobs: Iterable[Job]) -> Iterator[End]:
        """Do all jobs, which are saved; yields the end of each as it comes, exactly one for every job."""
        tasks = deque(Task(job) for job in jobs)
        while tasks or any(worker.task for worker in self._workers):
            self._hand_out(tasks)
            for task, reply in self._ended():
                end = self._judge(task, **reply)
                if end:
                    yield end
                else:
                    tasks.append(task)

    def _hand_out(self, tasks: deque[Task]) -> None:
        self.start(len(tasks) + sum(1 for worker in self._workers if worker.task))
        for worker in [w for w in self._workers if not w.task]:
            task = next((t for t in tasks if t.not_before <= time.monotonic()), None)
            if task:
                tasks.remove(task)
                worker.give(task, self.output, self.prefect, self.watch(task.job))

    def _ended(self) -> Iterator[tuple[Task, dict[str, Any]]]:
        """Tasks that come back within a second, with how they ended."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.replies, selectors.EVENT_READ, worker)
            heard = [key.data for key, _ in selector.select(timeout=1.0)]
        for worker in heard:
            for reply in worker.hear():
                task = worker.done()
                if task:
                    yield task, reply
                if worker.process.returncode is not None or worker.scans >= SCANS_EACH:
                    self._replace(worker)
                    break
        for worker in self._workers:
            worker.hurry(self.terms.time_limit_s)

    def _replace(self, worker: Worker) -> None:
        """Its successor is hired when there is work for it."""
        worker.end()
        worker.bury(STOP_S)
        os.close(worker.replies)
        self._workers.remove(worker)

    def _judge(self, task: Task, how: str, code: str = "", text: str = "", card_s: float = 0.0, **_: str) -> End | None:
        """The end of a scan, or None where it is to be handed out again."""
        now = time.monotonic()
        if task.failure:
            return End(task.job, "failed", task.failure.code, task.failure.sentence())
        if how == "lost" or (how == "died" and text == str(PREFECT_LOST)):
            self.prefect, self.prefect_lost, task.died = False, True, task.died + 1
        elif how == "overdue":
            found = f"a scan that was not done within {self.terms.time_limit_s:g} s"
            task.failure = ChironError("R003", found, "an end")
        elif how == "died":
            task.died += 1
            if task.died >= TRIES:
                task.failure = ChironError("R008", f"a scan whose process died twice (exit code {text})", "an end")
        elif how == "held" and now - (task.held_since or now) < self.terms.wait_s:
            task.held_since, task.not_before = task.held_since or now, now + ASK_AGAIN_S
        else:
            unsaid = how == "already published" and task.died  # by a process that could no longer say so
            state = "published" if unsaid else "failed" if how == "held" else how
            return End(task.job, state, code, text, card_s)
        return None
