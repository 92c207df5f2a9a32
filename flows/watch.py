"""What a scan is doing -> a progress bar with the time left, or plain lines where nobody looks on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

# Typical seconds of a stage of a 3 mm head on two CPU cores, to guess the time left; each run corrects them as it goes.
TYPICAL_S = {"convert": 1.0, "mask": 2.0, "unwrap": 1.5, "background": 2.0, "quality": 1.5, "publish": 1.0}
TYPICAL_S |= {"invert-rts": 1.0, "invert-tv": 2.0, "invert-nltv": 3.5, "invert-medi": 4.0, "invert-tfi": 2.0}
TYPICAL_S |= {"invert-dip": 100.0, "invert-diffusion": 10.0, "invert-cyclegan": 5.0, "upsample": 400.0}
OTHER_S = 0.5
LINE_EVERY_S = 30.0


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
        return 1 - (sum(self.left.values()) - share * self.left.get(name, 0.0)) / self.total if self.total else 1.0

    def seconds_left(self, name: str, share: float, seconds: float) -> float:
        """`name` has run for `seconds` and is done by `share`."""
        running = self.left.get(name, 0.0)
        pace = (self.spent + seconds) / max(self.typical + share * running, 0.1) if self.typical else 1.0
        usual = max(running * pace - seconds, 0.0)
        telling = share > 0.02 or (share > 0 and not usual)  # the first percent tell more than a guess that ran out
        rest = seconds * (1 - share) / share if telling else usual
        return rest + pace * sum(s for other, s in self.left.items() if other != name)


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


class Bar(_Timed):
    """One bar a scan: what it is doing, how far it is, how long it still takes."""

    def __init__(self, console: Console, label: str, stages: list[str], board: Progress | None = None) -> None:
        super().__init__(stages)
        self.progress, self.own = board or bars(console), board is None
        self.row = self.progress.add_task(label, total=1.0, left="")
        self.label = label
        self.progress.start()

    def began(self, name: str, title: str) -> None:
        super().began(name, title)
        self.moved(0.0, "")

    def moved(self, share: float, word: str) -> None:
        doing = f"{self.label}  {self.title}{', ' + word if word else ''}"
        done = self.forecast.share(self.name, share)
        self.progress.update(self.row, completed=done, description=doing, left=self.left(share))

    def close(self) -> None:
        if self.own:
            self.progress.stop()
        else:
            self.progress.remove_task(self.row)


class Board:
    """Many scans: those at work, each with its bar, and below them how far the whole is. Plain lines in a log."""

    def __init__(self, console: Console, several: bool = False) -> None:
        self.console, self.several = console, several
        self.bars = bars(console) if console.is_terminal else None
        self.total: TaskID | None = None
        self.scans = self.done = 0
        self.started = time.monotonic()

    def expect(self, scans: int) -> None:
        """So many scans are to be done from now on."""
        self.scans, self.done, self.started = scans, 0, time.monotonic()

    def watch(self, label: str, stages: list[str]) -> Bar | Lines:
        """Of one more scan."""
        if not self.bars:
            return Lines(self.console, label, stages, self.several)
        made = Bar(self.console, label, stages, self.bars)
        if self.scans > 1:
            if self.total is not None:
                self.bars.remove_task(self.total)
            self.total = self.bars.add_task("", total=float(self.scans), left="")
            self._show()
        return made

    def ended(self) -> None:
        """One scan is done."""
        self.done += 1
        self._show()

    def close(self) -> None:
        if self.bars:
            self.bars.stop()

    def _show(self) -> None:
        if self.bars and self.total is not None:
            rest = (time.monotonic() - self.started) / max(self.done, 1) * (self.scans - self.done)
            left = f"about {duration(rest)} left" if self.done and rest >= 1 else ""
            said = f"{self.done} of {self.scans} scans"
            self.bars.update(self.total, completed=float(self.done), description=said, left=left)


def bars(console: Console) -> Progress:
    """Rows of bars that go when they are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"))
    return Progress(*columns, console=console, transient=True)


def watch(console: Console, label: str, stages: list[str]) -> Bar | Lines:
    """One scan alone: a bar where a person looks on, else lines."""
    return (Bar if console.is_terminal else Lines)(console, label, stages)


@contextmanager
def watching(console: Console, name: str, title: str) -> Iterator[Callable[[float, str], None]]:
    """Show one stage alone; yields what is told how far it is."""
    shown = watch(console, name, [name])
    try:
        shown.began(name, title)
        yield shown.moved
        shown.ended(name)
    finally:
        shown.close()


def duration(seconds: float) -> str:
    """In words as short as a column needs."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
