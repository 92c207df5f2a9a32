"""An export and an output folder -> the outcome of each scan in it. One scan's failure never stops the others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch

from flows.claim import claimed
from flows.crew import Crew, Terms, terms_for
from flows.engine import INTERRUPTED, Watchdog, abort, orchestrator
from flows.night import Page
from flows.night import look as look_at
from flows.night.standing import label_of
from flows.night.summary import NAME as PAGE
from flows.watch import Silent, Watcher
from pipeline.device import pick_device
from pipeline.errors import CATALOGUE, ChironError
from pipeline.find import Export, Scan, SetAside, find
from pipeline.find.scan import reason
from pipeline.invert import check_weights
from pipeline.ledger import NEXT, records_of
from pipeline.lock import if_free
from pipeline.memory import check_room, fits
from pipeline.publish import already_published, prepare, record_set_aside
from pipeline.publish.dataset import private
from pipeline.recipe import Job, recipe
from pipeline.settings import Settings
from pipeline.work import disk_error

State = Literal["published", "already published", "failed", "set aside"]

STOP_WITHIN_S = 25.0  # of an interrupt
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
    on_outcome: Callable[[Outcome], None] = lambda outcome: None
    on_work: Callable[[int], None] = lambda scans: None
    watch: Callable[[str, list[str]], Watcher] = lambda label, stages: Silent()
    on_stop: Callable[[], None] = lambda: None
    outcomes: list[Outcome] = field(default_factory=list)
    aside: tuple[SetAside, ...] = ()
    terms: Terms = field(default_factory=Terms)

    prefect_lost: bool = False  # scans were then done without it
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
) -> None:
    """Reconstruct every scan of `source` into the batch's output; a scan that is published already is left as it is.

    Raises S003, S002, S001, R001, M003 or R007 where nothing could be worked on, before anything is computed.
    """
    export = look(batch, source, settings, key, subject, labels)
    work(batch, plan(batch, export, settings, truth))


def look(
    batch: Batch,
    source: Path,
    settings: Settings,
    key: bytes,
    subject: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Export:
    """All that lies in `source`, once it is sure that it can be worked on here."""
    if not source.is_dir() or not os.access(source, os.R_OK | os.X_OK):
        raise ChironError("S003", "no readable folder", "the folder of an export")
    pick_device(settings.device)
    check_weights(settings)
    prepare(batch.output)
    export = find(source, key, subject, acquisition=settings.acquisition, labels=labels)
    batch.on_found(export)
    return export


def plan(batch: Batch, export: Export, settings: Settings, truth: Path | None = None) -> list[Job]:
    """Save a job for every scan that is not published already; the rest are outcomes of the batch at once."""
    for aside in export.set_aside:
        batch.set_aside(aside)
    todo = []
    for scan in export.scans:
        job = Job(scan, settings, private(batch.output) / "work" / scan.id, truth)
        try:
            if _stands(batch.output, job):
                _remember(job)
                batch.add(_in_ledger(batch.output, scan, "already published"))
                continue
            check_room(scan, upsample=settings.upsample)
            job.save()
            todo.append(job)
        except ChironError as error:
            batch.set_aside(SetAside(scan.label, error.code, reason(error), len(scan.files)))
        except OSError as error:
            batch.add(_failed(batch.output, scan, disk_error(error)))
    _withdraw(batch.output, todo)
    return todo


def work(batch: Batch, jobs: Iterable[Job]) -> None:
    """Do the jobs, which are saved, and finish the batch. R007 where Prefect cannot be reached at the start."""
    todo = list(jobs)
    if todo:
        batch.on_work(len(todo))
        page = Page(batch.output)
        started, terms = time.monotonic(), replace(batch.terms, workers=as_fits(batch.terms, todo))
        with _signals(batch.on_stop), Crew(batch.output, terms, lambda job: _watch(batch, job)) as crew:
            with orchestrator(batch.output / ".chiron" / "prefect", meanwhile=lambda: crew.start(len(todo))):
                for end in crew.work(todo):
                    batch.card_s += end.card_s
                    page.renew()
                    batch.add(_outcome(batch.output, end.job.scan, end.how, end.code, end.text))
            batch.prefect_lost = not crew.prefect
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


def _remember(job: Job) -> None:
    """Where the files of a published scan lie now, for whoever wants it done again."""
    with suppress(OSError, ValueError, KeyError):
        if Job.load(job.folder).scan.files == job.scan.files:
            return
        with if_free(claimed(job.folder)) as free:
            if free:
                job.save()
                Job.take(job.folder)


def _withdraw(output: Path, jobs: list[Job]) -> None:
    """Jobs that wait for the same labels under another id: with files that came late, a scan is another one."""
    new = {job.scan.label: job.scan.id for job in jobs}
    for folder in look_at(output).waiting if new else ():
        if new.get(label_of(folder), folder.name) != folder.name:
            (folder / NEXT).unlink(missing_ok=True)


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


def _stands(output: Path, job: Job) -> bool:
    """Whether this very result is published; a scan whose files cannot be read now is left to its flow to judge."""
    try:
        return already_published(output, job)
    except ChironError:
        return False


@contextmanager
def _signals(on_stop: Callable[[], None]) -> Iterator[None]:
    """The first interrupt or termination stops the work and ends the process in time; the second ends it at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if armed:
            abort("interrupted; what is done is kept, the same command continues")
        armed.append(number)
        watchdog.arm(STOP_WITHIN_S)
        on_stop()
        raise KeyboardInterrupt

    watchdog, armed = Watchdog(lambda: INTERRUPTED), list[int]()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        watchdog.disarm()
        for number, handler in before.items():
            signal.signal(number, handler)
