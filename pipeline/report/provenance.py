"""What was found of a scan -> how its map came about: settings, versions, device, time and memory of every step."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import torch

import pipeline
from pipeline.report.found import Found, name_of, number
from pipeline.settings import Settings, parse


@dataclass(frozen=True)
class Setting:
    """One setting, and whether it differs from the default."""

    name: str
    value: str
    default: str
    changed: bool


@dataclass(frozen=True)
class Step:
    """One stage: what it does, whether it has a result, where it ran and what it took."""

    name: str
    title: str
    state: str
    device: str
    seconds: str
    memory: str


def settings_table(settings: Settings) -> list[Setting]:
    """Every setting in the order of the settings file. A file's path may name a patient and is not shown."""
    defaults = dict(_flat(parse({})))
    table = []
    for name, value in _flat(settings):
        hidden = name == "mask.file" and value
        text, default = "(a file)" if hidden else _plain(value), _plain(defaults[name])
        table.append(Setting(name, text, default, value != defaults[name]))
    return table


def headers(found: Found) -> list[tuple[str, str]]:
    """Hardware and sequence, as the images' headers state them."""
    said = found.facts("convert").get("acquisition") or {}
    return [(str(name).replace("_", " "), _plain(value)) for name, value in said.items()]


def steps(found: Found) -> list[Step]:
    """The stages in the order of the recipe, done and missing."""
    made = []
    for name, result in found.results.items():
        record = result.record
        memory, seconds = record.get("peak_memory_bytes"), record.get("seconds")
        made.append(
            Step(
                name,
                "",
                "done",
                str(record.get("device", "–")),
                number(float(seconds)) if seconds is not None else "–",
                f"{memory / 2**30:.2f}" if memory else "–",
            )
        )
    return [*made, *(Step(name, title, "missing", "–", "–", "–") for name, title in found.missing.items())]


def versions(found: Found, extra: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Software, seeds and whatever else the caller wants to have on record."""
    made_with = sorted({str(r.record["software"]) for r in found.results.values() if r.record.get("software")})
    rows = [
        ("Chiron", ", ".join(made_with) or pipeline.__version__),
        ("torch", str(torch.__version__)),
        ("Python", platform.python_version()),
    ]
    for method in found.methods:
        asked, facts = getattr(getattr(found.settings, method, None), "seed", None), found.facts(f"invert-{method}")
        seeds = [run.get("seed", asked) for run in facts.get("runs") or [facts]]
        if seeds != [None]:
            rows.append((f"Seed{'s' * (len(seeds) > 1)} of {name_of(method)}", ", ".join(map(str, seeds))))
    if digest := found.facts("convert").get("content_digest"):
        rows.append(("Hash of the input", str(digest)))
    return rows + [(str(name).replace("_", " "), _plain(value)) for name, value in extra.items()]


def _flat(settings: Settings) -> Iterator[tuple[str, Any]]:
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from ((f"{name}.{key}", v) for key, v in asdict(value).items())
        else:
            yield name, value


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)
