"""An export folder (DICOM, or a BIDS dataset) -> the scans in it, and why everything else is not one.

Headers only: pixels are neither read nor held, except those of two files that claim to be the same image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from pipeline.acquisition import Acquisition
from pipeline.errors import ChironError
from pipeline.find.bids import find_bids, is_bids
from pipeline.find.dicom import find_dicom
from pipeline.find.listing import list_files
from pipeline.find.scan import Export, Ignored, Scan, SetAside, Volume
from pipeline.identity import Labels

__all__ = ["Export", "Ignored", "Scan", "SetAside", "Volume", "find"]


def find(
    folder: Path,
    key: bytes,
    subject: str | None = None,
    *,
    acquisition: Acquisition | None = None,
    labels: Labels | None = None,
    files: Collection[Path] | None = None,
    progress: Callable[[float, str], None] = lambda share, word: None,
) -> Export:
    """Look through `folder`, or at `files` of it alone; pseudonyms are made with `key`.

    `subject` overrides the label of the only patient. Patients of a DICOM export that stand in `labels` get their label
    from there. `acquisition` is believed instead of headers. Inputs are only read. S003 where the folder cannot be
    read, X001 where `subject` is no BIDS label.
    """
    if subject is not None and not re.fullmatch(r"[A-Za-z0-9]{1,64}", subject):
        raise ChironError("X001", "a subject label with other characters than letters and digits", "for example 01")
    entries = list_files(folder, files)
    search = find_bids if is_bids(folder, entries) else partial(find_dicom, labels=labels, progress=progress)
    return search(folder, entries, key, subject, acquisition or Acquisition())
