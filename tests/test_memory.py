"""Memory: what may fit is tried in turn, smaller each time, and an error that is not of memory is not swallowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_classical import phantom

from models import dip
from pipeline import invert as inversion
from pipeline import memory
from pipeline.errors import ChironError
from pipeline.memory import first_that_fits, free_memory_bytes, needed_bytes, rungs
from pipeline.volumes import Field, Grid

CPU = torch.device("cpu")
LARGE = (400, 400, 400)


def field() -> Field:
    p = phantom()
    inside = p.weight > 0
    sd = torch.where(inside, 1 / p.weight.clamp_min(1e-6), 1)
    return Field(p.field, sd, inside, Grid.simple(p.field.shape, p.dipole.voxel_size_mm))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let fits of the given tiles run out of memory; returns the tiles that were tried."""

    def prepare(error: Exception, *large: int) -> list[int]:
        real, tried = dip.reconstruct, []

        def reconstruct(f: Any, w: Any, d: Any, params: dip.DIP, progress: Any) -> dip.Found:
            tried.append(params.tile)
            if params.tile in large:
                raise error
            return real(f, w, d, params, progress)

        monkeypatch.setattr(dip, "reconstruct", reconstruct)
        return tried

    return prepare


def test_what_fits_is_tried_whole_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(rungs((40, 40, 40), CPU, 0, True)) == [(CPU, tile) for tile in memory.TILES]
    assert list(rungs((40, 40, 40), CPU, 0, False)) == [(CPU, 0)]
    assert list(rungs((40, 40, 40), CPU, 96, True)) == [(CPU, 96)]


def test_what_cannot_fit_is_not_tried_but_for_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: needed_bytes(LARGE, 160) * 1.2)
    assert [tile for _, tile in rungs(LARGE, CPU, 0, True)] == [160, 80]
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 1)
    assert [tile for _, tile in rungs(LARGE, CPU, 0, True)] == [80]


def test_tiles_need_less_the_smaller_they_are() -> None:
    whole, large, small = (needed_bytes(LARGE, tile) for tile in memory.TILES)
    assert whole > large > small > 0


def test_a_card_comes_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 1 << 50)
    card = torch.device("cuda", 0)
    assert [device.type for device, _ in rungs(LARGE, card, 0, True)] == ["cuda"] * 3 + ["cpu"] * 3


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_a_fit_that_runs_out_of_memory_is_done_in_tiles_and_says_so(failing: Any, error: Exception) -> None:
    params = dip.DIP(iterations=1, precision="float32")
    whole = inversion.invert(field(), "dip", params)
    tried = failing(error, 0)
    tiled = inversion.invert(field(), "dip", params)
    assert tried == [0, 160] and tiled.facts["too_large"] == ["the whole on cpu"]
    assert "too_large" not in whole.facts
    torch.testing.assert_close(tiled.ppm, whole.ppm, rtol=0, atol=1e-5)


def test_where_nothing_fits_the_error_names_what_was_tried(failing: Any) -> None:
    failing(MemoryError(), *memory.TILES)
    with pytest.raises(ChironError) as caught:
        inversion.invert(field(), "dip", dip.DIP(iterations=1))
    assert caught.value.code == "R002" and "tiles of 80 on cpu" in caught.value.found


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def work(device: torch.device, tile: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        first_that_fits(work, iter([(CPU, 0)]))


def test_the_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_memory_bytes(CPU) == memory.UNKNOWN
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:       50 kB\n")
    assert free_memory_bytes(CPU) == 50 * 1024
    (tmp_path / "memory.max").write_text("30000\n")
    (tmp_path / "memory.current").write_text("10000\n")
    assert free_memory_bytes(CPU) == 20000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes(CPU) == 50 * 1024
