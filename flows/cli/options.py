"""Arguments and options that several commands share, and exit codes that belong to no error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

INTERNAL, INCOMPLETE, NOTHING_DONE, ALL_FAILED, INTERRUPTED = 1, 10, 11, 12, 130

Input = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT", help="Folder of DICOM exports, or a BIDS dataset. Never written to.", show_default=False
    ),
]
Output = Annotated[
    Path,
    typer.Argument(metavar="OUTPUT", help="Folder of the results, a BIDS derivatives dataset.", show_default=False),
]
Method = Annotated[
    str | None, typer.Option(help="Reconstruction to publish: auto, classical, tkd, tikhonov, rts, tv or dip.")
]
Also = Annotated[
    list[str] | None, typer.Option(metavar="METHOD,...", help="Further methods to publish beside it; may be repeated.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda:N.")]
Config = Annotated[Path | None, typer.Option(help="Settings file (TOML); `chiron settings` prints one.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.NAME=VALUE", help="A setting; may be repeated.")
]
Subject = Annotated[str | None, typer.Option(help="Label of the only patient, in place of the pseudonym.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
