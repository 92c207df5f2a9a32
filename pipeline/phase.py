"""Stored phase, or real and imaginary parts -> phase in radians with the sign of the field, and what was decided."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.params import param
from pipeline.convert.stored import Stored
from pipeline.errors import ChironError, Decision, Notice
from pipeline.volumes import Echoes


@dataclass(frozen=True)
class Phase:
    """How stored phase is read."""

    range: Literal["auto", "radians", "degrees", "milliradians", "0-4095", "+-4096", "full"] = param(
        "auto",
        "unit of the stored phase; auto takes header and range, and refuses what both leave open; "
        "full takes the lowest and highest value as -pi and pi",
    )
    sign: Literal["auto", "+", "-"] = param("auto", "sign of the phase; auto inverts where the vendor is known to")
    chopper: Literal["auto", "on", "off"] = param("auto", "slices alternate in sign (GE); auto detects it")


Limits = tuple[float, float]
RANGES: dict[str, Limits] = {  # the values of -pi and pi
    "radians": (-math.pi, math.pi),
    "degrees": (-180, 180),
    "milliradians": (-3142, 3142),
    "0-4095": (0, 4096),
    "+-4096": (-4096, 4096),
}
_UNITS = {
    "mrad": "milliradians",
    "rad": "radians",
    "radian": "radians",
    "radians": "radians",
    "deg": "degrees",
    "degrees": "degrees",
}
_INVERTED = {"GE"}  # vendors whose phase falls where the field is higher
_UPRIGHT = {"Siemens", "Philips"}
_NEAR = 0.03  # of a range: how near its ends the values must come to fill it
_WRAPS = 1e-3  # share of neighbours that jump by most of the range, in wrapped phase


def to_radians(stored: Stored, phase: Phase) -> tuple[Echoes, list[Decision], list[Notice]]:
    """Magnitude, and phase in [-pi, pi] that grows with time where the field is higher.

    P002 where the range can be read in two ways, P004 where the phase is already unwrapped, P005 where a part is empty,
    P006 where values are not finite.
    """
    _check_finite(stored)
    decisions: list[Decision] = []
    if stored.kind == "real-imaginary":
        magnitude, radians = torch.hypot(stored.first, stored.second), torch.atan2(stored.second, stored.first)
        decisions.append(Decision("phase", "angle of real and imaginary parts", "the export holds these parts"))
    else:
        _check_content(stored.first, stored.second)
        limits, decision = _range(stored, phase)
        magnitude, radians = stored.first, _scaled(stored.second, limits)
        decisions.append(decision)
    _check_content(magnitude, radians)
    radians, chopper = _chopper(magnitude, radians, stored.slice_axis, phase)
    inverted, sign = _sign(stored.vendor, phase)
    radians = -radians if inverted else radians
    echoes = Echoes(magnitude.float(), radians.float(), stored.echo_times_s, stored.b0_tesla, stored.grid)
    return echoes, [*decisions, chopper, sign], _doubts(stored.vendor, phase)


def wrap(phase_rad: Tensor) -> Tensor:
    """The same angle in [-pi, pi]."""
    return torch.remainder(phase_rad + math.pi, 2 * math.pi) - math.pi


def _check_finite(stored: Stored) -> None:
    for name, values in zip(stored.kind.split("-"), (stored.first, stored.second), strict=True):
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise ChironError("P006", f"{bad} values of the {name} that are not finite", "numbers only")


def _check_content(magnitude: Tensor, phase: Tensor) -> None:
    for echo in range(len(magnitude)):
        if not bool(magnitude[echo].any()) or bool((magnitude[echo] == magnitude[echo].flatten()[0]).all()):
            raise ChironError("P005", f"the magnitude of echo {echo + 1} is the same everywhere", "an image")
        if bool((phase[echo] == phase[echo].flatten()[0]).all()):
            raise ChironError("P005", f"the phase of echo {echo + 1} is the same everywhere", "an image")


def _range(stored: Stored, phase: Phase) -> tuple[Limits, Decision]:
    """The stored values of -pi and pi: as asked, or as header and values agree on."""
    low, high = float(stored.second.min()), float(stored.second.max())
    seen = f"values from {low:.4g} to {high:.4g}"
    if phase.range == "full":
        return (low, high), _decided("the lowest and highest value are -pi and pi", "asked for", seen)
    if phase.range != "auto":
        limits = RANGES[phase.range]
        if not _inside((low, high), limits):
            raise ChironError("P002", f"{seen}, stated to be {phase.range}", _words(limits))
        return limits, _decided(phase.range, "asked for", seen)
    told = _told(stored)
    return _agreed(stored, told, (low, high), seen) if told else _from_values(stored, (low, high), seen)


def _told(stored: Stored) -> str:
    """The unit that the header gives: in words, or by the range into which its rescale puts all possible pixels."""
    unit = _UNITS.get(stored.stored_phase.unit.strip().lower(), "")
    if unit or stored.stored_phase.range is None:
        return unit
    for name, (low, high) in RANGES.items():
        slack = 0.002 * (high - low)
        if abs(stored.stored_phase.range[0] - low) < slack and abs(stored.stored_phase.range[1] - high) < slack:
            return name
    return ""


def _agreed(stored: Stored, told: str, found: Limits, seen: str) -> tuple[Limits, Decision]:
    """The header's unit, if the values neither leave its range nor wrap in a smaller one."""
    limits = RANGES[told]
    wrapping = _wrap_share(stored, found) > _WRAPS
    if not _inside(found, limits):
        if told == "radians" and not wrapping:
            raise ChironError("P004", f"{seen} rad without wraps", "phase between -pi and pi")
        raise ChironError("P002", f"{seen}, where the header says {told}", _words(limits))
    if wrapping and found[1] - found[0] < 0.93 * (limits[1] - limits[0]):
        raise ChironError("P002", f"{seen} that wrap, where the header says {told}", _words(limits))
    return limits, _decided(told, "header and values agree", seen)


