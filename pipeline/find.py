"""An export folder (DICOM, or a BIDS dataset) -> the scans in it, and why everything else is not one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import Notice


@dataclass(frozen=True)
class Scan:
    """One multi-echo scan: who (by pseudonym), where its files are, what they hold."""

    id: str  # 12 hex digits; names the scan where nothing identifying may stand
    subject: str  # labels without the BIDS prefix; `session` and `run` may be empty
    session: str
    run: str
    source: Literal["dicom", "bids"]
    vendor: str
    series: tuple[int, ...]  # series numbers
    echo_times_s: tuple[float, ...]
    parts: tuple[str, ...]  # of magnitude, phase, real, imaginary
    files: tuple[Path, ...]
    notices: tuple[Notice, ...] = ()

    @property
    def label(self) -> str:
        """`sub-x_ses-y_run-1`, without the parts that are empty."""
        entities = (("sub", self.subject), ("ses", self.session), ("run", self.run))
        return "_".join(f"{key}-{value}" for key, value in entities if value)

    def content_digest(self) -> str:
        """sha256 over the content of all files, whatever their names and order."""
        raise NotImplementedError

    def json(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scan:
        raise NotImplementedError


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


@dataclass(frozen=True)
class Export:
    """All that was found: files seen = files of scans + ignored + files set aside."""

    scans: tuple[Scan, ...]
    set_aside: tuple[SetAside, ...]
    ignored: tuple[Ignored, ...]
    files_seen: int


def find(folder: Path, key: bytes, subject: str | None = None) -> Export:
    """Look through `folder`; pseudonyms are made with `key`; `subject` overrides the label of the only patient."""
    raise NotImplementedError
