"""The benchmark: FFTs are counted and timed, every method is a step, failures are rows, the page has its form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import flows.bench
from flows.bench import Plan, Row, bench, floor, measure
from flows.bench.case import Case, make
from flows.bench.page import page
from flows.bench.steps import Ready, Step, steps
from flows.cli import execute
from pipeline.background import PARAMS as BACKGROUNDS
from pipeline.errors import ChironError
from pipeline.invert import CLASSICAL

SHAPE, COARSE = (32, 36, 31), (30, 32, 28)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("case")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.bench.case.COARSE", COARSE)
        make(folder, SHAPE, 3)
    return Case(folder, SHAPE, 2)


def test_every_fft_is_counted_with_its_size() -> None:
    from torch.fft import rfftn as by_another_name

    volume = torch.randn(3, 10, 12, 15)
    with floor.CountFFTs() as ffts:
        spectrum = by_another_name(volume, s=(12, 12, 15), dim=(1, 2, 3))
        torch.fft.irfftn(spectrum, s=(12, 12, 15), dim=(1, 2, 3))
        torch.fft.fftn(volume[0].to(torch.complex64))
    assert ffts.volumes == 3 + 3 + 2
    assert sorted(kind.grid for kind in ffts.calls) == [(10, 12, 15), (12, 12, 15), (12, 12, 15)]
    assert ffts.seconds(CPU) > 0
    torch.fft.rfftn(volume)
    assert ffts.volumes == 8


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is clocked takes 0.01 s."""
    monkeypatch.setattr(floor, "clocked", lambda run, device: (0.01, run()))


@pytest.mark.usefixtures("ticks")
def test_the_floor_grows_with_the_number_of_ffts() -> None:
    volume, counted = torch.randn(64, 64, 64), {}
    for number in (1, 20):
        with floor.CountFFTs() as ffts:
            for _ in range(number):
                torch.fft.rfftn(volume)
        counted[number] = floor.floor(ffts, floor.CountFlops(), volume, 0, CPU)
    assert counted[1][0] == pytest.approx(0.01) and counted[20][0] == pytest.approx(20 * 0.01)
    assert counted[20][1] == "20 FFTs, 64x64x64"


@pytest.mark.usefixtures("ticks")
def test_without_ffts_the_floor_is_one_pass_over_inputs_and_outputs() -> None:
    volume = torch.zeros(1000)
    assert floor.bytes_of((volume, {"again": volume}, [Row("cpu", SHAPE, 1, ""), volume[:10]])) == 4000 + 40
    seconds, what = floor.floor(floor.CountFFTs(), floor.CountFlops(), torch.zeros(250_000), 2_000_000, CPU)
    assert what == "3 MB" and seconds == pytest.approx(3e6 / (2 * floor.COPY_BYTES / 0.01))


