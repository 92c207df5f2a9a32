"""Finished stages -> numbers, one function a metric, and a verdict for the reader.

`accuracy` compares with a truth, `plausibility` needs none, `verdict` holds the thresholds, `stage` puts them together.
"""

from pipeline.quality.accuracy import (
    calcification,
    dnrmse,
    hfen,
    nrmse,
    pearson,
    psnr,
    slope_deviation,
    xsim,
)
from pipeline.quality.plausibility import beyond_share, data_consistency, rim_energy, streak_index
from pipeline.quality.stage import brain_beside, evaluate, measure, read_truth
from pipeline.quality.verdict import CHECKS, judge

__all__ = [
    "CHECKS",
    "beyond_share",
    "brain_beside",
    "calcification",
    "data_consistency",
    "dnrmse",
    "evaluate",
    "hfen",
    "judge",
    "measure",
    "nrmse",
    "pearson",
    "psnr",
    "read_truth",
    "rim_energy",
    "slope_deviation",
    "streak_index",
    "xsim",
]
