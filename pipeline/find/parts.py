"""An image's header -> which part of the complex signal it holds, or why it is none; by each vendor's own words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Lookup = Callable[[Any], Any]  # keyword or tag -> value of the frame, or None

PARTS = ("magnitude", "phase", "real", "imaginary")
FIELD_MAP = "field map"  # in Hz, computed by the scanner
_LETTERS = {"M": "magnitude", "P": "phase", "R": "real", "I": "imaginary"}
_WORDS = {**{part.upper(): part for part in PARTS}, "PHASE MAP": "phase"}
_FIELD_MAPS = {"FIELD_MAP", "FIELD MAP", "B0 MAP", "B0", "FIELDMAP"}
_MADE = {  # words of an image type that name what was computed from the original images
    "SWI": "susceptibility-weighted", "MNIP": "a projection", "MINIP": "a projection", "MIP": "a projection",
    "MIN IP": "a projection", "MAX IP": "a projection", "PROJECTION IMAGE": "a projection", "PROJECTION": "a projection",
    "MPR": "a reformat", "REFORMATTED": "a reformat", "RESAMPLED": "a reformat", "FILTERED": "filtered",
    "PHASE_FILTERED": "filtered", "HPF": "filtered", "T2_STAR": "a relaxation map", "T2 MAP": "a relaxation map",
    "T2_STAR MAP": "a relaxation map", "R2_STAR": "a relaxation map", "R2_STAR MAP": "a relaxation map",
    "QSM": "a susceptibility map", "ADC": "a diffusion map", "MEAN": "an average", "SUM": "a sum", "SUBTRACTION": "a difference",
}  # fmt: skip
_GE = ("magnitude", "phase", "real", "imaginary")


def part_of(get: Lookup, vendor: str, image_type: tuple[str, ...]) -> str:
    """`magnitude`, `phase`, `real`, `imaginary` or `field map`; without any word on it, magnitude."""
    if _FIELD_MAPS & set(image_type[2:]) or (vendor == "GE" and "B0MAP" in str(get((0x0019, 0x109E))).upper()):
        return FIELD_MAP
    component = str(get("ComplexImageComponent") or "").upper()
    if component in _WORDS:
        return _WORDS[component]
    if vendor == "GE":
        kind = get((0x0043, 0x102F))
        if isinstance(kind, bytes):
            kind = int.from_bytes(kind[:2], "little")
        if kind in range(4):
            return _GE[int(kind)]
    for word in image_type[2:]:
        found = _WORDS.get(word) or _LETTERS.get(word.removesuffix("_FFE").removesuffix("_SE").removesuffix("_IR"))
        if found:
            return found
    return _LETTERS.get(str(get((0x2005, 0x1011)) or ""), "magnitude")


def derived(image_type: tuple[str, ...], description: str) -> str:
    """What makes the image a derived or filtered one; empty for an original."""
    for word in image_type:
        if word in _MADE:
            return _MADE[word]
    if image_type and image_type[0] == "DERIVED":
        return "derived"
    words = description.upper().replace("_", " ").replace("-", " ").split()
    return "filtered" if {"FILT", "FILTERED", "HPF", "HIGHPASS"} & set(words) else ""


def other_kind(get: Lookup) -> str:
    """The kind of a scan that is no gradient echo; empty for a gradient echo, and where the header does not say."""
    words = {str(word).upper() for word in _list(get("ScanningSequence"))}
    if "IR" in words or str(get("InversionRecovery")).upper() == "YES":
        return "inversion recovery"
    if "SE" in words or str(get("EchoPulseSequence")).upper() == "SPIN":
        return "spin echo"
    if "EP" in words or str(get("EchoPlanarPulseSequence")).upper() == "YES":
        return "echo planar"
    return ""


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value) if hasattr(value, "__iter__") else [value]
