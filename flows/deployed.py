"""What Prefect is asked to run -> the work of a site on it: each flow reads the site that $CHIRON_OUTPUT names.

Parameters, artefacts and errors hold ids of jobs, pseudonyms, codes and counts. No fact is kept in Prefect alone: what
is done stands in the output folder, and a scan is at work where its lock is held.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import FlowRun

from flows.ask import LOST, hand_out, to_come
from flows.pools import LAUNCHER
from flows.site import OUTPUT_VARIABLE, Site
from pipeline.errors import ChironError
from pipeline.find import Export
from pipeline.identity import load_labels
from pipeline.ledger import NEXT, TAKEN, read_manifests
from pipeline.publish.dataset import private

LOOK_S = 5.0
ROUNDS = 2  # a scan whose run died with its worker is handed out once more
QUIETLY: dict[str, Any] = {"persist_result": False, "retries": 0, "log_prints": False}


@flow(name="batch", **QUIETLY)
def batch() -> None:
    """Work on every scan of the site's input that has no result yet, and count how they ended."""
    with _on_site() as site:
        jobs, began = _planned(site), datetime.now(UTC)
        for _ in range(ROUNDS):
            _await(site, jobs, hand_out(jobs, "scheduled"), began)
            jobs = _left(site, jobs, began)
        _tell(site, began)


@flow(name="work", **QUIETLY)
def work(jobs: list[str]) -> None:
    """Take these scans, one after another, from their exports to published results."""
    with _on_site() as site:
        from flows.night import Page

        _show("ended", Counter(_reconstruct(site, jobs)))
        Page(site.output).renew()


@flow(name="intake", **QUIETLY)
def intake() -> None:
    """Start on what has arrived in the site's input, is stable and complete, and on what a run that died has left."""
    with _on_site() as site:
        from flows.intake import look

        arrived = look(site, _key(site))
        _planned(site, arrived.export)
        arrived.confirm()
        jobs = _waiting(site)
        _show("waiting", {"scans": len(jobs), "runs": len(hand_out(jobs, "scheduled"))})


@flow(name="reprocess", **QUIETLY)
def reprocess(
    subject: str = "", session: str = "", stage: str = "", method: str = "", older: bool = False, reason: str = ""
) -> None:
    """Do again what is published: of a subject, a session, or all that is older than the settings now."""
    with _on_site() as site:
        from flows.reprocess import readied, select

        settings = site.parsed_settings() if older else None
        jobs = select(
            site.output, subject, session, method=method, older=older, settings=settings, stage=stage, reason=reason
        )
        ids = [job.scan.id for job in readied(jobs, stage)]
        asked = hand_out(ids, "urgent" if subject else "backfill", again=True)
        _show("again", {"scans": len(jobs), "runs": len(asked)})


@flow(name="reconcile", **QUIETLY)
def reconcile() -> None:
    """Put right what runs that died have left, in the output folder and in Prefect."""
    with _on_site() as site:
        from flows.reconcile import reconcile as put_right
        from flows.reconcile import reconcile_runs

        found = put_right(site.output)
        ends = reconcile_runs(site.output)
        _show("reconciled", {"recovered": len(found.recovered), "cleared": found.cleared, **Counter(ends)})


@flow(name="prune", **QUIETLY)
def prune() -> None:
    """Remove old versions, unfinished work and runs that the site does not keep any longer."""
    with _on_site() as site:
        from flows.prune import prune as remove
        from flows.prune import prune_runs

        removed = remove(site.output, site.keep_days)
        _show("pruned", {**removed.counts, "runs": prune_runs(site.keep_days)})


@contextmanager
def _on_site() -> Iterator[Site]:
    """The site of this process; what is raised within reaches Prefect as a coded sentence without a trace.

    The run ends with the worker that started it: nobody would hear of it, and its scans are another's to take.
    """
    _leash()
    failure = None
    try:
        yield Site.here()
    except ChironError as error:
        failure = error
    except LOST as error:
        failure = ChironError("R007", f"Prefect does not answer ({type(error).__name__})")
    except Exception as error:
        _note(traceback.format_exc())
        failure = ChironError(
            "R005", f"an unexpected {type(error).__name__}", "", "The trace is in the output's private folder."
        )
    if failure:
        raise failure.with_traceback(None) from None


