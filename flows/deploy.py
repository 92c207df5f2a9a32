"""A Prefect server that answers -> on it the pools, queues, deployments, schedules and automation of ours, and no more.

It can be said twice: what is there is made to be as it is said here. What is not ours is not looked at.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.pools import CPU, GPU, NAME, POOLS, QUEUES
from pipeline.errors import ChironError

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

AUTOMATION = "chiron: runs that died"
SILENT_S = 90.0  # three heartbeats
ENDS = ("Completed", "Failed", "Cancelled", "Crashed")


@dataclass(frozen=True)
class Times:
    """When what is started: seconds between, or the fields of cron; nothing is an empty word."""

    intake_s: float = 300.0
    batch: str = ""
    reconcile_s: float = 300.0
    prune: str = "30 3 * * *"


@dataclass(frozen=True)
class Planned:
    """One deployment: its flow, where it runs, how many of it at once, and when by itself."""

    flow: str
    pool: str
    queue: str
    at_once: int | None = None
    every_s: float = 0.0
    cron: str = ""

    @property
    def entrypoint(self) -> str:
        return f"flows.deployed.{self.flow}"


def plan(times: Times) -> tuple[Planned, ...]:
    """All deployments. What repeats never runs twice at once: a further start of it is dropped."""
    return (
        Planned("batch", CPU, "scheduled", 1, cron=times.batch),
        Planned("work", GPU, "scheduled"),
        Planned("intake", CPU, "scheduled", 1, times.intake_s),
        Planned("reprocess", CPU, "urgent"),
        Planned("reconcile", CPU, "urgent", 1, times.reconcile_s),
        Planned("prune", CPU, "backfill", 1, cron=times.prune),
    )


def deploy(times: Times, cards: int | None = None) -> tuple[str, ...]:
    """Have all of it on the server at PREFECT_API_URL, `cards` runs at once on the gpu pool; returns the deployments.

    R007 where the server refuses or is lost, X001 where a time is none.
    """
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException

    try:
        with get_client(sync_client=True) as client:
            _pool(client, CPU, None)
            _pool(client, GPU, cards)
            for each in plan(times):
                _deployment(client, each)
            _automation(client)
    except (HTTPError, PrefectException, RuntimeError) as error:
        raise ChironError("R007", f"Prefect did not take the deployments ({type(error).__name__})") from None
    return tuple(f"{each.flow}/{NAME}" for each in plan(times))


def cron(text: str) -> str:
    """`02:00` -> the fields of cron for every day at that time; what are such fields already stays. X001 for others."""
    hour, _, minute = text.partition(":")
    if hour.isdigit() and minute.isdigit() and int(hour) < 24 and int(minute) < 60:
        return f"{int(minute)} {int(hour)} * * *"
    if text and not re.fullmatch(r"[\d*][\d*/,-]*(\s+[\dA-Z*][\dA-Z*/,#-]*){4}", text, re.IGNORECASE):
        raise ChironError("X001", f"a time of {text!r}", "a time as 02:00, or the five fields of cron")
    return text


def seconds(text: str) -> float:
    """`90`, `90s`, `5m`, `2h` or `1d` -> seconds; X001 for others."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    if not number.replace(".", "", 1).isdigit():
        raise ChironError("X001", f"a span of {text!r}", "a number with s, m, h or d, as 5m")
    return float(number) * unit


def _pool(client: SyncPrefectClient, name: str, at_once: int | None) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    variables["stream_output"]["default"] = False  # no run's words in a worker's log
    variables["env"]["default"] = {"PYTHONSAFEPATH": "1"}  # nor modules of the folder where any worker was started
    client.create_work_pool(
        WorkPoolCreate(
            name=name,
            type="process",
            description=POOLS[name],
            base_job_template=template,
            concurrency_limit=at_once,
        ),
        overwrite=True,
    )
    for priority, queue in enumerate(QUEUES, 1):
        try:
            client.create_work_queue(queue, priority=priority, work_pool_name=name)
        except ObjectAlreadyExists:
            found = client.read_work_queue_by_name(queue, work_pool_name=name)
            client.update_work_queue(found.id, priority=priority)


def _deployment(client: SyncPrefectClient, each: Planned) -> UUID:
    """Made or updated: the code is installed wherever a worker is, so nothing is pulled."""
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
    from prefect.utilities.callables import parameter_schema

    flow = _flow(each.flow)
    only = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    return client.create_deployment(
        flow_id=client.create_flow_from_name(flow.name),
        name=NAME,
        description=(flow.fn.__doc__ or "").strip(),
        entrypoint=each.entrypoint,
        work_pool_name=each.pool,
        work_queue_name=each.queue,
        concurrency_limit=each.at_once,
        concurrency_options=only if each.at_once else None,
        schedules=_schedules(each),
        parameter_openapi_schema=parameter_schema(flow).model_dump(exclude_unset=True),
        enforce_parameter_schema=True,
        pull_steps=[],
    )


def _flow(name: str) -> Any:
    import flows.deployed

    return getattr(flows.deployed, name)


def _schedules(each: Planned) -> list[Any]:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    try:
        if each.cron:
            when: Any = CronSchedule(cron=cron(each.cron), timezone=_zone())
        elif each.every_s:
            when = IntervalSchedule(
                interval=timedelta(seconds=each.every_s), anchor_date=datetime(2026, 1, 1, tzinfo=UTC)
            )
        else:
            return []
    except ValueError:
        raise ChironError("X001", f"a schedule of {each.cron or each.every_s!r}", "one that comes to pass") from None
    return [DeploymentScheduleCreate(schedule=when, active=True)]


def _zone() -> str:
    """This machine's, where it has a name: a batch at two is one at two in the hospital."""
    return os.environ.get("TZ") or str(Path("/etc/localtime").resolve()).partition("zoneinfo/")[2] or "UTC"


def _automation(client: SyncPrefectClient) -> None:
    """Runs that fall silent become Crashed, which frees what they hold."""
    wanted = _silence()
    found = client.read_automations_by_name(AUTOMATION)
    if not found:
        client.create_automation(wanted)
        return
    client.update_automation(found[0].id, wanted)
    for double in found[1:]:
        client.delete_automation(double.id)


def _silence() -> AutomationCore:
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    beat, every = "prefect.flow-run.heartbeat", "prefect.resource.id"
    return AutomationCore(
        name=AUTOMATION,
        description="A run that has sent no heartbeat for a while has died with its machine or its worker.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={beat},
            expect={beat, *(f"prefect.flow-run.{end}" for end in ENDS)},
            match={every: ["prefect.flow-run.*"]},
            for_each={every},
            threshold=1,
            within=timedelta(seconds=SILENT_S),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed", state=StateType.CRASHED, message="no heartbeat: the run has died", force=False
            )
        ],
    )
