"""A job in the output's private folder -> its stages done and its result published.

An exception that leaves is a coded sentence, and what lies behind it stays in the job's private folder.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import torch

from flows.site import OUTPUT_VARIABLE
from flows.watch import Silent, Watcher
from pipeline.errors import ChironError
from pipeline.publish import publish as publish_result
from pipeline.recipe import Job, recipe, run_stage
from pipeline.recipe.job import TRACE
from pipeline.work import disk_error

watcher: ContextVar[Watcher] = ContextVar("watcher", default=Silent())  # noqa: B039  it has no state


def reconstruct(job: str, label: str) -> str:
    """Take the scan of `job` from its export to a published result; returns the verdict.

    A stage that is proven done is not done again. Where one fails, why is published in place of the result, and the
    ChironError is raised.
    """
    return in_steps(job, step, publish)


def in_steps(job: str, step: Callable[[str, str], str], publish: Callable[..., str]) -> str:
    """The same, with each stage done by `step` and the result or the failure published by `publish`."""
    try:
        for stage in recipe(open_job(job).settings):
            step(job, stage.name)
        return publish(job)
    except ChironError as failure:
        with suppress(ChironError):
            publish(job, failure)
        raise


def step(job: str, name: str) -> str:
    """Run one stage of a job; returns the digest of what it made."""
    this, watch = open_job(job), watcher.get()
    stage = next(stage for stage in recipe(this.settings) if stage.name == name)
    watch.began(stage.name, stage.title)
    try:
        with coded(this):
            return run_stage(stage, this, watch.moved).digest
    finally:
        watch.ended(stage.name)


def publish(job: str, failure: ChironError | None = None) -> str:
    """Publish a job's result, or with `failure` why there is none; returns the verdict."""
    this, watch = open_job(job), watcher.get()
    watch.began("publish", "publishing" if failure is None else "recording the failure")
    try:
        with coded(this):
            return publish_result(this, output_folder(), failure).verdict
    finally:
        watch.ended("publish")


def output_folder() -> Path:
    return Path(os.environ[OUTPUT_VARIABLE])


def job_folder(job: str) -> Path:
    return output_folder() / ".chiron" / "work" / job


def open_job(job: str) -> Job:
    return Job.load(job_folder(job))


@contextmanager
def coded(job: Job) -> Iterator[None]:
    """Whatever is raised within leaves as a ChironError; the trace of a surprise goes to the job's private folder."""
    try:
        yield
    except ChironError:
        raise
    except Exception as error:
        with suppress(OSError):
            (job.folder / TRACE).write_text(traceback.format_exc())
        raise _as_coded(error) from None


def _as_coded(error: Exception) -> ChironError:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return ChironError("R002", f"no memory left ({type(error).__name__})", "room for the volume")
    if isinstance(error, OSError) and error.errno in (28, 122):
        return disk_error(error)
    return ChironError(
        "R005", f"an unexpected {type(error).__name__}", "none", f"The trace is in {TRACE} of the scan's work folder."
    )
