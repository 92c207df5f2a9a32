"""Facts of the stages -> tables of numbers in plain words, each with its unit and which direction is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.quality.verdict import limits
from pipeline.report.found import Found, name_of, number

Better = Literal["lower", "higher", "near 1", ""]


@dataclass(frozen=True)
class Meaning:
    """How a number is called, its unit, a factor to that unit, which direction is better, and what it says."""

    name: str
    unit: str = ""
    factor: float = 1
    better: Better = ""
    says: str = ""


@dataclass(frozen=True)
class Row:
    """One number of the page."""

    name: str
    value: str
    unit: str
    says: str
    limits: str = ""


@dataclass(frozen=True)
class Comparison:
    """Numbers of the methods side by side: `rows` of (meaning, values, index of the best, limits of the verdict)."""

    title: str
    note: str
    methods: tuple[str, ...]
    rows: tuple[tuple[Meaning, tuple[str, ...], int | None, str], ...]


SCAN = {
    "echoes": Meaning("Echoes", says="Three or more can be checked against each other."),
    "first_echo_ms": Meaning("First echo, as at 3 T", "ms", says="TE × B0 / 3 T."),
    "last_echo_ms": Meaning("Last echo, as at 3 T", "ms", says="TE × B0 / 3 T. Phase contrast peaks near 30 to 60 ms."),
    "longest_edge_mm": Meaning("Longest edge of a voxel", "mm", says="Small nuclei are some millimetres across."),
    "field_noise_ppm": Meaning("Noise of the field inside", "ppm", says="Tissue makes fields of about 0.008 ppm."),
    "volume_ml": Meaning("Volume of the brain mask", "ml", says="A whole adult brain is about 1000 to 1700 ml."),
    "components": Meaning("Pieces of the brain mask", says="One is expected."),
    "cut_share": Meaning("Brain cut by the volume's edge", "%", 100, says="Of its largest cross-section."),
    "base_dark_share": Meaning(
        "Dark voxels at the base of the mask",
        "%",
        100,
        says="In its lowest 30 mm: bone and air are dark, brain is not.",
    ),
    "eroded_share": Meaning("Rim lost", "%", 100, says="Share of the brain mask that the map does not cover."),
    "unreliable_share": Meaning("Left out by unwrapping", "%", 100, says="At the rim, where turns are not known."),
    "wraps_left": Meaning("Phase jumps left", "%", 100, says="Share of neighbours with a jump of more than π."),
    "wraps_left_voxels": Meaning("Voxels at a phase jump", "voxels", says="In the first echo; later ones follow it."),
    "excluded_share": Meaning("Echoes that disagree", "%", 100, says="Share of voxels that fit no field: no weight."),
    "fit_residual": Meaning("Residual of the field fit", says="How far the echoes disagree on one field; 0 is none."),
    "median_sd_ppm": Meaning("Noise of the field", "ppm", says="Median standard deviation in the mask."),
    "odd_voxels": Meaning("Voxels that fit no χ", "voxels", says="Near the rim; taken off by background removal."),
    "bridged": Meaning("Voxels bridged", "voxels", says="Near the rim; their field is that of their neighbours."),
    "harmonic_share": Meaning(
        "Smooth share of the local field", "%", 100, says="Of low harmonics: background that was left, or tissue."
    ),
    "rim_excess": Meaning("Local field at the rim", says="RMS within 4 mm of the rim over that deeper inside."),
    "median_r2star": Meaning(
        "R2*", "1/s", says="Median in the mask; about 20 in a brain at 3 T, growing with the field."
    ),
    "median_r2star_sd": Meaning("Noise of R2*", "1/s", says="Median standard deviation in the mask."),
    "clipped_negative": Meaning("R2* below zero", "voxels", says="Set to zero: noise where the decay is slow."),
    "clipped_high": Meaning("R2* beyond its limit", "voxels", says="Set to the limit: signal lost near air."),
    "snr": Meaning("Signal-to-noise ratio", says="Median of the first echo in the mask over its noise."),
}
PLAUSIBILITY = {
    "core_spread_ppm": Meaning(
        "Contrast of χ inside the brain", "ppm", says="Half of the 16th to 84th percentile, 5 mm from the rim on."
    ),
    "spread_ppm": Meaning("Standard deviation of χ", "ppm", says="About 0.03 to 0.06 ppm in a healthy brain."),
    "asymmetry": Meaning("Bright against dark extremes", says="Above 0: veins and iron are bright, as they should be."),
    "neighbour_correlation": Meaning("Likeness of neighbours", says="Correlation of voxels; 0 in noise."),
    "unexplained_share": Meaning(
        "Field left unexplained", "%", 100, says="Of the local field's power, each voxel weighted by its noise."
    ),
    "data_consistency": Meaning("Misfit to the local field", "σ", better="near 1", says="In units of the noise."),
    "streak_index": Meaning(
        "Streak index", better="lower", says="Power of χ where the dipole is blind over that beside."
    ),
    "rim_energy": Meaning("Rim energy", better="lower", says="Spread of χ at the rim over that inside."),
    "beyond_share": Meaning("Beyond ±0.5 ppm", "%", 100, "lower", "Share of voxels; only calcium and blood are."),
    "base_beyond_share": Meaning("Beyond ±0.1 ppm at the base", "%", 100, "lower", "In the lowest 30 mm of the map."),
    "unlearned_share": Meaning(
        "Beyond what was learned", "%", 100, says="Share of voxels with values that the network has never seen."
    ),
    "uncertainty_ppm": Meaning(
        "Uncertainty of χ", "ppm", says="Median of the standard deviation that the method gives to its own map."
    ),
    "classical_correlation": Meaning("Correlation with the classical map"),
    "classical_difference_ppm": Meaning("RMS difference from the classical map", "ppm"),
}
ACCURACY = {
    "nrmse": Meaning("NRMSE", "%", 1, "lower", "Error over the truth's own variation."),
    "dnrmse": Meaning("dNRMSE", "%", 1, "lower", "As NRMSE, a wrong scale forgiven."),
    "dnrmse_tissue": Meaning("dNRMSE, tissue", "%", 1, "lower", "Thalamus, white and grey matter."),
    "dnrmse_dgm": Meaning("dNRMSE, deep grey nuclei", "%", 1, "lower"),
    "dnrmse_blood": Meaning("dNRMSE, veins", "%", 1, "lower"),
    "slope_deviation": Meaning("Slope deviation", better="lower", says="Of the means of the deep grey nuclei."),
    "calc_moment_deviation": Meaning("Calcification: moment deviation", better="lower"),
    "calc_streak": Meaning("Calcification: streaks", better="lower"),
    "hfen": Meaning("HFEN", "%", 1, "lower", "Error of edges and fine detail."),
    "xsim": Meaning("XSIM", better="higher", says="Similarity of structure, 7³ Gaussian window; 1 is perfect."),
    "xsim_uniform5": Meaning("XSIM, 5³ uniform window", better="higher"),
    "psnr": Meaning("PSNR", "dB", 1, "higher"),
    "psnr_range_ppm": Meaning("Range that PSNR refers to", "ppm"),
    "r": Meaning("Pearson r", better="higher"),
}
UNSAID = ("finite_share", "mean_ppm")  # judged in the verdict, or shown elsewhere


def numbers(found: Found) -> list[Row]:
    """What was measured of the scan before the inversion: by the quality stage, else by the steps themselves."""
    facts: dict[str, Any] = {}
    for stage in ("mask", "unwrap", "field", "background", "r2star"):
        said = found.facts(stage)
        said = {**said, **(said.get("background_left") or {})}
        facts |= {name: value for name, value in said.items() if name in SCAN}
    facts |= found.facts("quality").get("acquisition") or {}
    order = [*(name for name in SCAN if name in facts), *(name for name in facts if name not in SCAN)]
    rows = [(name, SCAN.get(name) or _unknown(name)) for name in order if name not in UNSAID]
    return [Row(m.name, _value(facts[name], m), m.unit, m.says, limits(name)) for name, m in rows]


def comparisons(found: Found) -> list[Comparison]:
    """What was measured of each method's map, the published one first: plausibility, then accuracy against a truth."""
    of_all: dict[str, dict[str, Any]] = found.facts("quality").get("methods") or {}
    measured = {m: values for m, values in of_all.items() if "diverged" not in found.facts(f"invert-{m}")}
    named = {name for values in measured.values() for name in values} - {*UNSAID, *ACCURACY}
    plausible = {**PLAUSIBILITY, **{name: _unknown(name) for name in sorted(named - PLAUSIBILITY.keys())}}
    accurate = (
        "In the mask of the map, as far as it lies in the true brain. The best of a row is in bold. "
        "Errors reward smooth maps: look at XSIM and at the difference too."
    )
    tables = [
        _comparison(found, measured, "The map", "No truth is needed for these.", plausible),
        _comparison(found, measured, "Accuracy against the truth", accurate, ACCURACY),
    ]
    return [table for table in tables if table.rows]


def _comparison(
    found: Found, measured: Mapping[str, Mapping[str, Any]], title: str, note: str, meanings: Mapping[str, Meaning]
) -> Comparison:
    methods = sorted(measured, key=lambda m: m != found.primary)
    rows = []
    for name, meaning in meanings.items():
        values = [measured[m].get(name) for m in methods]
        if any(v is not None for v in values):
            shown = tuple(_value(v, meaning) for v in values)
            rows.append((meaning, shown, _best(values, meaning.better), limits(name)))
    return Comparison(title, note, tuple(name_of(m) for m in methods), tuple(rows))


def _unknown(name: str) -> Meaning:
    return Meaning(name.replace("_", " "))


def _value(value: Any, meaning: Meaning) -> str:
    if value is None:
        return "–"
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return number(value * meaning.factor if plain and meaning.factor != 1 else value)


def _best(values: list[Any], better: Better) -> int | None:
    """Index of the best value, where one is better than another."""
    plain = [(v, i) for i, v in enumerate(values) if isinstance(v, int | float)]
    if better not in ("lower", "higher") or len(plain) < 2 or len({v for v, _ in plain}) < 2:
        return None
    return (min if better == "lower" else max)(plain)[1]
