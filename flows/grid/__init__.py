"""Simulated heads with known truth -> how accurate each method is on each, by one configuration for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.grid.cells import CELLS, QUICK, Anatomy, anatomies, finer_head, scan
from flows.grid.cycle import looks
from flows.grid.finer import super_resolution
from flows.grid.prior import looked_at
from flows.grid.score import Numbers, dipole, whole
from pipeline.settings import Settings

__all__ = ["CELLS", "PARTS", "QUICK", "USUAL", "Scores", "grid"]

USUAL = ("dipole", "whole")
PARTS = (*USUAL, "super-resolution", "prior", "cycle")


@dataclass
class Scores:
    """Of each cell, anatomy and method the metrics, by part; and of each cell and anatomy those of the steps before."""

    settings: Settings
    cells: dict[str, Any]
    dipole: list[Numbers] = field(default_factory=list)
    whole: list[Numbers] = field(default_factory=list)
    steps: list[Numbers] = field(default_factory=list)
    super_resolution: list[Numbers] = field(default_factory=list)
    tables: dict[str, list[Numbers]] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        parts = ("cells", "dipole", "whole", "steps", "super_resolution", "tables")
        return {name: getattr(self, name) for name in parts} | {"settings": self.settings.model_dump(mode="json")}


def grid(
    cells: Sequence[str],
    methods: Sequence[str],
    settings: Settings,
    *,
    parts: Sequence[str] = USUAL,
    seeds: Sequence[int] = (1,),
    labels: Sequence[Path] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Scores:
    """Score the methods on every cell and anatomy, one after the other; `say` is told of each as it is done.

    Part `super-resolution` compares methods of its own, and has nothing to say of cells that are not averaged; `prior`
    looks at the diffusion prior itself, `cycle` at CycleQSM.
    """
    scores = Scores(settings, {name: asdict(CELLS[name]) for name in cells})
    places = list(CELLS)
    for name in cells:
        for anatomy in anatomies(tuple(seeds), places.index(name), list(labels)):
            _score(scores, name, anatomy, methods, parts, say)
    return scores


def _score(
    scores: Scores,
    name: str,
    anatomy: Anatomy,
    methods: Sequence[str],
    parts: Sequence[str],
    say: Callable[[str], None],
) -> None:
    cell, which = CELLS[name], {"cell": name, "anatomy": anatomy.name}
    say(f"{name}, {anatomy.name}: simulating")
    head = finer_head(cell, anatomy)
    scanned = scan(cell, anatomy, head)
    if "dipole" in parts:
        for row in dipole(scanned, cell.snr, methods, scores.settings):
            scores.dipole.append(which | row)
            say(f"{name}, {anatomy.name}, dipole step: {_brief(row)}")
    if "whole" in parts:
        steps, rows = whole(scanned, cell.snr, methods, scores.settings)
        scores.steps.append(which | steps)
        say(f"{name}, {anatomy.name}, steps: {_brief(steps)}")
        for row in rows:
            scores.whole.append(which | row)
            say(f"{name}, {anatomy.name}, whole way: {_brief(row)}")
    if "super-resolution" in parts and max(cell.oversample) > 1:
        for row in super_resolution(head, scanned, cell, scores.settings):
            scores.super_resolution.append(which | row)
            say(f"{name}, {anatomy.name}, super-resolution: {_brief(row)}")
    if "prior" in parts:
        for table, row in looked_at(scanned, cell.snr, scores.settings):
            scores.tables.setdefault(table, []).append(which | row)
            say(f"{name}, {anatomy.name}, {table}: {_brief(row)}")
    if "cycle" in parts:
        for table, row in looks(scanned, cell, anatomy, head, scores.settings):
            scores.tables.setdefault(table, []).append(which | row)
            say(f"{name}, {anatomy.name}, {table}: {_brief(row)}")


def _brief(row: Numbers) -> str:
    shown = ("task", "method", "variant", "tilt_deg", "patches", "sampler", "evaluations", "chi_ppm", "error",
             "mask_dice", "wrong_wraps_percent", "total_nrmse", "local_nrmse", "brain_kept_percent", "seam",
             "moment_percent",
             "mean_ppm", "dgm_slope", "vein_slope", "nrmse", "hfen", "xsim", "seconds")  # fmt: skip
    values = {name: row[name] for name in shown if row.get(name) is not None}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{value}" for name, value in values.items()
    )
