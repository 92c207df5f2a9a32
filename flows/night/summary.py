"""An output folder -> `summary.html` in it: one self-contained page that says how the night went, the worst first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flows.night.counting import WORDS, Counts, by_kind, causes, headline, tally
from flows.night.standing import KINDS, Entry, Night, clock, look
from flows.watch import duration
from pipeline.errors import ChironError

if TYPE_CHECKING:
    from jinja2 import Template

NAME = "summary.html"
PICTURES = 100  # scans with a picture, the worst first
SHARE = 0.03  # of the time at most goes into writing the page anew
TITLES = {
    "failed": "Failed",
    "set aside": "Set aside",
    "do not use": "Not to be used",
    "check": "To check before use",
    "usable": "Usable",
}
TONES = {"failed": "bad", "set aside": "aside", "do not use": "bad", "check": "fair", "usable": "good"}
SIGNS = {"failed": "✕", "set aside": "–", "do not use": "✕", "check": "!", "usable": "✓"}


@dataclass(frozen=True)
class Row:
    """One scan as the table shows it."""

    label: str
    link: str
    picture: str
    codes: tuple[str, ...]
    reasons: tuple[str, ...]
    methods: str
    took: str
    when: str


class Page:
    """The page of a night that goes on: written anew as scans end, as often as that costs next to nothing."""

    def __init__(self, output: Path, since: float | None = None) -> None:
        self.output, self.since = output, since
        self._not_before = 0.0

    def renew(self) -> None:
        """Write the page unless it was written just now. A page that cannot be written never stops the work."""
        began = time.monotonic()
        if began >= self._not_before:
            with suppress(ChironError):
                summarise(self.output, self.since)
            now = time.monotonic()
            self._not_before = now + (now - began) / SHARE


def summarise(output: Path, since: float | None = None) -> Path:
    """Write the page of all that ended (since `since`, seconds since 1970) and of what runs; returns its path.

    Raises S001 where the disk is full, S002 where the output cannot be written.
    """
    from pipeline.publish.dataset import prepare, private
    from pipeline.publish.swap import write_in_place
    from pipeline.work import disk_error

    prepare(output)
    page = _page(look(output, since), output)
    try:
        write_in_place(output / NAME, page.encode(), private(output))
    except OSError as error:
        raise disk_error(error) from error
    return output / NAME


def _page(night: Night, output: Path) -> str:
    import pipeline
    from flows.night.strips import strips

    found = tally(night)
    pictured = [entry for entry in night.entries if entry.report][:PICTURES]
    pictures = {id(entry): _picture(output / entry.report) for entry in pictured}
    return _template().render(
        headline=headline(found),
        title=_title(found),
        span=_span(night.entries),
        bar=[(kind, TONES[kind], WORDS[kind], number) for kind, number in by_kind(found).items() if number],
        causes=causes(found),
        running=[(r.label, r.title or r.stage or "starting", clock(r.since) if r.since else "") for r in night.running],
        waiting=night.waiting_labels,
        groups=[
            (kind, TITLES[kind], TONES[kind], SIGNS[kind], [_row(e, pictures.get(id(e), "")) for e in night.of(kind)])
            for kind in KINDS
            if night.of(kind)
        ],
        strips=strips(night.entries),
        going=bool(night.running or night.waiting),
        written=clock(time.time()),
        version=pipeline.__version__,
    )


def _title(found: Counts) -> str:
    """What a person wants to know first."""
    scans, usable = found["scans"], found["published"]["usable"]
    if scans == usable:
        return f"All {scans:,} scans are usable" if scans > 1 else headline(found).partition(";")[0]
    return f"{usable:,} of {scans:,} scan{'' if scans == 1 else 's'} {'is' if usable == 1 else 'are'} usable"


def _row(entry: Entry, picture: str) -> Row:
    codes = (entry.code,) if entry.code else tuple(entry.warnings)
    took = "" if entry.seconds is None else duration(entry.seconds)
    methods = ", ".join(entry.record["methods"][:1])
    link = quote(entry.report)
    return Row(entry.label, link, picture, codes, tuple(entry.reasons), methods, took, entry.when)


def _picture(report: Path) -> str:
    from flows.night.thumbnail import thumbnail

    return thumbnail(report)


def _span(entries: Sequence[Entry]) -> str:
    """From when to when the scans ended."""
    if not entries:
        return ""
    moments = [entry.finished for entry in entries]
    first, last = clock(min(moments)), clock(max(moments))
    return f"{first} to {last}" if first != last else first


@cache
def _template() -> Template:
    """The page in the colours and type of the report, whose style sheet it takes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    import pipeline.report

    folders: list[Any] = [Path(__file__).parent, Path(pipeline.report.__file__).parent]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("summary.html")
