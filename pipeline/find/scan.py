"""What was found in an export: scans, files that belong to none, and what could have been a scan and is not usable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipeline.acquisition import Acquisition
from pipeline.entities import Entities, label_of, split
from pipeline.errors import ChironError, Notice

T = TypeVar("T")
UNKNOWN = "unknown"  # stands for a label where nobody can be named

# Owner, subject and session -> what to believe of that study; the later ones where headers are not usable by the first
AcquisitionOf = Callable[[str, str, str], Sequence[Acquisition]]


@dataclass(frozen=True)
class Volume:
    """One part of one echo: which files of the scan hold its slices, in order of position, and which frames."""

    part: str
    echo: int  # counted from 0, in the order of echo times
    files: tuple[int, ...]  # places in the scan's `files`
    frames: tuple[int, ...]  # counted from 0; all 0 where a file holds one image


@dataclass(frozen=True)
class Scan:
    """One multi-echo scan: who (by pseudonym), where its files are, what they hold."""

    id: str  # 12 hex digits; names the scan where nothing identifying may stand
    subject: str  # labels without the BIDS prefix; `session` and `run` may be empty
    session: str
    run: str
    source: Literal["dicom", "bids"]
    vendor: str  # Siemens, Philips, GE or other
    series: tuple[int, ...]  # series numbers
    echo_times_s: tuple[float, ...]
    parts: tuple[str, ...]  # of magnitude, phase, real, imaginary
    files: tuple[Path, ...]
    notices: tuple[Notice, ...] = ()
    volumes: tuple[Volume, ...] = ()
    b0_tesla: float = 0.0  # to compute with
    b0_source: str = ""  # what that rests on; empty in a job that an earlier version saved
    b0_nominal_tesla: float = 0.0  # as the headers name it; 0 where they do not
    imaging_frequency_mhz: float = 0.0  # as the headers have it; 0 where they have none that is usable
    b0_dir: tuple[float, ...] = ()  # in voxel axes, where a BIDS sidecar gives it; else the scanner's z axis
    phase_unit: str = ""  # where a BIDS sidecar gives it
    shape: tuple[int, ...] = ()  # voxels of one volume, as the headers tell them
    entities: Entities = ()  # that a BIDS name has besides subject, session and run
    suffix: str = ""  # of a BIDS name
    header_times_s: tuple[float, ...] = ()  # of echoes, as BIDS sidecars state them; empty where they do not
    owner: str = ""  # keyed hash of the person: a patient's identity, or a subject of one BIDS dataset
    label_source: Literal["", "pseudonym", "table", "option", "dataset"] = ""  # where the subject's label comes from
    identity: tuple[str, ...] = ()  # keyed hashes that later files of this scan share with it, and no other scan

    @property
    def label(self) -> str:
        """`sub-x_ses-y_acq-z_run-1`, without the parts that are empty."""
        return label_of(self.subject, self.session, self.run, self.entities)

    def named(self, label: str) -> Scan:
        """This scan under another label."""
        subject, session, run, entities = split(label)
        return replace(self, subject=subject, session=session, run=run, entities=entities)

    def content_digest(self) -> str:
        """sha256 over the content of all files, whatever their names and order; for BIDS also over the sidecars' facts.

        F016 where a file has vanished, F015 where it cannot be read.
        """
        return self._digest

    def image_digests(self) -> list[str]:
        """sha256 of every image, without sidecars, cut short: what tells whether two scans share an image.

        F015 or F016 as for `content_digest`.
        """
        pairs = zip(self.files, self._file_digests, strict=True)
        return sorted(digest.hex()[:16] for path, digest in pairs if path.suffix != ".json")

    @cached_property
    def _file_digests(self) -> list[bytes]:
        return list(map(_file_digest, self.files))

    @cached_property
    def _digest(self) -> str:
        times = self.header_times_s or self.echo_times_s
        facts = (times, self._stated_tesla, self.b0_dir, self.phase_unit) if self.source == "bids" else ()
        whole = hashlib.sha256(json.dumps(facts).encode())
        for digest in sorted(self._file_digests):
            whole.update(digest)
        return whole.hexdigest()

    @property
    def _stated_tesla(self) -> float:
        """The field as the input states it: what is computed from it is no part of the input's identity."""
        return self.b0_tesla if self.b0_source in ("", "user") else self.b0_nominal_tesla

    def json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the scan back."""
        return {**asdict(self), "files": [str(path) for path in self.files]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scan:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        plain["files"] = tuple(map(Path, value["files"]))
        plain["entities"] = tuple((name, of) for name, of in value.get("entities", ()))
        plain["notices"] = tuple(Notice(**n) for n in value["notices"])
        plain["volumes"] = tuple(
            Volume(v["part"], v["echo"], tuple(v["files"]), tuple(v["frames"])) for v in value["volumes"]
        )
        return cls(**plain)


@dataclass(frozen=True)
class Ignored:
    """A file that belongs to no scan: its ordinal in the sorted listing, never its name."""

    ordinal: int
    code: str
    text: str


@dataclass(frozen=True)
class SetAside:
    """What could have been a scan and is not usable, with the reason."""

    label: str
    code: str
    text: str
    files: int
    scan: str = ""  # the id of what could be told to be one scan
    owner: str = ""  # as of a scan
    identity: tuple[str, ...] = ()  # as of a scan

    @classmethod
    def of(cls, scan: Scan, error: ChironError) -> SetAside:
        """A scan that is not usable after all."""
        return cls(scan.label, error.code, reason(error), len(scan.files), scan.id, scan.owner, scan.identity)


@dataclass(frozen=True)
class Export:
    """All that was found: files seen = files of scans + ignored + files set aside."""

    scans: tuple[Scan, ...]
    set_aside: tuple[SetAside, ...]
    ignored: tuple[Ignored, ...]
    files_seen: int


def first_usable(attempt: Callable[[Acquisition], T], believed: Sequence[Acquisition]) -> tuple[T, tuple[Notice, ...]]:
    """What `attempt` makes of the first of `believed` that it can use; a notice where that is not the first of all.

    ChironError, the first one's, where there is none such.
    """
    first: ChironError | None = None
    for acquisition in believed:
        try:
            result = attempt(acquisition)
        except ChironError as error:
            first = first or error
        else:
            text = "The headers are not usable. What was given for a scan of this study before is used."
            return result, ((Notice(first.code, text),) if first else ())
    assert first
    raise first


def reason(error: ChironError) -> str:
    """The error's sentence without the code, which stands beside it."""
    return error.sentence().removeprefix(f"{error.code}: ")


def _file_digest(path: Path) -> bytes:
    try:
        state = path.stat()
        return _digest_of(path, state.st_size, state.st_mtime_ns)
    except FileNotFoundError:
        raise ChironError("F016", "a file of the scan that vanished") from None
    except OSError as error:
        raise ChironError("F015", f"a file of the scan that cannot be read ({error.strerror})") from None


@lru_cache(maxsize=2**16)
def _digest_of(path: Path, size: int, mtime_ns: int) -> bytes:
    """Of a file that was this large and last written then: one that has changed is read again."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
