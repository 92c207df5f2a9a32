"""Scores of the grid -> the page on accuracy: the cells, then of each part medians and worst cases, then every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from flows.grid import Scores
from flows.grid.cells import Cell
from flows.grid.score import Numbers
from flows.page import machine, table

COLUMNS = {
    "nrmse": "NRMSE",
    "dnrmse": "dNRMSE",
    "dnrmse_tissue": "tissue",
    "dnrmse_dgm": "DGM",
    "dnrmse_blood": "blood",
    "slope_deviation": "slope",
    "hfen": "HFEN",
    "xsim": "XSIM",
    "r": "r",
    "calc_moment_deviation": "calc. moment",
    "calc_streak": "calc. streak",
    "seconds": "s",
}
STEPS = {
    "mask_dice": "mask Dice",
    "wrong_wraps_percent": "wrong 2 pi, %",
    "total_nrmse": "total field NRMSE",
    "local_nrmse": "local field NRMSE",
    "brain_kept_percent": "brain kept, %",
    "seconds": "s",
}
FINER = {name: COLUMNS[name] for name in ("nrmse", "dnrmse", "hfen", "xsim", "r", "seconds")}
BEST_IS_HIGH = ("xsim", "r", "mask_dice", "brain_kept_percent")
HEAD = """# Accuracy

Made by `{command}` on: {machine}. One configuration ({configuration}) for all cells.

Heads are simulated, so their susceptibility is known. An anatomy is procedural (a seed) or that of a label map;
each cell has others. Voxels of 2 mm are averages of the complex signal over voxels of 1 mm, those of 1 x 1 x 2 mm
over 1 mm as well, so that an inversion does not meet the very discretisation that made its data; 1 mm cells are
simulated at 1 mm, which favours the inversions, and leaves the field near air to ring.

{cells}
Map and truth are both referenced to their mean in the mask of evaluation. Errors in per cent, lower is better:
NRMSE and dNRMSE (after a linear fit; also within grey and white matter and thalamus, deep grey nuclei, and veins),
HFEN (edges). Slope is the deviation from 1 of the deep nuclei's slope; XSIM and r are best at 1. Calc. moment is
the deviation of the calcification's moment in ppm x voxels, calc. streak the streaks around it over its strength.
Seconds are those of the inversion, and in the table of steps those of all before it. `chiron grid --json FILE`
writes every metric.
"""
DIPOLE = """## Dipole step alone

The true local field within the true brain, with the noise that the fit of the echoes would leave.
"""
WHOLE = """## The whole way from the echoes

Phase and magnitude through the recipe of `chiron run`. Maps are scored in the mask that background removal leaves,
as far as it lies in the true brain; what is kept is its share of that. A wrong 2 pi is a voxel of which an echo's
phase is more than pi from the true field's, echoes without signal left out. Field errors are in the mask (total)
and in the mask that is left (local).
"""
SUPER_RESOLUTION = """## Super-resolution

