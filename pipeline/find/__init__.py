"""An export folder (DICOM, BIDS datasets, or both) -> the scans in it, and why everything else is not one.

Headers only: pixels are neither read nor held, except those of two files that claim to be the same image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

from pipeline.acquisition import Acquisition
from pipeline.errors import ChironError
from pipeline.find.bids import find_bids, image_entries
from pipeline.find.dataset import SourceData
from pipeline.find.dicom import find_dicom
from pipeline.find.listing import Entry, list_files
from pipeline.find.scan import AcquisitionOf, Export, Ignored, Scan, SetAside, Volume
from pipeline.identity import Labels

__all__ = ["AcquisitionOf", "Export", "Ignored", "Scan", "SetAside", "Volume", "find"]

_NIFTI = (".nii", ".nii.gz")
SOURCE = "source data in a BIDS dataset; to use it, give its folder as the input"


def find(
    folder: Path,
    key: bytes,
    subject: str | None = None,
    *,
    acquisition: Acquisition | AcquisitionOf | None = None,
    labels: Labels | None = None,
    dataset_label: str = "",
    files: Collection[Path] | None = None,
    progress: Callable[[float, str], None] = lambda share, word: None,
) -> Export:
    """Look through `folder`, or at `files` of it alone; pseudonyms are made with `key`.

    `subject` overrides the label of the only patient, `dataset_label` goes in front of the labels of a BIDS dataset.
    Patients of a DICOM export that stand in `labels` get their label from there. `acquisition` is believed instead of
    headers: one for all, or a function of owner, subject and session. Inputs are only read. Which scan of several
    that claim one label may have it, `pipeline.publish.labels` decides. S003 where the folder cannot be read, X001
    where `subject` or `dataset_label` is no BIDS label.
    """
    for label in (subject, dataset_label or None):
        if label is not None and not re.fullmatch(r"[A-Za-z0-9]{1,64}", label):
            raise ChironError("X001", "a label with other characters than letters and digits", "for example 01")
    entries = list_files(folder, files)
    override = acquisition if callable(acquisition) else lambda *study: (acquisition or Acquisition(),)
    named, others = _by_kind(folder, entries)
    bids = find_bids(folder, named, key, subject, override, dataset_label)
    others, ignored = _without_sources(others, folder)
    dicom = find_dicom(others, key, subject, override, labels, progress)
    return Export(
        bids.scans + dicom.scans,
        bids.set_aside + dicom.set_aside,
        tuple(sorted((*bids.ignored, *ignored, *dicom.ignored), key=lambda one: one.ordinal)),
        len(entries),
    )


def _by_kind(folder: Path, entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The images with BIDS names and their sidecars, and everything else."""
    images = {entry.path for entry in image_entries(folder, entries)}
    stems = {str(path).removesuffix(".gz").removesuffix(".nii") for path in images}
    named = [e for e in entries if e.path in images or str(e.path).removesuffix(".json") in stems]
    taken = {entry.path for entry in named}
    return named, [entry for entry in entries if entry.path not in taken]


def _without_sources(entries: list[Entry], folder: Path) -> tuple[list[Entry], list[Ignored]]:
    """Leave out NIfTI files, by their names, and what a BIDS dataset was made from."""
    sources = SourceData(folder)
    rest: list[Entry] = []
    ignored: list[Ignored] = []
    for entry in entries:
        if not entry.code and entry.path.name.endswith(_NIFTI):
            ignored.append(Ignored(entry.ordinal, "F002", "a file that is no multi-echo image"))
        elif not entry.code and entry.path in sources:
            ignored.append(Ignored(entry.ordinal, "G007", SOURCE))
        else:
            rest.append(entry)
    return rest, ignored
