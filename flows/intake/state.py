"""What the last look at an inbox saw, in the output's private folder -> what the next one compares with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ChironError
from pipeline.identity import pseudonym
from pipeline.lock import locked
from pipeline.publish.dataset import private
from pipeline.publish.swap import write_in_place
from pipeline.work import disk_error

NAME, VERSION = "intake.json", 1
WAIT_S = 60.0  # for another look at the same inbox

Sign = list[int]  # size and modification time (ns) of a file: what tells whether it is still the same


@dataclass
class Unit:
    """Files that are taken together: those of a study, those of a subject of a BIDS dataset, or one other file."""

    changed: float  # when a look first saw it as it is, by our own clock
    files: dict[str, Sign] = field(default_factory=dict)  # by path below the inbox
    short: bool = False  # as it is, something may still come
    done: bool = False  # as it is, it was handed over
    scans: int | None = None  # that it gave when it was last handed over; None where it never was

    def touch(self, now: float) -> None:
        self.changed, self.short, self.done = now, False, False


Units = dict[str, Unit]


@contextmanager
def kept(output: Path, key: bytes) -> Iterator[Units]:
    """The units of the last look, for one process at a time; as they are left, they are saved, unless it raises.

    R006 where another look takes too long, S001 and S002 where they cannot be saved. Where nothing was saved, or it is
    damaged or of another key, there are none.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locked(private(output) / "locks" / "intake.lock", WAIT_S))
        except ChironError:
            raise ChironError("R006", "another look at the inbox that does not end", "one at a time") from None
        units = _load(output, key)
        yield units
        _save(output, key, units)


def _load(output: Path, key: bytes) -> Units:
    try:
        content, _, seal = (private(output) / NAME).read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise disk_error(error) from error
    if seal != _seal(content):
        return {}
    saved = json.loads(content)
    if (saved["version"], saved["key"]) != (VERSION, _name_of(key)):
        return {}
    return {name: Unit(*plain) for name, plain in saved["units"].items()}


def _save(output: Path, key: bytes, units: Units) -> None:
    plain = {name: (u.changed, u.files, u.short, u.done, u.scans) for name, u in units.items()}
    saved = {"version": VERSION, "key": _name_of(key), "units": plain}
    content = json.dumps(saved, separators=(",", ":")).encode()
    try:
        write_in_place(private(output) / NAME, content + b"\n" + _seal(content), private(output))
        (private(output) / NAME).chmod(0o600)
    except OSError as error:
        raise disk_error(error) from error


def _seal(content: bytes) -> bytes:
    """The last line of the file, which tells whether it is what was saved."""
    return hashlib.sha256(content).hexdigest().encode()


def _name_of(key: bytes) -> str:
    """Studies go by keyed names, so what was saved under another key is of no use."""
    return pseudonym(key, "intake key")
