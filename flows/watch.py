"""What a scan is doing -> a progress bar with the time left, or plain lines where nobody looks on."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

# Typical seconds of a stage of a 3 mm head on two CPU cores, to guess the time left; each run corrects them as it goes.
TYPICAL_S = {"convert": 1.0, "mask": 2.0, "unwrap": 1.5, "background": 2.0, "quality": 1.5, "publish": 1.0}
TYPICAL_S |= {"invert-rts": 1.0, "invert-tv": 2.0, "invert-nltv": 3.5, "invert-medi": 4.0, "invert-tfi": 2.0}
TYPICAL_S |= {"invert-dip": 100.0}
OTHER_S = 0.5


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
        rest = seconds * (1 - share) / share if share > 0.02 else max(running * pace - seconds, 0.0)
        return rest + pace * sum(s for other, s in self.left.items() if other != name)


class Lines(Silent):
    """One line a stage."""

    def __init__(self, console: Console, label: str, stages: list[str]) -> None:
        self.console = console
        self.console.print(label, highlight=False)

    def began(self, name: str, title: str) -> None:
        self.title, self.started = title, time.monotonic()

    def ended(self, name: str) -> None:
        self.console.print(f"  {self.title:26} {time.monotonic() - self.started:7.1f} s", highlight=False)


class Bar:
    """One bar a scan: what it is doing, how far it is, how long it still takes."""

    def __init__(self, console: Console, label: str, stages: list[str]) -> None:
        self.forecast = Forecast(stages)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.progress = Progress(*columns, console=console, transient=True)
        self.row = self.progress.add_task(label, total=1.0, left="")
        self.label, self.name, self.title, self.started = label, "", "", time.monotonic()
        self.progress.start()

    def began(self, name: str, title: str) -> None:
        self.name, self.title, self.started = name, title, time.monotonic()
        self.moved(0.0, "")

    def moved(self, share: float, word: str) -> None:
        left = self.forecast.seconds_left(self.name, share, time.monotonic() - self.started)
        doing = f"{self.label}  {self.title}{', ' + word if word else ''}"
        shown = f"about {_duration(left)} left" if left >= 1 else ""
        self.progress.update(self.row, completed=self.forecast.share(self.name, share), description=doing, left=shown)

    def ended(self, name: str) -> None:
        self.forecast.done(name, time.monotonic() - self.started)

    def close(self) -> None:
        self.progress.stop()


def watch(console: Console, label: str, stages: list[str]) -> Bar | Lines:
    """A bar where a person looks on, else lines."""
    return (Bar if console.is_terminal else Lines)(console, label, stages)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
