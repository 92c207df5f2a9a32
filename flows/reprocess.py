"""An output folder and what is asked for -> the jobs of scans to do again. No Prefect.

The ledger says what was done, the job that stays in each scan's private folder where its files lie and how it was done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import pipeline
from flows.claim import claimed, planning
from pipeline.errors import CATALOGUE, ChironError
from pipeline.ledger import Record, read_manifests
from pipeline.mask.own import with_own_mask
from pipeline.names import meant
from pipeline.override import FACTS, Override, difference, flat, is_in, with_values
from pipeline.publish import already_published
from pipeline.publish.dataset import private
from pipeline.publish.manifest import plain_settings
from pipeline.publish.standing import NOT_OF_THE_RESULT
from pipeline.quality.verdict import Level
from pipeline.recipe import Job, recipe
from pipeline.settings import Settings, load
from pipeline.work import disk_error

VERDICTS = get_args(Level)
STATES = ("published", "failed", "set aside", "interrupted")

Change = Callable[[Settings], Settings]


@dataclass(frozen=True)
class Wanted:
    """Which scans: one record of a scan must meet all that is given; what is empty asks for nothing."""

    subject: str = ""  # labels with or without `sub-`, `ses-`, `run-`; or the whole label of one scan
    session: str = ""
    run: str = ""
    state: str = ""  # of STATES; interrupted: begun, or planned, and not recorded
    verdict: str = ""
    code: str = ""  # of the failure, or of a warning
    labels: Collection[str] | None = None  # of the scans, where they are known
    older: bool = False  # made with other settings than those it would have now, or by another version


@dataclass
class Chosen:
    """The jobs of what is wanted, and the labels of scans among it that need no work or cannot be done from here."""

    jobs: list[Job] = field(default_factory=list)
    standing: list[str] = field(default_factory=list)  # this very result is published
    lost: list[str] = field(default_factory=list)  # nothing here tells where the files lie: run the export again


def select(
    output: Path,
    subject: str = "",
    session: str = "",
    run: str = "",
    state: str = "",
    verdict: str = "",
    code: str = "",
    method: str = "",
    older: bool = False,
    settings: Settings | None = None,
    stage: str = "",
    force: bool = False,
    reason: str = "",
) -> list[Job]:
    """The jobs of all scans that the filters name together, to be done by `method` where given; see `choose`.

    X002 where scans are named and for none of them is it known where its files lie.
    """

    def change(old: Settings) -> Settings:
        return load(base=settings or old, method=method or None)

    wanted = Wanted(subject, session, run, state, verdict, code, older=older)
    by_person = settings is None or bool(method)
    named = ("method",) if method else ()
    chosen = choose(output, wanted, change, stage, force, reason if by_person else None, named)
    if chosen.lost and not chosen.jobs and not chosen.standing:
        raise nowhere(chosen)
    return chosen.jobs


def choose(
    output: Path,
    wanted: Wanted,
    change: Change = lambda old: old,
    stage: str = "",
    force: bool = False,
    reason: str | None = "",
    named: Collection[str] = (),
) -> Chosen:
    """The scans that are wanted. A job has its settings of before, as `change` makes them, and is not saved.

    What changes, and the settings that are `named` whether they change or not, are a person's decision, for a `reason`,
    and hold for these scans from now on. With None it is the site's change, and what a person decided before holds.

    Left out is what is published already just so, unless it is to be done from a `stage`, or by `force`. A job expects
    the files that its label stands for: where they vanished or are others, its first stage fails with F016. X002 where
    `stage` is none of a job's; `ready` removes the results from it on, and saves.
    """
    if wanted.state:
        wanted = replace(wanted, state=meant(wanted.state, STATES, "state"))
    if wanted.verdict:
        wanted = replace(wanted, verdict=meant(wanted.verdict, VERDICTS, "verdict"))
    if wanted.code:
        wanted = replace(wanted, code=meant(wanted.code, CATALOGUE, "code"))
    chosen = Chosen()
    for folder, records in _scans(output):
        met = [record for record in records if _meets(record, wanted)]
        job = _job(folder, records, change, reason, named) if met else None
        if not met or (wanted.older and not any(_older(record, job) for record in met)):
            continue
        if job is None:
            chosen.lost.append(records[0]["label"])
        elif not (stage or force or wanted.older) and _stands(output, job):
            chosen.standing.append(job.scan.label)
        else:
            chosen.jobs.append(job)
    for job in chosen.jobs if stage else ():
        stages_from(job, stage)
    return chosen


def nowhere(chosen: Chosen) -> ChironError:
    found = f"{len(chosen.lost)} scans of which nothing here tells where their files lie"
    return ChironError("X002", found, "scans that were worked on here", "Run their exports again.")


def stages_from(job: Job, stage: str) -> list[str]:
    """`stage` and all after it in the job's recipe; `invert` is the first inversion. X002 where there is none such."""
    names = [each.name for each in recipe(job.settings)]
    short = [name.partition("-")[0] for name in names]
    stage = meant(stage, dict.fromkeys([*names, *short]), "stage")
    return names[names.index(stage) if stage in names else short.index(stage) :]


