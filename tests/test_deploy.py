"""Deployments on a real server: complete, the same said twice, and a scheduled run that appears and is executed."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_in
import yaml
from make_site import make_site, serving, wait_until, with_stand_ins
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType

import flows.ask
import flows.deployed
from flows.deploy import AUTOMATION, Planned, Times, cron, deploy, plan, seconds
from flows.pools import CPU, GPU, NAME, QUEUES
from flows.serve.child import Child
from flows.site import Site
from pipeline.errors import ChironError
from pipeline.ledger import read_manifests

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[Child]:
    with serving(site) as child:
        yield child


@pytest.fixture
def client(server: Child) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def all_of_it(client: SyncPrefectClient) -> dict[str, Any]:
    """What stands on the server, without the times and identities that Prefect gives."""
    pools = {pool.name: pool for pool in client.read_work_pools()}
    deployments = client.read_deployments()
    return {
        "pools": {name: (pool.type, pool.concurrency_limit) for name, pool in pools.items()},
        "queues": {
            (name, queue.name): queue.priority
            for name in pools
            for queue in client.read_work_queues(work_pool_name=name)
            if queue.name != "default"
        },
        "deployments": {
            client.read_flow(each.flow_id).name: (
                each.id,
                each.name,
                each.entrypoint,
                each.work_pool_name,
                each.work_queue_name,
                each.global_concurrency_limit and each.global_concurrency_limit.limit,
                each.pull_steps,
                each.path,
                each.job_variables,
                [str(schedule.schedule) for schedule in each.schedules],
            )
            for each in deployments
        },
        "automations": [(a.id, a.name, str(a.trigger), str(a.actions)) for a in client.read_automations()],
    }


def test_said_twice_it_is_the_same_and_what_is_not_ours_stays(client: SyncPrefectClient) -> None:
    client.create_work_pool(WorkPoolCreate(name="theirs", type="process", concurrency_limit=7))
    deploy(Times(batch="0 2 * * *"), 2)
    first = all_of_it(client)
    deploy(Times(batch="0 2 * * *"), 2)
    assert all_of_it(client) == first
    assert first["pools"] == {"theirs": ("process", 7), CPU: ("process", None), GPU: ("process", 2)}
    ours = {key: value for key, value in first["queues"].items() if key[0] in (CPU, GPU)}
    assert ours == {(pool, queue): i for pool in (CPU, GPU) for i, queue in enumerate(QUEUES, 1)}
    assert {name: found[1:6] for name, found in first["deployments"].items()} == {
        each.flow: (NAME, each.entrypoint, each.pool, each.queue, each.at_once) for each in plan(Times())
    }
    assert all(found[6:9] == ([], None, {}) for found in first["deployments"].values())
    assert [name for _, name, _, _ in first["automations"]] == [AUTOMATION]
    for pool in (CPU, GPU):
        defaults = client.read_work_pool(pool).base_job_template["variables"]["properties"]
        assert defaults["env"]["default"] == {"PYTHONSAFEPATH": "1"} and not defaults["working_dir"].get("default")


def test_a_changed_schedule_is_changed_and_not_added(client: SyncPrefectClient) -> None:
    deploy(Times(intake_s=300, batch="0 2 * * *"))
    before = all_of_it(client)["deployments"]
    deploy(Times(intake_s=60, batch=""))
    after = all_of_it(client)["deployments"]
    assert (len(after["intake"][-1]), len(after["batch"][-1])) == (1, 0)
    assert before["intake"][-1] != after["intake"][-1]
    assert before["prune"] == after["prune"]


def test_a_run_that_falls_silent_is_crashed(client: SyncPrefectClient) -> None:
    deploy(Times())
    (found,) = client.read_automations_by_name(AUTOMATION)
    assert found.enabled and found.trigger.posture.value == "Proactive"  # type: ignore[union-attr]
    assert found.trigger.within.total_seconds() == 90  # type: ignore[union-attr]
    assert [action.state for action in found.actions] == [StateType.CRASHED]  # type: ignore[union-attr]


def test_scans_that_are_asked_for_already_are_not_asked_for_again(client: SyncPrefectClient) -> None:
    deploy(Times())
    jobs = [f"{i:012x}" for i in range(20)]
    runs = flows.ask.hand_out(jobs, "scheduled")
    assert [run.parameters["jobs"] for run in runs] == [jobs[:8], jobs[8:16], jobs[16:]]
    assert {run.work_queue_name for run in runs} == {"scheduled"}
    assert flows.ask.hand_out(jobs, "scheduled") == []
    (more,) = flows.ask.hand_out([*jobs, "f" * 12], "backfill")
    assert (more.parameters["jobs"], more.work_queue_name) == (["f" * 12], "backfill")
    assert flows.ask.hand_out(jobs[:1], "urgent", again=True)[0].work_queue_name == "urgent"
    assert flows.ask.to_come(runs)
    for run in flows.ask.under_way(client):
        client.delete_flow_run(run.id)
    assert not flows.ask.to_come(runs)


def test_a_scheduled_run_appears_and_is_executed(server: Child, site: Site) -> None:
    """With an unfit fastapi or sqlalchemy Prefect starts, and silently schedules nothing."""
    deploy(Times(intake_s=5))
    worker = Child("worker cpu", ["flows.serve.worker", CPU], os.environ)
    worker.start()
    try:
        wait_until(lambda: "COMPLETED" in _ends(site))
    finally:
        deploy(Times())
        worker.end(1)


@pytest.mark.slow
def test_a_batch_asks_for_all_that_has_no_result_and_counts(
    client: SyncPrefectClient, site: Site, tmp_path: Path, server: Child
) -> None:
    deploy(Times())
    stand_in.export(site.input, a="", b="fail", c="")
    environment = {**os.environ, **with_stand_ins(tmp_path / "hook")}
    workers = [Child(f"worker {pool}", ["flows.serve.worker", pool], environment) for pool in (CPU, GPU)]
    for worker in workers:
        worker.start()
    try:
        batch = client.create_flow_run_from_deployment(client.read_deployment_by_name(f"batch/{NAME}").id)
        wait_until(lambda: client.read_flow_run(batch.id).state.is_final(), 300)  # type: ignore[union-attr]
    finally:
        for worker in workers:
            worker.end(1)
    assert client.read_flow_run(batch.id).state.is_completed()  # type: ignore[union-attr]
    assert {record["label"]: record["state"] for record in read_manifests(site.output)} == {
        "sub-a": "published",
        "sub-b": "failed",
        "sub-c": "published",
    }
    shown = {artifact.key: str(artifact.data) for artifact in client.read_artifacts()}
    assert "P007" in shown["night"] and "published" in shown["ended"]
    for file in (site.output / ".chiron" / "prefect").glob("prefect.db*"):
        assert stand_in.SENTINEL.encode() not in file.read_bytes() and str(site.input).encode() not in file.read_bytes()


def _ends(site: Site) -> list[str]:
    with sqlite3.connect(f"file:{site.output / '.chiron' / 'prefect' / 'prefect.db'}?mode=ro", uri=True) as database:
        found = database.execute("select state_type from flow_run where auto_scheduled and parameters = '{}'")
        return [state for (state,) in found]


def test_prefect_yaml_says_the_same() -> None:
    said = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    assert said["pull"] == [] and {each["name"] for each in said["deployments"]} == {NAME}
    assert tuple(_planned(each) for each in said["deployments"]) == plan(Times())


def _planned(said: dict[str, Any]) -> Planned:
    when = {key: value for schedule in said["schedules"] for key, value in schedule.items()}
    limit = said.get("concurrency_limit", {"limit": None, "collision_strategy": "CANCEL_NEW"})
    assert limit["collision_strategy"] == "CANCEL_NEW"
    pool, flow = said["work_pool"], said["entrypoint"].removeprefix("flows.deployed.")
    times = (when.get("interval", 0), when.get("cron", ""))
    return Planned(flow, pool["name"], pool["work_queue_name"], limit["limit"], *times)


@pytest.mark.parametrize(
    ("text", "fields"),
    [("02:00", "0 2 * * *"), ("23:59", "59 23 * * *"), ("*/5 1-4 * * MON", "*/5 1-4 * * MON"), ("", "")],
)
def test_a_time_of_day_is_cron(text: str, fields: str) -> None:
    assert cron(text) == fields


@pytest.mark.parametrize("text", ["24:00", "02:60", "at two", "* * * *", "02:00; rm"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ChironError) as caught:
        cron(text)
    assert caught.value.code == "X001"


def test_spans_are_read() -> None:
    assert [seconds(text) for text in ("90", "90s", "5m", "1.5h", "1d")] == [90, 90, 300, 5400, 86400]
    for text in ("", "m", "5 m", "-5m", "1e3", "five"):
        with pytest.raises(ChironError) as caught:
            seconds(text)
        assert caught.value.code == "X001"


def test_what_is_raised_in_a_flow_is_a_coded_sentence(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIRON_OUTPUT", str(site.output))
    with pytest.raises(ChironError) as caught, flows.deployed._on_site() as here:
        assert here == site
        raise ValueError(f"the secret {site.input}")
    assert caught.value.code == "R005" and str(site.input) not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert str(site.input) in (site.output / ".chiron" / "trace.txt").read_text()
    monkeypatch.delenv("CHIRON_OUTPUT")
    with pytest.raises(ChironError) as caught, flows.deployed._on_site():
        pass
    assert caught.value.code == "S002"
