"""A scan and what its user knows better -> the B0 that it is computed with, on record with its source."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.acquisition import Acquisition
from pipeline.errors import ChironError, Decision
from pipeline.find.field_strength import FieldHeader, field_strength
from pipeline.find.headers import read_images
from pipeline.find.scan import Scan


@dataclass(frozen=True)
class B0:
    """The field to compute with in tesla, what it rests on, and the nominal field strength (0 where none is stated)."""

    tesla: float
    source: str
    nominal_tesla: float
    frequency_mhz: float

    @classmethod
    def of(cls, scan: Scan, acquisition: Acquisition) -> B0:
        """The user's field, else that of the scan."""
        user = acquisition.b0_tesla
        source = "user" if user else scan.b0_source
        return cls(user or scan.b0_tesla, source, scan.b0_nominal_tesla, scan.imaging_frequency_mhz)

    def decision(self) -> Decision:
        nominal = f"the nominal field strength is {self.nominal_tesla:g} T" if self.nominal_tesla else ""
        measured = f"the imaging frequency is {self.frequency_mhz:.6g} MHz" if self.frequency_mhz else ""
        stated = ", ".join(filter(None, (measured, nominal))) or "the header states none"
        return Decision("field strength", f"{self.tesla:.4f} T", f"source: {self.source}; {stated}", "--b0")

    def header(self) -> dict[str, float]:
        """What the headers state, for the list of such facts in a report."""
        stated = {"field_strength_tesla": self.nominal_tesla, "imaging_frequency_mhz": self.frequency_mhz}
        return {name: value for name, value in stated.items() if value}

    def facts(self) -> dict[str, Any]:
        """What a report and a sidecar need of it."""
        return {"b0_tesla": self.tesla, "b0_source": self.source, "b0_nominal_tesla": self.nominal_tesla}


def with_field_strength(scan: Scan, acquisition: Acquisition) -> Scan:
    """The scan with its B0. A job that an earlier version saved knows the nominal strength alone: its headers tell."""
    if scan.b0_source:
        return scan
    headers = _sidecars(scan) if scan.source == "bids" else _headers(scan)
    field = field_strength([FieldHeader(scan.b0_tesla), *headers], scan.vendor, acquisition.b0_tesla)
    return replace(scan, notices=(*scan.notices, *field.notices), **field.facts())


def _headers(scan: Scan) -> list[FieldHeader]:
    """Of one file of each volume. A file that cannot be read is the conversion's to refuse."""
    headers = []
    for file in {volume.files[0] for volume in scan.volumes}:
        with suppress(ChironError):
            headers.append(read_images(scan.files[file], file)[0].field)
    return headers


def _sidecars(scan: Scan) -> list[FieldHeader]:
    return [FieldHeader.of_sidecar(_json(path)) for path in scan.files if path.suffix == ".json"]


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}
