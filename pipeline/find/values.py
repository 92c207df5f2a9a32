"""Elements of a DICOM dataset, absent, damaged or whole -> plain values, or None. Nothing here raises."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pydicom
from pydicom.dataset import Dataset

Lookup = Callable[[Any], Any]  # keyword or tag -> value of a frame, or None


def element(dataset: Dataset, key: Any) -> Any:
    """An element's value; None where it is absent or damaged."""
    try:
        if isinstance(key, str):
            return dataset.get(key)
        return dataset[key].value if key in dataset else None
    except Exception:  # a damaged element fails in whatever way its type does when it is read at last
        return None


def frame_lookup(dataset: Dataset, frame: int) -> Lookup:
    """Elements of one frame: its own functional groups first, then the shared ones, then the file."""
    levels: list[Dataset] = []
    for name, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = element(dataset, name)
        if isinstance(groups, pydicom.Sequence) and index < len(groups):
            levels += _macros(groups[index])
    levels.append(dataset)

    def get(key: Any) -> Any:
        for level in levels:
            value = element(level, key)
            if value is not None and value != "":
                return value
        return None

    return get


def number(value: Any) -> float | None:
    """A finite float, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def integer(value: Any, default: int = 0) -> int:
    found = number(value)
    return default if found is None else int(found)


def numbers(value: Any, count: int) -> tuple[float, ...]:
    """`count` finite floats, or an empty tuple."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return ()
    found = [number(v) for v in value]
    return tuple(v for v in found if v is not None) if len(found) == count and None not in found else ()


def text(value: Any) -> str:
    """Without padding; one object for equal texts, as an export repeats few of them in many files."""
    return sys.intern(str("" if value is None else value).strip(" \0"))


def words(value: Any) -> tuple[str, ...]:
    """An element of one or several code words, in capitals."""
    many = [value] if isinstance(value, str) else value if isinstance(value, Iterable) else []
    return tuple(sys.intern(str(word).upper().strip()) for word in many)


def vendor_of(manufacturer: Any) -> str:
    """Siemens, Philips, GE or other."""
    name = str(manufacturer or "").lower()
    return next((vendor for vendor in ("Siemens", "Philips", "GE") if name.startswith(vendor.lower())), "other")


def _macros(group: Dataset) -> list[Dataset]:
    """The first item of every public macro of a functional group, then the group, which holds the private ones."""
    found = [element(group, tag) for tag in sorted(group.keys()) if not tag.is_private]
    return [*(macro[0] for macro in found if isinstance(macro, pydicom.Sequence) and macro), group]
