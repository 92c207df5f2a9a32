"""Series of numbers -> plots as small inline SVG that follows the page's colours in light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 42


@dataclass(frozen=True)
class Series:
    """One line (or area) of a plot: points, a CSS class of the page, and its name in the legend."""

    x: Sequence[float]
    y: Sequence[float]
    style: str
    name: str = ""
    dots: bool = False
    area: bool = False


@dataclass(frozen=True)
class Scale:
    """Data to pixels along one axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        v, low, high = (math.log10(x) if self.log else x for x in (value, self.low, self.high))
        return self.start + (v - low) / ((high - low) or 1) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """At least three, where a range allows it."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 2, 5), range(1, 10)):
                found = [s * 10.0**d for d in decades for s in steps if self.low <= s * 10.0**d <= self.high]
                if len(found) > 2:
                    return found
        rough = (self.high - self.low) / 5 or 1
        power = 10 ** math.floor(math.log10(rough))
        step = min((s * power for s in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - rough))
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    log_y: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    x_range: tuple[float, float] | None = None,
) -> Markup:
    """A plot of one or more series; `marks` are vertical lines with a word each. Empty where nothing is to show."""
    points = [
        (x, y) for s in series for x, y in zip(s.x, s.y, strict=False) if math.isfinite(y) and (y > 0 or not log_y)
    ]
    if len(points) < 2:
        return Markup()
    low, high = x_range or (min(x for x, _ in points), max(x for x, _ in points))
    bottom, top = min(y for _, y in points), max(y for _, y in points)
    if not log_y:
        bottom, top = min(0.0, bottom), top + 0.06 * (top - min(0.0, bottom))
    across = Scale(low, high, LEFT, WIDTH - RIGHT)
    up = Scale(bottom, top, HEIGHT - BOTTOM, TOP, log_y)
    body = [*_axes(across, up, x_label, y_label), *(_drawn(s, across, up) for s in series), *_marked(marks, across)]
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup().join(body)
    )


def _axes(across: Scale, up: Scale, x_label: str, y_label: str) -> list[Markup]:
    parts = []
    for value in up.ticks:
        y = f"{up(value):.1f}"
        line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y)
        parts.append(line + _text(LEFT - 8, up(value) + 3.5, _tick(value), "end"))
    for value in across.ticks:
        x = f"{across(value):.1f}"
        tick = Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        parts.append(tick.format(x, x, HEIGHT - BOTTOM, HEIGHT - BOTTOM + 4))
        parts.append(_text(across(value), HEIGHT - BOTTOM + 17, _tick(value), "middle"))
    floor = Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    parts.append(floor.format(LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle", "label"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = Markup('<text class="label" text-anchor="middle" transform="translate(12 {}) rotate(-90)">{}</text>')
    return [*parts, turned.format(middle, y_label)]


def _drawn(series: Series, across: Scale, up: Scale) -> Markup:
    points = [
        (across(x), up(y))
        for x, y in zip(series.x, series.y, strict=False)
        if math.isfinite(y) and (y > 0 or not up.log) and across.low <= x <= across.high
    ]
    if not points:
        return Markup()
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    out = Markup('<path class="line {}" d="M{}"/>').format(series.style, line)
    if series.area:
        closed = f"M{points[0][0]:.1f} {up.start}L{line}L{points[-1][0]:.1f} {up.start}Z"
        out = Markup('<path class="area {}" d="{}"/>').format(series.style, closed) + out
    if series.dots:
        dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="3.2"/>')
        out += Markup().join(dot.format(series.style, f"{x:.1f}", f"{y:.1f}") for x, y in points)
    return out


def _marked(marks: Sequence[tuple[float, str]], across: Scale) -> list[Markup]:
    parts = []
    for value, word in marks:
        x = across(value)
        late = x > (LEFT + WIDTH) / 2
        line = Markup('<line class="mark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
            f"{x:.1f}", TOP, HEIGHT - BOTTOM
        )
        parts.append(line + _text(x + (-5 if late else 5), TOP + 11, word, "end" if late else "start", "mark-word"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> Markup:
    markup = Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>')
    return markup.format(style, f"{x:.1f}", f"{y:.1f}", anchor, escape(text))


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    text = f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", "−")
