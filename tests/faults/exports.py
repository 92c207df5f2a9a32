"""What the tests of faulty exports share: a good scan beside a bad one, and what every search owes.

`search` holds two invariants in every test: files seen are used, ignored or set aside, and no input changes.
`good_of` holds the third: a bad scan does not change another's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pydicom
from make_dicom import (
    KEY,
    SENTINEL,
    TIMES,
    search,
    write,
)

from pipeline.find import Export, Scan, find
from pipeline.identity import pseudonym

Damage = Callable[[list[Path]], object]
GOOD = pseudonym(KEY, "patient", f"{SENTINEL}-good")


def beside(folder: Path, vendor: str = "siemens", **options: Any) -> list[Path]:
    """A good scan of one patient, and the files of another's that is about to become bad."""
    _write_good(folder / "good")
    return write(folder / f"{SENTINEL} bad", vendor, **options)


def good_of(found: Export, folder: Path) -> Scan:
    """The good scan, the same as where it is alone."""
    (good,) = [scan for scan in found.scans if scan.subject == GOOD]
    alone, digest = _alone()
    names = tuple(Path(path.name) for path in good.files)
    assert {path.parent for path in good.files} == {folder / "good"}
    assert replace(good, files=names) == alone and good.content_digest() == digest
    return good


@cache
def _alone() -> tuple[Scan, str]:
    """The good scan where there is no other, with its files by their names, and its digest; found once."""
    with TemporaryDirectory() as folder:
        _write_good(Path(folder))
        (scan,) = find(Path(folder), KEY).scans
        return replace(scan, files=tuple(Path(path.name) for path in scan.files)), scan.content_digest()


def _write_good(folder: Path) -> None:
    write(folder, "philips", patient="good", shape=(6, 6, 3), times=TIMES[:2])


def bad_of(found: Export, folder: Path) -> list[Scan]:
    good_of(found, folder)
    return [scan for scan in found.scans if scan.subject != GOOD]


def only_good(folder: Path, code: str, *texts: str, files: int | None = None, **options: Any) -> Export:
    """Everything of the bad scan is set aside under `code`, with a reason that says `texts`."""
    found = search(folder, **options)
    assert not bad_of(found, folder)
    assert {aside.code for aside in found.set_aside} == {code}, found.set_aside
    for text in texts:
        assert any(text in aside.text for aside in found.set_aside), found.set_aside
    if files is not None:
        assert sum(aside.files for aside in found.set_aside) == files
    return found


def put(**values: Any) -> Callable[[pydicom.Dataset], None]:
    """A change that sets elements, or deletes those that are given as None."""

    def change(dataset: pydicom.Dataset) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return change


def is_phase(dataset: pydicom.Dataset) -> bool:
    return "P" in dataset.ImageType


def drop(paths: list[Path], where: Callable[[pydicom.Dataset], bool]) -> int:
    chosen = [path for path in paths if where(pydicom.dcmread(path))]
    for path in chosen:
        path.unlink()
    return len(chosen)
