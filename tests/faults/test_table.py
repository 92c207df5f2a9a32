"""Every row of the table of faults has a test that bears its number, and a code of the catalogue."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pipeline.errors import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
ROWS = range(1, 86)
LINE = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
TABLE = {int(row): rest for row, *rest in LINE.findall((ROOT / "docs" / "faults.md").read_text())}


def names() -> list[str]:
    """Names of all tests of faults."""
    found = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        tree = ast.parse(path.read_text())
        found += [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [name for name in found if name.startswith("test_")]


def rows_of(name: str) -> range:
    """`test_7_...` -> 7; `test_57_60_...` -> 57 to 60."""
    number = re.match(r"test_(\d+)_(?:(\d+)_)?", name)
    return range(int(number[1]), int(number[2] or number[1]) + 1) if number else range(0)


COVERED = {row for name in names() for row in rows_of(name)}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_test(row: int) -> None:
    assert row in COVERED


def test_no_test_bears_the_number_of_a_row_that_is_not_there() -> None:
    assert set(ROWS) >= COVERED and rows_of("test_3_4_x") == range(3, 5) and rows_of("test_x") == range(0)


def test_the_documented_table_has_every_row_once_and_real_codes() -> None:
    assert list(TABLE) == list(ROWS)
    for row, (fault, answer, codes) in TABLE.items():
        assert fault and answer, row
        named = re.findall(r"[FGEPRMSX]\d{3}", codes)
        assert set(named) <= CATALOGUE.keys() and (named or codes == "none"), row


def test_every_code_of_reading_and_running_stands_in_the_table() -> None:
    """All but those that no fault from outside brings about, or that quality alone tells."""
    said = set(re.findall(r"[FGEPRMSX]\d{3}", (ROOT / "docs" / "faults.md").read_text()))
    assert CATALOGUE.keys() - said == set()