def _note(trace: str) -> None:
    with suppress(OSError):
        path = private(Path(os.environ[OUTPUT_VARIABLE])) / "trace.txt"
        path.touch(0o600)
        path.write_text(trace)


def _leash() -> None:
    """End this process and its own where the worker that started it has ended, or ends."""
    worker = int(os.environ.get(LAUNCHER) or 0)
    if not worker:
        return

    def watch() -> None:
        while os.getppid() == worker:
            time.sleep(0.5)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _planned(site: Site, export: Export | None = None) -> list[str]:
    """Jobs for the scans of `export`, else of all that lies in the input: saved, and named by their ids."""
    from flows.batch import Batch, look, plan

    settings, ledger = site.parsed_settings(), Batch(site.output)
    labels = load_labels(Path(site.labels_file)) if site.labels_file else None
    export = export or look(ledger, site.input, settings, _key(site), labels=labels)
    jobs = plan(ledger, export, settings)
    ledger.finish()
    return [job.scan.id for job in jobs]


def _waiting(site: Site) -> list[str]:
    """Jobs that are saved, and neither done nor at work."""
    from flows.night import look

    return [folder.name for folder in look(site.output).waiting]


def _key(site: Site) -> bytes:
    from pipeline.publish.key import key_of

    return key_of(site.output, Path(site.key_file) if site.key_file else None)


def _await(site: Site, jobs: Sequence[str], runs: Sequence[FlowRun], began: datetime) -> None:
    """Return once all runs have ended, or all their scans have: Prefect may be away, the ledger is not.

    R003 where they take longer than their scans may.
    """
    deadline = time.monotonic() + site.time_limit_s * (len(jobs) + 1)
    while to_come(runs) and _left(site, jobs, began):
        if time.monotonic() > deadline:
            raise ChironError("R003", "scans that were asked for and not done in time", "", "Look at the gpu workers.")
        time.sleep(LOOK_S)


def _left(site: Site, jobs: Sequence[str], began: datetime) -> list[str]:
    """Those that no record was published of since `began`."""
    done = {
        record.get("scan")
        for record in read_manifests(site.output)
        if datetime.fromisoformat(record["finished"]) >= began.replace(microsecond=0)
    }
    return [job for job in jobs if job not in done]


def _reconstruct(site: Site, jobs: Sequence[str]) -> Iterator[str]:
    """How each scan ended: a word, or a code."""
    from flows.batch import as_fits, machine_terms
    from flows.crew import Crew
    from pipeline.recipe import Job

    ready = []
    for folder in (private(site.output) / "work" / job for job in jobs):
        if not any((folder / name).exists() for name in (NEXT, TAKEN)):
            yield "gone"
            continue
        try:
            ready.append(Job.load(folder, next=True))
        except (OSError, ValueError, KeyError, TypeError):  # one damaged job stops no other
            yield "damaged"
    terms = machine_terms(site.parsed_settings(), site.workers, time_limit_s=site.time_limit_s)
    with Crew(site.output, replace(terms, workers=as_fits(terms, ready))) as crew:
        for end in crew.work(ready):
            yield end.code or end.how


def _tell(site: Site, began: datetime) -> None:
    """Show how the night went, and send it to whom the site names: counts and codes only."""
    from flows.night import Page, artifact_markdown, counts, notify

    found = counts(site.output, began.timestamp())
    with suppress(*LOST):
        create_markdown_artifact(artifact_markdown(found), key="night")
    Page(site.output).renew()
    notify(site, found)


def _show(key: str, counts: Mapping[str, int]) -> None:
    """Counts as an artifact, where there are any; without a Prefect to show them nothing is lost."""
    rows: list[dict[str, Any]] = [{"what": what, "count": count} for what, count in sorted(counts.items()) if count]
    with suppress(*LOST):
        if rows:
            create_table_artifact(table=rows, key=key)
