"""Words that name scans of an output folder, with or without their prefixes; what is said where there are none such."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli import execute
from flows.subjects import labels_in, matching
from pipeline.errors import CATALOGUE, ChironError
from pipeline.find import SetAside
from pipeline.publish import prepare, record_set_aside

LABELS = ["sub-abc_ses-1", "sub-abc_ses-2_run-1", "sub-abd", "sub-abd_acq-a_run-1", "unknown"]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two scans of a subject that were set aside, one of another."""
    prepare(tmp_path / "out")
    record_set_aside(tmp_path / "out", [SetAside(label, "E001", "an echo is missing", 3) for label in LABELS])
    return tmp_path / "out"


ABC, ABD = LABELS[:2], LABELS[2:4]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["abc"], ABC),
        (["sub-abc"], ABC),
        (["SUB-abd"], ABD),
        (["sub-abc_ses-1"], ABC[:1]),
        (["sub-abc_ses-2_run-1"], ABC[1:]),
        (["abc", "2"], ABC[1:]),
        (["abc", "ses-2", "run-1"], ABC[1:]),
        (["", "ses-1"], ABC[:1]),
        (["", "", ""], LABELS[:4]),
        (["sub-abd_acq-a_run-1"], ABD[1:]),
        (["sub-abd_acq-a"], ABD[1:]),
    ],
)
def test_each_may_have_its_prefix(words: list[str], expected: list[str]) -> None:
    assert matching(LABELS, *words) == set(expected)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nobody"], "no subject sub-nobody"),
        (["abe"], "Did you mean sub-ab"),
        (["ABC"], "Did you mean sub-abc?"),
        (["abc", "3"], "no session ses-3"),
        (["abd", "1"], "no session ses-1"),
        (["abc", "2", "9"], "no run run-9"),
        (["abd_acq-a_run-1", "", "2"], "no run run-2"),
        (["abd_acq-b"], "no part acq-b"),
        (["", "nobody"], "ses-1, ses-2"),
        (["unknown"], "no subject sub-unknown"),
        (["sub-"], "no subject sub-"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(words: list[str], told: str) -> None:
    with pytest.raises(ChironError) as caught:
        matching(LABELS, *words)
    assert caught.value.code == "X005" and CATALOGUE["X005"].exit == 11
    assert told in caught.value.sentence() and "chiron status" in caught.value.todo


def test_of_many_only_near_ones_are_named() -> None:
    with pytest.raises(ChironError) as caught:
        matching([f"sub-p{number:03}" for number in range(200)], "p07")
    assert "one of 200" in caught.value.sentence() and "Did you mean sub-p" in caught.value.sentence()


@pytest.mark.parametrize(
    "words", [["report", "nobody"], ["report", "sub-nobody"], ["reprocess", "nobody"], ["reprocess", "--session", "9"],
              ["reprocess", "abc", "--session", "9"], ["reprocess", "sub-nobody", "--dry-run"]], ids=" ".join
)  # fmt: skip
def test_commands_say_that_there_is_none_such(
    words: list[str], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = words
    assert execute([command, str(output), *rest]) == 11
    said = capsys.readouterr()
    assert said.err.startswith("X005") and "--all" in said.err and said.out == ""


def test_a_subject_without_a_report_is_there_all_the_same(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert labels_in(output) == sorted(LABELS)
    assert execute(["report", str(output), "sub-abc_ses-1"]) == 11
    said = capsys.readouterr().err
    assert "sub-abc_ses-1" in said and "set aside E001" in said and "ses-2" not in said
    assert execute(["report", str(output), ""]) == 2
