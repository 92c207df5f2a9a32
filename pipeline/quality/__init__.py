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
from pipeline.quality.plausibility import (
    asymmetry,
    base,
    beyond_share,
    core,
    cut_share,
    dark_share,
    data_consistency,
    neighbour_correlation,
    rim_energy,
    robust_spread,
    streak_index,
    unexplained_share,
)
from pipeline.quality.stage import brain_beside, evaluate, measure, read_truth
from pipeline.quality.verdict import CHECKS, judge, limits

__all__ = [
    "CHECKS",
    "asymmetry",
    "base",
    "beyond_share",
    "brain_beside",
    "calcification",
    "core",
    "cut_share",
    "dark_share",
    "data_consistency",
    "dnrmse",
    "evaluate",
    "hfen",
    "judge",
    "limits",
    "measure",
    "neighbour_correlation",
    "nrmse",
    "pearson",
    "psnr",
    "read_truth",
    "rim_energy",
    "robust_spread",
    "slope_deviation",
    "streak_index",
    "unexplained_share",
    "xsim",
]
