"""What headers state about the field (nominal strength, imaging frequency, nucleus) -> the B0 to compute with.

B0 is the imaging frequency over the proton's gyromagnetic ratio. The nominal field strength is a rounded name: a
Siemens "3 T" works at 123.25 MHz, which is 2.895 T, and a map computed with 3 T is 3.5 % too small.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from models.constants import GAMMA_MHZ_PER_T
from pipeline.errors import ChironError, Notice
from pipeline.find.values import number

TESLA = (0.05, 20.0)  # what a scanner can have
# Known magnets deviate from their nominal strength by at most 3.6 %: Siemens 3 T (2.893 to 2.895 T), 1.5 T (1.494 T)
# and 7 T (6.98 T); Philips and GE 1.5 T and 3 T by 0.1 %; 0.55 T and 0.35 T systems by 1 to 2 %.
BAND = 0.05
# Beyond the band, rounding explains a deviation (0.35 T written as 0.3 or 0.4). Two strengths that are in use differ by
# more (1.2 and 1.5 T by 25 %): then one of the two belongs to another scanner or nucleus.
LIMIT = 0.20
SPREAD = 1e-3  # between images of one scan; the frequency is adjusted by less than 100 ppm between series
USER_BAND = 0.005  # between --b0 and the headers: the error that a map may have

# Frequencies at which scanners work whose nominal strength is a rounded one, in MHz by vendor and nominal tesla.
USUAL_MHZ = {("Siemens", 3.0): 123.25, ("Siemens", 1.5): 63.65, ("Siemens", 7.0): 297.2}

_UNITS = (("MHz", 1.0), ("kHz", 1e-3), ("Hz", 1e-6))
_ELEMENT = "HE|H|LI|C|N|O|F|NA|P|CL|K|RB|XE"
_ISOTOPE = re.compile(rf"<?(?:(\d{{1,3}})\W?({_ELEMENT})|({_ELEMENT})\W?(\d{{1,3}}))>?")

Source = Literal["imaging frequency", "nominal field strength", "usual frequency of the vendor", "user"]


@dataclass(frozen=True, slots=True)
class FieldHeader:
    """What one image or sidecar states; frequencies as they are stored, which should be in MHz."""

    nominal_tesla: float | None = None
    frequencies: tuple[float, ...] = ()
    nuclei: tuple[str, ...] = ()

    @classmethod
    def of(cls, nominal: Any, frequencies: Any, nuclei: Any) -> FieldHeader:
        """From the values of elements or sidecar entries: absent, one, or several."""
        values = tuple(v for v in map(number, _several(frequencies)) if v is not None)
        return cls(number(nominal), values, tuple(str(word).strip().upper() for word in _several(nuclei)))

    @classmethod
    def of_sidecar(cls, facts: dict[str, Any]) -> FieldHeader:
        nucleus = facts.get("ImagedNucleus") or facts.get("ResonantNucleus")
        return cls.of(facts.get("MagneticFieldStrength"), facts.get("ImagingFrequency"), nucleus)


@dataclass(frozen=True)
class FieldStrength:
    """The B0 of a scan, where it comes from, and what the headers state; 0 stands for what they do not state."""

    tesla: float
    source: Source
    nominal_tesla: float = 0.0
    frequency_mhz: float = 0.0
    notices: tuple[Notice, ...] = ()

    def facts(self) -> dict[str, Any]:
        """The fields of a `Scan` that hold it."""
        return {
            "b0_tesla": self.tesla,
            "b0_source": self.source,
            "b0_nominal_tesla": self.nominal_tesla,
            "imaging_frequency_mhz": self.frequency_mhz,
        }


def field_strength(headers: Sequence[FieldHeader], vendor: str, user_tesla: float = 0.0) -> FieldStrength:
    """B0 of one scan from all its headers. `user_tesla` above 0 overrides them.

    E012 where the headers state no field, several, or a strength and a frequency that cannot belong together; E021
    where the images are not of hydrogen.
    """
    _check_nucleus(headers)
    if user_tesla:
        return _of_user(user_tesla, headers)
    nominal = _nominal(headers)
    frequency, notices = _frequency(headers, nominal)
    if frequency:
        return _of_frequency(frequency, nominal, notices)
    return _of_nominal(nominal, vendor, notices)


def tesla_of(frequency_mhz: float) -> float:
    """The field at which protons precess at this frequency."""
    return frequency_mhz / GAMMA_MHZ_PER_T


def _check_nucleus(headers: Iterable[FieldHeader]) -> None:
    """E021 for an isotope other than 1H; words that name no isotope tell nothing."""
    for nuclei in {header.nuclei for header in headers}:
        isotopes = [name for name in map(_isotope, nuclei) if name]
        if isotopes and "1H" not in isotopes:
            raise ChironError("E021", f"images of {isotopes[0]}", "images of hydrogen (1H)")


def _isotope(word: str) -> str:
    match = _ISOTOPE.fullmatch(word)
    return f"{match[1] or match[4]}{match[2] or match[3]}" if match else ""


def _of_user(tesla: float, headers: Sequence[FieldHeader]) -> FieldStrength:
    """The user's B0; a notice where the headers state another one."""
    try:
        nominal = _nominal(headers)
        frequency, _ = _frequency(headers, nominal)
    except ChironError:  # headers that contradict themselves are why a user states B0
        nominal, frequency = None, 0.0
    stated = tesla_of(frequency) if frequency else nominal
    notices: tuple[Notice, ...] = ()
    if stated and abs(tesla / stated - 1) > USER_BAND:
        by = f"an imaging frequency of {frequency:.6g} MHz, which is" if frequency else "a field strength of"
        notices = (_notice(f"The headers state {by} {stated:.4g} T. The {tesla:.4g} T of --b0 are used."),)
    return FieldStrength(tesla, "user", nominal or 0.0, frequency, notices)


