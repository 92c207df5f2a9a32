"""An export and an output folder -> the outcome of each scan in it. One scan's failure never stops the others."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from flows.engine import Watchdog, leave, orchestrator
from flows.watch import Silent, Watcher
from pipeline.device import pick_device
from pipeline.errors import CATALOGUE, ChironError
from pipeline.find import Export, SetAside, find
from pipeline.invert import check_weights
from pipeline.publish import already_published, prepare, read_manifests, record_set_aside
from pipeline.recipe import Job, recipe
from pipeline.settings import Settings
from pipeline.work import disk_error

State = Literal["published", "already published", "failed", "set aside"]

PREFECT_MAY_HOLD_S = 25.0  # from one stage to the next, before Prefect is taken for dead
ALL_FAILED, SOME_FAILED, NOTHING_DONE, RED_QC, INTERRUPTED = 12, 10, 11, 19, 130


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
    on_end: Callable[[], None] = lambda: None
    watch: Callable[[str, list[str]], Watcher] = lambda label, stages: Silent()
    outcomes: list[Outcome] = field(default_factory=list)
    aside: tuple[SetAside, ...] = ()
    watching: Watcher = field(default_factory=Silent)

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.on_outcome(outcome)

    def finish(self) -> None:
        record_set_aside(self.output, self.aside)
        self.on_end()

    def exit_code(self) -> int:
        """0 where every scan is published, now or before and one of them now; else the code that says what is wrong."""
        bad = {o.code for o in self.outcomes if o.state in ("failed", "set aside")}
        good = [o for o in self.outcomes if o.state in ("published", "already published")]
        if bad and good:
            return SOME_FAILED
        if bad:
            codes = {CATALOGUE[code].exit for code in bad}
            return codes.pop() if len(codes) == 1 and codes != {SOME_FAILED} else ALL_FAILED
        if all(o.state == "already published" for o in good):
            return NOTHING_DONE
        return RED_QC if self.fail_on_qc and any(o.verdict == "do not use" for o in good) else 0


def run(
    batch: Batch, source: Path, settings: Settings, key: bytes, subject: str | None = None, truth: Path | None = None
) -> None:
    """Reconstruct every scan of `source` into the batch's output; a scan that is published already is left as it is.

    Raises S003, S002, S001, R001, M003 or R007 where nothing could be worked on, before anything is computed.
    """
    if not source.is_dir() or not os.access(source, os.R_OK | os.X_OK):
        raise ChironError("S003", "no readable folder", "the folder of an export")
    pick_device(settings.device)
    check_weights(settings)
    prepare(batch.output)
    export = find(source, key, subject, acquisition=settings.acquisition)
    batch.on_found(export)
    batch.aside = export.set_aside
    for aside in batch.aside:
        batch.add(Outcome(aside.label, "set aside", code=aside.code, text=aside.text))
    todo = []
    for scan in export.scans:
        job = Job(scan, settings, batch.output / ".chiron" / "work" / scan.id, truth)
        if _stands(batch.output, job):
            batch.add(_in_ledger(batch.output, scan.label, "already published"))
        else:
            todo.append(job)
    if todo:
        _reconstruct_all(batch, todo)
    batch.finish()


def apart(source: Path, output: Path) -> None:
    """S002 where one folder lies in the other: results would be read as inputs, or written among them."""
    a, b = source.resolve(), output.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise ChironError("S002", "an output folder within the input, or around it", "two folders apart")


def _reconstruct_all(batch: Batch, todo: list[Job]) -> None:
    os.environ["CHIRON_OUTPUT"] = str(batch.output)

    def give_up() -> int:
        """Prefect does not let go: what the ledger says counts, and scans without an entry are left to do."""
        batch.watching.close()
        _settle(batch, todo, "Prefect does not answer any more")
        batch.finish()
        return batch.exit_code()

    watchdog = Watchdog(give_up)
    with orchestrator(batch.output / ".chiron" / "prefect"), _signals(batch):
        try:
            for job in todo:
                watchdog.arm(PREFECT_MAY_HOLD_S)
                batch.add(_reconstruct(batch, job, watchdog))
        except Exception as error:  # every failure of ours is a ChironError and an outcome: this one is Prefect's
            _settle(batch, todo, f"Prefect failed ({type(error).__name__})")
        finally:
            watchdog.disarm()


def _settle(batch: Batch, todo: list[Job], found: str) -> None:
    """Give every scan that has none an outcome: what stands published, or that the orchestrator was lost."""
    lost = ChironError("R007", found, "", "Run again: what is done is kept.")
    settled = {outcome.label for outcome in batch.outcomes}
    for job in (job for job in todo if job.scan.label not in settled):
        stands = _stands(batch.output, job)
        batch.add(_in_ledger(batch.output, job.scan.label, "published") if stands else _failed(batch.output, job, lost))


def _reconstruct(batch: Batch, job: Job, watchdog: Watchdog) -> Outcome:
    """One scan through its flow; whatever goes wrong with it stays with it, but for a Prefect that is gone."""
    from flows.scan import scan, watcher

    try:
        with _claimed(job):
            stages = [*(stage.name for stage in recipe(job.settings)), "publish"]
            batch.watching = batch.watch(job.scan.label, stages)
            token = watcher.set(Guarded(batch.watching, watchdog))
            try:
                scan(job.scan.id, job.scan.label)
            finally:
                watcher.reset(token)
                batch.watching.close()
            if not job.settings.keep_work:
                job.work.remove()
    except ChironError as failure:
        return _failed(batch.output, job, failure)
    return _in_ledger(batch.output, job.scan.label, "published")


class Guarded(Silent):
    """A watcher that also sees to it that Prefect hands over in time between stages, which take what they take."""

    def __init__(self, watch: Watcher, watchdog: Watchdog) -> None:
        self.watch, self.watchdog = watch, watchdog

    def began(self, name: str, title: str) -> None:
        self.watchdog.disarm()
        self.watch.began(name, title)

    def moved(self, share: float, word: str) -> None:
        self.watch.moved(share, word)

    def ended(self, name: str) -> None:
        self.watch.ended(name)
        self.watchdog.arm(PREFECT_MAY_HOLD_S)


def _failed(output: Path, job: Job, failure: ChironError) -> Outcome:
    found = _in_ledger(output, job.scan.label, "failed")
    return Outcome(job.scan.label, "failed", report=found.report, code=failure.code, text=failure.sentence())


def _in_ledger(output: Path, label: str, state: State) -> Outcome:
    """What the manifests say of the scan now."""
    kind = "failed" if state == "failed" else "published"
    for record in read_manifests(output):
        if record["label"] == label and record["state"] == kind:
            report = next((f"{record['folder']}/{name}" for name in record["files"] if name.endswith(".html")), "")
            return Outcome(label, state, record["verdict"], report)
    return Outcome(label, state)


def _stands(output: Path, job: Job) -> bool:
    """Whether this very result is published; a scan whose files cannot be read now is left to its flow to judge."""
    try:
        return already_published(output, job)
    except ChironError:
        return False


@contextmanager
def _claimed(job: Job) -> Iterator[None]:
    """Hold the scan for this process, and write its job; R006 where another has it. The lock dies with its holder."""
    with ExitStack() as held:
        try:
            job.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            stream = held.enter_context((job.folder / "lock").open("a"))
            if not _locked(stream.fileno(), job.folder / "lock"):
                raise ChironError("R006", "another run works on this scan", "one at a time")
            job.save()
        except OSError as error:
            raise disk_error(error) from None
        yield


def _locked(handle: int, path: Path) -> bool:
    """Whether the lock is ours; not where it is held, nor where its holder has just ended and tidied up."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return path.exists() and path.stat().st_ino == os.fstat(handle).st_ino


@contextmanager
def _signals(batch: Batch) -> Iterator[None]:
    """The first interrupt or termination stops the work and ends the process in time; the second ends it at once."""

    def end() -> int:
        batch.watching.close()
        return INTERRUPTED

    def stop(number: int, frame: FrameType | None) -> None:
        if armed:
            leave(end())
        armed.append(number)
        watchdog.arm(PREFECT_MAY_HOLD_S)
        raise KeyboardInterrupt

    watchdog, armed = Watchdog(end), list[int]()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        watchdog.disarm()
        for number, handler in before.items():
            signal.signal(number, handler)