def test_the_head_is_realistic_and_deterministic(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.bench.case.COARSE", COARSE)
    make(tmp_path, SHAPE, 3)
    again = Case(tmp_path, SHAPE, 2)
    assert torch.equal(case.scan().phase_rad, again.scan().phase_rad)
    assert 0.1 < float(case.mask().float().mean()) < 0.4
    assert tuple(case.scan().magnitude.shape) == (2, *SHAPE)
    inside = case.mask() & (case.field("local").sd_ppm < 0.01)
    assert float(case.field("local").ppm[inside].std()) < 0.5 * float(case.field("total").ppm[inside].std())


def test_every_method_is_a_step_and_only_steps_on_echoes_depend_on_them() -> None:
    known = steps()
    for name in [*(f"background-{m}" for m in BACKGROUNDS), *(f"invert-{m}" for m in CLASSICAL)]:
        assert not known[name].by_echoes
    plan = Plan([(9, 9, 9), (8, 8, 8)], (6, 3), ("cpu",), ["unwrap", "invert-tkd"], 1)
    assert plan.runs() == [
        ("cpu", shape, echoes, step)
        for shape in ((8, 8, 8), (9, 9, 9))
        for echoes, step in ((3, "unwrap"), (3, "invert-tkd"), (6, "unwrap"))
    ]


@pytest.mark.parametrize(
    "step",
    [
        "unwrap",
        "field",
        "background-vsharp",
        "invert-tkd",
        "diffusion-step",
        "cyclegan-pass",
        "r2star",
        "swi",
        "default-path",
    ],
)
def test_a_step_is_measured(case: Case, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("ENOUGH_S", "LONG_S"):  # or a busy machine would have time for one run only
        monkeypatch.setattr(measure, limit, float("inf"))
    row = measure.run_step(case, step, 2)
    assert row.error == ""
    assert row.seconds > 0 and row.floor_s > 0 and row.ratio == row.seconds / row.floor_s
    assert row.runs == 2 and row.peak_bytes > row.extra_bytes >= 0
    assert (row.echoes is None) == (step in ("background-vsharp", "invert-tkd", "diffusion-step", "cyclegan-pass"))


def test_extra_memory_is_what_a_step_takes() -> None:
    def take() -> None:
        torch.zeros(50_000_000)

    row = measure.measure(("cpu", SHAPE, 1, "take"), Ready((), take), 1)
    assert row.extra_bytes == pytest.approx(200e6, rel=0.1)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (torch.OutOfMemoryError("x"), "out of memory"),
        (RuntimeError("not enough memory: you tried"), "out of memory"),
        (ChironError("P007", "an empty mask"), "P007: an empty mask"),
        (ValueError("odd\nmore"), "ValueError: odd"),
    ],
)
def test_a_failure_is_a_row(case: Case, fault: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise fault

    monkeypatch.setattr(measure, "steps", lambda: {"failing": Step(lambda case: Ready((), fail), False)})
    row = measure.run_step(case, "failing", 1)
    assert row.error == told and math.isnan(row.seconds)
    assert f"not run: {told}" in page([row])


def test_each_step_has_a_process_of_its_own() -> None:
    said: list[str] = []
    rows = list(bench(Plan([(24, 26, 25)], (2,), ("cpu",), ["field"], 1), said.append))
    assert [(row.step, row.error) for row in rows] == [("field", "")]
    assert rows[0].peak_bytes != measure._status("VmHWM")
    assert "24x26x25" in said[0] and "[1/1]" in said[1] and "field" in said[1]


def rows() -> Iterator[Row]:
    for shape, seconds in (((10, 10, 10), 0.5), ((20, 20, 20), 4.0)):
        yield Row("cpu", shape, None, "invert-tv", seconds, 0.25, "84 FFTs, 12x12x12", 10**9, 10**8, 3)
        yield Row("cuda:0", shape, 3, "mask", error="out of memory")


def test_the_page_shows_ratios_growth_and_the_machine() -> None:
    text = page(list(rows()))
    assert "| `invert-tv` |  | 0.5 | 84 FFTs, 12x12x12 | 0.25 | 2.0 | 1000 | 100 | 3 |" in text
    assert "| `invert-tv` |  | 0.5 | 4 | 1.00 |" in text
    assert "## cpu" in text and "## cuda:0" in text and "### 20 x 20 x 20" in text
    assert f"torch {torch.__version__}" in text
    for line in text.splitlines():
        if line.startswith("| `"):
            assert line.count("|") in (10, 6)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--size", "160x160"], 2),
        (["--size", "8x8x8"], 2),
        (["--echoes", "0"], 2),
        (["--step", "guess"], 2),
        (["--device", "cuda:99"], 16),
        (["--step", "invert-tkd", "--output", "absent/page.md"], 14),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.bench, "bench", lambda plan, say: iter(()))
    assert execute(["bench", *words]) == code


def test_options_reach_the_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Plan] = []

    def measured(plan: Plan, say: object) -> Iterator[Row]:
        seen.append(plan)
        return rows()

    monkeypatch.setattr(flows.bench, "bench", measured)
    assert execute(["bench", "--device", "cpu", "--output", str(tmp_path / "page.md")]) == 0
    assert execute(["bench", "--quick", "--device", "cpu", "--step", "background,mask"]) == 0
    assert "invert-tv" in (tmp_path / "page.md").read_text()
    full, quick = seen
    assert (full.sizes, full.echoes, full.repeat) == (flows.bench.SIZES, (3, 6), 3)
    assert list(full.steps) == list(steps())
    assert (list(quick.sizes), quick.repeat) == ([(96, 96, 96)], 1)
    assert list(quick.steps) == [*(f"background-{m}" for m in BACKGROUNDS), "mask"]


@pytest.mark.usefixtures("ticks")
def test_convolutions_are_counted_and_taken_at_the_rate_of_a_matrix_product() -> None:
    volume, kernel = torch.randn(1, 8, 40, 40, 40), torch.randn(16, 8, 3, 3, 3)
    with floor.CountFlops() as flops:
        for _ in range(3):
            torch.nn.functional.conv3d(volume, kernel, padding=1)
    assert flops.total == 3 * 2 * 16 * 8 * 27 * 40**3
    seconds, what = floor.floor(floor.CountFFTs(), flops, volume, 0, CPU)
    assert what == "1 GFLOP" and seconds == pytest.approx(flops.total / (2 * 2048**3 / 0.01))
