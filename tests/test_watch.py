"""Progress: what is left is told from what was seen, in bars for a person and lines for a log."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

import flows.watch
from flows.watch import Bar, Board, Forecast, Lines, watch


def test_the_forecast_learns_from_this_machine() -> None:
    forecast = Forecast(["convert", "invert-dip"])
    before = forecast.seconds_left("convert", 0.0, 0.0)
    forecast.done("convert", 10 * 2.0)
    assert forecast.seconds_left("invert-dip", 0.0, 0.0) > 5 * (before - 2.0)
    assert forecast.seconds_left("invert-dip", 0.5, 30.0) == pytest.approx(30.0)
    assert 0 < forecast.share("invert-dip", 0.0) < forecast.share("invert-dip", 0.5) < 1
    assert forecast.share("invert-dip", 1.0) == pytest.approx(1.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until it is set."""
    hand = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(flows.watch, "time", SimpleNamespace(monotonic=lambda: hand.now))
    return hand


def left(bar: Bar) -> str:
    """The time left that the bar shows."""
    return str(bar.progress.tasks[0].fields["left"])


def test_the_bar_tells_the_time_left_from_the_share_done(clock: SimpleNamespace) -> None:
    bar = Bar(Console(file=StringIO(), force_terminal=True), "sub-a", ["invert-dip"])
    bar.began("invert-dip", "inverting")
    assert left(bar) == "about 2 min left", "nothing is done: what such a stage usually takes"
    for now, share, expected in ((20, 0.25, "60 s"), (50, 0.5, "50 s"), (300, 0.6, "3 min"), (499, 0.998, "1 s")):
        clock.now = 1000.0 + now
        bar.moved(share, "step")
        assert left(bar) == f"about {expected} left"
    bar.moved(1.0, "step")
    assert left(bar) == ""
    bar.close()


def test_a_slow_stage_is_no_longer_said_to_end_soon_once_the_usual_time_is_over(clock: SimpleNamespace) -> None:
    bar = Bar(Console(file=StringIO(), force_terminal=True), "sub-a", ["invert-dip"])
    bar.began("invert-dip", "inverting")
    clock.now += 150
    bar.moved(0.01, "step")
    assert left(bar) == f"about {150 * 99 / 60:.0f} min left"
    bar.close()


def test_a_second_pass_is_timed_anew(clock: SimpleNamespace) -> None:
    bar = Bar(Console(file=StringIO(), force_terminal=True), "sub-a", ["invert-dip"])
    bar.began("invert-dip", "inverting")
    for seconds, share in ((100, 1.0), (0, 0.01), (40, 0.5)):
        clock.now += seconds
        bar.moved(share, "step")
    assert left(bar) == "about 40 s left"
    bar.close()


def test_a_log_hears_of_a_long_stage_now_and_then(clock: SimpleNamespace) -> None:
    said = StringIO()
    lines = Lines(Console(file=said, width=100), "sub-a", ["invert-dip"])
    lines.began("invert-dip", "inverting (dip)")
    for step in range(1, 101):
        clock.now += 1
        lines.moved(step / 100, f"step {step}")
    lines.ended("invert-dip")
    words = [" ".join(line.split()) for line in said.getvalue().splitlines()]
    assert words == [
        "sub-a",
        "inverting (dip) 30 %, step 30, about 70 s left",
        "inverting (dip) 60 %, step 60, about 40 s left",
        "inverting (dip) 90 %, step 90, about 10 s left",
        "inverting (dip) 100.0 s",
    ]


def test_progress_is_a_bar_for_a_person_and_lines_for_a_log() -> None:
    for terminal, expected in ((True, Bar), (False, Lines)):
        said = StringIO()
        shown = watch(Console(file=said, force_terminal=terminal), "sub-a", ["convert"])
        assert isinstance(shown, expected)
        shown.began("convert", "reading the images")
        shown.moved(0.5, "half")
        shown.ended("convert")
        shown.close()
        assert "sub-a" in said.getvalue() and "reading the images" in said.getvalue()


def test_a_board_shows_every_scan_at_work_and_the_whole(clock: SimpleNamespace) -> None:
    board = Board(Console(file=StringIO(), force_terminal=True))
    board.expect(4)
    first, second = board.watch("sub-a", ["convert"]), board.watch("sub-b", ["convert"])
    second.began("convert", "reading")
    clock.now += 20
    first.close()
    board.ended()
    said = {task.description: task.fields["left"] for task in board.bars.tasks}  # type: ignore[union-attr]
    assert set(said) == {"sub-b  reading", "1 of 4 scans"} and said["1 of 4 scans"] == "about 60 s left"
    board.close()


def test_lines_of_several_scans_bear_their_names() -> None:
    said = StringIO()
    board = Board(Console(file=said, width=100), several=True)
    shown = [board.watch(label, ["convert"]) for label in ("sub-a", "sub-b")]
    for each in shown:
        each.began("convert", "reading")
        each.ended("convert")
    assert [line.split()[:2] for line in said.getvalue().splitlines()] == [["sub-a", "reading"], ["sub-b", "reading"]]
