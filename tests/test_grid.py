"""The grid of simulated heads: its cells, what is scored of them, the page and JSON, and its command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import flows.grid
from flows.cli import execute
from flows.grid import CELLS, QUICK, Scores, grid
from flows.grid.cells import Anatomy, Cell, anatomies, simulate
from flows.grid.page import COLUMNS, STEPS, page
from flows.grid.score import dipole, needed, whole, wrong_wraps
from models.gre import Simulation
from pipeline.errors import ChironError
from pipeline.invert import CLASSICAL, FROM_TOTAL
from pipeline.recipe import recipe
from pipeline.settings import Settings, load
from pipeline.volumes import GAMMA_MHZ_PER_T

TINY = Cell((5.0, 5.0, 6.0), snr=50.0, b0_dir=(0.2, 0.0, 1.0), echo_times_s=(0.004, 0.009, 0.014),
            lesions=("calcification",))  # fmt: skip
METRICS = ("nrmse", "dnrmse", "hfen", "xsim", "xsim_uniform5", "psnr", "psnr_range_ppm", "r", "dnrmse_tissue",
           "dnrmse_dgm", "dnrmse_blood", "slope_deviation")  # fmt: skip


@pytest.fixture(scope="module")
def scan() -> Simulation:
    return simulate(TINY, Anatomy("procedural 1", 1))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cells", ""):
        module = getattr(flows.grid, name) if name else flows.grid
        monkeypatch.setattr(module, "CELLS", {"tiny": TINY, "other": replace(TINY, lesions=())})


def test_cells_cover_what_scans_differ_in() -> None:
    cells = CELLS.values()
    assert {cell.voxel_mm for cell in cells} == {(1, 1, 1), (2, 2, 2), (1, 1, 2)}
    assert {lesion for cell in cells for lesion in cell.lesions} == {"calcification", "haemorrhage"}
    assert {30, 100} <= {cell.snr for cell in cells} and {3, 7} == {cell.b0_tesla for cell in cells}
    assert any(cell.b0_dir == (0, 0, 1) for cell in cells) and any(cell.b0_dir != (0, 0, 1) for cell in cells)
    assert all(cell.bipolar == (cell.b0_tesla == 7) for cell in cells)
    for cell in cells:
        assert cell.fine_mm == (1, 1, 1)
    assert all(CELLS[name].voxel_mm == (2, 2, 2) for name in QUICK) and len(QUICK) >= 2


def test_anatomies_differ_from_cell_to_cell_and_seed_to_seed() -> None:
    maps = [Path("a"), Path("b"), Path("c")]
    found = [a for place in range(3) for a in anatomies((1, 11), place, maps)]
    procedural = [a.seed for a in found if a.labels is None]
    assert len(set(procedural)) == 6
    assert {a.labels for a in found if a.labels} == set(maps)
    assert [a.name for a in anatomies((4,), 2, [])] == ["procedural 6"]


def test_a_cell_is_scanned_as_it_says(scan: Simulation) -> None:
    assert scan.voxel_size_mm == TINY.voxel_mm and scan.echo_times_s == TINY.echo_times_s
    assert scan.b0_dir == pytest.approx(tuple(np.array(TINY.b0_dir) / np.linalg.norm(TINY.b0_dir)))
    assert tuple(scan.head.brain.shape) == (35, 41, 29)
    coarse = simulate(replace(TINY, voxel_mm=(10.0, 5.0, 6.0), oversample=(2, 1, 1)), Anatomy("", 1))
    assert tuple(coarse.head.brain.shape) == (17, 41, 29) and coarse.voxel_size_mm == (10, 5, 6)


def test_the_dipole_step_gives_every_metric_of_every_method(scan: Simulation) -> None:
    rows = list(dipole(scan, TINY.snr, list(CLASSICAL), Settings(device="cpu")))
    assert [row["method"] for row in rows] == [m for m in CLASSICAL if m not in FROM_TOTAL]
    for row in rows:
        assert set(METRICS) <= row.keys() and row["seconds"] > 0
        assert 0 < row["nrmse"] < 90


def test_settings_change_the_scores(scan: Simulation) -> None:
    (plain,), (changed,) = (
        dipole(scan, TINY.snr, ["tkd"], load(words=words, device="cpu")) for words in ((), ("tkd.threshold=0.4",))
    )
    assert plain["nrmse"] != changed["nrmse"]


def test_the_whole_way_is_the_recipe_and_its_steps_are_scored(scan: Simulation) -> None:
    steps, rows = whole(scan, TINY.snr, ["tkd", "tikhonov"], Settings(device="cpu"))
    assert set(STEPS) == steps.keys()
    assert 0.5 < steps["mask_dice"] <= 1 and 0 < steps["brain_kept_percent"] <= 100
    assert [row["method"] for row in rows] == ["tkd", "tikhonov"]
    assert all(set(METRICS) <= row.keys() for row in rows)
    (alone,) = dipole(scan, TINY.snr, ["tkd"], Settings(device="cpu"))
    assert rows[0]["nrmse"] > alone["nrmse"]


def test_a_method_or_step_that_fails_is_a_row(scan: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise ChironError("P007", "an empty mask")

    monkeypatch.setattr("flows.grid.score.invert", fail)
    assert list(dipole(scan, 50, ["tkd"], Settings(device="cpu"))) == [
        {"method": "tkd", "error": "P007: an empty mask"}
    ]
    monkeypatch.setattr("pipeline.recipe.stages.make_mask", fail)
    assert whole(scan, 50, ["tkd"], Settings(device="cpu")) == ({"error": "P007: an empty mask"}, [])


def test_only_what_the_methods_need_is_run() -> None:
    stages = needed(recipe(Settings(method="tkd")), {"invert-tkd"})
    names = [stage.name for stage in stages]
    assert names[-1] == "invert-tkd" and {"mask", "unwrap", "field", "background"} <= set(names)
    assert not {"convert", "quality", "invert-tv"} & set(names)


def test_wrong_wraps_are_counted_where_there_is_signal(scan: Simulation) -> None:
    inside = scan.head.brain.bool()
    turns = 2 * math.pi * GAMMA_MHZ_PER_T * scan.b0_tesla * torch.tensor(scan.echo_times_s).view(-1, 1, 1, 1)
    true = turns * scan.total_ppm
    assert wrong_wraps(true, scan, inside, TINY.snr) == 0
    brightest = int((scan.signal[2].abs() * inside).argmax())
    true[2].view(-1)[brightest] += 2 * math.pi
    assert wrong_wraps(true, scan, inside, TINY.snr) == pytest.approx(100 / float(inside.sum()))
    silent = replace(scan, signal=scan.signal * torch.tensor([1.0, 1.0, 1e-9]).view(-1, 1, 1, 1))
    assert wrong_wraps(true, silent, inside, TINY.snr) == 0


@pytest.mark.usefixtures("tiny")
def test_the_grid_scores_every_cell_and_its_page_and_json_hold_it_all() -> None:
    said: list[str] = []
    scores = grid(["tiny", "other"], ["tkd", "tikhonov"], Settings(device="cpu"), say=said.append)
    assert len(scores.dipole) == len(scores.whole) == 4 and len(scores.steps) == 2
    plain = json.loads(json.dumps(scores.json(), allow_nan=False))
    assert plain["cells"]["tiny"]["snr"] == 50 and plain["settings"]["device"] == "cpu"
    assert {row["cell"] for row in plain["whole"]} == {"tiny", "other"}
    assert any("tkd" in line and "whole way" in line for line in said)
    text = page(scores, "the defaults")
    for title in [*COLUMNS.values(), *STEPS.values()]:
        assert f"| {title} |" in text
    assert text.count("| `tiny` |") == 1 + 2 + 1 + 2


def test_the_page_tells_median_worst_and_failure() -> None:
    rows = [{"cell": "a", "anatomy": "x", "method": "tv", "nrmse": n, "xsim": n / 100} for n in (10.0, 20.0, 60.0)]
    failed = {"cell": "b", "anatomy": "x", "method": "tv", "error": "M001: diverged"}
    text = page(Scores(Settings(), {}, dipole=[*rows, failed]), "tv.strength=20")
    assert "20 (60)" in text and "0.2 (0.1)" in text and "failed: M001" in text and "tv.strength=20" in text


def test_label_maps_are_heads_too_and_bad_ones_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    nib.save(nib.Nifti1Image(np.full((40, 40, 40), 9999, np.int16), np.diag([5.0, 5.0, 5.0, 1.0])), bad)
    with pytest.raises(ChironError, match="X002") as caught:
        simulate(TINY, Anatomy("label map 1", 1, bad))
    assert "label map 1" in caught.value.found and str(tmp_path) not in caught.value.found


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--cells", "moon"], 2),
        (["--method", "guess"], 2),
        (["--part", "half"], 2),
        (["--seeds", "one"], 2),
        (["--set", "tkd.treshold=1"], 15),
        (["--device", "cuda:99"], 16),
        (["--labels", "absent"], 13),
        (["--labels", "."], 2),
        (["--output", "absent/page.md"], 14),
    ],
)
def test_what_cannot_be_scored_is_refused(
    words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flows.grid, "grid", lambda *args, **more: Scores(Settings(), {}))
    assert execute(["grid", *words]) == code


@pytest.mark.usefixtures("tiny")
def test_the_command_writes_page_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--output", str(tmp_path / "page.md"), "--json", str(tmp_path / "scores.json")]
    words = ["--cells", "tiny", "--method", "tkd", "--part", "dipole", "--set", "tkd.threshold=0.2", "--seeds", "3,4"]
    assert execute(["grid", *words, "--device", "cpu", *files]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert [row["anatomy"] for row in found["dipole"]] == ["procedural 3", "procedural 4"] and not found["whole"]
    assert "tkd.threshold=0.2" in (tmp_path / "page.md").read_text()
    said = capsys.readouterr()
    assert "procedural 4, dipole step: tkd" in said.err and said.out == ""
