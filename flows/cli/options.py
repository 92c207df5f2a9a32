"""Arguments and options that several commands share, and exit codes that belong to no error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.methods import CHOICES, METHODS
from pipeline.errors import ChironError

if TYPE_CHECKING:
    from pipeline.override import Override

INTERNAL, INCOMPLETE, NOTHING_DONE, ALL_FAILED, INTERRUPTED = 1, 10, 11, 12, 130


def source(text: str) -> Path:
    """A folder to read; S003 for an empty word, which a path would take for the working folder."""
    if not text.strip():
        raise ChironError("S003", "an empty path", "the name of a folder")
    return Path(text)


def target(text: str | Path) -> Path:
    """A folder to write to; S002 for an empty word."""
    if not str(text).strip():
        raise ChironError("S002", "an empty path", "the name of a folder")
    return Path(text)


Input = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="Folder of DICOM exports, or a BIDS dataset. Never written to.",
        show_default=False,
        parser=source,
    ),
]
Output = Annotated[
    Path,
    typer.Argument(
        metavar="OUTPUT", help="Folder of the results, a BIDS derivatives dataset.", show_default=False, parser=target
    ),
]
Results = Annotated[
    Path,
    typer.Argument(
        metavar="OUTPUT", help="Folder of results, as `chiron run` made it.", show_default=False, parser=source
    ),
]
Method = Annotated[
    str | None,
    typer.Option(help=f"Reconstruction to publish: {', '.join(CHOICES[:-1])} or {CHOICES[-1]}."),
]
Also = Annotated[
    list[str] | None,
    typer.Option(
        metavar="METHOD,...", help=f"Further methods to publish beside it; may be repeated: {', '.join(METHODS)}."
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Config = Annotated[Path | None, typer.Option(help="Settings file (TOML); `chiron settings` prints one.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.NAME=VALUE", help="A setting; may be repeated.")
]
MaxSeconds = Annotated[
    str | None,
    typer.Option(
        "--max-seconds",
        metavar="N",
        help="Time for dip or diffusion, which then end with their best map so far; 0 is no limit. "
        "Sets dip.seconds and diffusion.seconds.",
    ),
]
Workers = Annotated[int, typer.Option(min=0, help="Scans at once on a machine; 0 goes by its cores and GPUs.")]
TimeLimit = Annotated[
    float, typer.Option(min=1.0, metavar="S", help="Seconds that one scan may take before it is stopped.")
]
Subject = Annotated[str | None, typer.Option(help="Label of the only patient, in place of the pseudonym.")]
Labels = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Own labels: a private table, a line a patient: PatientID, tab, label."),
]
DatasetLabel = Annotated[
    str,
    typer.Option(
        metavar="LABEL", help="Put this in front of the subjects' labels of a BIDS dataset: sub-01 becomes sub-LABEL01."
    ),
]
Orientation = Annotated[
    str | None,
    typer.Option(
        metavar="CODES",
        help="Of NIfTI images that state none: where their voxel axes run, as LAS for left, front, head.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]


def override_from(words: list[str]) -> Override | None:
    """What `section.name=value` words say of how the scans were made, which is kept for them."""
    from pipeline.override import FACTS, Override, flat, is_in
    from pipeline.settings import load

    names = [name for word in words if (name := word.partition("=")[0].strip()).partition(".")[0] in FACTS]
    plain = flat(load(None, words).model_dump(mode="json")) if names else {}
    return Override.now({name: value for name, value in plain.items() if is_in(name, names)}) if names else None


def time_budget(seconds: str | None) -> list[str]:
    """The option --max-seconds as settings; X001 where it is no number."""
    if seconds is None:
        return []
    try:
        return [f"{method}.seconds={float(seconds)}" for method in ("dip", "diffusion")]
    except ValueError:
        raise ChironError("X001", f"a time of {seconds!r} in --max-seconds", "seconds, 0 for no limit") from None
