"""An export and an output folder -> the outcome of each scan in it. One scan's failure never stops the others."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch

from flows.claim import planning
from flows.crew import Crew, Terms, terms_for
from flows.engine import INTERRUPTED, Watchdog, abort, connect, quiet
from flows.keep import Planned, overrides_for, planned, remember, what_stands
from flows.night import Page
from flows.night.summary import NAME as PAGE
from flows.watch import Silent, Watcher
from pipeline.device import pick_device
from pipeline.disk import try_write
from pipeline.errors import CATALOGUE, ChironError
from pipeline.find import Export, Scan, SetAside, find
from pipeline.find.listing import check_readable
from pipeline.invert import check_weights
from pipeline.ledger import records_of
from pipeline.mask.own import check_single, check_source
from pipeline.memory import check_room, fits
from pipeline.override import Override
from pipeline.publish import prepare, record_set_aside
from pipeline.publish.dataset import private
from pipeline.publish.key import record_key
from pipeline.publish.labels import read_ahead, settled
from pipeline.publish.register import register
from pipeline.recipe import Job, recipe
from pipeline.settings import Settings
from pipeline.work import disk_error

State = Literal["published", "already published", "failed", "set aside"]

STOP_WITHIN_S = 25.0  # of an interrupt
LEAST_ROOM_BYTES = 8 * 2**20
INTERNAL, ALL_FAILED, SOME_FAILED, NOTHING_DONE, RED_QC = 1, 12, 10, 11, 19


@dataclass(frozen=True)
class Outcome:
    """How one scan ended."""

    label: str
    state: State
    verdict: str = ""  # usable, check or do not use
    report: str = ""  # relative to the output folder
    code: str = ""
    text: str = ""

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Batch:
    """A run over one export, as it stands: what was found, how each scan ended, and whom to tell."""

    output: Path
    fail_on_qc: bool = False
    on_found: Callable[[Export], None] = lambda export: None
    on_note: Callable[[str], None] = lambda text: None
    on_outcome: Callable[[Outcome], None] = lambda outcome: None
    on_work: Callable[[int], None] = lambda scans: None
    watch: Callable[[str, list[str]], Watcher] = lambda label, stages: Silent()
    on_stop: Callable[[], None] = lambda: None
    outcomes: list[Outcome] = field(default_factory=list)
    aside: tuple[SetAside, ...] = ()
    terms: Terms = field(default_factory=Terms)

    prefect_lost: bool = False  # the server that was reported to; scans were then done without it
    card_s: float = 0.0  # that cards were held for work
    wall_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.on_outcome(outcome)

    def set_aside(self, what: SetAside) -> None:
        self.aside += (what,)
        self.add(Outcome(what.label, "set aside", code=what.code, text=what.text))

    def finish(self) -> None:
        record_set_aside(self.output, self.aside)
        Page(self.output).renew()

    def remarks(self) -> list[str]:
        """What a person should know of the run as a whole."""
        said = [f"All scans on one page: {self.output / PAGE}"] if len(self.outcomes) > 1 else []
        if self.prefect_lost:
            said.append("Prefect was lost on the way; scans were done without it, and their results are whole.")
        if self.card_s and self.wall_s:
            said.append(
                f"The GPU was at work {100 * self.card_s / self.wall_s / max(self.terms.cards, 1):.0f} % of the time."
            )
        return said

    def exit_code(self) -> int:
        """0 where every scan is published, now or before and one of them now; else the code that says what is wrong."""
        bad = {o.code for o in self.outcomes if o.state in ("failed", "set aside")}
        good = [o for o in self.outcomes if o.state in ("published", "already published")]
        if bad and good:
            return SOME_FAILED
        if bad:
            codes = {CATALOGUE[code].exit for code in bad}
            return codes.pop() if len(codes) == 1 and not codes & {INTERNAL, SOME_FAILED} else ALL_FAILED
        if all(o.state == "already published" for o in good):
            return NOTHING_DONE
        return RED_QC if self.fail_on_qc and any(o.verdict == "do not use" for o in good) else 0


def run(
    batch: Batch,
    source: Path,
    settings: Settings,
    key: bytes,
    subject: str | None = None,
    truth: Path | None = None,
    labels: Mapping[str, str] | None = None,
    dataset_label: str = "",
    override: Override | None = None,
) -> None:
    """Reconstruct every scan of `source` into the batch's output; a scan that has a result keeps it.

    `override` is what a person says of these scans; it is kept for them. Raises S003, S002, S001, R001, M003, X004 or
    R007 where nothing could be worked on, before anything is computed.
    """
    export = look(batch, source, settings, key, subject, labels, dataset_label)
    work(batch, plan(batch, export, settings, truth, override))


def look(
    batch: Batch,
    source: Path,
    settings: Settings,
    key: bytes,
    subject: str | None = None,
    labels: Mapping[str, str] | None = None,
    dataset_label: str = "",
) -> Export:
    """All that lies in `source`, once it is sure that it can be worked on here."""
    check_readable(source)
    check_source(settings.mask.file)
    pick_device(settings.device)
    check_weights(settings)
    prepare(batch.output)
    record_key(batch.output, key)
    believed = overrides_for(batch.output, settings)
    export = find(source, key, subject, acquisition=believed, labels=labels, dataset_label=dataset_label)
    batch.on_found(export)
    unlisted = len({scan.owner for scan in export.scans if scan.label_source == "pseudonym"}) if labels else 0
    if unlisted:
        batch.on_note(f"{unlisted} of the patients are not in the table of labels: each has a pseudonym as label.")
    return export


def plan(
    batch: Batch,
    export: Export,
    settings: Settings,
    truth: Path | None = None,
    override: Override | None = None,
) -> list[Job]:
    """Save a job for every scan without a result that it keeps; the rest are outcomes of the batch at once."""
    read_ahead(export, batch.output)
    with register(batch.output) as labels:
        export = settled(export, labels)
    for aside in export.set_aside:
        batch.set_aside(aside)
    todo = []
    check_single(settings, export.scans)
    for scan in export.scans:
        try:
            with planning(private(batch.output) / "work" / scan.id):
                job = planned(batch.output, scan, settings, truth, override)
                if job.standing.stays:
                    remember(batch.output, job)
                else:
                    check_room(scan, upsample=settings.upsample)
                    job.job.save()
            if job.standing.stays:
                batch.add(_keeps(batch.output, job, settings))
            else:
                todo.append(job.job)
        except ChironError as error:
            batch.set_aside(SetAside.of(scan, error))
        except OSError as error:
            batch.add(_failed(batch.output, scan, disk_error(error)))
    return todo


def _keeps(output: Path, job: Planned, settings: Settings) -> Outcome:
    """The outcome of a scan that has a result, with what differs from what is asked for now."""
    outcome = _in_ledger(output, job.job.scan, "already published")
    return replace(outcome, text=what_stands(output, job, settings))


def work(batch: Batch, jobs: Iterable[Job]) -> None:
    """Do the jobs, which are saved, and finish the batch.

    Where PREFECT_API_URL names a Prefect server, each scan is a flow run there; R007 where it cannot be reached at the
    start. Without one nothing of Prefect is started. S001 or S002 where the output has no room for any result.
    """
    todo = list(jobs)
    if todo:
        try_write(private(batch.output), LEAST_ROOM_BYTES)
        batch.on_work(len(todo))
        page = Page(batch.output)
        started, terms = time.monotonic(), replace(batch.terms, workers=as_fits(batch.terms, todo))
        with _signals(batch.on_stop), Crew(batch.output, terms, lambda job: _watch(batch, job)) as crew:
            quiet()  # for the workers too
            crew.start(len(todo))
            connect()
            for end in crew.work(todo):
                batch.card_s += end.card_s
                page.renew()
                batch.add(_outcome(batch.output, end.job.scan, end.how, end.code, end.text))
            batch.prefect_lost = crew.prefect_lost
        batch.wall_s = time.monotonic() - started
    batch.finish()


def machine_terms(settings: Settings, workers: int = 0, **more: Any) -> Terms:
    """Terms for this machine and these settings: every card it may use, else its cores."""
    device = pick_device(settings.device)
    cards = 0 if device.type == "cpu" else 1 if device.index is not None else torch.cuda.device_count()
    return terms_for(workers, cards, **more)


def apart(source: Path, output: Path) -> None:
    """S002 where one folder lies in the other: results would be read as inputs, or written among them."""
    a, b = source.resolve(), output.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise ChironError("S002", "an output folder within the input, or around it", "two folders apart")


def as_fits(terms: Terms, jobs: list[Job]) -> int:
    """How many scans at once: as the terms say, where there is memory for the largest of them."""
    finest = max((job.settings.upsample for job in jobs), key=prod, default=(1.0, 1.0, 1.0))
    return min(terms.workers, fits([job.scan for job in jobs], finest))


def _watch(batch: Batch, job: Job) -> Watcher:
    return batch.watch(job.scan.label, [*(stage.name for stage in recipe(job.settings)), "publish"])


def _outcome(output: Path, scan: Scan, how: str, code: str, text: str) -> Outcome:
    if how in ("published", "already published"):
        return _in_ledger(output, scan, how)  # type: ignore[arg-type]
    return Outcome(scan.label, "failed", report=_in_ledger(output, scan, "failed").report, code=code, text=text)


def _failed(output: Path, scan: Scan, failure: ChironError) -> Outcome:
    return _outcome(output, scan, "failed", failure.code, failure.sentence())


def _in_ledger(output: Path, scan: Scan, state: State) -> Outcome:
    """What the manifests say of the scan now."""
    kind = "failed" if state == "failed" else "published"
    for record in records_of(output, scan.label):
        if record["state"] == kind:
            report = next((f"{record['folder']}/{name}" for name in record["files"] if name.endswith(".html")), "")
            return Outcome(scan.label, state, record["verdict"], report)
    return Outcome(scan.label, state)


@contextmanager
def _signals(on_stop: Callable[[], None]) -> Iterator[None]:
    """The first interrupt or termination stops the work and ends the process in time; the second ends it at once.

    After a first one that stays so: whatever the process still does is its end.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if armed:
            abort("interrupted; what is done is kept, the same command continues")
        armed.append(number)
        watchdog.arm(STOP_WITHIN_S)
        on_stop()
        raise KeyboardInterrupt

    watchdog, armed = Watchdog(lambda: INTERRUPTED), list[int]()
    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        watchdog.disarm()
        for number, handler in before.items() if not armed else ():
            signal.signal(number, handler)
