"""`inspect`, `status`, `report`, `doctor`, `settings`, `explain`: look, and change nothing."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import show
from flows.cli.options import ALL_FAILED, INCOMPLETE, NOTHING_DONE, Input, Json, Output, Subject
from pipeline.errors import CATALOGUE, ChironError

WATCH_S = 2.0


def inspect(input: Input, subject: Subject = None, json: Json = False) -> None:
    """Say what `run` would do with an export, and why with the rest it would not.

    Reads headers only and computes nothing.

    Example: chiron inspect /data/export
    """
    from pipeline.find import find
    from pipeline.identity import load_key

    if not input.is_dir() or not os.access(input, os.R_OK | os.X_OK):
        raise ChironError("S003", "no readable folder", "the folder of an export")
    found = find(input, load_key(), subject)
    if json:
        show.as_json(show.export_json(found))
    else:
        show.export(found, show.console())
    bad = bool(found.set_aside)
    raise typer.Exit((INCOMPLETE if bad else 0) if found.scans else (ALL_FAILED if bad else NOTHING_DONE))


def doctor(
    output: Annotated[Path, typer.Argument(metavar="[OUTPUT]", help="Where results shall go: is there room?")] = Path(),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    deep: Annotated[bool, typer.Option("--deep", help="Also start Prefect's embedded server.")] = False,
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
    fault = CATALOGUE.get(code.upper())
    if fault is None:
        raise ChironError("X002", f"no code {code!r}", ", ".join(CATALOGUE))
    happens = {
        "ignore": "the file is ignored",
        "set aside": "the scan is set aside, the others go on",
        "warn": "a warning, and the scan goes on",
        "refuse": "the run is refused before computing",
    }
    print(f"{code.upper()}: {fault.what}\n  what happens: {happens[fault.owed]}")
    print(f"  what to do:   {fault.todo}\n  exit code:    {fault.exit}")


def status(
    output: Output,
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
    """Until Ctrl-C, which is how it is meant to end."""
    from flows.night import look
    from flows.screen import shown

    console = show.console()
    with suppress(KeyboardInterrupt), shown(console) as update:
        while True:
            update(show.night(look(output), everything, watched=True, columns=console.width))
            time.sleep(WATCH_S)


def report(
    output: Output,
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="Label, with or without `sub-`.", show_default=False)
    ],
) -> None:
    """Print where the reports of a subject are.

    Example: chiron report /data/qsm sub-abc
    """
    wanted = subject if subject.startswith("sub-") else f"sub-{subject}"
    mine = [r for r in _records(output) if f"{r['label']}_".startswith(f"{wanted}_")]
    pages = [output / r["folder"] / name for r in mine for name in r["files"] if name.endswith(".html")]
    for page in pages:
        print(page)
    raise typer.Exit(0 if pages else NOTHING_DONE)


def _records(output: Path) -> list[dict[str, Any]]:
    from pipeline.ledger import read_manifests

    return read_manifests(_folder(output))


def _folder(output: Path) -> Path:
    if not output.is_dir():
        raise ChironError("S003", "no such folder", "an output folder of `chiron run`")
    return output
