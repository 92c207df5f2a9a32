"""Rows of `bench` -> the page of benchmarks: what was measured, one table a device and size, growth with size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flows.bench.measure import ENOUGH_S, LONG_S, Row
from flows.page import machine, table

HEAD = f"""# Speed and memory

Made by `chiron bench`, with default settings, on: {{machine}}.

Each step ran in a fresh process on a simulated head that fills the field of view. It ran once before it was timed,
which warms caches and plans; **s** is the median of the runs that follow. After {ENOUGH_S:g} s of them there are no
more, and a step of more than {LONG_S:g} s is timed in its first run. `total-field` is `unwrap` and `field` in one;
`default-path` is the total field, background removal and inversion by the default methods, with the mask given.

**Cannot be avoided** is the time of the Fourier transforms that the step asked for, counted while it ran and then
timed alone: same sizes, same threads, on arrays that are there already. The count is of volumes of real numbers (a
complex one counts as two), the size that of the largest grid. It is the work of the algorithm as it stands: fewer
iterations would lower it, and the count shows that. For a step without transforms it is the time to pass once over
all that it reads and writes, at the bandwidth of a large copy. **Ratio** is seconds over that: 1 would be nothing
but transforms. Convolutions of a network count at the rate of a large matrix product on the device, in the faster of
bfloat16 and float32. Where these are a small part of a step (`mask`, `unwrap`, `total-field`), the ratio says how much
else there is.

**Peak** is the most memory in use while the step ran: on the CPU that of its whole process with libraries and
inputs, on a GPU what torch had allocated; **extra** is what the step added to what was there before it began.
"""
TITLES = ("step", "echoes", "s", "cannot be avoided", "s of it", "ratio", "peak MB", "extra MB", "runs")


def page(rows: Sequence[Row]) -> str:
    """The whole page, as Markdown."""
    parts = [HEAD.format(machine=machine())]
    for device in dict.fromkeys(row.device for row in rows):
        mine = [row for row in rows if row.device == device]
        parts.append(f"## {device}\n")
        for shape in dict.fromkeys(row.shape for row in mine):
            parts.append(f"### {_size(shape)}\n")
            parts.append(table(TITLES, [_cells(row) for row in mine if row.shape == shape]))
        parts.append(_growth(mine))
    return "\n".join(part for part in parts if part)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _cells(row: Row) -> list[str]:
    name, echoes = f"`{row.step}`", str(row.echoes or "")
    if row.error:
        return [name, echoes, f"not run: {row.error}", *[""] * (len(TITLES) - 3)]
    memory = [f"{n / 1e6:.0f}" for n in (row.peak_bytes, row.extra_bytes)]
    return [
        name,
        echoes,
        _seconds(row.seconds),
        row.floor,
        _seconds(row.floor_s),
        f"{row.ratio:.1f}",
        *memory,
        f"{row.runs}",
    ]


def _seconds(value: float) -> str:
    return f"{value:.2g}" if value < 1 else f"{value:.3g}"


def _growth(rows: Sequence[Row]) -> str:
    """Seconds by size, and the power of the number of voxels that they grow with; 1 is in proportion."""
    shapes = sorted({row.shape for row in rows}, key=math.prod)
    if len(shapes) < 2:
        return ""
    found = {(row.step, row.echoes, row.shape): row.seconds for row in rows}
    lines = []
    for step, echoes in dict.fromkeys((row.step, row.echoes) for row in rows):
        times = [found.get((step, echoes, shape), math.nan) for shape in shapes]
        power = math.log(times[-1] / times[0]) / math.log(math.prod(shapes[-1]) / math.prod(shapes[0]))
        shown = ["" if math.isnan(t) else _seconds(t) for t in times]
        lines.append([f"`{step}`", str(echoes or ""), *shown, "" if math.isnan(power) else f"{power:.2f}"])
    titles = ["step", "echoes", *(f"{_size(shape)}, s" for shape in shapes), "power"]
    text = "The power is that of the number of voxels with which the time grows: 1 is in proportion."
    return f"### Growth with size\n\n{text}\n\n{table(titles, lines)}"
