"""A work pool -> its runs done on this machine, one process each, until the worker is told to stop.

As a module it is the worker of `chiron serve`, and ends with it: its standard input is its leash.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from flows.engine import quiet
from flows.pools import CPU, GPU, LAUNCHER
from pipeline.card import LOCKS_VARIABLE
from pipeline.errors import ChironError

CARD_VARIABLE = "CUDA_VISIBLE_DEVICES"
AT_ONCE = {CPU: 3, GPU: 1}  # a batch waits in the cpu pool for its scans, while others plan
STOP_S = 15.0


def work_for(pool: str, card: int | None = None) -> None:
    """Do what is asked of `pool`, on `card` alone where one is given, until SIGINT or SIGTERM.

    R007 where Prefect, at PREFECT_API_URL, does not know the pool or is lost for minutes.
    """
    quiet()
    _keep_to_itself()
    os.environ[LAUNCHER] = str(os.getpid())
    if card is not None:
        os.environ[CARD_VARIABLE] = str(card)
    from prefect.workers.process import ProcessWorker

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: threading.Thread(target=_stop, daemon=True).start())
    worker = ProcessWorker(
        work_pool_name=pool, name=_name(pool, card), limit=AT_ONCE[pool], create_pool_if_not_found=False
    )
    try:
        asyncio.run(worker.start(printer=lambda *_: None))
    except Exception as error:  # all that is raised here is Prefect's
        kind = type(error).__name__
        raise ChironError("R007", f"Prefect has no pool {pool!r}, or was lost ({kind})", "`chiron deploy`") from None


def _keep_to_itself() -> None:
    """A temporary folder of this user's own: Prefect makes one of a fixed name there. Cards' locks are everyone's."""
    everyones = tempfile.gettempdir()
    own = Path(everyones) / f"chiron-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.stat().st_uid == os.getuid():
        os.environ.setdefault(LOCKS_VARIABLE, everyones)
        os.environ["TMPDIR"] = tempfile.tempdir = str(own)


def _name(pool: str, card: int | None) -> str:
    return f"{pool}-{socket.gethostname()}" + (f"-{card}" if card is not None else "")


def _stop() -> None:
    """Ask the runs to stop, give them time to say so to Prefect, and end; what still runs then ends with this."""
    until = time.monotonic() + STOP_S
    asked: set[int] = set()
    while (runs := _children()) and time.monotonic() < until:
        for run in set(runs) - asked:
            with suppress(ProcessLookupError):
                os.kill(run, signal.SIGTERM)
        asked |= set(runs)
        time.sleep(0.2)
    os._exit(0)


def _children() -> list[int]:
    """Processes that this one started and that have not ended."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return [pid for pid in found if _runs(pid)]


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work_for(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else None)
