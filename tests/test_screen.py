"""Rows that are drawn again and again, and whatever else is printed meanwhile: each line whole, and in its order."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from terminal import INTERRUPT, on_terminal

BEGIN = """
import os, sys, time
from rich.console import Console
from flows.engine import leave
from flows.screen import Screen

screen = Screen(Console(stderr=True), lambda columns: "\\n".join(["row " + "=" * (columns - 4)] * 3))
screen.open()
print("a result")
print("a warning", file=sys.stderr)
print("a line that", end="")
time.sleep(0.5)
os.write(2, b"of a library\\n")
time.sleep(0.5)
print(" ends")
"""
LINES = ["a result", "a warning", "of a library", "a line that ends"]


def python(script: str) -> list[str]:
    return [sys.executable, "-c", BEGIN + script]


@pytest.mark.parametrize("columns", [80, 30])
@pytest.mark.parametrize("lines", [24, 5])
def test_lines_of_all_kinds_stay_and_rows_go(columns: int, lines: int) -> None:
    with on_terminal(
        *python("screen.close()\nprint('after it')"), environment=dict(os.environ), columns=columns, lines=lines
    ) as terminal:
        terminal.see("row ===")
        assert terminal.end() == 0
    assert terminal.rows == [*LINES, "after it"]
    assert not terminal.screen.wrapped and b"\x1b[?25l" not in terminal.sent


@pytest.mark.parametrize("script", ["leave(3)", "print('last', end='')\nscreen.close()\nleave(3)"])
def test_a_process_that_leaves_at_once_takes_its_rows_with_it(script: str) -> None:
    with on_terminal(*python(script), environment=dict(os.environ)) as terminal:
        assert terminal.end() == 3
    assert terminal.rows == LINES + ["last"] * ("last" in script) and terminal.screen.cursor.x == 0


def test_the_echo_of_a_key_is_drawn_over() -> None:
    script = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('now')\ntime.sleep(2)\nscreen.close()"
    with on_terminal(*python(script), environment=dict(os.environ)) as terminal:
        terminal.see("now")
        terminal.press(INTERRUPT)
        assert terminal.end() == 0
    assert b"^C" in terminal.sent and terminal.rows == [*LINES, "now"]


def test_a_process_that_is_killed_leaves_a_usable_terminal() -> None:
    with on_terminal(*python("print('now')\ntime.sleep(60)"), environment=dict(os.environ)) as terminal:
        terminal.see("now")
        os.kill(terminal.process.pid, signal.SIGKILL)
        assert terminal.end() == -signal.SIGKILL
    assert terminal.rows[:5] == [*LINES, "now"] and terminal.screen.cursor.y == 5 and not terminal.screen.cursor.hidden


def test_a_process_that_is_suspended_gives_the_terminal_back_meanwhile() -> None:
    with on_terminal(*python("print('now')\ntime.sleep(3)\nscreen.close()"), environment=dict(os.environ)) as terminal:
        terminal.see("now")
        terminal.see("row ===")
        terminal.press(b"\x1a")
        terminal.see(lambda: state(terminal.process.pid) == "T" and "row ===" not in terminal.text)
        os.kill(terminal.process.pid, signal.SIGCONT)
        terminal.see("row ===")
        assert terminal.end() == 0
    assert terminal.rows == [*LINES, "now"]


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_rows_that_cannot_be_drawn_cost_no_line() -> None:
    script = "screen.rows = lambda columns: 1 / 0\ntime.sleep(1)\nprint('still there')\nscreen.close()"
    with on_terminal(*python(script), environment=dict(os.environ)) as terminal:
        assert terminal.end() == 0
    assert "still there" in terminal.rows and "ZeroDivisionError: division by zero" in terminal.rows
