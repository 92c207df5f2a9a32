"""A GPU -> this process's alone for a while, by a lock on this machine that dies with its holder. It needs no server.

One process computes on a card at a time; others read, unwrap on their cores and publish meanwhile.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from pipeline.errors import ChironError
from pipeline.lock import try_lock

LOCKS_VARIABLE = "CHIRON_LOCKS"  # a folder that all who share a card see: containers have a /tmp of their own
WAIT_S = 4 * 3600.0


@dataclass
class Held:
    """How long a card was waited for, and held."""

    waited_s: float = 0.0
    seconds: float = 0.0


@contextmanager
def card(device: torch.device, wait_s: float = WAIT_S) -> Iterator[Held]:
    """Hold the card of `device`; the CPU is nobody's. R001 where it does not become free, or no lock can be made."""
    held = Held()
    if device.type == "cpu":
        yield held
        return
    started = time.monotonic()
    with _open(device) as handle:
        while not try_lock(handle.fileno()):
            if time.monotonic() - started > wait_s:
                raise ChironError("R001", f"a GPU that others held for {wait_s:.0f} s", "one that becomes free")
            time.sleep(0.02)
        held.waited_s = time.monotonic() - started
        began = time.monotonic()
        try:
            yield held
        finally:
            _let_go(device)
            held.seconds = time.monotonic() - began


def _open(device: torch.device) -> IO[str]:
    """The lock's file, which every user of the machine may open."""
    folder = Path(os.environ.get(LOCKS_VARIABLE) or tempfile.gettempdir())
    path = folder / f"chiron-card-{_name(device)}.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        found = f"a GPU's lock that cannot be opened ({error.strerror})"
        raise ChironError("R001", found, "a folder for locks") from None
    return os.fdopen(handle, "r+")


def _name(device: torch.device) -> str:
    """What names the card itself, whatever number it has here."""
    found = torch.cuda.get_device_properties(device)
    return str(getattr(found, "uuid", device.index or 0))


def _let_go(device: torch.device) -> None:
    """Wait for what still runs on the card, and give its memory back for the next."""
    if torch.cuda.is_available():
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
