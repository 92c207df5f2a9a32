"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flows.demo import Simulated

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each
    for library in ("OMP", "NUMBA"):  # Numba's first kernel would give torch its own number, which is all cores
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as of a job in the background: what tests start would ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("PREFECT_API_URL", None)  # nothing is reported to a server of whoever runs the tests


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """The demo's scan in voxels of 6 mm, made once for all workers: whoever changes its files takes a copy of them."""
    from flows.demo import simulate
    from pipeline.lock import locked

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with locked(folder / "demo.lock"):
        return simulate(folder / "demo", "siemens", 6.0, 1)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real scans beside the checkout; the test skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared folder of real scans is not beside this checkout")
    return folder
