"""`reprocess`, `reconcile`, `prune`: what is done to an output folder as it stands, without looking at any export."""

from __future__ import annotations

import os
from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import show
from flows.cli.options import NOTHING_DONE, Config, Device, Json, Method, Results, Set, TimeLimit, Workers
from flows.cli.shown import shown
from pipeline.errors import ChironError

if TYPE_CHECKING:
    from flows.batch import Batch
    from flows.reprocess import Chosen
    from pipeline.recipe import Job
    from pipeline.settings import Settings

AS_OWNER = "Run the command as the user whose folder OUTPUT/.chiron is."
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def reprocess(
    output: Results,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="[SUBJECT]", help="Label of a subject, with or without `sub-`, or of one scan.", show_default=False
        ),
    ] = "",
    session: Annotated[str, typer.Option(help="Only this session.")] = "",
    run: Annotated[str, typer.Option(help="Only this run.")] = "",
    state: Annotated[str, typer.Option(help="Only what is published, failed, set aside or interrupted.")] = "",
    verdict: Annotated[str, typer.Option(help="Only results that are usable, check or do not use.")] = "",
    code: Annotated[str, typer.Option(help="Only what failed, or was warned of, with this code.")] = "",
    older: Annotated[bool, typer.Option("--older", help="Only what other settings or another version made.")] = False,
    stage: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="Do this stage and those after it in any case.")
    ] = "",
    method: Method = None,
    config: Config = None,
    set: Set = None,
    device: Device = None,
    workers: Workers = 0,
    time_limit: TimeLimit = 7200.0,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the manifest. Name no patient.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Also what is published already with these settings.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Reconstruct again what was reconstructed: all that the options name together.

    Each scan has the settings it had; --set, --method and --device change them, --config takes their place. What a new
    result replaces is kept until `prune`. Who decided on it, when and why stands in the manifest, and the settings hold
    for the scan whatever a later run asks for. A scan whose files are no longer what they were fails with F016.

    Example: chiron reprocess /data/qsm --verdict "do not use" --method rts
    """
    from flows.reprocess import Wanted, choose
    from flows.subjects import labels_in, matching
    from pipeline import settings as all_settings

    output = output.absolute()
    _is_ours(output)
    whole = all_settings.load(config, set or [], method=method, device=device) if config else None
    labels = matching(labels_in(output), subject, session, run) if subject or session or run else None
    chosen = choose(
        output,
        Wanted(state=state, verdict=verdict, code=code, older=older, labels=labels),
        lambda old: whole or all_settings.load(None, set or [], old, method=method, device=device),
        stage,
        force,
        reason,
        _named_settings(set or [], method, whole),
    )
    _tell(chosen, dry_run, json)
    if chosen.jobs and not dry_run:
        raise typer.Exit(_again(chosen.jobs, output, stage, workers, time_limit, json).exit_code())
    raise typer.Exit(0 if chosen.jobs else NOTHING_DONE)


def _named_settings(words: list[str], method: str | None, whole: Settings | None) -> list[str]:
    """The settings that a person names by --set, --method and --config."""
    from pipeline.override import difference
    from pipeline.settings import load

    names = [word.partition("=")[0].strip() for word in words] + (["method"] if method else [])
    return [*names, *(difference(load().model_dump(mode="json"), whole.model_dump(mode="json")) if whole else ())]


def _tell(chosen: Chosen, dry_run: bool, as_json: bool) -> None:
    """What will be done and what not; X002 where all that was named is out of reach."""
    from flows.reprocess import nowhere

    beside = show.console(stderr=True)
    if chosen.lost and not chosen.jobs and not chosen.standing:
        raise nowhere(chosen)
    counts: list[tuple[Sized, str]] = [
        (chosen.jobs, "to do"),
        (chosen.standing, "published already with these settings (--force does it again)"),
        (chosen.lost, "whose files are not known here (run the export again)"),
    ]
    beside.print(", ".join(f"{len(scans)} {what}" for scans, what in counts if scans) or "nothing to do")
    if as_json and (dry_run or not chosen.jobs):
        show.as_json([{"label": job.scan.label, "state": "to do"} for job in chosen.jobs])
    elif dry_run:
        for job in chosen.jobs:
            print(job.scan.label)


def _again(jobs: list[Job], output: Path, stage: str, workers: int, time_limit: float, as_json: bool) -> Batch:
    from flows import batch as batches
    from flows.reprocess import readied
    from pipeline.invert import check_weights
    from pipeline.publish import prepare

    for settings in {job.settings.model_dump_json(): job.settings for job in jobs}.values():
        terms = batches.machine_terms(settings, workers, time_limit_s=time_limit)
        check_weights(settings)
    prepare(output)

    def do(batch: Batch) -> None:
        def refused(job: Job, why: ChironError) -> None:
            batch.add(batches.Outcome(job.scan.label, "failed", code=why.code, text=why.sentence()))

        batches.work(batch, readied(jobs, stage, refused))

    return shown(do, output, terms, as_json=as_json)


def reconcile(output: Results, json: Json = False) -> None:
    """Put right what runs left that were killed: half-made files, and runs that Prefect still takes to be at work.

    Scans that were begun and have no result are listed; the next run of their export, or `reprocess`, continues them.

    Example: chiron reconcile /data/qsm
    """
    from dataclasses import asdict

    from flows.reconcile import reconcile as put_right
    from flows.reconcile import reconcile_runs

    _is_ours(output)
    found = put_right(output.absolute())
    runs = reconcile_runs(output.absolute()) if os.environ.get("PREFECT_API_URL") else []
    if json:
        show.as_json({**asdict(found), "runs": runs})
        return
    for label in found.interrupted:
        print(f"{label}  interrupted")
    said = [f"{len(found.recovered)} publications", f"{found.cleared} half-made files or folders", f"{len(runs)} runs"]
    show.console(stderr=True).print(f"put right: {', '.join(said)}; interrupted scans: {len(found.interrupted)}")


def prune(
    output: Results,
    keep_days: Annotated[
        float, typer.Option(min=0.0, metavar="N", help="Keep what is younger than so many days.")
    ] = 30,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove old versions of results, unfinished work that nobody continued, logs, and Prefect's finished runs.

    What the stages of a published scan left goes whatever its age.
    Results, records of failures and inputs are never touched.

    Example: chiron prune /data/qsm --keep-days 90
    """
    from flows.prune import prune as remove
    from flows.prune import prune_runs

    _is_ours(output)
    found = remove(output.absolute(), keep_days, dry_run=dry_run)
    if os.environ.get("PREFECT_API_URL"):
        found.runs = prune_runs(keep_days, dry_run=dry_run)
    if json:
        show.as_json(found.json())
        return
    for line in found.lines():
        print(line)


def _is_ours(output: Path) -> None:
    from pipeline.disk import check_folder
    from pipeline.publish.dataset import private

    check_folder(output)
    if not private(output).is_dir():
        raise ChironError("S003", "no output folder of ours", "an output folder of `chiron run`")
    if not os.access(private(output), os.R_OK | os.W_OK | os.X_OK):
        raise ChironError("S002", "private files of an output folder that are another user's", "its owner", AS_OWNER)
