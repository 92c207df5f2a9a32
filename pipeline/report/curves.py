"""What was found of a scan -> its plots: histogram, echo decay and SNR, the course of an iterative fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.report.found import Array, Found, name_of
from pipeline.report.plots import Series, chart

BINS = np.linspace(-0.2, 0.2, 121)
STYLES = ("one", "two", "three", "four", "five")
COURSES = (("loss", "loss"), ("misfit", "misfit (σ² of the noise)"), ("variance", "windowed variance"))


@dataclass(frozen=True)
class Curve:
    """A plot with its title, legend (style, name) and a sentence."""

    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...]
    note: str


def curves(found: Found) -> list[Curve]:
    """Every plot that there are numbers for."""
    made = [_histogram(found), *_echoes(found), *_courses(found)]
    return [curve for curve in made if curve is not None and curve.svg]


def _histogram(found: Found) -> Curve | None:
    mask, series = found.final, []
    if mask is None or not mask.any():
        return None
    centres = ((BINS[1:] + BINS[:-1]) / 2).tolist()
    for method, style in zip(found.methods, STYLES, strict=False):
        chi = found.chi(method)
        if chi is not None:
            counts = np.histogram(chi[mask], BINS)[0] / mask.sum() * 100
            series.append(Series(centres, counts.tolist(), style, name_of(method), area=method == found.primary))
    note = "Bins of 0.0033 ppm. A long tail is veins, or streaks."
    return _curve("Histogram of χ in the mask", "χ (ppm)", "voxels (%)", series, note)


def _echoes(found: Found) -> list[Curve | None]:
    """Median signal and signal-to-noise of each echo in the brain mask."""
    magnitude, mask = found.array("convert", "magnitude"), found.brain
    times = [1e3 * t for t in found.facts("convert").get("echo_times_s", ())]
    if magnitude is None or mask is None or len(times) < 2 or len(times) != len(magnitude) or not mask.any():
        return []
    signal = [float(np.median(echo[mask])) for echo in magnitude]
    noise = [_noise(np.asarray(echo), mask) for echo in magnitude]
    snr = [s / n if n > 0 else np.nan for s, n in zip(signal, noise, strict=True)]
    relative = [100 * s / signal[0] if signal[0] > 0 else np.nan for s in signal]
    series, note = [], ""
    if len(times) > 2 and all(s > 0 for s in signal):
        rate, start = np.polyfit(times, np.log(relative), 1)
        fine = np.linspace(times[0], times[-1], 40)
        if rate < 0:
            series.append(Series(fine.tolist(), np.exp(start + rate * fine).tolist(), "two", "exponential fit"))
            note = f"T2* of the median signal: {-1 / rate:.0f} ms."
    series.append(Series(times, relative, "one", "median of the mask", dots=True))
    noise_note = "Median signal over the noise, which is read from second differences between voxels in the mask."
    return [
        _curve("Decay of the magnitude", "echo time (ms)", "signal (% of first echo)", series, note),
        _curve("Signal-to-noise ratio", "echo time (ms)", "SNR", [Series(times, snr, "one", dots=True)], noise_note),
    ]


def _noise(volume: Array, mask: Array) -> float:
    """Standard deviation of the noise, from the median absolute second difference along x inside the mask."""
    inside = mask[:-2] & mask[1:-1] & mask[2:]
    second = volume[:-2] - 2 * volume[1:-1] + volume[2:]
    return float(1.4826 * np.median(np.abs(second[inside])) / np.sqrt(6)) if inside.any() else 0.0


def _courses(found: Found) -> list[Curve | None]:
    """Loss, misfit and variance of the output over the steps of each method that records them, every run a line."""
    made: list[Curve | None] = []
    for method in found.methods:
        facts = found.facts(f"invert-{method}")
        runs = facts.get("runs") or [facts]
        note = " ".join(_ending(run, number, len(runs)) for number, run in enumerate(runs, 1)).strip()
        for key, label in COURSES:
            curve = _course_of(runs, key, f"{name_of(method)}: {label}", label, note)
            if curve is not None and curve.svg:
                made.append(curve)
                note = ""
    return made


def _course_of(runs: Sequence[Mapping[str, Any]], key: str, title: str, label: str, note: str) -> Curve | None:
    """One quantity of every run, with the point where each stopped: a line for one run, dots for several."""
    series, marks, named = [], [], len(runs) > 1
    for number, (run, style) in enumerate(zip(runs, cycle(STYLES)), 1):
        points, stop = _course(run.get(key)), run.get("stopped_at")
        if not points:
            continue
        x, y = [p[0] for p in points], [p[1] for p in points]
        series.append(Series(x, y, style, f"run {number}" if named else ""))
        if not isinstance(stop, int | float) or not x[0] <= stop <= x[-1]:
            continue
        if named:
            series.append(Series([float(stop)], [float(np.interp(stop, x, y))], style, dots=True))
        else:
            marks.append((float(stop), f"stopped at {stop}"))
    return _curve(title, "iteration", label, series, note, log_y=True, marks=marks) if series else None


def _ending(run: Mapping[str, Any], number: int, of: int) -> str:
    """Where and why a run stopped, in a sentence."""
    stop, why = run.get("stopped_at"), run.get("stop_reason")
    if not why:
        return ""
    who = "It" if of == 1 else f"Run {number} (seed {run.get('seed', 'unknown')})"
    at = f" at {stop}" if of > 1 and stop is not None else ""
    return f"{who} stopped{at} because: {why}."


def _course(values: object) -> list[tuple[float, float]]:
    """(iteration, value) of a list of values, or of a list of such pairs; at most some 400 of them."""
    if not isinstance(values, list | tuple) or not values:
        return []
    if isinstance(values[0], list | tuple):
        pairs = [(float(v[0]), float(v[1])) for v in values if len(v) == 2]
    else:
        pairs = [(float(i + 1), float(v)) for i, v in enumerate(values) if isinstance(v, int | float)]
    step = max(1, len(pairs) // 400)
    return pairs[::step] + ([pairs[-1]] if pairs and (len(pairs) - 1) % step else [])


def _curve(
    title: str,
    x_label: str,
    y_label: str,
    series: list[Series],
    note: str,
    *,
    log_y: bool = False,
    marks: list[tuple[float, str]] | None = None,
) -> Curve:
    svg = chart(title, x_label, y_label, series, log_y=log_y, marks=marks or ())
    return Curve(title, svg, tuple((s.style, s.name) for s in series if s.name), note)
