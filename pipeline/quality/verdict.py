"""The numbers of a scan and of its map -> a verdict and its reasons in plain sentences, by one table of thresholds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["usable", "check", "do not use"]
LEVELS: tuple[Level, ...] = ("usable", "check", "do not use")


@dataclass(frozen=True)
class Check:
    """A number that is `side` its limit gives at least `level`: `what` it is, what it means for the reader, and why
    the limit lies where it does."""

    number: str
    side: Literal["below", "above"]
    limit: float
    level: Level
    what: str
    form: str
    meaning: str
    why: str

    def fails(self, value: float) -> bool:
        return value < self.limit if self.side == "below" else value > self.limit

    def sentence(self, value: float) -> str:
        form = next((form for form in self._finer() if form.format(value) != form.format(self.limit)), self.form)
        return f"{self.what} {form.format(value)} ({self.side} {form.format(self.limit)}): {self.meaning}."

    def _finer(self) -> Iterator[str]:
        """The form, and such with more digits: number and limit must not read the same."""
        yield from (re.sub(r"\.(\d)", lambda m, n=n: f".{int(m[1]) + n}", self.form) for n in range(6))  # type: ignore[misc]


CHECKS = (
    # The map.
    Check("finite_share", "below", 1.0, "do not use", "The share of the map that holds numbers is", "{:.2%}",
          "the reconstruction failed",
          "a value that is no number cannot be shown or measured"),
    Check("core_spread_ppm", "below", 0.005, "do not use", "The contrast of the map inside the brain is",
          "{:.4f} ppm", "the map is empty or flat, as no brain is",
          "white and grey matter differ by 0.05 ppm (doi 10.1002/mrm.28716), which makes a spread of about 0.025 ppm; "
          "a fifth of it is no image of a brain, whatever its rim shows"),
    Check("core_spread_ppm", "below", 0.0125, "check", "The contrast of the map inside the brain is", "{:.4f} ppm",
          "the map is too smooth; iron and myelin read low, small structures may be missing",
          "half of the 0.025 ppm that white and grey matter make"),
    Check("core_spread_ppm", "above", 0.06, "check", "The contrast of the map inside the brain is", "{:.3f} ppm",
          "that is much for a brain: noise, streaks or a wrong scale; look at the map",
          "more than twice the 0.025 ppm that white and grey matter make"),
    Check("core_spread_ppm", "above", 0.12, "do not use", "The contrast of the map inside the brain is",
          "{:.3f} ppm", "no brain has as much; the scale is wrong or the map is noise",
          "two thirds of all tissue would differ by as much as only iron-rich nuclei do (pallidum 0.13 ppm)"),
    Check("asymmetry", "below", 0.0, "check", "The balance of bright against dark extremes of the map is", "{:.2f}",
          "veins and iron should make the bright side the longer one; the sign of the phase may be wrong",
          "veins (0.19 ppm) and iron (0.04 to 0.15 ppm) lie further from the median than myelin (-0.03 ppm); "
          "0.1 to 0.3 in maps of the right sign, the same with a minus in inverted ones"),
    Check("asymmetry", "below", -0.1, "do not use", "The balance of bright against dark extremes of the map is",
          "{:.2f}", "veins and iron are dark, so the map is inverted; the sign of the phase is wrong",
          "as far on the wrong side as maps of the right sign are on the right one"),
    Check("beyond_share", "above", 0.01, "check", "The share of the brain beyond 0.5 ppm is", "{:.2%}",
          "only calcium, bleeding and errors reach such values; look where they are",
          "pallidum, dentate and veins stay below 0.3 ppm; 1 % of a brain is 12 ml, a large bleeding"),
    Check("beyond_share", "above", 0.1, "do not use", "The share of the brain beyond 0.5 ppm is", "{:.2%}",
          "no brain has as much; the scale or the reconstruction is wrong",
          "10 % of a brain is 120 ml, more than a bleeding that is survived"),
    Check("unexplained_share", "above", 0.5, "check", "The share of the local field that the map leaves unexplained is",
          "{:.0%}", "the map misses much of what was measured; compare with the other maps",
          "the map from several head positions leaves 29 % of the power of a measured field at 3 T, "
          "for a field holds more than susceptibility; above half the map shows less of the field than it leaves"),
    Check("unexplained_share", "above", 0.8, "do not use",
          "The share of the local field that the map leaves unexplained is", "{:.0%}",
          "the map is not that of this field",
          "an empty map leaves 100 %"),
    Check("data_consistency", "below", 0.3, "check", "The misfit to the local field in units of its noise is",
          "{:.2f}", "the map follows the noise, or the noise is overestimated",
          "a map without noise leaves 1; what regularisation by sparsity takes of the noise leaves 0.5 and more"),
    Check("neighbour_correlation", "below", 0.3, "check", "The likeness of neighbouring voxels of the map is",
          "{:.2f}", "the map is mostly noise",
          "tissue is larger than a voxel: 0.6 to 0.9 in maps of 1 to 3 mm, 0 in noise; below 0.3 less than a third "
          "of the map's power is shared with the next voxel"),
    Check("streak_index", "above", 1.4, "check", "The power inside the dipole's cone over that beside it is", "{:.2f}",
          "streaks along the cone are likely",
          "a map without a preferred direction has 0.9, regularised ones 0.4 to 0.8; at 1.4 the cone holds half as "
          "much power of streaks as of tissue"),
    Check("rim_energy", "above", 1.7, "check", "The spread at the rim of the mask over that inside is", "{:.2f}",
          "background fields remain at the rim; do not read values near it",
          "cortex and sulci spread as the inside does, so that 0.6 to 1.4 is common; at 1.7 the rim holds three "
          "times the power of tissue"),
    Check("classical_correlation", "below", 0.7, "check", "The correlation with the fast classical map is", "{:.2f}",
          "the two methods disagree; read structures that only one of them shows with doubt",
          "below 0.7 the two maps share less than half of their power"),
    # The acquisition.
    Check("echoes", "below", 3, "check", "The number of echoes is", "{:.0f}",
          "two echoes cannot be checked against each other, and tell the phase offset of the coils poorly",
          "the consensus asks for three (doi 10.1002/mrm.30006); only from three on can an echo contradict the others"),
    Check("echoes", "below", 2, "do not use", "The number of echoes is", "{:.0f}",
          "the phase offset of the coils cannot be told from the field, nor noise from tissue",
          "a failure in the consensus (doi 10.1002/mrm.30006): offset and noise are unknown, so nothing tells whether "
          "the map is right"),
    Check("last_echo_ms", "below", 11, "check", "The last echo time (as at 3 T) is", "{:.1f} ms",
          "the phase of tissue is too small by then to be told from noise and from other effects",
          "the contrast of phase over noise grows as TE exp(-TE/T2*); at 11 ms it is half of what white matter "
          "(T2* 48 ms at 3 T) allows. TE x B0 / 3 T, for T2* falls as the field grows. "
          "The consensus asks for 24 ms and more"),
    Check("first_echo_ms", "above", 10, "check", "The first echo time (as at 3 T) is", "{:.1f} ms",
          "near air and in veins the signal is lost or the phase ambiguous before it is measured",
          "a failure in the consensus (doi 10.1002/mrm.30006). TE x B0 / 3 T, for phase grows with the field"),
    Check("longest_edge_mm", "above", 2.75, "check", "The longest edge of a voxel is", "{:.2f} mm",
          "voxels are too large for the small nuclei; their values are mixed with those around them",
          "a red nucleus of 0.3 ml is 8.3 mm across; with fewer than three voxels across it, each touches its "
          "surroundings. Thick slices count as large voxels do"),
    Check("field_noise_ppm", "above", 0.004, "check", "The noise of the measured field is", "{:.4f} ppm",
          "small differences in susceptibility are lost in noise",
          "half of the field that the tissue of a brain makes: 0.008 ppm RMS. A public scan at 3 T has 0.003 ppm"),
    Check("field_noise_ppm", "above", 0.008, "do not use", "The noise of the measured field is", "{:.4f} ppm",
          "there is as much noise as tissue in the field",
          "all of the field that the tissue of a brain makes: 0.008 ppm RMS"),
    Check("cut_share", "above", 0.15, "check", "The share of the brain's cross-section that the volume's edge cuts is",
          "{:.0%}", "the scan does not cover the whole brain; values near the cut are wrong",
          "the brain stem at the lower edge is about 5 % of the largest cross-section; more is brain that was not "
          "scanned, whose field is taken for that of what was"),
    # Mask, phase and field.
    Check("volume_ml", "below", 1, "do not use", "The mask's volume is", "{:.1f} ml",
          "the mask is empty",
          "not one nucleus fits in"),
    Check("volume_ml", "below", 700, "check", "The mask's volume is", "{:.0f} ml",
          "parts of the brain may be missing, or this is a child or a partial scan; look at the outline",
          "adult brains have 1000 to 1700 ml with their fluid"),
    Check("volume_ml", "above", 2200, "check", "The mask's volume is", "{:.0f} ml",
          "the mask may hold more than the brain; look at the outline",
          "adult brains have 1000 to 1700 ml with their fluid"),
    Check("components", "above", 1, "check", "The number of separate pieces of the mask is", "{:.0f}",
          "pieces apart from the brain carry no meaning; look at the outline",
          "a brain is one piece"),
    Check("base_dark_share", "above", 0.10, "check", "The share of dark voxels in the lowest 30 mm of the mask is",
          "{:.0%}", "the mask reaches into bone or air at the base of the skull; look at the outline",
          "brain gives at least two thirds of the usual signal, bone and air next to none; masks of the brain "
          "hold 1 to 3 % of voxels below half"),
    Check("base_beyond_share", "above", 0.03, "check",
          "The share of voxels beyond 0.1 ppm in the lowest 30 mm of the map is", "{:.1%}",
          "the mask holds more than brain there, or background fields remain; do not read the base of the brain",
          "only the dentate nuclei and veins reach 0.1 ppm there: 1 to 2 % of these voxels"),
    Check("eroded_share", "above", 0.4, "check", "The share of the mask lost to background removal is", "{:.0%}",
          "the cortex and the base of the brain may be missing",
          "a rim of 1 cm is 40 % of a brain"),
    Check("eroded_share", "above", 0.95, "do not use", "The share of the mask lost to background removal is", "{:.0%}",
          "nothing is left of the brain",
          "5 % of a brain is less than its deep nuclei with their surroundings"),
    Check("wraps_left", "above", 0.001, "check", "The share of neighbours with a wrap left between is", "{:.2%}",
          "unwrapping failed in places, mostly near air or veins; values there are not to be trusted",
          "no step of more than half a turn can be told from a wrong turn; 0.00 to 0.01 % in masks that keep to the "
          "brain, ten times that is a region"),
    Check("excluded_share", "above", 0.05, "check", "The share of voxels whose echoes fit no field is", "{:.1%}",
          "the echoes do not agree: motion, flow, or wrong echo times",
          "the consensus takes voxels of a relative residual above 0.3 as unreliable (doi 10.1002/mrm.30006); "
          "veins are 3 % of a brain, so more is not flow alone"),
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


def limits(number: str) -> str:
    """The limits of a number in words, "check above 5%, do not use above 30%"; empty where none is judged."""
    return ", ".join(f"{c.level} {c.side} {c.form.format(c.limit)}" for c in CHECKS if c.number == number)
