"""What was done to a scan -> its record in the manifest beside its results; and manifests -> records, proven or not.

A manifest is `{"format": 1, "scans": [record, ...]}`, one in each session's folder. It is the only ledger.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pipeline
from pipeline.errors import ChironError
from pipeline.find import Scan, SetAside
from pipeline.ledger import FORMAT, Record, read_manifests
from pipeline.override import Override
from pipeline.settings import Settings
from pipeline.work import Result, file_digest

LIBRARIES = ("torch", "numpy", "scipy", "numba", "nibabel", "pydicom", "SimpleITK", "dcm2niix")


@dataclass(frozen=True)
class Damage:
    """A published file that is not what its manifest says."""

    label: str
    file: str  # relative to the dataset
    what: str  # "missing" or "changed"


def record(
    scan: Scan,
    settings: Settings,
    methods: tuple[str, ...],
    stages: Mapping[str, Result],
    failure: ChironError | None,
    override: Override | None = None,
) -> Record:
    """All that is recorded of one scan, but for its published files and its verdict."""
    made = [result.record for result in stages.values()]
    return {
        "label": scan.label,
        "scan": scan.id,
        "owner": scan.owner,
        "identity": list(scan.identity),
        "suffix": scan.suffix,
        "state": "failed" if failure else "published",
        "input_digest": input_digest(scan, stages),
        "input_files": len(scan.files),
        "input_images": _images(scan),
        "b0_tesla": stages["convert"].facts.get("b0_tesla") if "convert" in stages else None,
        "settings": plain_settings(settings),
        "override": _override(override, plain_settings(settings)) if override else None,
        "methods": list(methods),
        "seeds": {method: getattr(getattr(settings, method), "seed", None) for method in methods},
        "weights": {},
        "software": {"chiron": pipeline.__version__, "python": platform.python_version(), **_libraries()},
        "device": next((r["device"] for r in made if r.get("device", "cpu") != "cpu"), "cpu") if made else None,
        "stages": [
            {name: r.get(name) for name in ("stage", "version", "device", "seconds", "peak_memory_bytes")} for r in made
        ],
        "decisions": [{"stage": r["stage"], **decision} for r in made for decision in r["decisions"]],
        "warnings": [{"stage": r["stage"], **notice} for r in made for notice in r["notices"]],
        "failure": _failure(failure) if failure else None,
        "finished": _now(),
    }


def aside_record(found: SetAside) -> Record:
    """The record of what could not be taken for a scan: nothing was computed, so there is little to say."""
    return {
        "label": found.label,
        **({"scan": found.scan} if found.scan else {}),
        "identity": list(found.identity),
        "state": "set aside",
        "input_files": found.files,
        "methods": [],
        "decisions": [],
        "warnings": [],
        "failure": {"code": found.code, "sentence": f"{found.code}: {found.text}"},
        "finished": _now(),
        "verdict": "do not use",
        "files": {},
    }


def input_digest(scan: Scan, stages: Mapping[str, Result]) -> str | None:
    """Hash of what was read; None where the scan failed before, and its files cannot be read now."""
    if "convert" in stages:
        found: str = stages["convert"].facts["content_digest"]
        return found
    try:
        return scan.content_digest()
    except (OSError, ChironError):
        return None


def _images(scan: Scan) -> list[str]:
    try:
        return scan.image_digests()
    except ChironError:
        return []


def plain_settings(settings: Settings) -> dict[str, Any]:
    """The settings that a result depends on, as JSON; a mask's file by its hash, for its path may name a patient."""
    plain: dict[str, Any] = settings.model_dump(mode="json", exclude={"keep_work"})
    if not settings.acquisition.orientation:  # records of versions that do not know it are of the same settings
        del plain["acquisition"]["orientation"]
    if settings.mask.file:
        try:
            plain["mask"]["file"] = f"sha256:{file_digest(Path(settings.mask.file))}"
        except OSError:
            plain["mask"]["file"] = "unreadable"
    return plain


def _override(override: Override, settings: Record) -> Record:
    """As the job has it, but for the mask, whose path may name a patient."""
    plain = override.json()
    if "mask.file" in plain["settings"]:
        plain["settings"] = {**plain["settings"], "mask.file": settings["mask"]["file"]}
    return plain


def same_field(published: Record, scan: Scan) -> bool:
    """Whether a record was computed with the B0 that the scan has now.

    A record without it, of an earlier version, stands: no input has changed because B0 is computed in another way.
    """
    return not scan.b0_source or published.get("b0_tesla") in (None, scan.b0_tesla)


def files_entry(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Relative name -> sha256 and size."""
    return {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in sorted(files.items())
    }


def manifest(records: list[Record]) -> dict[str, Any]:
    return {"format": FORMAT, "scans": sorted(records, key=lambda r: r["label"])}


def session_folder(scan: Scan) -> str:
    """`sub-x/ses-y`, or `sub-x` where the scan has no session; relative to the dataset."""
    return f"sub-{scan.subject}/ses-{scan.session}" if scan.session else f"sub-{scan.subject}"


def verify(output: Path) -> list[Damage]:
    """Every file of every manifest that is missing or changed."""
    return [damage for r in read_manifests(output) for damage in _damage(output, r)]


def intact(output: Path, located: Record) -> bool:
    """Whether every file of a record of `read_manifests` is as it was published."""
    return next(_damage(output, located), None) is None


def _damage(output: Path, located: Record) -> Iterator[Damage]:
    for name, entry in located["files"].items():
        file = f"{located['folder']}/{name}"
        try:
            same = file_digest(output / file) == entry["sha256"]
        except OSError:
            yield Damage(located["label"], file, "missing")
            continue
        if not same:
            yield Damage(located["label"], file, "changed")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _failure(failure: ChironError) -> dict[str, str]:
    return {
        "code": failure.code,
        "found": failure.found,
        "expected": failure.expected,
        "todo": failure.todo,
        "sentence": failure.sentence(),
    }


@cache
def _libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
