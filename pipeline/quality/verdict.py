"""The numbers of a scan and of its map -> a verdict and its reasons in plain sentences, by one table of thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["usable", "check", "do not use"]
LEVELS: tuple[Level, ...] = ("usable", "check", "do not use")


@dataclass(frozen=True)
class Check:
    """A number that is `side` its limit gives at least `level`: `what` it is, and what it means for the reader."""

    number: str
    side: Literal["below", "above"]
    limit: float
    level: Level
    what: str
    form: str
    meaning: str

    def fails(self, value: float) -> bool:
        return value < self.limit if self.side == "below" else value > self.limit

    def sentence(self, value: float) -> str:
        return f"{self.what} {self.form.format(value)} ({self.side} {self.form.format(self.limit)}): {self.meaning}."


CHECKS = (
    Check("finite_share", "below", 1.0, "do not use", "The share of the map that holds numbers is", "{:.2%}",
          "the reconstruction failed"),
    Check("spread_ppm", "below", 0.001, "do not use", "The map's standard deviation is", "{:.4f} ppm",
          "the map is empty or flat, as no brain is"),
    Check("volume_ml", "below", 1, "do not use", "The mask's volume is", "{:.1f} ml",
          "the mask is empty"),
    Check("volume_ml", "below", 700, "check", "The mask's volume is", "{:.0f} ml",
          "parts of the brain may be missing, or this is a child or a partial scan; look at the outline"),
    Check("volume_ml", "above", 2200, "check", "The mask's volume is", "{:.0f} ml",
          "the mask may hold more than the brain; look at the outline"),
    Check("components", "above", 1, "check", "The number of separate pieces of the mask is", "{:.0f}",
          "pieces apart from the brain carry no meaning; look at the outline"),
    Check("eroded_share", "above", 0.4, "check", "The share of the mask lost to background removal is", "{:.0%}",
          "the cortex and the base of the brain may be missing"),
    Check("eroded_share", "above", 0.95, "do not use", "The share of the mask lost to background removal is", "{:.0%}",
          "nothing is left of the brain"),
    Check("wraps_left", "above", 0.001, "check", "The share of neighbours with a wrap left between is", "{:.2%}",
          "unwrapping failed in places, mostly near air or veins; values there are not to be trusted"),
    Check("fit_residual", "above", 0.3, "check", "The median residual of the field fit is", "{:.2f}",
          "the echoes do not agree with one field: motion, flow, or wrong echo times"),
    Check("snr", "below", 10, "check", "The signal-to-noise ratio of the first echo is", "{:.1f}",
          "small differences in susceptibility are lost in noise"),
    Check("echoes", "below", 2, "check", "The number of echoes is", "{:.0f}",
          "phase offsets of the coils cannot be told from the field"),
    Check("data_consistency", "above", 3, "check", "The misfit to the local field in units of its noise is", "{:.2f}",
          "the map leaves part of the measured field unexplained; compare with the other maps"),
    Check("data_consistency", "below", 0.3, "check", "The misfit to the local field in units of its noise is", "{:.2f}",
          "the map fits noise, or the noise is overestimated"),
    Check("beyond_share", "above", 0.01, "check", "The share of the brain beyond 0.5 ppm is", "{:.2%}",
          "only calcium, bleeding and errors reach such values; look where they are"),
    Check("beyond_share", "above", 0.1, "do not use", "The share of the brain beyond 0.5 ppm is", "{:.2%}",
          "no brain has as much; the scale or the reconstruction is wrong"),
    Check("streak_index", "above", 2, "check", "The power inside the dipole's cone over that beside it is", "{:.2f}",
          "streaks along the cone are likely, where a brain has about 1"),
    Check("rim_energy", "above", 2.5, "check", "The spread at the rim of the mask over that inside is", "{:.2f}",
          "background fields remain at the rim; do not read values near it"),
    Check("classical_correlation", "below", 0.7, "check", "The correlation with the fast classical map is", "{:.2f}",
          "the two methods disagree; read structures that only one of them shows with doubt"),
)  # fmt: skip


def judge(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """`{"level": ..., "reasons": [...]}` of all `numbers` that a check names; of one number the gravest reason alone.

    Numbers that are absent or None, having nothing to stand on, are not judged.
    """
    gravest: dict[str, Check] = {}
    for check in CHECKS:
        value = numbers.get(check.number)
        if value is not None and check.fails(value):
            before = gravest.get(check.number)
            if before is None or LEVELS.index(check.level) > LEVELS.index(before.level):
                gravest[check.number] = check
    failed = sorted(gravest.values(), key=lambda check: -LEVELS.index(check.level))
    level = failed[0].level if failed else "usable"
    return {"level": level, "reasons": [check.sentence(numbers[check.number]) for check in failed]}
