"""A work folder -> what is there of a scan: facts, arrays, grid, methods. Anything may be missing, nothing raises."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CATALOGUE
from pipeline.invert import chosen_methods, classical_default
from pipeline.recipe import recipe
from pipeline.settings import Settings
from pipeline.volumes import Grid
from pipeline.work import Result, Work

Array = NDArray[Any]

METHODS = {
    "tkd": "TKD",
    "tikhonov": "Tikhonov",
    "rts": "RTS",
    "tv": "total variation",
    "nltv": "nonlinear total variation",
    "medi": "MEDI",
    "tfi": "total field inversion",
    "dip": "Deep Image Prior",
    "diffusion": "diffusion prior",
    "cyclegan": "CycleQSM",
}
NETWORKS = ("dip", "diffusion", "cyclegan")


@dataclass(frozen=True)
class Found:
    """The finished stages of a scan in the order of the recipe, and the titles of those that are missing."""

    settings: Settings
    results: dict[str, Result]
    missing: dict[str, str] = field(default_factory=dict)

    def facts(self, stage: str) -> dict[str, Any]:
        return self.results[stage].facts if stage in self.results else {}

    def array(self, stage: str, name: str) -> Array | None:
        """The named array, mapped and not read; None where the stage lacks it or its file is damaged."""
        result = self.results.get(stage)
        if result is None or not result.has(name):
            return None
        try:
            array: Array = np.load(result.folder / f"{name}.npy", mmap_mode="r")
        except (OSError, ValueError):
            return None
        return array if self.grid and array.shape[-3:] == self.grid.shape else None

    @cached_property
    def grid(self) -> Grid | None:
        facts = self.facts("convert")
        return Grid.from_json(facts["grid"]) if "grid" in facts else None

    @cached_property
    def brain(self) -> Array | None:
        """The first mask, as booleans."""
        return _booleans(self.array("mask", "mask"))

    @cached_property
    def final(self) -> Array | None:
        """The mask of the map: what background removal left, else the first one."""
        mask = _booleans(self.array("background", "mask"))
        return self.brain if mask is None else mask

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods with a map, the published one first; one that diverged has none."""
        made = [name for name, result in self.results.items() if name.startswith("invert-")]
        sound = [name.removeprefix("invert-") for name in made if "diverged" not in self.facts(name)]
        return tuple(sorted(sound, key=lambda m: m != self.primary))

    @cached_property
    def primary(self) -> str:
        """The published method: as the quality stage says, else as the settings ask."""
        return str(self.facts("quality").get("primary") or chosen_methods(self.settings)[0])

    @cached_property
    def classical(self) -> str | None:
        """The map without a network that is shown beside the published one."""
        others = [m for m in self.methods if m not in NETWORKS and m != self.primary]
        return min(others, key=lambda m: m != classical_default(), default=None)

    def chi(self, method: str | None) -> Array | None:
        return self.array(f"invert-{method}", "chi_ppm") if method else None

    def recorded(self, kind: str) -> Iterator[tuple[str, Mapping[str, str]]]:
        """(stage, record) of every `decisions` or `notices`, each once."""
        seen = set()
        for stage, result in self.results.items():
            for record in result.record.get(kind, ()):
                if (key := tuple(sorted(record.items()))) not in seen:
                    seen.add(key)
                    yield stage, record


def look(work: Work, settings: Settings) -> Found:
    """All that the work folder holds of the scan's stages."""
    titles = {stage.name: stage.title for stage in recipe(settings)}
    on_disk = sorted(path.parent.name for path in work.folder.glob("invert-*/stage.json"))
    order = [*(s for s in titles if s != "quality"), *(s for s in on_disk if s not in titles), "quality"]
    results = {stage: result for stage in order if (result := work.find(stage)) is not None}
    missing = {stage: titles[stage] for stage in order if stage not in results}
    if "quality" in results:  # it needs every map, so what is not there was never asked for
        missing = {stage: title for stage, title in missing.items() if not stage.startswith("invert-")}
    return Found(settings, results, missing)


def name_of(method: str | None) -> str:
    return METHODS.get(method or "", method or "none")


def meaning(code: str) -> str:
    """What a notice's code stands for, in the catalogue's words."""
    return CATALOGUE[code].what if code in CATALOGUE else code


def number(value: Any, digits: int = 3) -> str:
    """A number with so many significant digits and no needless exponent; other values as they read."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10000 else str(value)
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "not a number"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
        return text.replace("-", "\u2212")
    return f"{value:.{digits - 1}e}".replace("-", "\u2212")


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _booleans(mask: Array | None) -> Array | None:
    return None if mask is None else np.asarray(mask) > 0
