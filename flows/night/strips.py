"""Scans that ended -> strip charts of their numbers over the night, in which a scanner that drifts is seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from flows.night.standing import Entry
from pipeline.quality import CHECKS
from pipeline.report.plots import Scale

WIDTH, HEIGHT = 540, 150
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
FEWEST = 5  # scans, for a chart to say anything
FAR = 3  # times the usual spread, beyond which a value is only said to lie outside
SMOOTH = 15  # scans that the running median goes over
TONES = {"usable": "good", "check": "fair", "do not use": "bad", "failed": "bad", "set aside": "bad"}
MINUTE, HOUR, DAY = 60, 3600, 86400
Place = Callable[[float], float]  # a value -> where it stands in the chart
STEPS = (5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR,
         DAY, 2 * DAY, 7 * DAY, 30 * DAY, 90 * DAY, 365 * DAY)  # fmt: skip


@dataclass(frozen=True)
class Strip:
    """A chart with its title and what it tells."""

    title: str
    svg: Markup
    note: str


@dataclass(frozen=True)
class Number:
    """A number to follow: what it is called and means, where it stands in an entry, and which checks judge it."""

    title: str
    note: str
    value: Callable[[Entry], Any]
    check: str = ""  # its name in the table of checks


def _acquired(name: str) -> Callable[[Entry], Any]:
    return lambda entry: (entry.quality.get("acquisition") or {}).get(name)


def _mapped(name: str) -> Callable[[Entry], Any]:
    return lambda entry: ((entry.quality.get("methods") or {}).get(entry.quality.get("primary")) or {}).get(name)


NUMBERS = (
    Number("Time per scan (s)", "All steps together.", lambda entry: entry.seconds),
    Number("Signal-to-noise ratio", "Of the first echo. Falling: look at the coil.", _acquired("snr")),
    Number(
        "Misfit of the map",
        "In units of the noise: 1 is what noise alone leaves.",
        _mapped("data_consistency"),
        "data_consistency",
    ),
    Number("Volume of the mask (ml)", "A step means another protocol or mask.", _acquired("volume_ml"), "volume_ml"),
)


def strips(entries: Sequence[Entry]) -> list[Strip]:
    """A chart of every number that enough scans have."""
    made = []
    for number in NUMBERS:
        points = sorted(
            ((e.finished, float(v), e) for e in entries if isinstance(v := number.value(e), int | float)),
            key=lambda point: point[0],
        )
        points = [point for point in points if math.isfinite(point[1])]
        if len(points) >= FEWEST:
            made.append(Strip(number.title, _chart(number, points), number.note))
    return made


def _chart(number: Number, points: list[tuple[float, float, Entry]]) -> Markup:
    times, values = [t for t, _, _ in points], [v for _, v, _ in points]
    across = Scale(times[0], times[-1], LEFT + 5, WIDTH - RIGHT - 5)
    low, high, limits = _range(number, values)
    up = Scale(low, high, HEIGHT - BOTTOM, TOP)
    body = [*_up_axis(up), *_time_axis(across), *(_limit(up(limit)) for limit in limits)]

    def place(value: float) -> float:
        return up(min(max(value, low), high))  # what lies far out stands at the edge

    body += [_usual(points, across, place), *_apart(points, across, place), _course(times, values, across, place)]
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, f"{number.title}, {len(points)} scans", Markup().join(body)
    )


def _range(number: Number, values: list[float]) -> tuple[float, float, list[float]]:
    """Lowest and highest value shown, and the limits of the checks that come near; one odd scan hides no other."""
    usual = sorted(values)[len(values) // 20 : -(len(values) // 20) or None]
    reach = FAR * (usual[-1] - usual[0])
    low, high = max(min(values), usual[0] - reach), min(max(values), usual[-1] + reach)
    low = 0.0 if low < 0.5 * high else low
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    limits = [
        c.limit
        for c in CHECKS
        if (c.number, c.level) == (number.check, "check") and low - 2 * room <= c.limit <= high + 2 * room
    ]
    ends = [low, high, *limits]
    return max(0.0, min(ends) - room) if low >= 0 else low - room, max(ends) + room, limits


def _usual(points: list[tuple[float, float, Entry]], across: Scale, place: Place) -> Markup:
    """The usable scans as one path of round points, so that a thousand of them weigh little."""
    path = "".join(f"M{across(t):.0f} {place(v):.1f}h0" for t, v, entry in points if entry.kind == "usable")
    return Markup('<path class="points" d="{}"/>').format(path) if path else Markup()


def _apart(points: list[tuple[float, float, Entry]], across: Scale, place: Place) -> list[Markup]:
    """The others: each tells its label and leads to its report."""
    dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="3.2"><title>{}</title></circle>')
    found = []
    for time, value, entry in points:
        if entry.kind != "usable":
            x, y = f"{across(time):.1f}", f"{place(value):.1f}"
            drawn = dot.format(TONES[entry.kind], x, y, f"{entry.label}: {value:.3g}")
            link = Markup('<a href="{}">{}</a>').format(quote(entry.report), drawn) if entry.report else drawn
            found.append(link)
    return found


def _course(times: list[float], values: list[float], across: Scale, place: Place) -> Markup:
    """The running median."""
    points = []
    for i in range(len(values)):
        first = max(0, min(i - SMOOTH // 2, len(values) - SMOOTH))
        points.append((across(times[i]), place(median(values[first : first + SMOOTH]))))
    return Markup('<path class="line one" d="M{}"/>').format("L".join(f"{x:.0f} {y:.1f}" for x, y in points))


def _limit(y: float) -> Markup:
    return Markup('<line class="limit" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        LEFT, WIDTH - RIGHT, f"{y:.1f}", f"{y:.1f}"
    )


def _up_axis(up: Scale) -> list[Markup]:
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="tick" x="{}" y="{}" '
                  'text-anchor="end">{}</text>')  # fmt: skip
    ticks = up.ticks if len(up.ticks) < 5 else up.ticks[::2]
    return [line.format(LEFT, WIDTH - RIGHT, f"{up(v):.1f}", f"{up(v):.1f}", LEFT - 7, f"{up(v) + 3.5:.1f}", f"{v:g}")
            for v in ticks]  # fmt: skip


def _time_axis(across: Scale) -> list[Markup]:
    """Clock times of this place; days where there are many."""
    floor = HEIGHT - BOTTOM
    parts = [Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, floor, floor)]
    tick = Markup('<line class="axis" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/><text class="tick" x="{0}" y="{3}" '
                  'text-anchor="middle">{4}</text>')  # fmt: skip
    for moment, word in moments(across.low, across.high):
        parts.append(tick.format(f"{across(moment):.1f}", floor, floor + 4, floor + 16, word))
    return parts


def moments(low: float, high: float) -> list[tuple[float, str]]:
    """At most seven round moments between two, with what a clock or a calendar calls them."""
    step = next((s for s in STEPS if (high - low) / s <= 7), STEPS[-1])
    offset = datetime.fromtimestamp(low).astimezone().utcoffset()
    east = offset.total_seconds() if offset else 0.0
    first = math.ceil((low + east) / step)
    found = [i * step - east for i in range(first, math.floor((high + east) / step) + 1)]
    return [(moment, _word(datetime.fromtimestamp(moment))) for moment in found]


def _word(moment: datetime) -> str:
    """A time of day; the day where it begins."""
    return moment.strftime("%H:%M") if moment.hour or moment.minute else moment.strftime("%-d %b")