Onto the finer voxels that the heads of large ones are made of, where the truth is known. SR begins with the true map
of the brain without the frequencies that the scan's voxels cannot hold, and with noise of 0.5 ppm over the scan's SNR;
SR-DipInv with the true local field likewise, with the noise that the fit of the echoes would leave. Beside the
diffusion prior stand interpolations: of the map, and of that by `tv` at the scan's own voxels.
"""


LOOKS: dict[str, tuple[str, str, dict[str, str]]] = {
    "seams": (
        "The diffusion prior: seams",
        "Seams of patches of 48 voxels: of the difference to a volume made as a whole, the mean squared step across"
        " their cuts over that elsewhere. One evaluation of a map under noise of 0.1 ppm, and the map from the field.",
        {"seam": "one evaluation", "guided": "the map"},
    ),
    "evaluations": (
        "The diffusion prior: evaluations",
        "Quality against evaluations of the network, one sample each, on the middle 48 x 56 x 48 voxels alone.",
        {"evaluations": "evaluations", "nrmse": "NRMSE", "hfen": "HFEN", "xsim": "XSIM", "seconds": "s"},
    ),
    "lesions": (
        "The diffusion prior: lesions",
        "One sphere of 6 mm radius alone in a ball of 1.5 mm voxels: the share of its moment that comes back.",
        {"chi_ppm": "chi, ppm", "moment_percent": "moment, %"},
    ),
    "noise": (
        "The diffusion prior: noise",
        "An empty field with the noise of SNR 30: mean and largest |chi| that is made of it.",
        {"mean_ppm": "mean, ppm", "largest_ppm": "largest, ppm"},
    ),
    "variants": (
        "CycleQSM: without its parts, and fitted",
        "Dipole step. Slopes over the truth: of the means of the deep grey nuclei, and of the contrast of the five"
        " largest veins to what is around them. The misfit is the root mean square in units of the noise.",
        {"nrmse": "NRMSE", "xsim": "XSIM", "dgm_slope": "DGM slope", "vein_slope": "vein slope", "misfit": "misfit",
         "seconds": "s"},
    ),
    "tilts": (
        "CycleQSM: B0 tilted",
        "The same head under a field that is tilted by so many degrees.",
        {"tilt_deg": "tilt, degrees", "nrmse": "NRMSE", "xsim": "XSIM", "dgm_slope": "DGM slope",
         "vein_slope": "vein slope"},
    ),
    "scaled": (
        "CycleQSM: fields that are stronger, weaker, or of the other sign",
        "How far the map of a field times a number is from the map times that number, over its size.",
        {"departs_percent": "departs by, %"},
    ),
    "strange": (
        "CycleQSM: scans that it never learned from",
        "NRMSE of the dipole step, and what M004 says of them.",
        {"tv": "`tv`", "cyclegan": "`cyclegan`", "flagged": "flagged"},
    ),
}  # fmt: skip


def page(scores: Scores, configuration: str) -> str:
    """The whole page, as Markdown; `configuration` says in words which settings were used."""
    cells, command = _cells(scores.cells), _command(scores)
    parts = [HEAD.format(command=command, machine=machine(), configuration=configuration, cells=cells)]
    if scores.dipole:
        parts += [DIPOLE, _summary(scores.dipole), "### Every cell\n", _rows(scores.dipole, COLUMNS, "method")]
    if scores.steps:
        parts += [WHOLE, "### Steps before the inversion\n", _rows(scores.steps, STEPS)]
        parts += [_summary(scores.whole), "### Every cell, whole way\n", _rows(scores.whole, COLUMNS, "method")]
    for task in dict.fromkeys(row["task"] for row in scores.super_resolution):
        rows = [row for row in scores.super_resolution if row["task"] == task]
        parts += [] if SUPER_RESOLUTION in parts else [SUPER_RESOLUTION]
        parts += [_summary(rows, FINER, f"{task}, median (worst)")]
        parts += [f"### Every cell, {task}\n", _rows(rows, FINER, "method")]
    for name, (title, words, columns) in LOOKS.items():
        if found := scores.tables.get(name):
            what = next(key for key in ("variant", "case", "factor", "patches", "sampler", "method") if key in found[0])
            parts += [f"## {title}\n\n{words}\n", _rows(found, columns, what)]
    return "\n".join(parts)


def _command(scores: Scores) -> str:
    """The command that makes these scores, label maps by whichever folder."""
    rows = [*scores.dipole, *scores.whole]
    alone = {
        "super-resolution": scores.super_resolution,
        "prior": scores.tables.get("evaluations"),
        "cycle": scores.tables.get("variants"),
    }
    parts = "".join(f" --part {name}" for name, made in alone.items() if made and not rows)
    methods = dict.fromkeys(row["method"] for row in rows if "method" in row)
    labels = " --labels DIR" if any("label map" in row["anatomy"] for row in [*rows, *scores.super_resolution]) else ""
    return f"chiron grid{parts}{''.join(f' --method {m}' for m in methods)}{labels}"


def _cells(cells: Mapping[str, Mapping[str, Any]]) -> str:
    titles = ("cell", "voxel, mm", "averaged from", "SNR", "B0, T", "B0 along", "echoes, ms", "lesion", "readout")
    lines = []
    for name, fields in cells.items():
        cell = Cell(**fields)
        lines.append(
            [
                f"`{name}`",
                _joined(cell.voxel_mm, " x "),
                _joined(cell.fine_mm, " x "),
                f"{cell.snr:g}",
                f"{cell.b0_tesla:g}",
                _joined(cell.b0_dir, ", "),
                _joined([1000 * t for t in cell.echo_times_s], ", "),
                ", ".join(cell.lesions) or "none",
                "bipolar" if cell.bipolar else "monopolar",
            ]
        )
    return table(titles, lines)


def _summary(rows: Sequence[Numbers], columns: Mapping[str, str] = COLUMNS, title: str = "Median (worst)") -> str:
    """Of each method the median over all cells and anatomies, and in brackets the worst."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        lines.append([f"`{method}`", *(_median_and_worst(name, mine) for name in columns)])
    return f"### {title}\n\n{table(['method', *columns.values()], lines)}"


def _median_and_worst(name: str, rows: Sequence[Numbers]) -> str:
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values:
        return ""
    worst = min(values) if name in BEST_IS_HIGH else max(values)
    return f"{_number(median(values))} ({_number(worst)})"


def _rows(rows: Sequence[Numbers], columns: Mapping[str, str], *more: str) -> str:
    lines = []
    for row in rows:
        head = [f"`{row['cell']}`", row["anatomy"], *(f"`{row[name]}`" for name in more)]
        values = [_number(row.get(name)) for name in columns]
        lines.append([*head, *([f"failed: {row['error']}", *values[1:]] if "error" in row else values)])
    return table(["cell", "anatomy", *more, *columns.values()], lines)


def _number(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _joined(values: Sequence[float], between: str) -> str:
    return between.join(f"{v:g}" for v in values)
