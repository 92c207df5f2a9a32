"""One scan as a Prefect flow, and each of its stages as a task, for where runs are reported to a Prefect server.

Prefect sees the job's id, a pseudonym and names of stages. Arrays, paths and identities stay in files.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.scan import in_steps, publish, step

QUIETLY: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}

step_task = task(**QUIETLY)(step)
publish_task = task(name="publish", **QUIETLY)(publish)


@flow(name="scan", flow_run_name="{label}", persist_result=False, validate_parameters=False)
def scan(job: str, label: str) -> str:
    """As `flows.scan.reconstruct`."""
    return in_steps(job, lambda job, name: step_task.with_options(name=name)(job, name), publish_task)


def without_heartbeat() -> AbstractContextManager[Any]:
    """Run scans without one: it takes up to a second to end, and a scan's lock tells that it is worked on."""
    return temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
