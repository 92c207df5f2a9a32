"""A scan that was found, and what stands of it -> the job to do, or a word on the result that it keeps.

What a person decided for a scan (`reprocess`, `--echo-times` and the like) holds for it whatever a run or a site asks
for later.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.claim import claimed
from pipeline.errors import ChironError
from pipeline.find import AcquisitionOf, Scan
from pipeline.ledger import NEXT
from pipeline.lock import if_free
from pipeline.mask.own import with_own_mask
from pipeline.override import FACTS, Override, acquisition_with, with_values
from pipeline.publish.dataset import private
from pipeline.publish.manifest import plain_settings
from pipeline.publish.register import Register
from pipeline.publish.standing import Standing, differs, load_job, override_of, settings_of, standing
from pipeline.recipe import Job
from pipeline.settings import Settings

SHOWN = 6  # settings that differ, in a sentence


@dataclass(frozen=True)
class Planned:
    """The job of a scan, what stands published for it, and what a person decided for it before."""

    job: Job
    standing: Standing
    decided: Override | None = None


def planned(
    output: Path, scan: Scan, settings: Settings, truth: Path | None = None, override: Override | None = None
) -> Planned:
    """The job of a scan by `settings`, or by what a person decided for it; X002 where its own mask cannot be used."""
    folder = private(output) / "work" / scan.id
    waiting = load_job(folder) if (folder / NEXT).exists() else None
    earlier = override_of(output, scan.label, scan.id)
    decided = override.after(earlier) if override else earlier
    job = Job(scan, settings, folder, truth, override=decided)
    try:
        state = standing(output, job)
    except ChironError:  # files that cannot be read now: its first stage tells why
        state = Standing("absent", {})
    try:
        job = replace(job, settings=decided.apply(settings) if decided else settings)
    except ChironError:  # a decision of a damaged file, or of another version
        if not state.stays:
            raise
    if waiting and waiting.again:  # a person asked for it anew, and it was not begun yet
        expects = "" if state.state == "grown" else waiting.expects
        return Planned(replace(waiting, scan=scan, expects=expects), state, earlier)
    if state.state in ("damaged", "grown"):
        _refuse_without_mask(job, state)
    if state.state == "damaged":
        job = replace(job, settings=_as_made(job, state))
    if not state.stays:
        job = replace(job, settings=with_own_mask(job.settings, scan))
    return Planned(job, state, earlier)


def overrides_for(output: Path, settings: Settings) -> AcquisitionOf:
    """What to believe of a study: what the settings say and, where headers then are not usable, what a person said of
    scans of the study before."""
    labels = Register(output)

    def of_study(owner: str, subject: str, session: str) -> Any:
        person = labels.subject_of(owner) or labels.subject(subject)
        if owner and person.owners and owner not in person.owners:
            return (settings.acquisition,)
        values: dict[str, Any] = {}
        for label in person.of_session(session):
            override = override_of(output, label, person.entries[label.lower()].scan)
            values |= override.settings if override else {}
        return settings.acquisition, acquisition_with(settings.acquisition, values)

    return of_study


def remember(output: Path, planned: Planned) -> None:
    """Where the files of a scan that keeps its result lie now, for whoever has it made anew; not where one just did."""
    job = planned.job
    if (job.folder / NEXT).exists():
        return
    before = load_job(job.folder)
    changed = planned.standing.state == "changed"
    if before and before.scan.files == job.scan.files and not changed and not before.expects:
        return
    settings = before.settings if before else settings_of(planned.standing.record, job.settings)
    expects = job.scan.content_digest() if changed else ""
    with suppress(OSError), if_free(claimed(job.folder)) as free:
        if free:
            replace(job, settings=settings, expects=expects, override=planned.decided).save()
            Job.take(job.folder)


def what_stands(output: Path, planned: Planned, asked: Settings) -> str:
    """A sentence where the result that a scan keeps is not what was asked for, with the command that makes it anew."""
    record = planned.standing.record
    again = f"chiron reprocess {shlex.quote(str(output))} {record['label']}"
    decided = planned.decided.settings if planned.decided else {}
    with suppress(ChironError):
        asked = with_own_mask(asked, planned.job.scan)
    facts = {name: value for name, value in differs(record, planned.job.settings).items() if _is_fact(name)}
    changes = {name: value for name, value in differs(record, asked).items() if not _is_fact(name)} | facts
    if planned.standing.state == "changed" and not any(name.startswith("acquisition.") for name in changes):
        return f"The input has changed since this result was made. To use the new input: {again}"
    if not changes:
        return ""
    names = [f"{name}={_word(name, value)}" for name, value in changes.items()]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    origin = f"by {', '.join(record['methods'])} on {record['finished'][:10]}"
    decision = ", as was decided for this scan" if decided else ""
    other = f"Settings that differ: {', '.join(names[:SHOWN])}{more}."
    return f"This result was made {origin}{decision}, and stays. {other} To make it anew: {again} {_options(changes)}"


def _is_fact(name: str) -> bool:
    """Whether a setting says how the scan was made, of which a decision holds whatever a run asks for."""
    return name.partition(".")[0] in FACTS


def _options(changes: Mapping[str, Any]) -> str:
    """The words of `chiron reprocess` that ask for these settings."""
    words = []
    for name, value in changes.items():
        if name == "method":
            words += ["--method", str(value)]
        else:
            words += ["--set", shlex.quote(f"{name}={_word(name, value)}")]
    return " ".join(words)


def _word(name: str, value: Any) -> str:
    if name == "mask.file":  # of which only the hash is known here
        return "FILE"
    return value if isinstance(value, str) else json.dumps(value)


def _as_made(job: Job, state: Standing) -> Settings:
    """The settings by which a damaged result was made."""
    before = load_job(job.folder)
    if before and plain_settings(before.settings) == state.record["settings"]:
        return before.settings
    settings = settings_of(state.record, job.settings)
    own = job.settings.mask.file if _has_own_mask(state) else ""
    return with_values(settings, {"mask.file": own}) if own else settings


def _refuse_without_mask(job: Job, state: Standing) -> None:
    """X002 where a result is to be made again that had a mask of the user's, and nothing tells where that lies."""
    before = load_job(job.folder)
    if _has_own_mask(state) and not job.settings.mask.file and not (before and before.settings.mask.file):
        found = "a result that was made with a mask of your own, and nothing here tells where that lies"
        raise ChironError("X002", found, "the mask", "Run the export again with --mask.")


def _has_own_mask(state: Standing) -> bool:
    return bool(state.record["settings"].get("mask", {}).get("file"))
