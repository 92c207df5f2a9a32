"""`run` and `demo`: exports in, results out, each scan through its flow."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from flows import show
from flows.cli.options import (
    NOTHING_DONE,
    Also,
    Config,
    DatasetLabel,
    Device,
    Input,
    Json,
    Labels,
    MaxSeconds,
    Method,
    Orientation,
    Output,
    Set,
    Subject,
    TimeLimit,
    Workers,
    override_from,
    target,
    time_budget,
)
from flows.cli.shown import shown
from pipeline.errors import ChironError


def run(
    input: Input,
    output: Output,
    method: Method = None,
    also: Also = None,
    device: Device = None,
    config: Config = None,
    set: Set = None,
    subject: Subject = None,
    echo_times: Annotated[
        str | None, typer.Option(metavar="MS,MS,...", help="True echo times in milliseconds: 4,8,12.")
    ] = None,
    b0: Annotated[float | None, typer.Option(help="True field strength in tesla, to four digits: 2.8948.")] = None,
    orientation: Orientation = None,
    phase_range: Annotated[
        str | None, typer.Option(help="Unit of the stored phase: radians, degrees, milliradians, 0-4095, +-4096.")
    ] = None,
    phase_sign: Annotated[str | None, typer.Option(help="Sign of the phase: + or -.")] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE, DIR or PATTERN",
            help="Own brain mask, NIfTI on the scan's grid. Of several scans: a folder of masks named as these "
            "(sub-x_ses-y_desc-brain_mask.nii.gz or sub-x_ses-y.nii.gz), or a pattern as 'masks/{label}.nii.gz'.",
        ),
    ] = None,
    upsample: Annotated[
        str | None,
        typer.Option(metavar="N or N,N,N", help="A further map on voxels so many times finer, 1 to 4 along each axis."),
    ] = None,
    max_seconds: MaxSeconds = None,
    workers: Workers = 0,
    time_limit: TimeLimit = 7200.0,
    labels: Labels = None,
    dataset_label: DatasetLabel = "",
    fail_on_qc: Annotated[bool, typer.Option("--fail-on-qc", help="Exit 19 where a result is not to be used.")] = False,
    json: Json = False,
) -> None:
    """Reconstruct every scan of an export, each with its report.

    A scan that cannot be used is set aside with a reason; it never stops the others. A scan that has a result keeps it;
    `chiron reprocess` makes it anew. What --echo-times, --b0, --phase-range, --phase-sign and --mask say of a scan is
    kept for it. Given again, an interrupted run continues where it stopped.

    Example: chiron run /data/export /data/qsm --method rts

    Example: chiron run /data/export /data/qsm --upsample 2,2,1
    """
    from flows import batch as batches
    from pipeline import settings as all_settings
    from pipeline.find.listing import check_readable
    from pipeline.identity import load_labels
    from pipeline.publish.key import key_of

    words = [*(set or []), *_acquisition_words(echo_times, b0, orientation, phase_range, phase_sign, mask)]
    decided = override_from(words)
    words += time_budget(max_seconds)
    beside = [name for given in also or [] for name in given.split(",")] or None
    settings = all_settings.load(config, words, method=method, also=beside, device=device, upsample=upsample)
    source, given = input.absolute(), load_labels(labels) if labels else None
    check_readable(source)
    batches.apart(source, output.absolute())
    terms = batches.machine_terms(settings, workers, time_limit_s=time_limit)
    batch = shown(
        lambda batch: batches.run(
            batch, source, settings, key_of(batch.output), subject, None, given, dataset_label, decided
        ),
        output.absolute(),
        terms,
        fail_on_qc,
        json,
    )
    raise typer.Exit(batch.exit_code())


def demo(
    output: Annotated[Path, typer.Argument(metavar="[OUTPUT]", help="Folder of the results.", parser=target)] = Path(
        "demo-output"
    ),
    method: Method = "dip",
    vendor: Annotated[
        str, typer.Option(help="Whose files to write: siemens, philips, philips-enhanced or ge.")
    ] = "siemens",
    voxel_size: Annotated[float, typer.Option(help="Voxel size in mm, 1 to 6; smaller takes longer.")] = 2.5,
    seed: Annotated[int, typer.Option(help="Which head: any number.")] = 1,
    device: Device = None,
    set: Set = None,
) -> None:
    """Simulate a head, write it as DICOM, reconstruct it and compare with the truth.

    Publishes Deep Image Prior, and TKD, RTS and TV beside it. The simulated export and the truth stay in sourcedata/.

    Example: chiron demo demo-output --vendor ge
    """
    from flows import batch as batches
    from flows.demo import checked, simulate
    from pipeline import settings as all_settings
    from pipeline.publish import prepare
    from pipeline.publish.key import key_of

    beside = [name for name in ("dip", "tkd", "rts", "tv") if name != str(method).strip().lower()]
    settings = all_settings.load(None, set or [], method=method, also=beside, device=device)
    vendor, terms = checked(vendor, voxel_size), batches.machine_terms(settings)
    output = output.absolute()
    prepare(output)
    show.console(stderr=True).print("simulating a head and its scan")
    made = simulate(output / "sourcedata", vendor, voxel_size, seed)
    key = key_of(output, output / ".chiron" / "demo.key")
    batch = shown(
        lambda batch: batches.run(batch, made.export, settings, key, "demo", made.truth),
        output,
        terms,
    )
    for outcome in batch.outcomes:
        qc = output / Path(outcome.report).parent / "anat" / f"{outcome.label}_qc.json"
        if qc.is_file():
            show.metrics(json_format.loads(qc.read_text())["methods"], show.console())
    raise typer.Exit(0 if batch.exit_code() == NOTHING_DONE else batch.exit_code())


def _acquisition_words(
    echo_times: str | None,
    b0: float | None,
    orientation: str | None,
    phase_range: str | None,
    phase_sign: str | None,
    mask: Path | None,
) -> list[str]:
    """The options that say what to believe instead of the headers, as settings."""
    given = {
        "acquisition.echo_times_s": _seconds(echo_times) if echo_times else None,
        "acquisition.b0_tesla": b0,
        "acquisition.orientation": orientation,
        "phase.range": phase_range,
        "phase.sign": phase_sign,
        "mask.file": str(mask.absolute()) if mask else None,
    }
    return [f"{name}={json_format.dumps(value)}" for name, value in given.items() if value is not None]


def _seconds(milliseconds: str) -> list[float]:
    """`4,8,12` -> [0.004, 0.008, 0.012]; X002 where these cannot be milliseconds."""
    try:
        times = [float(word) for word in milliseconds.split(",")]
    except ValueError:
        times = []
    if not times or not all(0.5 <= t <= 500 for t in times):
        raise ChironError("X002", f"the echo times {milliseconds!r}", "milliseconds with commas between: 4,8,12")
    return [t / 1000 for t in times]
