"""What a scan is doing -> a progress bar with the time left, or plain lines where nobody looks on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from flows.screen import Screen, can_draw

# Typical seconds of a stage of a 3 mm head on two CPU cores, to guess the time left; each run corrects them as it goes.
TYPICAL_S = {"convert": 1.0, "mask": 2.0, "unwrap": 1.5, "background": 2.0, "quality": 1.5, "publish": 1.0}
TYPICAL_S |= {"invert-rts": 1.0, "invert-tv": 2.0, "invert-nltv": 3.5, "invert-medi": 4.0, "invert-tfi": 2.0}
TYPICAL_S |= {"invert-dip": 5.0, "invert-diffusion": 10.0, "invert-cyclegan": 3.0, "upsample": 400.0}
OTHER_S = 0.5
TELLING_S = 5.0  # of work, before the pace of this machine counts for more than the usual one
LINE_EVERY_S = 30.0
NARROW = 60  # columns, below which there are no bars


class Watcher(Protocol):
    """Told when a stage begins, moves and ends, and when the scan is over."""

    def began(self, name: str, title: str) -> None: ...

    def moved(self, share: float, word: str) -> None:
        """`share` (0 to 1) of the running stage is done."""

    def ended(self, name: str) -> None: ...

    def close(self) -> None: ...


class Silent:
    """Says nothing."""

    def began(self, name: str, title: str) -> None: ...

    def moved(self, share: float, word: str) -> None: ...

    def ended(self, name: str) -> None: ...

    def close(self) -> None: ...


class Forecast:
    """Stages to come -> seconds left, from what stages typically take and how fast this machine proves to be."""

    def __init__(self, stages: list[str]) -> None:
        self.left = {name: TYPICAL_S.get(name, OTHER_S) for name in stages}
        self.total = sum(self.left.values())
        self.typical = self.spent = 0.0

    def done(self, name: str, seconds: float) -> None:
        self.typical += self.left.pop(name, 0.0)
        self.spent += seconds

    def share(self, name: str, share: float) -> float:
        """Of all stages, with `share` of `name` done."""
        left = dict(self.left)  # another thread draws while stages end
        return 1 - (sum(left.values()) - share * left.get(name, 0.0)) / self.total if self.total else 1.0

    def seconds_left(self, name: str, share: float, seconds: float) -> float:
        """`name` has run for `seconds` and is done by `share`."""
        running = self.left.get(name, 0.0)
        pace = max(self._pace(seconds, share * running) if share > 0.02 else self._pace(), self._pace(seconds, running))
        usual = max(running * pace - seconds, 0.0)
        telling = share > 0.02 or (share > 0 and not usual)  # the first percent tell more than a guess that ran out
        rest = seconds * (1 - share) / share if telling else usual
        return rest + pace * sum(s for other, s in dict(self.left).items() if other != name)

    def _pace(self, seconds: float = 0.0, typical: float = 0.0) -> float:
        """How much slower than usual it goes, where the running stage has done in `seconds` what takes `typical`."""
        return (self.spent + seconds + TELLING_S) / (self.typical + typical + TELLING_S)


class _Timed(Silent):
    """Keeps the time of the running stage."""

    def __init__(self, stages: list[str]) -> None:
        self.forecast = Forecast(stages)
        self.name, self.title, self.share = "", "", 0.0
        self.started = self.turned = self.said = time.monotonic()

    def began(self, name: str, title: str) -> None:
        self.name, self.title, self.share = name, title, 0.0
        self.started = self.turned = self.said = time.monotonic()

    def ended(self, name: str) -> None:
        self.forecast.done(name, time.monotonic() - self.started)

    def left(self, share: float) -> str:
        """What is left of the scan, in words; a share that falls is a further pass, which is timed anew."""
        now = time.monotonic()
        self.turned = now if share < self.share else self.turned
        self.share = share
        seconds = self.forecast.seconds_left(self.name, share, now - self.turned)
        return f"about {duration(seconds)} left" if seconds >= 1 else ""


class Lines(_Timed):
    """One line a stage, and one every half minute of a long one; with the scan's name where several are at work."""

    def __init__(self, console: Console, label: str, stages: list[str], named: bool = False) -> None:
        super().__init__(stages)
        self.console, self.prefix = console, f"{label}  " if named else "  "
        if not named:
            self.console.print(label, highlight=False)

    def moved(self, share: float, word: str) -> None:
        left, now = self.left(share), time.monotonic()
        if now - self.said >= LINE_EVERY_S:
            self.said = now
            doing = ", ".join(text for text in (f"{100 * share:.0f} %", word, left) if text)
            self.console.print(f"{self.prefix}{self.title:26} {doing}", highlight=False)

    def ended(self, name: str) -> None:
        super().ended(name)
        self.console.print(f"{self.prefix}{self.title:26} {time.monotonic() - self.started:7.1f} s", highlight=False)


