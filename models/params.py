"""Default, typical range and meaning of an algorithm's parameter -> a field of that algorithm's frozen dataclass.

The dataclass that stands above an algorithm is the only place where its parameters are written: the settings file,
the command line and the documentation are made from it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard, TypeVar

T = TypeVar("T")


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


def with_presets(presets: Mapping[str, Mapping[str, Any]]) -> Callable[[type[T]], type[T]]:
    """Let a dataclass take what is not given from the preset that its parameter `preset` names; what is given counts.

    Where a parser makes the object without calling the class, it fills its values by `filled`.
    """

    def decorate(cls: type[T]) -> type[T]:
        build: Callable[..., None] = cls.__init__

        @functools.wraps(build)
        def init(self: T, *args: Any, **given: Any) -> None:
            names = (field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
            build(self, **filled(cls, {**dict(zip(names, args, strict=False)), **given}))

        cls.__init__ = init  # type: ignore[method-assign, assignment]
        cls.PRESETS = presets  # type: ignore[attr-defined]
        return cls

    return decorate


def filled(params: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with those of their preset where none is given.

    A full list of the class's defaults, as a printed settings file is, gives none: only its preset was chosen.
    """
    preset = getattr(params, "PRESETS", {}).get(values.get("preset", "default"), {})
    usual = {field.name: field.default for field in dataclasses.fields(params)}
    untouched = is_whole(params, values) and all(_plain(values[n]) == _plain(usual[n]) for n in preset)
    return {**values, **preset} if untouched else {**preset, **values}


def is_whole(params: type, values: Any) -> TypeGuard[dict[str, Any]]:
    """Whether the values are all that the class has, as a printed settings file lists them: not each was chosen."""
    return isinstance(values, dict) and {field.name for field in dataclasses.fields(params)} <= values.keys()


def unset(params: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values but for those that are what their preset, or the class, gives: another preset may give others."""
    usual = dataclasses.asdict(params(preset=values.get("preset", "default")))
    return {name: value for name, value in values.items() if _plain(value) != _plain(usual.get(name))}


def _plain(value: Any) -> Any:
    """A tuple is a list in JSON."""
    return list(value) if isinstance(value, tuple) else value
