"""A job and an output folder -> what stands published for its scan, and whether that is kept.

A result is kept until a person has it made anew. Only two things are done without being asked: a result of which files
are missing or changed is made again as it was, and one that was made before all files had arrived is made of all.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pipeline
from models.params import filled
from pipeline.errors import ChironError
from pipeline.find import Scan
from pipeline.invert import chosen_methods
from pipeline.ledger import Record, records_of
from pipeline.override import Override, difference, flat
from pipeline.publish.dataset import private
from pipeline.publish.manifest import intact, plain_settings, same_field
from pipeline.recipe import Job
from pipeline.settings import PRESET, Settings, load, parse

State = Literal["absent", "damaged", "grown", "changed", "same"]
NOT_OF_THE_RESULT = ("device", "keep_work")


@dataclass(frozen=True)
class Standing:
    """What is published under a scan's label: from the same input, from fewer files of it, or from another input."""

    state: State
    record: Record

    @property
    def stays(self) -> bool:
        return self.state in ("same", "changed")


def standing(output: Path, job: Job) -> Standing:
    """What stands for the job's scan. F015 or F016 where the files of the scan cannot be read now."""
    record = published_record(output, job.scan.label)
    if record is None:
        return Standing("absent", {})
    if record["input_digest"] != job.scan.content_digest():
        return Standing("grown" if _has_grown(record, job.scan) else "changed", record)
    return Standing("same" if intact(output, record) else "damaged", record)


def _has_grown(record: Record, scan: Scan) -> bool:
    """Whether the scan has more images than the result was made from, and all of those."""
    images = Counter(record.get("input_images") or ())
    return images < Counter(scan.image_digests()) if images else len(scan.files) > record["input_files"]


def stays(output: Path, job: Job) -> bool:
    """Whether the scan keeps its result; a scan whose files cannot be read now is left to its stages to judge."""
    try:
        return standing(output, job).stays
    except ChironError:
        return False


def already_published(output: Path, job: Job) -> bool:
    """Whether this very result stands in `output`: same input, settings, methods and version, and every file intact."""
    record = published_record(output, job.scan.label)
    if record is None or record["software"]["chiron"] != pipeline.__version__:
        return False
    same = record["settings"] == plain_settings(job.settings) and record["methods"] == list(
        chosen_methods(job.settings)
    )
    same = same and record["input_digest"] == job.scan.content_digest() and same_field(record, job.scan)
    return same and intact(output, record)


def published_record(output: Path, label: str) -> Record | None:
    return next((r for r in records_of(output, label) if r["state"] == "published"), None)


def differs(record: Record, settings: Settings) -> dict[str, Any]:
    """The settings, by name, by which a result made now would be another than the one of the record."""
    made = record["settings"]
    presets = {name: filled(PRESET[name], made[name]) for name in PRESET if isinstance(made.get(name), dict)}
    before = {**flat(load().model_dump(mode="json")), **flat(made | presets)}  # an older version had fewer settings
    changes = difference(before, plain_settings(settings))
    same_methods = record["methods"] == list(chosen_methods(settings))
    dropped = (*NOT_OF_THE_RESULT, *(("method", "also") if same_methods else ()))
    return {name: value for name, value in changes.items() if name not in dropped}


def override_of(output: Path, label: str, scan: str) -> Override | None:
    """What a person decided for a scan: as its job says, else as its manifest does."""
    job = load_job(private(output) / "work" / scan)
    if job and job.override:
        return job.override
    for record in records_of(output, label):
        if record.get("override"):
            override = Override.from_json(record["override"])
            values = {name: value for name, value in override.settings.items() if name != "mask.file"}  # only its hash
            return replace(override, settings=values)
    return None


def settings_of(record: Record, otherwise: Settings) -> Settings:
    """The settings that a result was made with, as far as the manifest tells."""
    plain = {**record["settings"], "device": otherwise.device, "keep_work": otherwise.keep_work}
    plain["mask"] = {name: value for name, value in plain.get("mask", {}).items() if name != "file"}
    try:
        return parse(plain)
    except ChironError:  # of another version
        return otherwise


def load_job(folder: Path) -> Job | None:
    """The job of a work folder; None where there is none that can be read."""
    try:
        return Job.load(folder, next=True)
    except (OSError, ValueError, KeyError, TypeError, ChironError):
        return None
