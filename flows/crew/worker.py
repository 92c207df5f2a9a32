"""Lines on standard input, each naming a scan -> the scans done, one after another, and lines that say how it goes.

A process of its own, so that a scan that hangs can be killed, and one that kills its process takes no other with it. It
ends with its standard input, that is, with the process that started it, however that ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from flows.claim import NOW, claimed
from flows.engine import Watchdog, is_reported, leave
from flows.site import OUTPUT_VARIABLE
from flows.watch import Silent
from pipeline.errors import ChironError

PREFECT_MAY_HOLD_S = 25.0  # from one stage to the next, before Prefect is taken for dead
PREFECT_LOST = 18  # exit code


def main(handle: int, threads: int) -> None:
    """Do what standard input names, with `threads` threads; replies go to the file descriptor `handle`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tasks = _listen()
    voice = Voice(handle)
    _use(threads)
    try:
        with _loaded():
            voice.say("ready")
            while task := tasks.get():
                voice.say("end", **_do(json.loads(task), voice))
                _give_memory_back()
    except KeyboardInterrupt:
        leave(130)
    leave(0)


@contextmanager
def _loaded() -> Iterator[None]:
    """With all imported that a scan needs, which takes seconds: before the first scan rather than with it."""
    import flows.scan  # noqa: F401

    with ExitStack() as stack:
        if is_reported():
            from flows.scan_flow import without_heartbeat

            stack.enter_context(without_heartbeat())
        yield


class Voice:
    """Replies, one line of JSON each; a reader that is gone is of no concern, for this process ends with it."""

    def __init__(self, handle: int) -> None:
        self._stream = os.fdopen(handle, "w", buffering=1)

    def say(self, what: str, **words: Any) -> None:
        with suppress(OSError):
            self._stream.write(json.dumps({"say": what, **words}) + "\n")


class Reporter(Silent):
    """Passes on what a scan does, notes it in its folder, and sees to it that Prefect hands over between stages."""

    def __init__(self, folder: Path, voice: Voice, watchdog: Watchdog | None) -> None:
        self.folder, self.voice, self.watchdog = folder, voice, watchdog
        self.said = 0.0
        self.ended("")

    def began(self, name: str, title: str) -> None:
        if self.watchdog:
            self.watchdog.disarm()
        note(self.folder, name, title)
        self.voice.say("began", name=name, title=title)

    def moved(self, share: float, word: str) -> None:
        now = time.monotonic()
        if now - self.said > 0.2 or share >= 1:
            self.said = now
            self.voice.say("moved", share=share, word=word)

    def ended(self, name: str) -> None:
        if name:
            self.voice.say("ended", name=name)
        if self.watchdog:
            self.watchdog.arm(PREFECT_MAY_HOLD_S)

    def close(self) -> None:
        if self.watchdog:
            self.watchdog.disarm()
        (self.folder / NOW).unlink(missing_ok=True)


def note(folder: Path, stage: str, title: str) -> None:
    """Write beside the lock what its holder does, for whoever asks how the night goes."""
    aside = folder / f".{NOW}"
    with suppress(OSError):
        aside.write_text(json.dumps({"stage": stage, "title": title, "since": time.time()}))
        aside.rename(folder / NOW)


def _do(task: dict[str, Any], voice: Voice) -> dict[str, Any]:
    """One scan; how it ended: published, already published, held (by another), lost (Prefect was), or failed."""
    from pipeline.recipe import Job

    folder = Path(task["folder"])
    os.environ[OUTPUT_VARIABLE] = task["output"]
    try:
        with claimed(folder):
            fresh = Job.take(folder)
            job = Job.load(folder)
            if task.get("failure"):
                return _record(job, ChironError(*task["failure"]))
            if _is_done(job, fresh):
                return {"how": "already published"}
            return _scan(job, folder, voice, task["prefect"])
    except ChironError as failure:
        return {"how": "held" if failure.code == "R006" else "failed", "code": failure.code, "text": failure.sentence()}
    except (OSError, ValueError, KeyError) as error:  # of a job that is damaged or gone
        unread = ChironError("R005", f"a job that cannot be read ({type(error).__name__})")
        return {"how": "failed", "code": "R005", "text": unread.sentence()}


def _scan(job: Any, folder: Path, voice: Voice, prefect: bool) -> dict[str, Any]:
    from flows.scan import reconstruct, watcher
    from pipeline.recipe import recipe

    if prefect:
        from flows.scan_flow import scan as reconstruct

    reporter = Reporter(folder, voice, Watchdog(lambda: PREFECT_LOST) if prefect else None)
    token = watcher.set(reporter)
    try:
        reconstruct(job.scan.id, job.scan.label)
    except ChironError:
        raise
    except Exception as error:  # every failure of a stage is a ChironError: this one is Prefect's
        if not prefect:
            raise ChironError("R005", f"an unexpected {type(error).__name__}") from None
        return {"how": "lost", "text": type(error).__name__}
    finally:
        watcher.reset(token)
        reporter.close()
    card_s = sum(r.record.get("card_seconds", 0.0) for s in recipe(job.settings) if (r := job.work.find(s.name)))
    if not job.settings.keep_work:
        job.tidy()
    return {"how": "published", "card_s": card_s}


def _record(job: Any, failure: ChironError) -> dict[str, Any]:
    """Publish why there is no result, where the process that was at it could not say so itself."""
    from flows.scan import output_folder
    from pipeline.publish import publish

    publish(job, output_folder(), failure)
    return {"how": "failed", "code": failure.code, "text": failure.sentence()}


def _is_done(job: Any, fresh: bool) -> bool:
    """Whether there is nothing to do: the scan keeps its result, or, if it is to be done again, that has been done.

    A job that is not fresh was done, or begun, before.
    """
    from flows.scan import output_folder
    from pipeline.publish import already_published, stays

    if not job.again:
        return stays(output_folder(), job)
    try:
        return not fresh and already_published(output_folder(), job)
    except ChironError:  # of files that cannot be read now: the first stage tells why
        return False


def _listen() -> SimpleQueue[str]:
    """The lines of standard input; when it ends, so does this process with all that it started, at once."""
    tasks: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            tasks.put(line)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    return tasks


def _use(threads: int) -> None:
    import numba
    import SimpleITK
    import torch

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _give_memory_back() -> None:
    """Of the C library's pools to the system, so that a worker's memory stays what one scan needs."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
