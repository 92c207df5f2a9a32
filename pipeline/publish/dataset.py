"""An output folder -> a BIDS derivatives dataset of ours, or a refusal: what stands at its top."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pipeline
from pipeline.errors import ChironError
from pipeline.lock import locked
from pipeline.publish.sidecars import RESEARCH_USE, as_json
from pipeline.publish.swap import write_in_place
from pipeline.work import disk_error

DESCRIPTION, IGNORE, CITATIONS = "dataset_description.json", ".bidsignore", "CITATION.md"
BIDS_VERSION = "1.11.1"
IGNORED_BY_BIDS = (
    "/failed",  # without a slash at the end: validators ask for a folder by its bare name
    "/set-aside",
    "CITATION.md",
    "summary.html",
    "**/manifest.json",
    "*_qc.json",
    "*_qsm.html",
    "*_fieldmap.*",  # what BIDS has no name for in `anat`
    "*_Chiuncertainty.*",
    "*_swi.*",
    "*_minIP.*",
    *(
        f"*_{entity}-*" for entity in ("sample", "dir", "mod", "flip", "inv", "mt")
    ),  # of an input, that maps may not have
)
NO_LONGER_IGNORED = ("failed/", "set-aside/")  # lines of earlier versions
CITATION = ("# How to cite", "", "Sources of the steps that made these results; each manifest.json lists its own.", "")
READMES = ("README", "README.md", "README.rst", "README.txt")
README = f"""# Quantitative susceptibility maps

Chiron made this dataset. {RESEARCH_USE}.

Each folder `sub-<label>/` or `sub-<label>/ses-<label>/` holds one session:

- `*_qsm.html` is the report of a scan: a verdict with its reasons, pictures, numbers and provenance.
- `anat/*_Chimap.nii.gz` is the susceptibility map in ppm. `desc-<method>` marks the map of a further method.
- `anat/*_Chiuncertainty.nii.gz` is the standard deviation of such a map in ppm. It is no susceptibility map.
- `manifest.json` holds the settings, the versions and the sha256 of every file.

The JSON file of each image of `anat/` describes it. `summary.html` shows all scans. `failed/` and `set-aside/` say why
a scan has no map. `CITATION.md` lists the papers to cite.
"""


def prepare(output: Path) -> None:
    """Make `output` a dataset of ours, before anything is computed; a second call changes nothing.

    What somebody added to `dataset_description.json` or `.bidsignore` stays. A README of theirs stays as it is.
    S002 where the output cannot be written or is another program's dataset, S001 where the disk is full.
    """
    refuse_foreign(output)
    if output.exists() and not output.is_dir():
        raise ChironError("S002", "a file where the output folder should be", "a folder, or a name that is free")
    try:
        output.mkdir(parents=True, exist_ok=True)
        private(output).mkdir(mode=0o700, exist_ok=True)
        if not os.access(output, os.W_OK | os.X_OK) or not os.access(private(output), os.W_OK | os.X_OK):
            raise ChironError("S002", "an output folder that may not be written to", "write access")
        revise(output, IGNORE, _ignoring)
        revise(output, DESCRIPTION, _described)
        if not any((output / name).exists() for name in READMES):
            write_in_place(output / "README.md", README.encode(), private(output))
    except OSError as error:
        raise disk_error(error) from error


def revise(output: Path, name: str, change: Callable[[str], str]) -> str:
    """Make a file at the dataset's top what `change` makes of its text, one process at a time; returns the new text.

    The file is replaced as a whole. An absent file has an empty text.
    """
    path = output / name
    text = _text(path)
    if change(text) == text:
        return text
    with locked(private(output) / "locks" / f"{name.strip('.')}.lock"):
        text = change(_text(path))
        write_in_place(path, text.encode(errors="surrogateescape"), private(output))
    return text


def private(output: Path) -> Path:
    """The folder for locks and unfinished work: on the output's file system, its owner's alone."""
    return output / ".chiron"


def cite(output: Path, papers: Iterable[str]) -> None:
    """Add the papers of the steps that were used to the dataset's CITATION.md; those that it has already stay."""
    new = {f"- {paper}" for paper in papers}

    def cited(text: str) -> str:
        lines = {line for line in text.splitlines() if line.startswith("- ")} | new
        return "\n".join([*CITATION, *sorted(lines), ""])

    revise(output, CITATIONS, cited)


def refuse_foreign(output: Path) -> None:
    """S002 where another program's dataset stands in `output`."""
    path = output / DESCRIPTION
    if not path.exists():
        return
    try:
        makers = json.loads(path.read_text()).get("GeneratedBy", [])
        ours = any(maker.get("Name") == "Chiron" for maker in makers)
    except (OSError, ValueError, AttributeError, TypeError):
        ours = False
    if not ours:
        raise ChironError("S002", "an output folder with another program's dataset", "an empty folder or one of ours")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""


def _ignoring(text: str) -> str:
    """The lines of ours, then those that somebody added."""
    known = {*IGNORED_BY_BIDS, *NO_LONGER_IGNORED}
    return "".join(f"{line}\n" for line in [*IGNORED_BY_BIDS, *(x for x in text.splitlines() if x not in known)])


def _described(text: str) -> str:
    """The description of this version, with what somebody added, and with the links to the inputs."""
    before: dict[str, Any] = json.loads(text) if text else {}
    defaults = {"Name": "Chiron: quantitative susceptibility maps", "HowToAcknowledge": "See CITATION.md."}
    fixed = {"BIDSVersion": BIDS_VERSION, "DatasetType": "derivative", "GeneratedBy": _makers(before)}
    return as_json({**defaults, **before, **fixed}).decode()


def _makers(before: dict[str, Any]) -> list[dict[str, Any]]:
    """This version of Chiron first, then the other makers; entries that somebody added stay, as a container."""
    chiron = {"Name": "Chiron", "Version": pipeline.__version__, "Description": RESEARCH_USE}
    makers = before.get("GeneratedBy", [])
    added: dict[str, Any] = next((maker for maker in makers if maker.get("Name") == "Chiron"), {})
    return [{**added, **chiron}, *(maker for maker in makers if maker.get("Name") != "Chiron")]
