"""Words of an image's header -> the part of the complex signal that it holds, or what it was made of instead."""

from __future__ import annotations

from typing import Any

from pipeline.find.values import Lookup, words

PARTS = ("magnitude", "phase", "real", "imaginary")
FIELD_MAP = "field map"  # in Hz, computed by the scanner
_LETTERS = {"M": "magnitude", "P": "phase", "R": "real", "I": "imaginary"}
_NAMES = {**{part.upper(): part for part in PARTS}, "PHASE MAP": "phase"}
_FIELD_MAPS = {"FIELD_MAP", "FIELD MAP", "FIELDMAP", "B0 MAP", "B0"}
_MADE = {
    "susceptibility-weighted": ("SWI",),
    "a projection": ("MNIP", "MINIP", "MIP", "MIN IP", "MAX IP", "PROJECTION", "PROJECTION IMAGE"),
    "a reformat": ("MPR", "REFORMATTED", "RESAMPLED"),
    "filtered": ("FILTERED", "PHASE_FILTERED", "HPF"),
    "a relaxation map": ("T2_STAR", "T2 MAP", "T2_STAR MAP", "R2_STAR", "R2_STAR MAP"),
    "a susceptibility map": ("QSM",),
    "a diffusion map": ("ADC",),
    "a sum, mean or difference": ("SUM", "MEAN", "SUBTRACTION"),
}
_MADE_BY_WORD = {word: made for made, known in _MADE.items() for word in known}
_FILTER_NAMES = {"FILT", "FILTERED", "HPF", "HIGHPASS"}


def part_of(image_type: tuple[str, ...], vendor: str, component: str, private: str, sequence: Any) -> str:
    """`magnitude`, `phase`, `real`, `imaginary` or `field map`; without any word on it, magnitude.

    `component` is the ComplexImageComponent, `private` GE's number or Philips' letter, `sequence` GE's internal name.
    """
    if _FIELD_MAPS & set(image_type[2:]) or (vendor == "GE" and "B0MAP" in str(sequence).upper()):
        return FIELD_MAP
    if component.upper() in _NAMES:
        return _NAMES[component.upper()]
    if vendor == "GE" and private in ("0", "1", "2", "3"):
        return PARTS[int(private)]
    for word in image_type[2:]:
        found = _NAMES.get(word) or _LETTERS.get(word.removesuffix("_FFE").removesuffix("_SE").removesuffix("_IR"))
        if found:
            return found
    return _LETTERS.get(private, "magnitude")


def derived(image_type: tuple[str, ...], description: str) -> str:
    """What makes the image a derived or filtered one; empty for an original."""
    made = next((_MADE_BY_WORD[word] for word in image_type if word in _MADE_BY_WORD), "")
    if made or image_type[:1] == ("DERIVED",):
        return made or "derived"
    named = description.upper().replace("_", " ").replace("-", " ").split()
    return "filtered" if _FILTER_NAMES & set(named) else ""


def other_kind(get: Lookup) -> str:
    """The kind of a scan that is no gradient echo; empty for a gradient echo, and where the header does not say."""
    sequence = words(get("ScanningSequence"))
    for kind, letter, keyword, said in (
        ("inversion recovery", "IR", "InversionRecovery", "YES"),
        ("spin echo", "SE", "EchoPulseSequence", "SPIN"),
        ("echo planar", "EP", "EchoPlanarPulseSequence", "YES"),
    ):
        if letter in sequence or said in words(get(keyword)):
            return kind
    return ""
