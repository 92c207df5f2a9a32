"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each
    for library in ("OMP", "NUMBA"):  # Numba's first kernel would give torch its own number, which is all cores
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
os.environ.pop("PREFECT_API_URL", None)  # nothing is reported to a server of whoever runs the tests


@pytest.fixture
def shared_data() -> Path:
    """The folder of real scans beside the checkout; the test skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared folder of real scans is not beside this checkout")
    return folder