def _nominal(headers: Sequence[FieldHeader]) -> float | None:
    """The nominal strength in tesla; None where no header has one. E012 where one is senseless or several differ."""
    strengths = sorted({header.nominal_tesla for header in headers if header.nominal_tesla is not None})
    for strength in strengths:
        if not TESLA[0] <= strength <= TESLA[1]:
            raise ChironError("E012", f"a field strength of {strength:g}", f"{TESLA[0]} to {TESLA[1]:g} tesla")
    if strengths and strengths[-1] > strengths[0] * (1 + BAND):
        listed = " and ".join(f"{strength:g}" for strength in strengths)
        raise ChironError("E012", f"field strengths of {listed} T in one scan", "one, in tesla")
    return strengths[-1] if strengths else None


def _frequency(headers: Sequence[FieldHeader], nominal: float | None) -> tuple[float, tuple[Notice, ...]]:
    """The imaging frequency of all images in MHz, 0 where none is usable, and what was odd about it."""
    stored = [_nearest(header.frequencies, nominal) for header in headers if header.frequencies]
    readings = {value: _megahertz(value) for value in stored}
    notices = []
    for value, (frequency, unit) in readings.items():
        if not frequency:
            notices.append(_notice(f"The imaging frequency of {value:g} MHz in the header cannot be one of hydrogen."))
        elif unit != "MHz":
            notices.append(_notice(f"The imaging frequency of {value:.9g} in the header is read as {unit}, not MHz."))
    usable = [readings[value][0] for value in stored if readings[value][0]]
    if usable and max(usable) > min(usable) * (1 + SPREAD):
        pair = f"{min(usable):.6g} and {max(usable):.6g} MHz"
        raise ChironError("E012", f"imaging frequencies of {pair} in one scan", "one frequency")
    return (median(usable) if usable else 0.0), tuple(notices)


def _nearest(frequencies: tuple[float, ...], nominal: float | None) -> float:
    """Of several (one for each nucleus or channel) the one that fits the nominal strength best, else the first."""
    if nominal is None or len(frequencies) == 1:
        return frequencies[0]
    expected = nominal * GAMMA_MHZ_PER_T
    return min(frequencies, key=lambda value: abs(_megahertz(value)[0] - expected))


def _megahertz(value: float) -> tuple[float, str]:
    """A stored frequency in MHz and the unit it is stored in; (0, "") where no unit makes it one of protons.

    The ranges of the three units do not overlap.
    """
    for unit, scale in _UNITS:
        if TESLA[0] <= tesla_of(value * scale) <= TESLA[1]:
            return value * scale, unit
    return 0.0, ""


def _of_frequency(frequency: float, nominal: float | None, notices: tuple[Notice, ...]) -> FieldStrength:
    tesla = tesla_of(frequency)
    means = f"an imaging frequency of {frequency:.6g} MHz, which is {tesla:.4g} T"
    if nominal is None:
        alone = _notice(f"The header has no field strength. B0 rests on {means}.")
        return FieldStrength(tesla, "imaging frequency", 0.0, frequency, (*notices, alone))
    deviation = abs(tesla / nominal - 1)
    if deviation > LIMIT:
        expected = f"{GAMMA_MHZ_PER_T:.4g} MHz for each tesla"
        raise ChironError("E012", f"{means}, and a field strength of {nominal:g} T", expected)
    if deviation > BAND:
        text = f"The header has {means}, and a field strength of {nominal:g} T. The frequency is used."
        notices = (*notices, _notice(text))
    return FieldStrength(tesla, "imaging frequency", nominal, frequency, notices)


def _of_nominal(nominal: float | None, vendor: str, notices: tuple[Notice, ...]) -> FieldStrength:
    """Without a frequency: the usual one of the vendor, else the nominal strength as it stands."""
    if nominal is None:
        raise ChironError("E012", "no field strength and no imaging frequency", "one of the two")
    usual = next((f for (name, tesla), f in USUAL_MHZ.items() if name == vendor and abs(tesla - nominal) < 0.02), 0.0)
    if usual:
        tesla = tesla_of(usual)
        text = f"{vendor} scanners of {nominal:g} T work at about {usual:g} MHz: B0 is taken as {tesla:.4g} T."
        source: Source = "usual frequency of the vendor"
    else:
        tesla, source = nominal, "nominal field strength"
        text = f"B0 is taken as the nominal {nominal:g} T, which the magnet may miss by some per cent."
    notice = _notice(f"The header has no usable imaging frequency. {text}")
    return FieldStrength(tesla, source, nominal, 0.0, (*notices, notice))


def _notice(text: str) -> Notice:
    return Notice("E020", text)


def _several(value: Any) -> tuple[Any, ...]:
    if value is None or value == "":
        return ()
    return (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
