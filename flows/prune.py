"""An output folder and a number of days -> the same folder without what nobody needs any longer, and what that freed.

Results, records of failures and of what was set aside, and inputs are never touched: only the private folder is.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import Any

from flows.claim import LOCK, PLAN, claimed
from flows.reconcile import last_work, our_runs, outcomes_since
from pipeline.errors import ChironError
from pipeline.ledger import KEPT, NAME, NEXT, TAKEN, read_manifests
from pipeline.lock import if_free, locked
from pipeline.publish.dataset import private
from pipeline.recipe import Job
from pipeline.recipe.job import TRACE
from pipeline.work import disk_error

DAY_S = 86400.0
DATABASES = ("prefect/prefect.db", "prefect/prefect.db-wal")
STAYS = {LOCK, PLAN, TAKEN, NEXT}  # of a scan that a manifest names: by them it can be done again


@dataclass
class Pruned:
    """How many of each kind were removed, and the bytes that this freed."""

    counts: dict[str, int] = field(default_factory=dict)
    freed_bytes: int = 0
    database_bytes: int = 0  # of Prefect's database here, which reuses what is freed within but does not shrink
    runs: int = 0
    dry_run: bool = field(default=False, compare=False)

    def json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> Iterator[str]:
        for what, count in self.counts.items():
            yield f"{count:6}  {what}"
        yield f"{self.runs:6}  runs of Prefect"
        freed = "would be freed" if self.dry_run else "freed"
        database = f"Prefect's database here holds {self.database_bytes / 1e6:.1f} MB"
        yield f"{self.freed_bytes / 1e6:.1f} MB {freed}; {database}"


def prune(output: Path, keep_days: float, now: float | None = None, dry_run: bool = False) -> Pruned:
    """Remove old versions, work of scans that are published or were left, traces and locks, older than `keep_days`.

    What stages made for a scan that is published goes whatever its age, unless it was asked to be kept. What another
    process holds is left. `now` is in Unix time; a `dry_run` only counts. S001 or S002 where the folder cannot be
    written.
    """
    before = (time.time() if now is None else now) - keep_days * DAY_S
    pruned = Pruned(dry_run=dry_run, database_bytes=sum(_size(private(output) / name) for name in DATABASES))
    kinds = {
        "old versions": _versions(output, before),
        "leavings of scans": _works(output, before),
        "traces": _older([private(output) / TRACE], before),
        "locks": _locks(output, before),
    }
    try:
        for what, paths in kinds.items():
            pruned.counts[what] = 0
            for path in paths:  # each is held until the next
                pruned.counts[what] += 1
                pruned.freed_bytes += _freed(path)
                if not dry_run:
                    _remove(path)
    except OSError as error:
        raise disk_error(error) from None
    return pruned


def prune_runs(keep_days: float, now: float | None = None, dry_run: bool = False) -> int:
    """Delete our runs that ended more than `keep_days` ago from the Prefect at PREFECT_API_URL; returns how many.

    R007 where it does not answer.
    """
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterEndTime
    from prefect.exceptions import ObjectNotFound, PrefectException

    before = datetime.fromtimestamp((time.time() if now is None else now) - keep_days * DAY_S, UTC)
    ended = FlowRunFilter(end_time=FlowRunFilterEndTime.model_validate({"before_": before}))
    try:
        with get_client(sync_client=True) as client:
            runs = our_runs(client, ended)
            for _, run in () if dry_run else runs:
                with suppress(ObjectNotFound):  # another deleted it
                    client.delete_flow_run(run.id)
    except (HTTPError, PrefectException) as error:
        raise ChironError("R007", f"Prefect does not answer ({type(error).__name__})") from None
    return len(runs)


def _versions(output: Path, before: float) -> Iterator[Path]:
    """Old versions that were kept before; and what an interrupted pruning left of one."""
    for session in sorted((output / KEPT).glob("*")):
        with if_free(locked(private(output) / "locks" / f"{session.name.split('_')[0]}.lock", 0)) as free:
            for version in sorted(session.glob("*")) if free else ():
                if version.stat().st_mtime < before or not (version / NAME).exists():
                    yield version
            if free and not any(session.iterdir()):
                session.rmdir()


def _works(output: Path, before: float) -> Iterator[Path]:
    """Of scans that are published, or that nobody touched since: what stages made; all, where no manifest names it."""
    named = {str(record.get("scan")) for record in read_manifests(output)}
    for folder in sorted(path for path in (private(output) / "work").glob("*") if path.is_dir()):
        untouched = _touched(folder) < before  # asked before it is held, for that may touch it
        with if_free(claimed(folder)) as free:
            if not free:
                continue
            if untouched and folder.name not in named:
                yield folder
                continue
            made = [path for path in sorted(folder.iterdir()) if path.name not in STAYS]
            if made and (untouched or _is_published(output, folder)):
                yield from made


def _is_published(output: Path, folder: Path) -> bool:
    """Whether all that was worked here is in what stands published, and nobody asked for it to be kept."""
    try:
        job = Job.load(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    ends = outcomes_since(output, job.scan.label, job.scan.id, last_work(folder))
    return not job.settings.keep_work and any(record["state"] == "published" for record in ends)


def _touched(folder: Path) -> float:
    """When anything in a work folder last changed."""
    return max(path.stat().st_mtime for path in (folder, *folder.glob("*"), *folder.glob("*/*")))


def _locks(output: Path, before: float) -> Iterator[Path]:
    """Locks of publications; whoever waits for one that goes sees that it went."""
    for path in _older((private(output) / "locks").glob("*.lock"), before):
        with if_free(locked(path, 0)) as free:
            if free:
                yield path


def _older(paths: Iterable[Path], before: float) -> Iterator[Path]:
    return (path for path in sorted(paths) if path.is_file() and path.stat().st_mtime < before)


def _freed(path: Path) -> int:
    """Bytes that go with the path: a file that stands elsewhere too, by another link, frees nothing."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(found.st_size for file in files if S_ISREG((found := file.lstat()).st_mode) and found.st_nlink == 1)


def _remove(path: Path) -> None:
    """Remove a file or folder; the manifest first, without which the rest is no version."""
    if not path.is_dir():
        path.unlink()
        return
    (path / NAME).unlink(missing_ok=True)
    shutil.rmtree(path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