def _from_values(stored: Stored, found: Limits, seen: str) -> tuple[Limits, Decision]:
    """The only known range that the values fill; or that in which they wrap, if it is centred on 0 or begins there."""
    filled = [name for name, limits in RANGES.items() if _fills(found, limits)]
    if len(filled) == 1:
        return RANGES[filled[0]], _decided(filled[0], "the values fill this range, and the header says nothing", seen)
    span = found[1] - found[0]
    wrapping = _wrap_share(stored, found) > _WRAPS
    if wrapping and min(abs(found[0] + found[1]), abs(found[0])) < 0.02 * span:
        why = "the header says nothing, and the values wrap there"
        return found, _decided("the lowest and highest value are -pi and pi", why, seen)
    if not wrapping and 2.5 * math.pi < span < 500:
        raise ChironError("P004", f"{seen} without wraps, and no unit in the header", "phase between -pi and pi")
    raise ChironError("P002", f"{seen}, and no unit in the header", "one of " + ", ".join(RANGES))


def _wrap_share(stored: Stored, found: Limits) -> float:
    """Share of bright neighbours along the first axis, in the first and last echo, that differ by most of the range."""
    bright = stored.first[[0, -1]] > stored.first[[0, -1]].mean((1, 2, 3), keepdim=True)
    pairs = bright[:, 1:] & bright[:, :-1]
    jumps = stored.second[[0, -1]].diff(dim=1).abs() > 0.6 * (found[1] - found[0])
    return float((jumps & pairs).sum()) / max(1.0, float(pairs.sum()))


def _inside(found: Limits, limits: Limits) -> bool:
    slack = 0.01 * (limits[1] - limits[0])
    return found[0] >= limits[0] - slack and found[1] <= limits[1] + slack


def _fills(found: Limits, limits: Limits) -> bool:
    slack = _NEAR * (limits[1] - limits[0])
    return abs(found[0] - limits[0]) < slack and abs(found[1] - limits[1]) < slack


def _scaled(stored: Tensor, limits: Limits) -> Tensor:
    low, high = limits
    return (stored.double() - (low + high) / 2).mul(2 * math.pi / (high - low)).clamp(-math.pi, math.pi).float()


def _chopper(magnitude: Tensor, radians: Tensor, axis: int, phase: Phase) -> tuple[Tensor, Decision]:
    """Undo slices that alternate in sign, which neighbouring slices of the first echo tell by being opposite."""
    signal = torch.polar(magnitude[0].double(), radians[0].double()).movedim(axis, 0)
    product = (signal[1:] * signal[:-1].conj()).flatten(1).sum(1)
    weight = (signal[1:].abs() * signal[:-1].abs()).flatten(1).sum(1)
    alike = (product.real / weight.clamp_min(1e-30))[weight > 0]
    middle = float(alike.median()) if len(alike) else 1.0
    detected = middle < -0.2 and float((alike < 0).double().mean()) > 0.75
    undo = phase.chopper == "on" or (phase.chopper == "auto" and detected)
    seen = f"neighbouring slices correlate with {middle:.2f}"
    because = seen if phase.chopper == "auto" else f"asked for; {seen}"
    decision = Decision("alternating slices", "undone" if undo else "none", because, "--set phase.chopper=on|off")
    if not undo:
        return radians, decision
    turned = torch.zeros(radians.shape[1 + axis])
    turned[1::2] = math.pi
    shape = [1, 1, 1, 1]
    shape[1 + axis] = -1
    return wrap(radians + turned.view(shape)), decision


def _sign(vendor: str, phase: Phase) -> tuple[bool, Decision]:
    if phase.sign != "auto":
        inverted, because = phase.sign == "-", "asked for"
    else:
        inverted, because = vendor in _INVERTED, f"the vendor is {vendor}"
    return inverted, Decision("phase sign", "inverted" if inverted else "as stored", because, "--phase-sign")


def _doubts(vendor: str, phase: Phase) -> list[Notice]:
    """P003 where neither the vendor nor anybody else says which way the phase turns."""
    if phase.sign != "auto" or vendor in _INVERTED | _UPRIGHT:
        return []
    said = "The vendor's sign of phase is not known, so it was taken as stored."
    return [Notice("P003", f"{said} Where veins are dark in the map, give --phase-sign.")]


def _decided(unit: str, why: str, seen: str) -> Decision:
    return Decision("phase unit", unit, f"{why}; {seen}", "--phase-range")


def _words(limits: Limits) -> str:
    return f"values from {limits[0]:.4g} to {limits[1]:.4g} that fill this range"
