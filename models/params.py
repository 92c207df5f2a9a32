"""Default, typical range and meaning of an algorithm's parameter -> a field of that algorithm's frozen dataclass.

The dataclass that stands above an algorithm is the only place where its parameters are written: the settings file,
the command line and the documentation are made from it.
"""

from __future__ import annotations

import dataclasses
from typing import Any


def param(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field with its meaning and, for numbers, the closed range that is admitted."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


def check_ranges(params: Any) -> None:
    """Raise ValueError, naming parameter, value and admitted range, where a number of `params` lies outside."""
    for field in dataclasses.fields(params):
        value, low, high = getattr(params, field.name), field.metadata.get("low"), field.metadata.get("high")
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            raise ValueError(f"{field.name} = {value} is outside {low} to {high}: {field.metadata['help']}")