@dataclass(frozen=True)
class Row:
    """What one bar shows: whose it is, what is done, the share that is done, the time left."""

    label: str
    doing: str = ""
    share: float = 0.0
    left: str = ""


class Bar(_Timed):
    """One bar a scan: what it is doing, how far it is, how long it still takes."""

    def __init__(self, label: str, stages: list[str], board: Board) -> None:
        super().__init__(stages)
        self.label, self.word, self.board = label, "", board

    def began(self, name: str, title: str) -> None:
        super().began(name, title)
        self.moved(0.0, "")

    def moved(self, share: float, word: str) -> None:
        self.left(share)
        self.word = word
        self.board.refresh()

    def close(self) -> None:
        """Remove it from the board; a second call does nothing."""
        self.board.remove(self)

    def row(self) -> Row:
        """As it is now."""
        doing = f"{self.title}{', ' + self.word if self.word else ''}"
        left = self.left(self.share) if self.name else ""
        return Row(self.label, doing, self.forecast.share(self.name, self.share), left)


class Board:
    """Many scans: those at work, each with its bar, and below them how far the whole is. Plain lines in a log."""

    def __init__(self, console: Console, several: bool = False, drawn: bool = True) -> None:
        self.console, self.several = console, several
        self.bars: list[Bar] = []
        self.screen = Screen(console, self._table) if drawn and can_draw(console.file) else None
        self.scans = self.done = 0
        self.started = time.monotonic()

    def expect(self, scans: int) -> None:
        """So many scans are to be done from now on."""
        self.scans, self.done, self.started = scans, 0, time.monotonic()
        if self.screen:
            self.screen.open()

    def watch(self, label: str, stages: list[str]) -> Bar | Lines:
        """Of one more scan."""
        if not self.screen:
            return Lines(self.console, label, stages, self.several)
        bar = Bar(label, stages, self)
        self.bars = [*self.bars, bar]
        self.refresh()
        return bar

    def ended(self) -> None:
        """One scan is done."""
        self.done += 1
        self.refresh()

    def refresh(self) -> None:
        if self.screen:
            self.screen.refresh()

    def remove(self, bar: Bar) -> None:
        self.bars = [other for other in self.bars if other is not bar]
        self.refresh()

    def close(self) -> None:
        if self.screen:
            self.screen.close()

    def rows(self) -> list[Row]:
        """A row for each scan at work and, where there are several scans, one for the whole."""
        return [bar.row() for bar in self.bars] + ([self._whole()] if self.scans > 1 else [])

    def _whole(self) -> Row:
        rest = (time.monotonic() - self.started) / max(self.done, 1) * (self.scans - self.done)
        left = f"about {duration(rest)} left" if self.done and rest >= 1 else ""
        return Row(f"{self.done} of {self.scans} scans", "", self.done / self.scans, left)

    def _table(self, columns: int) -> Table:
        return table(self.rows(), columns)


def table(rows: Sequence[Row], columns: int) -> Table:
    """Rows of bars that fit so many columns: on a narrow terminal there are no bars and times, then no stages."""
    label = max(columns * 3 // 10, min(columns - 5, 16))
    wide, doing = columns >= NARROW, columns > label + 10
    grid = Table.grid(Column(width=label, no_wrap=True), padding=(0, 1, 0, 0), expand=True)
    if doing:
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    if wide:
        grid.add_column(width=max(8, columns // 6 - 4), no_wrap=True)
    grid.add_column(width=4, no_wrap=True, justify="right")
    if wide:
        grid.add_column(width=17, no_wrap=True)
    for row in rows:
        middle: list[RenderableType] = [Text(row.doing)] if doing else []
        if wide:
            middle.append(ProgressBar(total=1.0, completed=row.share))
        end = [Text(row.left)] if wide else []
        grid.add_row(Text(shortened(row.label, label)), *middle, Text(f"{100 * row.share:.0f}%", "magenta"), *end)
    return grid


def shortened(text: str, width: int) -> str:
    """The text, or its beginning and its end where it is longer: labels often differ in both."""
    return text if len(text) <= width else f"{text[: width // 2]}…{text[len(text) - (width - width // 2 - 1) :]}"


@contextmanager
def watching(console: Console, name: str, title: str) -> Iterator[Callable[[float, str], None]]:
    """Show one stage alone; yields what is told how far it is."""
    board = Board(console)
    try:
        board.expect(1)
        shown = board.watch(name, [name])
        shown.began(name, title)
        yield shown.moved
        shown.ended(name)
    finally:
        board.close()


def duration(seconds: float) -> str:
    """In words as short as a column needs."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
