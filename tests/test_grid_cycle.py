"""The part `cycle` of the grid: variants, tilts, scaled and strange scans, and the slopes that it tells."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_grid import TINY

import flows.grid
from flows.grid import cycle, grid
from flows.grid.page import page
from pipeline.quality.accuracy import slope
from pipeline.settings import load


def test_every_table_of_cyclegan_is_made_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    straight = replace(TINY, b0_dir=(0.0, 0.0, 1.0))
    for module in (flows.grid, flows.grid.cells):
        monkeypatch.setattr(module, "CELLS", {"tiny": straight})
    monkeypatch.setattr(cycle, "VARIANTS", {"full": {}, "refined by 1 step": {"refine": 1}})
    monkeypatch.setattr(cycle, "STRANGE", {"thick": {"voxel_mm": (5.0, 5.0, 9.0)}})
    scores = grid(["tiny"], ["tv"], load(device="cpu"), parts=["cycle"])
    tables = scores.tables
    assert [row["variant"] for row in tables["variants"]] == ["full", "refined by 1 step"]
    assert [(row["method"], row["tilt_deg"]) for row in tables["tilts"]] == [
        (method, tilt) for tilt in cycle.TILTS for method in ("tv", "cyclegan")
    ]
    assert all(0 < row["nrmse"] < 150 and row["misfit"] > 0 for row in tables["variants"] + tables["tilts"])
    assert [row["factor"] for row in tables["scaled"]] == [-1.0, 0.5, 2.0]
    assert tables["strange"][0]["flagged"].startswith("voxels")
    text = page(scores, "the defaults")
    assert "chiron grid --part cycle" in text and "| `refined by 1 step` |" in text
    assert text.count("## CycleQSM") == 4 and "5 x 5 x 9" not in text and "voxels" in text


def test_slopes_are_one_of_the_truth_and_half_of_half() -> None:
    labels = torch.zeros((24, 24, 24), dtype=torch.int16)
    labels[4:8, 4:8, 4:8], labels[14:18, 4:8, 4:8] = 1, 2
    labels[12, 12:22, 12:14] = cycle.VEIN
    truth = 0.1 * labels.float()
    mask = torch.ones_like(labels, dtype=torch.bool)
    assert cycle.vein_slope(truth, truth, mask, labels) == pytest.approx(1)
    assert cycle.vein_slope(truth / 2 + 3, truth, mask, labels) == pytest.approx(0.5, rel=1e-4)
    assert slope(truth / 2, truth, mask, labels, (1, 2)) == pytest.approx(0.5)
    assert slope(-truth, truth, mask, labels, (1, 2)) == pytest.approx(-1)
    assert math.isnan(cycle.vein_slope(truth, truth, mask, labels * 0))
