"""Prefect's server where it cannot start: a coded error, in time, and nothing left of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import flows.engine
from flows.engine import trial_server
from pipeline.child import program
from pipeline.errors import ChironError


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Without a Prefect in the environment, which is as before in the end."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("PREFECT_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def test_a_server_that_dies_at_its_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.engine.child, "python", lambda *words: program("/bin/false"))
    with pytest.raises(ChironError) as caught, trial_server(tmp_path):
        pass
    assert (caught.value.code, caught.value.fault.exit) == ("R007", 18) and "PREFECT_API_URL" not in os.environ


def test_a_server_that_does_not_answer_in_time_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.engine.child, "python", lambda *words: program("/bin/sleep", "60"))
    with pytest.raises(ChironError, match="R007"), trial_server(tmp_path, start_within_s=0.3):
        pass
    assert "PREFECT_API_URL" not in os.environ
