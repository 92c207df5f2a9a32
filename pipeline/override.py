"""What a person decided for one scan -> settings that hold for it from then on, whatever a run or a site has."""

from __future__ import annotations

import getpass
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pipeline.acquisition import Acquisition
from pipeline.settings import Settings, parse

FACTS = ("acquisition", "phase", "mask")  # sections of settings that say how one scan was made, not how it is computed
Values = dict[str, Any]  # by names such as `tv.strength`


@dataclass(frozen=True)
class Override:
    """Settings of one scan, who decided on them, when and why."""

    settings: Values = field(default_factory=dict)
    by: str = ""
    at: str = ""
    reason: str = ""

    @classmethod
    def now(cls, settings: Values, reason: str = "") -> Override:
        """Decided now, by the user of this process."""
        return cls(settings, _user(), datetime.now(UTC).isoformat(timespec="seconds"), reason)

    @classmethod
    def from_json(cls, plain: Any) -> Override:
        """As `json` gave it; what cannot be understood, of a damaged file or a later version, is left out."""
        plain = plain if isinstance(plain, dict) else {}
        settings = plain.get("settings")
        words = (plain.get(name, "") for name in ("by", "at", "reason"))
        return cls(settings if isinstance(settings, dict) else {}, *(w if isinstance(w, str) else "" for w in words))

    def after(self, earlier: Override | None) -> Override:
        """This decision and what an earlier one said besides."""
        return replace(self, settings={**earlier.settings, **self.settings}) if earlier else self

    def apply(self, settings: Settings) -> Settings:
        return with_values(settings, self.settings)

    def json(self) -> dict[str, Any]:
        return asdict(self)


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """`settings` with other values by their names; X001 where one is unknown or out of range."""
    plain = settings.model_dump(mode="json")
    for name, value in values.items():
        *section, last = name.split(".")
        target = plain
        for part in section:
            target = target.setdefault(part, {})
        target[last] = value
    return parse(plain)


def flat(settings: Mapping[str, Any], prefix: str = "") -> Values:
    """Plain settings by name: `{"tv": {"strength": 1}}` -> `{"tv.strength": 1}`."""
    values: Values = {}
    for name, value in settings.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return values


def is_in(name: str, named: Collection[str]) -> bool:
    """Whether a setting, or a section that it is in, is among those that are named."""
    return any(f"{name}.".startswith(f"{each}.") for each in named)


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Values:
    """The plain settings of `after` that are others in `before`; what only one of them has is of another version."""
    old, new = flat(before), flat(after)
    return {name: value for name, value in new.items() if name in old and old[name] != value}


def acquisition_with(base: Acquisition, values: Mapping[str, Any]) -> Acquisition:
    """What to believe of a study: `base`, and where that says nothing, the kept values."""
    result = base
    for name, default in vars(Acquisition()).items():
        value = values.get(f"acquisition.{name}", default)
        if getattr(base, name) == default and value != default and type(value) in (type(default), list, int, float):
            with suppress(TypeError, ValueError):  # a value of a damaged file
                changes: dict[str, Any] = {name: tuple(map(float, value)) if isinstance(value, list) else value}
                result = replace(result, **changes)
    return result


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""
