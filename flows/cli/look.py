"""`inspect`, `status`, `report`, `doctor`, `settings`, `explain`: look, and change nothing."""

from __future__ import annotations

import re
import secrets
import select
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from flows import show
from flows.cli.options import (
    ALL_FAILED,
    INCOMPLETE,
    NOTHING_DONE,
    DatasetLabel,
    Input,
    Json,
    Orientation,
    Results,
    Subject,
)
from pipeline.errors import CATALOGUE, ChironError
from pipeline.names import meant

WATCH_S = 2.0
PRIVATE = ".chiron"  # of an output folder


def inspect(
    input: Input,
    subject: Subject = None,
    dataset_label: DatasetLabel = "",
    orientation: Orientation = None,
    json: Json = False,
) -> None:
    """Say what `run` would do with an export, and why with the rest it would not.

    Reads headers only, computes nothing and writes nothing. Where there is no key of the pseudonyms yet, the labels are
    provisional: the first run makes the key, and with it other labels. A scan that has a label in
    an OUTPUT keeps that there.

    Example: chiron inspect /data/export
    """
    from pipeline.find import find
    from pipeline.find.listing import check_readable
    from pipeline.identity import KEY_BYTES, existing_key
    from pipeline.publish.labels import settled
    from pipeline.publish.register import Register
    from pipeline.settings import load

    check_readable(input)
    key = existing_key()
    words = [f"acquisition.orientation={orientation}"] if orientation else []
    acquisition = load(None, words).acquisition
    export = find(
        input, key or secrets.token_bytes(KEY_BYTES), subject, acquisition=acquisition, dataset_label=dataset_label
    )
    found = settled(export, Register(None))
    provisional = key is None and not (found.scans and all(scan.source == "bids" for scan in found.scans))
    if json:
        show.as_json({**show.export_json(found), "provisional_labels": provisional})
    else:
        show.export(found, show.console(), provisional)
    bad = bool(found.set_aside)
    raise typer.Exit((INCOMPLETE if bad else 0) if found.scans else (ALL_FAILED if bad else NOTHING_DONE))


def doctor(
    output: Annotated[
        Path | None,
        typer.Argument(metavar="[OUTPUT]", help="Where results shall go: can it be written to, is there room?"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    deep: Annotated[bool, typer.Option("--deep", help="Also ask Prefect's server, or start one for a moment.")] = False,
) -> None:
    """Check that this machine has what a run needs.

    Example: chiron doctor --deep
    """
    from flows.doctor import examine

    raise typer.Exit(show.checks(examine(output, device, deep), show.console()))


def settings() -> None:
    """Print every setting with its default, range and meaning, as a file that --config takes.

    Example: chiron settings > mine.toml
    """
    print(show.settings_toml(), end="")


def explain(
    code: Annotated[str, typer.Argument(metavar="CODE", help="A code such as P002.", show_default=False)],
) -> None:
    """Say what a code means, what is done about it, and what you can do.

    Example: chiron explain P002
    """
    short = re.fullmatch(r"([a-z])0*(\d{1,3})", code.strip().lower())
    code = meant(f"{short[1]}{int(short[2]):03}" if short else code, CATALOGUE, "code")
    fault = CATALOGUE[code]
    happens = {
        "ignore": "the file is ignored",
        "set aside": "the scan is set aside, the others go on",
        "warn": "a warning, and the scan goes on",
        "refuse": "the run is refused before computing",
    }
    print(f"{code}: {fault.what}\n  what happens: {happens[fault.owed]}")
    print(f"  what to do:   {fault.todo}\n  exit code:    {fault.exit}")


def status(
    output: Results,
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every two seconds, until Ctrl-C.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="List the usable scans too.")] = False,
) -> None:
    """Say what runs in an output folder, what needs a look, and what was done, from the manifests and locks in it.

    Example: chiron status /data/qsm --watch
    """
    from flows.night import look

    if json and watch:
        raise typer.BadParameter("--json is for programs, which ask again by themselves: leave out --watch")
    if watch:
        _watch(_folder(output), everything)
    elif json:
        show.as_json(show.night_json(look(_folder(output))))
    else:
        console = show.console()
        console.print(show.night(look(_folder(output)), everything, columns=console.width))


def _watch(output: Path, everything: bool) -> None:
    """Until Ctrl-C, which is how it is meant to end, or until nobody reads it."""
    from flows.night import look
    from flows.screen import shown

    console = show.console()
    with suppress(KeyboardInterrupt), shown(console) as update:
        while getattr(sys.stdout, "failure", None) is None and _is_read():
            update(show.night(look(output), everything, watched=True, columns=console.width))
            time.sleep(WATCH_S)


def _is_read() -> bool:
    """Whether standard output has a reader: a pipe whose reader has ended says so."""
    poll = select.poll()
    with suppress(OSError, ValueError):
        poll.register(sys.stdout.fileno(), 0)
    return not poll.poll(0)


def report(
    output: Results,
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="Label, with or without `sub-`.", show_default=False)
    ],
) -> None:
    """Print where the reports of a subject are.

    Example: chiron report /data/qsm sub-abc
    """
    from flows.subjects import labels_in, matching
    from pipeline.ledger import read_manifests

    labels = labels_in(_folder(output))
    if not subject.strip():
        raise typer.BadParameter("an empty SUBJECT: give a label, as `chiron status OUTPUT --all` lists them")
    wanted = matching(labels, subject)
    mine = [record for record in read_manifests(output) if record["label"] in wanted]
    pages = [output / record["folder"] / name for record in mine for name in record["files"] if name.endswith(".html")]
    for page in pages:
        print(page)
    for record in mine if not pages else ():
        why = (record["failure"] or {}).get("code", "")
        print(f"{record['label']}  {record['state']} {why}, without a report".replace(" ,", ","), file=sys.stderr)
    if not mine:
        print(f"{', '.join(sorted(wanted))}: no result yet", file=sys.stderr)
    raise typer.Exit(0 if pages else NOTHING_DONE)


def _folder(output: Path) -> Path:
    from pipeline.disk import check_folder
    from pipeline.ledger import read_manifests

    check_folder(output)
    if not (output / PRIVATE).is_dir() and not read_manifests(output):
        raise ChironError("S003", "no output folder of ours", "an output folder of `chiron run`")
    return output