def ready(job: Job, stage: str = "") -> None:
    """Save the job as the next of its scan, without what `stage` and those after it made.

    R006 where results were to go and another run works with them; S001 or S002 where this cannot be written.
    """
    try:
        with planning(job.folder):
            if stage:
                _discard(job, stage)
            job.save()
    except OSError as error:
        raise disk_error(error) from None


def readied(
    jobs: Iterable[Job], stage: str = "", refused: Callable[[Job, ChironError], None] = lambda job, why: None
) -> Iterator[Job]:
    """Those of the jobs that could be made `ready`; the others are told, and stop none."""
    for job in jobs:
        try:
            ready(job, stage)
        except ChironError as error:
            refused(job, error)
        else:
            yield job


def _discard(job: Job, stage: str) -> None:
    with claimed(job.folder):
        for name in stages_from(job, stage):
            with suppress(FileNotFoundError):
                shutil.rmtree(job.folder / name)


def _scans(output: Path) -> Iterator[tuple[Path, list[Record]]]:
    """Every scan's private folder with its records, by label; a scan without one is told as interrupted."""
    work, known = private(output) / "work", dict[Path, list[Record]]()
    for record in read_manifests(output):
        known.setdefault(work / str(record.get("scan", record["label"])), []).append(record)
    for folder in work.glob("*"):
        if folder not in known and (job := _loaded(folder)):
            known[folder] = [{"label": job.scan.label, "state": "interrupted"}]
    yield from sorted(known.items(), key=lambda item: (item[1][0]["label"], item[0]))


def _job(folder: Path, records: list[Record], change: Change, reason: str | None, named: Collection[str]) -> Job | None:
    job = _loaded(folder)
    if job is None:
        return None
    latest = max(reversed(records), key=lambda r: (bool(r.get("input_digest")), r.get("finished", "")))
    expects = job.expects or latest.get("input_digest") or ""
    settings, override = _decided(job, change(job.settings), reason, named)
    if settings.mask.file != job.settings.mask.file:
        settings = with_own_mask(settings, job.scan)
    return replace(job, settings=settings, again=True, expects=expects, override=override)


def _decided(
    job: Job, settings: Settings, reason: str | None, named: Collection[str]
) -> tuple[Settings, Override | None]:
    """The settings of a scan that is done again, with what a person decided now or before."""
    earlier = job.override
    if reason is None:
        return (earlier.apply(settings) if earlier else settings), earlier
    plain, default = flat(settings.model_dump(mode="json")), flat(load().model_dump(mode="json"))
    facts = {name: value for name, value in (earlier.settings if earlier else {}).items() if _is_fact(name)}
    kept = {name: value for name, value in facts.items() if plain[name] == default[name] and not is_in(name, named)}
    settings = with_values(settings, kept)
    decided = settings.model_dump(mode="json")
    confirmed = {name: value for name, value in flat(decided).items() if is_in(name, named)}
    changes = confirmed | difference(job.settings.model_dump(mode="json"), decided)
    lasting = {name: value for name, value in changes.items() if name not in NOT_OF_THE_RESULT}
    return settings, Override.now(lasting, reason).after(earlier)


def _is_fact(name: str) -> bool:
    return name.partition(".")[0] in FACTS


def _loaded(folder: Path) -> Job | None:
    try:
        return Job.load(folder, next=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _meets(record: Record, wanted: Wanted) -> bool:
    """Whether all is true of the record that can be told without its job."""
    if wanted.labels is not None and record["label"] not in wanted.labels:
        return False
    labels = dict(part.split("-", 1) for part in record["label"].split("_") if "-" in part)
    whole = "_" in wanted.subject
    if whole and record["label"] != f"sub-{wanted.subject.removeprefix('sub-')}":
        return False
    named = {"sub": "" if whole else wanted.subject, "ses": wanted.session, "run": wanted.run}
    if any(value and labels.get(key) != value.removeprefix(f"{key}-") for key, value in named.items()):
        return False
    told = [wanted.state in ("", record["state"]), wanted.verdict in ("", record.get("verdict"))]
    return all(told) and wanted.code in ("", *_codes(record))


def _codes(record: Record) -> list[str]:
    failure = record.get("failure")
    return [*([failure["code"]] if failure else []), *(warning["code"] for warning in record.get("warnings", []))]


def _older(record: Record, job: Job | None) -> bool:
    """Whether the record was made by another version, or with other settings than the job has now."""
    if job is None or "software" not in record:
        return False
    now = {stage.name: stage.version for stage in recipe(job.settings)}
    stages = any(now.get(made["stage"], made["version"]) != made["version"] for made in record["stages"])
    same = record["software"]["chiron"] == pipeline.__version__ and record["settings"] == plain_settings(job.settings)
    return stages or not same


def _stands(output: Path, job: Job) -> bool:
    """Whether this very result is published; of files that cannot be read, the job's first stage tells why."""
    try:
        return already_published(output, job)
    except ChironError:
        return False
