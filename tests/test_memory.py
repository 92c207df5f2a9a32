"""Memory: what may fit is tried in turn, smaller each time, and an error that is not of memory is not swallowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_classical import phantom

from models import diffusion, dip
from models.cyclegan import CycleGAN
from models.diffusion import Diffusion
from pipeline import invert as inversion
from pipeline import memory
from pipeline.errors import ChironError
from pipeline.find.scan import Scan
from pipeline.learned import LEARNED, PATCHES, TILES
from pipeline.memory import check_room, first_that_fits, fits, free_memory_bytes, rungs, scan_bytes
from pipeline.volumes import Field, Grid

CPU = torch.device("cpu")
NEEDED = {0: 900, 160: 500, 80: 200}


def field() -> Field:
    p = phantom()
    inside = p.weight > 0
    sd = torch.where(inside, 1 / p.weight.clamp_min(1e-6), 1)
    return Field(p.field, sd, inside, Grid.simple(p.field.shape, p.dipole.voxel_size_mm))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a network's work in the given tiles run out of memory; returns the tiles that were tried."""

    def prepare(error: Exception, *large: int, model: Any = dip, edge: str = "tile") -> list[int]:
        real, tried = model.reconstruct, []

        def reconstruct(f: Any, w: Any, d: Any, params: Any, progress: Any) -> dip.Found:
            tried.append(getattr(params, edge))
            if tried[-1] in large:
                raise error
            return real(f, w, d, params, progress)

        monkeypatch.setattr(model, "reconstruct", reconstruct)
        return tried

    return prepare


def test_what_fits_is_tried_in_its_order_and_what_cannot_fit_only_as_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, tried in ((1 << 50, [0, 160, 80]), (600, [160, 80]), (1, [80])):
        monkeypatch.setattr(memory, "free_memory_bytes", lambda device, free=free: free)
        assert list(rungs(NEEDED, CPU)) == [(CPU, tile) for tile in tried]


@pytest.mark.parametrize(
    ("method", "params", "edges"),
    [
        ("dip", dip.DIP(), TILES),
        ("dip", dip.DIP(tile=96), (96,)),
        ("dip", dip.DIP(network="untrained"), (0,)),
        ("cyclegan", CycleGAN(), TILES),
        ("cyclegan", CycleGAN(refine=3, preset="seed"), TILES),
        ("cyclegan", CycleGAN(tile=96), (96,)),
        ("diffusion", Diffusion(patch=0), (0, *PATCHES)),
        ("diffusion", Diffusion(patch=128, overlap=48), (128, *PATCHES)),
        ("diffusion", Diffusion(patch=64, sampler="dps"), (64, 48)),
        ("diffusion", Diffusion(patch=48, overlap=20), (48,)),
    ],
)
def test_smaller_tiles_are_tried_that_need_less_and_are_allowed(
    method: str, params: Any, edges: tuple[int, ...]
) -> None:
    learned = LEARNED[method]
    assert learned.tiles(params) == edges
    in_tiles = [learned.in_tiles(params, edge) for edge in edges]  # the parameters' own checks are passed
    assert in_tiles[0] == params
    needed = [learned.needed_bytes((400, 400, 400), own) for own in in_tiles]
    assert needed == sorted(set(needed), reverse=True) and needed[-1] > 0


def test_a_pass_of_a_network_needs_less_than_a_fit() -> None:
    needed = [LEARNED["cyclegan"].needed_bytes((200, 200, 200), CycleGAN(refine=steps)) for steps in (0, 1, 30)]
    assert needed[0] < 0.6 * needed[1] and needed[1] == needed[2] == LEARNED["dip"].needed_bytes((200,) * 3, dip.DIP())


def test_a_card_comes_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 1 << 50)
    card = torch.device("cuda", 0)
    assert [device.type for device, _ in rungs(NEEDED, card)] == ["cuda"] * 3 + ["cpu"] * 3


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


def test_the_diffusion_prior_takes_smaller_patches_and_says_so(failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 1 << 50)
    params = Diffusion(steps=2, samples=1, patch=0, overlap=30, precision="float32")
    whole = inversion.invert(field(), "diffusion", params)
    tried = failing(MemoryError(), 0, 96, model=diffusion, edge="patch")
    small = inversion.invert(field(), "diffusion", params)
    assert tried == [0, 96, 48] and small.facts["too_large"] == ["the whole on cpu", "tiles of 96 on cpu"]
    torch.testing.assert_close(small.ppm, whole.ppm, rtol=0, atol=1e-6)  # of one patch
    failing(MemoryError(), 0, 96, 48, model=diffusion, edge="patch")
    with pytest.raises(ChironError, match=r"R002.*tiles of 48 on cpu"):
        inversion.invert(field(), "diffusion", params)


def test_where_nothing_fits_the_error_names_what_was_tried(failing: Any) -> None:
    failing(MemoryError(), *TILES)
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
    (tmp_path / "memory.stat").write_text("anon 2000\ninactive_file 3000\nactive_file 4000\nslab 100\n")
    assert free_memory_bytes(CPU) == 27000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes(CPU) == 50 * 1024


MEASURED = {  # shape, echoes -> bytes that a run on the CPU took at most
    ((76, 92, 76), 1): 711e6,
    ((76, 92, 76), 5): 760e6,
    ((96, 114, 96), 5): 830e6,
    ((128, 152, 128), 1): 960e6,
    ((128, 152, 128), 5): 1160e6,
    ((160, 190, 160), 5): 1429e6,
}


def scan(shape: tuple[int, ...] = (96, 114, 96), echoes: int = 5) -> Scan:
    times = tuple(0.004 * (1 + echo) for echo in range(echoes))
    return Scan("0" * 12, "x", "", "", "dicom", "other", (1,), times, ("magnitude", "phase"), (), shape=shape)


@pytest.mark.parametrize("size", MEASURED)
def test_the_estimate_is_above_what_was_measured_and_not_far(size: tuple[tuple[int, ...], int]) -> None:
    assert 1.1 < scan_bytes(scan(*size)) / MEASURED[size] < 1.5


def test_a_scan_must_have_room_in_every_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 3.5 * scan_bytes(scan()))
    check_room(scan(), 3)
    with pytest.raises(ChironError) as caught:
        check_room(scan(), 4)
    assert caught.value.code == "R004" and "5 echoes of 96 x 114 x 96 voxels" in str(caught.value)
    assert "4 workers" in str(caught.value)


def test_as_many_scans_run_at_once_as_fit_whichever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = scan((300, 300, 300)), scan((10, 10, 10))
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: (scan_bytes(large) + scan_bytes(small)) / 0.89)
    assert (fits([small, large]), fits([small, large, small]), fits([large, large]), fits([])) == (2, 2, 1, 1)


def test_a_scan_of_unknown_size_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 1 << 30)
    check_room(scan(()))
