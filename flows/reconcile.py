"""What killed runs left in an output folder and in Prefect -> put right: half-made files go, and dead runs end.

The ledger tells how a scan ended, and its lock whether it is worked on; Prefect is brought into line with them.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.claim import LOCK, NOW, claimed, is_claimed
from flows.pools import NAME as DEPLOYMENT
from pipeline.errors import ChironError
from pipeline.ledger import Record, records_of
from pipeline.lock import if_free
from pipeline.publish import recover_all
from pipeline.publish.dataset import private
from pipeline.recipe import Job
from pipeline.work import disk_error

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import FlowRun, State

SCRAP_S = 3600.0  # what was written aside and not renamed for so long is nobody's
SCRAP = re.compile(r".*\.[0-9a-f]{16}")
SILENT_S = 120.0  # heartbeats come every 30
MUTE_S = 300.0  # of a run of `work` without any heartbeat, and without a scan that is held
FLOWS = ("scan", "work", "batch", "intake", "reprocess", "reconcile", "prune")
PAGE = 200  # runs that Prefect names at once


@dataclass(frozen=True)
class Reconciled:
    """What was put right: labels of publications, half-made files and folders; and labels of scans left unfinished."""

    recovered: tuple[str, ...]
    cleared: int
    interrupted: tuple[str, ...]


def reconcile(output: Path, now: float | None = None) -> Reconciled:
    """Put right what dead processes left, whatever they died of; what is worked on is not touched.

    A publication that was interrupted is as if it had not begun. A scan that was begun and has no outcome is only
    told: its finished stages are good, and its next job continues. `now` is in Unix time. S001 or S002 where the
    folder cannot be written.
    """
    recovered = recover_all(output)
    cleared, interrupted = 0, []
    try:
        cleared += _clear_scraps(private(output), time.time() if now is None else now)
        for folder in sorted(path.parent for path in (private(output) / "work").glob(f"*/{LOCK}")):
            with if_free(claimed(folder)) as free:
                if free and (label := _unfinished(output, folder)):
                    interrupted.append(label)
                cleared += _clear(folder) if free else 0
    except OSError as error:
        raise disk_error(error) from None
    return Reconciled(tuple(recovered), cleared, tuple(sorted(interrupted)))


def outcomes_since(output: Path, label: str, scan: str, since: float) -> list[Record]:
    """What was recorded of a scan at or after a Unix time, which records keep in whole seconds."""
    mine = [r for r in records_of(output, label) if r.get("scan") == scan]
    return [r for r in mine if datetime.fromisoformat(r["finished"]).timestamp() >= int(since)]


def last_work(folder: Path) -> float:
    """When a stage of this scan last began or ended, in Unix time; 0 where none is left."""
    ends = [path.stat().st_mtime for path in folder.glob("*/stage.json")]
    with suppress(OSError, ValueError, KeyError, TypeError):
        ends.append(float(json.loads((folder / NOW).read_text())["since"]))
    return max(ends, default=0.0)


def _unfinished(output: Path, folder: Path) -> str:
    """The scan's label, where it was worked on after its last outcome."""
    worked = last_work(folder)
    try:
        scan = Job.load(folder).scan if worked else None
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return scan.label if scan and not outcomes_since(output, scan.label, scan.id, worked) else ""


def _clear(folder: Path) -> int:
    """Remove half-made stages, and what tells of a stage at work: the scan is held, and nobody else makes any."""
    left = [path for path in folder.glob(".*") if path.is_dir()]
    for path in left:
        shutil.rmtree(path)
    if (folder / NOW).exists():
        (folder / NOW).unlink()
        return len(left) + 1
    return len(left)


def _clear_scraps(folder: Path, now: float) -> int:
    """Remove what was written aside to replace a file of this folder, and then was not renamed."""
    left = [p for p in folder.glob("*.*") if SCRAP.fullmatch(p.name) and p.is_file()]
    old = [path for path in left if now - path.stat().st_mtime > SCRAP_S]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


def reconcile_runs(output: Path, now: float | None = None) -> list[str]:
    """Give the runs that Prefect, at PREFECT_API_URL, takes to be at work and that are dead their true end.

    A scan's run is dead where nobody holds the scan: it is Completed or Failed where the ledger says so since it began,
    else Crashed. Any other run is dead where its heartbeats have stopped, and none of its scans is held. What the runs
    held, as places of a pool, is free then. Returns flow and end of each. R007 where Prefect does not answer.
    """
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.exceptions import PrefectException

    any_state = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    moment, ended = time.time() if now is None else now, []
    try:
        with get_client(sync_client=True) as client:
            for flow, run in our_runs(client, FlowRunFilter(state=FlowRunFilterState(type=any_state))):
                end = _end(client, output, flow, run, moment)
                if end:
                    ended.append(f"{flow}: {end}")
    except (HTTPError, PrefectException) as error:
        raise ChironError("R007", f"Prefect does not answer ({type(error).__name__})") from None
    return ended


