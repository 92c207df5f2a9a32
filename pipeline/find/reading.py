"""Listed files of an export -> the images in each, or why it holds none, in their order: many by several processes."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

from pipeline.child import python
from pipeline.errors import ChironError
from pipeline.find.headers import Image, read_images
from pipeline.find.listing import Entry

AT_ONCE = 200  # files, to a process
WORTH_ONE = 1500  # files, for which a further process takes less time than to start it
MOST = 8  # processes: each holds 60 MB

Found = list[Image] | ChironError


def read_all(entries: list[Entry], progress: Callable[[float, str], None]) -> Iterator[tuple[Entry, Found]]:
    """Every entry with what is in it; the same whatever the number of processes. R008 where one of them dies."""
    shares = [entries[at : at + AT_ONCE] for at in range(0, len(entries), AT_ONCE)]
    processes = min(len(os.sched_getaffinity(0)), len(entries) // WORTH_ONE, MOST)
    contents = map(read, shares) if processes < 2 else _read_by(processes, shares)
    done = 0
    for share, found in zip(shares, contents, strict=True):
        yield from zip(share, found, strict=True)
        done += len(share)
        progress(done / len(entries), "reading headers")


def read(share: list[Entry]) -> list[Found]:
    """What is in each of these files."""
    return [_read_one(entry) for entry in share]


def _read_one(entry: Entry) -> Found:
    if entry.code:
        return ChironError(entry.code, entry.text)
    try:
        return read_images(entry.path, entry.ordinal)
    except ChironError as error:
        return error.with_traceback(None)  # whose frames hold the file's content


def _read_by(processes: int, shares: list[list[Entry]]) -> Iterator[list[Found]]:
    """By processes of our own: `multiprocessing` would run the main module of whoever calls us once more."""
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def ask(share: list[Entry]) -> list[Found]:
        process = idle.get()
        try:
            return _ask(process, share)
        finally:
            idle.put(process)

    with ExitStack() as stack:
        for _ in range(processes):
            idle.put(stack.enter_context(_started()))
        threads = stack.enter_context(ThreadPoolExecutor(processes))
        stack.callback(threads.shutdown, cancel_futures=True)
        yield from threads.map(ask, shares)


@contextmanager
def _started() -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads; it ends with us, and an interrupt is for us alone."""
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(
        **python("pipeline.find.reader", str(Path.cwd())), stdin=pipe, stdout=pipe, stderr=none, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        process.wait()


def _ask(process: subprocess.Popen[bytes], share: list[Entry]) -> list[Found]:
    assert process.stdin and process.stdout
    try:
        pickle.dump(share, process.stdin)
        process.stdin.flush()
        found: list[Found] = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
        raise ChironError("R008", "a process that died while it read headers", "one that lives") from None
    return found
