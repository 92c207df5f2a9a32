"""Jobs -> an output folder as if they had been done: manifests without images, for tests of what stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from make_dicom import KEY

from flows.batch import Batch, Outcome, plan
from pipeline.errors import ChironError
from pipeline.find import find
from pipeline.invert import chosen_methods
from pipeline.ledger import NAME, read
from pipeline.override import Override
from pipeline.publish import manifest, prepare
from pipeline.publish.key import recorded
from pipeline.publish.sidecars import as_json
from pipeline.recipe import Job
from pipeline.settings import Settings, load

SETTINGS = load(method="tkd", device="cpu")


def put_record(output: Path, job: Job, failure: ChironError | None = None) -> None:
    """Record a job as published, or as failed."""
    folder = output / ("failed/" + job.scan.label if failure else manifest.session_folder(job.scan))
    folder.mkdir(parents=True, exist_ok=True)
    record = manifest.record(job.scan, job.settings, chosen_methods(job.settings), {}, failure, job.override)
    record |= {"verdict": "do not use" if failure else "usable", "citations": [], "files": {}}
    record["key_fingerprint"] = recorded(output)
    others = [each for each in read(folder) if each["label"] != job.scan.label]
    (folder / NAME).write_bytes(as_json(manifest.manifest([*others, record])))


def run_through(
    output: Path,
    source: Path,
    settings: Settings = SETTINGS,
    subject: str | None = None,
    dataset_label: str = "",
    override: Override | None = None,
    failure: ChironError | None = None,
    **options: Any,
) -> dict[str, Outcome]:
    """Plan what lies in `source` and record each job as done (or failed); what came of every label."""
    from flows.keep import overrides_for

    prepare(output)
    batch = Batch(output)
    options.setdefault("acquisition", overrides_for(output, settings))
    export = find(source, KEY, subject, dataset_label=dataset_label, **options)
    for job in plan(batch, export, settings, override=override):
        Job.take(job.folder)
        put_record(output, job, failure)
        batch.add(Outcome(job.scan.label, "failed" if failure else "published"))
    batch.finish()
    return {outcome.label: outcome for outcome in batch.outcomes}


def states(outcomes: dict[str, Outcome]) -> dict[str, str]:
    return {label: outcome.code or outcome.state for label, outcome in sorted(outcomes.items())}