def our_runs(client: SyncPrefectClient, wanted: FlowRunFilter) -> list[tuple[str, FlowRun]]:
    """The wanted runs with the names of their flows, without those of others who use the same server."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowFilter, FlowFilterName

    deployed = DeploymentFilter(name=DeploymentFilterName(any_=[DEPLOYMENT]))
    found: list[tuple[str, FlowRun]] = []
    for name in FLOWS:
        flow, which, offset = FlowFilter(name=FlowFilterName(any_=[name])), None if name == "scan" else deployed, 0
        while page := client.read_flow_runs(
            flow_filter=flow, flow_run_filter=wanted, deployment_filter=which, limit=PAGE, offset=offset
        ):
            found += [(name, run) for run in page if name != "scan" or run.parameters.keys() == {"job", "label"}]
            offset += len(page)
    return found


def _end(client: SyncPrefectClient, output: Path, flow: str, run: FlowRun, now: float) -> str:
    """Set the run's true end, and return it; empty where the run is alive, or none of this output's."""
    jobs = [run.parameters["job"]] if flow == "scan" else run.parameters.get("jobs", [])
    folders = [folder for job in jobs if (folder := private(output) / "work" / str(job)).is_dir()]
    if flow in ("scan", "work") and not folders:
        return ""
    if flow == "scan":
        with if_free(claimed(folders[0])) as free:  # held until the end is set: nobody begins with it meanwhile
            return _set(client, run, _outcome(output, folders, run)) if free else ""
    done = _all_done(output, folders, run)
    if any(map(is_claimed, folders)) or not _silent(client, run, now, done, MUTE_S if flow == "work" else None):
        return ""
    return _set(client, run, ("Completed", "") if done else ("Crashed", "R008"))


def _outcome(output: Path, folders: list[Path], run: FlowRun) -> tuple[str, str]:
    """How the scan of a dead run ended, and a code."""
    for record in _records(output, folders[0], run):
        if record["state"] == "published":
            return "Completed", ""
        return "Failed", record["failure"]["code"]
    return "Crashed", "R008"


def _all_done(output: Path, folders: list[Path], run: FlowRun) -> bool:
    return bool(folders) and all(_records(output, folder, run) for folder in folders)


def _records(output: Path, folder: Path, run: FlowRun) -> list[Record]:
    """What was recorded of the scan since the run began."""
    try:
        scan = Job.load(folder).scan
    except (OSError, ValueError, KeyError, TypeError):
        return []
    began = run.start_time or run.expected_start_time
    return outcomes_since(output, scan.label, scan.id, began.timestamp() if began else 0.0)


def _silent(client: SyncPrefectClient, run: FlowRun, now: float, done: bool, mute_s: float | None) -> bool:
    """Whether the run gives no sign of life: it should have begun long ago, or has stopped to send heartbeats.

    A run may die before its first heartbeat: one that never sent any, while nobody holds a scan of it, is taken for
    dead after `mute_s`; without that, only where all its work is done, as its heartbeats may not be kept.
    """
    age = now - run.state.timestamp.timestamp() if run.state else 0.0
    if run.state is None or age < SILENT_S:
        return False
    last = _last_beat(client, run)
    if last:
        return now - last >= SILENT_S
    return done or run.state.is_pending() or (mute_s is not None and age >= mute_s)


def _last_beat(client: SyncPrefectClient, run: FlowRun) -> float:
    """When the run's last heartbeat was sent, in Unix time; 0 where Prefect has none."""
    from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

    beats = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
    )
    found = client.read_events(beats, limit=1).events
    return found[0].occurred.timestamp() if found else 0.0


def _set(client: SyncPrefectClient, run: FlowRun, end: tuple[str, str]) -> str:
    """Give a run its end, unless it has one by now; Prefect then frees what it held."""
    from prefect import states

    latest = client.read_flow_run(run.id)
    if latest.state is None or latest.state.is_final():
        return ""
    made: dict[str, State[Any]] = {
        "Completed": states.Completed(message="published, as the ledger says"),
        "Failed": states.Failed(message=f"{end[1]}, as the ledger says"),
        "Crashed": states.Crashed(message=f"{end[1]}: its process is gone"),
    }
    client.set_flow_run_state(run.id, made[end[0]], force=True)
    return " ".join(end).strip()
