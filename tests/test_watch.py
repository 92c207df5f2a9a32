"""Progress: what is left is told from what was seen, in bars for a person and lines for a log."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console

import flows.watch
from flows.watch import Bar, Board, Forecast, Lines, Row, shortened, table, watching


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that usually takes long."""
    monkeypatch.setitem(flows.watch.TYPICAL_S, "slow", 100.0)
    monkeypatch.setitem(flows.watch.TYPICAL_S, "also slow", 100.0)


def test_the_forecast_learns_from_this_machine() -> None:
    forecast = Forecast(["also slow", "slow"])
    before = forecast.seconds_left("also slow", 0.0, 0.0)
    assert before == pytest.approx(200.0)
    forecast.done("also slow", 1000.0)
    assert forecast.seconds_left("slow", 0.0, 0.0) > 4 * before
    assert forecast.seconds_left("slow", 0.5, 30.0) == pytest.approx(30.0)
    assert 0 < forecast.share("slow", 0.0) < forecast.share("slow", 0.5) < 1
    assert forecast.share("slow", 1.0) == pytest.approx(1.0)


def test_one_slow_moment_says_little_of_what_is_to_come() -> None:
    """As at the start, when libraries are read; nor does a stage that does not say how far it is."""
    forecast = Forecast(["convert", "mask", "slow"])
    forecast.done("convert", 4.0)  # 1.0 as a rule
    assert 100 < forecast.seconds_left("mask", 0.0, 0.0) < 160
    assert forecast.seconds_left("mask", 0.0, 2.0) == pytest.approx(forecast.seconds_left("mask", 0.0, 0.0), rel=0.05)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until it is set."""
    hand = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(flows.watch, "time", SimpleNamespace(monotonic=lambda: hand.now))
    return hand


def a_bar() -> Bar:
    """Of one scan with one stage, on a board that draws nothing."""
    return Bar("sub-a", ["slow"], Board(Console(file=StringIO())))


def left(bar: Bar) -> str:
    """The time left that the bar shows."""
    return bar.row().left


def test_the_bar_tells_the_time_left_from_the_share_done(clock: SimpleNamespace) -> None:
    bar = a_bar()
    bar.began("slow", "inverting")
    assert left(bar) == "about 2 min left", "nothing is done: what such a stage usually takes"
    for now, share, expected in ((20, 0.25, "60 s"), (50, 0.5, "50 s"), (300, 0.6, "3 min"), (499, 0.998, "1 s")):
        clock.now = 1000.0 + now
        bar.moved(share, "step")
        assert left(bar) == f"about {expected} left"
    bar.moved(1.0, "step")
    assert left(bar) == ""
    bar.close()


def test_a_slow_stage_is_no_longer_said_to_end_soon_once_the_usual_time_is_over(clock: SimpleNamespace) -> None:
    bar = a_bar()
    bar.began("slow", "inverting")
    clock.now += 150
    bar.moved(0.01, "step")
    assert left(bar) == f"about {150 * 99 / 60:.0f} min left"
    bar.close()


def test_a_second_pass_is_timed_anew(clock: SimpleNamespace) -> None:
    bar = a_bar()
    bar.began("slow", "inverting")
    for seconds, share in ((100, 1.0), (0, 0.01), (40, 0.5)):
        clock.now += seconds
        bar.moved(share, "step")
    assert left(bar) == "about 40 s left"
    bar.close()


def test_a_log_hears_of_a_long_stage_now_and_then(clock: SimpleNamespace) -> None:
    said = StringIO()
    lines = Lines(Console(file=said, width=100), "sub-a", ["slow"])
    lines.began("slow", "inverting (dip)")
    for step in range(1, 101):
        clock.now += 1
        lines.moved(step / 100, f"step {step}")
    lines.ended("slow")
    words = [" ".join(line.split()) for line in said.getvalue().splitlines()]
    assert words == [
        "sub-a",
        "inverting (dip) 30 %, step 30, about 70 s left",
        "inverting (dip) 60 %, step 60, about 40 s left",
        "inverting (dip) 90 %, step 90, about 10 s left",
        "inverting (dip) 100.0 s",
    ]


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards that take any stream for a terminal, and draw nothing."""
    nothing = SimpleNamespace(open=lambda: None, refresh=lambda: None, close=lambda: None)
    monkeypatch.setattr(flows.watch, "can_draw", lambda stream: True)
    monkeypatch.setattr(flows.watch, "Screen", lambda console, rows: nothing)


def test_progress_is_lines_for_a_log() -> None:
    text = StringIO()
    with watching(Console(file=text, force_terminal=True), "sub-a", "reading the images") as moved:
        moved(0.5, "half")
    assert "sub-a" in text.getvalue() and "reading the images" in text.getvalue() and "\x1b[A" not in text.getvalue()


@pytest.mark.usefixtures("drawing")
def test_a_board_shows_every_scan_at_work_and_the_whole(clock: SimpleNamespace) -> None:
    board = Board(Console(file=StringIO()))
    board.expect(4)
    first, second = board.watch("sub-a", ["convert"]), board.watch("sub-b", ["convert"])
    second.began("convert", "reading")
    clock.now += 20
    first.close()
    board.ended()
    whole, rest = board.rows()[-1], board.rows()[:-1]
    assert [(row.label, row.doing) for row in rest] == [("sub-b", "reading")]
    assert (whole.label, whole.share, whole.left) == ("1 of 4 scans", 0.25, "about 60 s left")
    board.close()


@pytest.mark.usefixtures("drawing")
def test_a_bar_that_is_closed_twice_takes_no_other_with_it() -> None:
    board = Board(Console(file=StringIO()))
    board.expect(2)
    first, _ = board.watch("sub-a", ["convert"]), board.watch("sub-b", ["convert"])
    first.close()
    first.close()
    assert [row.label for row in board.rows()] == ["sub-b", "0 of 2 scans"]


ROWS = [
    Row("sub-" + 60 * "a", "inverting (diffusion), step 1234 of 5000", 0.5, "about 12 min left"),
    Row("sub-b", "", 0.0, ""),
    Row("10 of 12 scans", "", 1.0, "about 89 s left"),
]


@pytest.mark.parametrize("columns", [12, 20, 39, 59, 60, 79, 131, 300])
def test_rows_fit_any_width_and_end_in_what_tells_most(columns: int) -> None:
    text = StringIO()
    Console(file=text, width=columns).print(table(ROWS, columns))
    lines = text.getvalue().splitlines()
    assert len(lines) == len(ROWS) and all(cell_len(line) <= columns for line in lines)
    assert all(f"{100 * row.share:.0f}%" in line for row, line in zip(ROWS, lines, strict=True))
    assert columns < 60 or all(row.left in line for row, line in zip(ROWS, lines, strict=True))
    assert columns < 39 or "invert" in lines[0]


@pytest.mark.parametrize(("width", "expected"), [(9, "sub-abcde"), (8, "sub-…cde"), (5, "su…de")])
def test_a_long_label_keeps_its_beginning_and_its_end(width: int, expected: str) -> None:
    assert shortened("sub-abcde", width) == expected


def test_lines_of_several_scans_bear_their_names() -> None:
    said = StringIO()
    board = Board(Console(file=said, width=100), several=True)
    shown = [board.watch(label, ["convert"]) for label in ("sub-a", "sub-b")]
    for each in shown:
        each.began("convert", "reading")
        each.ended("convert")
    assert [line.split()[:2] for line in said.getvalue().splitlines()] == [["sub-a", "reading"], ["sub-b", "reading"]]
