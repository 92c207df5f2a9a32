"""The embedded Prefect where it cannot start: a coded error, in time, and nothing left of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import flows.engine
from flows.engine import orchestrator
from pipeline.child import program
from pipeline.errors import ChironError
from pipeline.lock import try_lock


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Without a Prefect in the environment, which is as before in the end."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("PREFECT_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def test_a_start_lock_that_is_held_is_named(tmp_path: Path) -> None:
    with (tmp_path / "server.lock").open("a") as other:
        assert try_lock(other.fileno())
        with pytest.raises(ChironError) as caught, orchestrator(tmp_path, start_within_s=0.2):
            pass
    assert (caught.value.code, caught.value.fault.exit) == ("R007", 18)
    assert "start" in caught.value.found and "PREFECT_API_URL" not in os.environ


def test_a_server_that_dies_at_its_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.engine.child, "python", lambda *words: program("/bin/false"))
    with pytest.raises(ChironError) as caught, orchestrator(tmp_path):
        pass
    assert caught.value.code == "R007" and "PREFECT_API_URL" not in os.environ
