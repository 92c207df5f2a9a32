"""Job ids -> runs of `work` that Prefect is asked for, each scan once; and whether runs are still to come."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from uuid import uuid4

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from flows.pools import NAME

CHUNK = 8  # scans of a run: an urgent one waits for no more than these
PAGE = 200  # runs that Prefect names at once
UNDER_WAY = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
LOST = (HTTPError, PrefectException)


def hand_out(jobs: Sequence[str], queue: str, again: bool = False) -> list[FlowRun]:
    """Ask for the work on `jobs`, in chunks; what a run has or waits for already is left, unless it is done `again`."""
    with get_client(sync_client=True) as client:
        taken = {job for run in under_way(client) for job in run.parameters.get("jobs", [])}
        todo = [job for job in jobs if again or job not in taken]
        target = client.read_deployment_by_name(f"work/{NAME}")
        return [
            client.create_flow_run_from_deployment(
                target.id,
                parameters={"jobs": chunk},
                work_queue_name=queue,
                idempotency_key=_once(chunk),
                name=f"{queue}: {len(chunk)} from {chunk[0]}",
            )
            for chunk in (todo[i : i + CHUNK] for i in range(0, len(todo), CHUNK))
        ]


def to_come(runs: Sequence[FlowRun]) -> bool:
    """Whether Prefect has runs of these still to do; while it does not answer, it is taken to."""
    ids = FlowRunFilterId(any_=[run.id for run in runs])
    states = FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY))
    try:
        with get_client(sync_client=True) as client:
            return bool(runs and client.read_flow_runs(flow_run_filter=FlowRunFilter(id=ids, state=states), limit=1))
    except LOST:
        return True


def under_way(client: SyncPrefectClient) -> Iterator[FlowRun]:
    """Runs of `work` that are to come or at it."""
    states = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY)))
    offset = 0
    while page := client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=["work"])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[NAME])),
        flow_run_filter=states,
        sort=FlowRunSort.START_TIME_ASC,
        limit=PAGE,
        offset=offset,
    ):
        yield from page
        offset += len(page)


def _once(chunk: Sequence[str]) -> str:
    """The same for the same scans asked for by the same run: a request that is repeated starts nothing twice."""
    return hashlib.sha256(" ".join([flow_run.id or uuid4().hex, *chunk]).encode()).hexdigest()
