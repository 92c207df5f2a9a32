"""One acquisition's images -> its volumes, slice by slice, or the coded reason why it cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.acquisition import Acquisition
from pipeline.errors import ChironError, Notice
from pipeline.find.field_strength import FieldStrength, field_strength
from pipeline.find.group import grouped
from pipeline.find.headers import Image
from pipeline.find.parts import FIELD_MAP

_EVEN = 0.02  # slice distances may differ by this share
_POSITION_MM = 0.01
_ECHO_TIMES_MS = (0.2, 500.0)  # what a gradient echo can have

EchoKey = tuple[float | None, int | None]


@dataclass(frozen=True)
class Checked:
    """The usable part of an acquisition: volumes[part][echo] are its images in the order of their position."""

    volumes: dict[str, list[list[Image]]]
    echo_times_s: tuple[float, ...]
    field: FieldStrength
    notices: tuple[Notice, ...]
    spare: tuple[Image, ...]  # parts that are not needed


def check(images: list[Image], acquisition: Acquisition) -> Checked:
    """Checks in the order in which a person would ask; ChironError with the first that fails."""
    faulty = Counter(image.fault for image in images if image.fault[0])
    if faulty:
        (code, text), count = faulty.most_common(1)[0]
        raise ChironError(code, f"{text}; {count} such {'image' if count == 1 else 'images'} of {len(images)}")
    parts = _parts(images)
    used = [image for image in images if image.part in parts]
    _check_geometry(used)
    volumes, times = _echoes(used, parts, acquisition)
    _check_slices(volumes)
    field = field_strength([image.field for image in used], used[0].vendor, acquisition.b0_tesla)
    spare = tuple(image for image in images if image.part not in parts)
    return Checked(volumes, times, field, (*_notices(used, times), *field.notices), spare)


def _parts(images: list[Image]) -> tuple[str, str]:
    """Magnitude and phase, else real and imaginary; P001 saying what there is instead."""
    there = {image.part for image in images}
    if {"magnitude", "phase"} <= there and not _difference(images):
        return "magnitude", "phase"
    if {"real", "imaginary"} <= there:
        return "real", "imaginary"
    wanted = "magnitude and phase, or real and imaginary images, of every echo"
    if "phase" in there and _difference(images):
        raise ChironError("P001", "only the phase difference of two echoes, as for correcting distortion", wanted)
    if "phase" in there:
        raise ChironError("E001", "phase without any magnitude", wanted)
    if there & {"real", "imaginary"}:
        raise ChironError("E001", f"{'real' if 'real' in there else 'imaginary'} parts alone", wanted)
    if FIELD_MAP in there:
        raise ChironError("P001", "only a field map in Hz, computed by the scanner", wanted)
    raise ChironError("P001", "only magnitude images", wanted)


def _difference(images: list[Image]) -> bool:
    """Phase of one echo, though that is not the first, or the magnitude has two: Siemens' field map."""
    phase = {(i.echo_time_ms, i.echo_number) for i in images if i.part == "phase"}
    magnitude = {(i.echo_time_ms, i.echo_number) for i in images if i.part == "magnitude"}
    number = next(iter(phase))[1] if phase else None
    return len(phase) == 1 and (number or 0) > 1 and (not magnitude or len(magnitude) == 2)


def _check_geometry(images: list[Image]) -> None:
    matrices = {(i.rows, i.columns) for i in images}
    if len(matrices) > 1:
        found = " and ".join(f"{rows} x {columns}" for rows, columns in sorted(matrices))
        raise ChironError("E011", f"matrices of {found} in one scan", "one matrix")
    turned = np.ptp([i.orientation for i in images], axis=0).max()
    if turned > 1e-3:
        raise ChironError("E008", "slices that are turned against each other", "one orientation")


def _echoes(
    images: list[Image], parts: tuple[str, str], acquisition: Acquisition
) -> tuple[dict[str, list[list[Image]]], tuple[float, ...]]:
    """Volumes of each part in the order of echo time, and these times; E001, E005 or E006 where they do not fit."""
    by_part = {part: grouped([i for i in images if i.part == part], _echo_key(images, part)) for part in parts}
    first, second = (by_part[part] for part in parts)
    _check_counts(first, second, parts)
    order: Callable[[EchoKey], tuple[float, float]] = _by_number if acquisition.echo_times_s else _by_time
    keys = {part: sorted(by_part[part], key=order) for part in parts}
    if acquisition.echo_times_s:
        times = _given_times(acquisition, len(first))
    else:
        _check_times([*first, *second])
        times = tuple((key[0] or 0) / 1000 for key in keys[parts[0]])
        _check_same(times, keys[parts[1]], parts)
    return {part: [by_part[part][key] for key in keys[part]] for part in parts}, times


def _echo_key(images: list[Image], part: str) -> Callable[[Image], EchoKey]:
    """How echoes are told apart: by time where times differ, else by number."""
    own = [i for i in images if i.part == part]
    times, labels = {_ms(i) for i in own}, {i.echo_number for i in own}
    by_time = None not in times and len(times) >= len(labels)
    return (lambda i: (_ms(i), None)) if by_time else (lambda i: (_ms(i), i.echo_number))


def _check_counts(
    first: dict[EchoKey, list[Image]], second: dict[EchoKey, list[Image]], parts: tuple[str, str]
) -> None:
    if len(first) != len(second):
        found = f"{len(first)} echoes of {parts[0]} and {len(second)} of {parts[1]}"
        missing = sorted({_name(k) for k in first} ^ {_name(k) for k in second})
        raise ChironError("E001", f"{found}; without its counterpart: {', '.join(missing)}", "the same echoes of both")


def _given_times(acquisition: Acquisition, count: int) -> tuple[float, ...]:
    times = acquisition.echo_times_s
    if len(times) != count:
        raise ChironError("E005", f"{len(times)} echo times were given for {count} echoes", "one for each echo")
    if list(times) != sorted(set(times)) or not all(_possible(1000 * t) for t in times):
        raise ChironError("E006", "given echo times that are not rising, or not in seconds", "rising, in seconds")
    return tuple(times)


def _check_times(keys: list[EchoKey]) -> None:
    for time, _ in keys:
        if time is None:
            raise ChironError("E006", "echo times that are absent or no numbers", "the time of every echo")
        if not _possible(time):
            seconds = f", which looks like {time * 1000:g} ms written in seconds" if _possible(1000 * time) else ""
            raise ChironError("E006", f"an echo time of {time:g} ms{seconds}", "milliseconds, 0.2 to 500")
    for time, count in Counter(time for time, _ in keys).items():
        if count > 2:
            raise ChironError(
                "E005", f"{count // 2} echoes that all say {time:g} ms", "a time of its own for each echo"
            )


def _check_same(times: tuple[float, ...], other: list[EchoKey], parts: tuple[str, str]) -> None:
    for time, (counterpart, _) in zip(times, other, strict=True):
        if abs(time * 1000 - (counterpart or 0)) > 0.02:
            found = f"{parts[0]} at {time * 1000:g} ms and {parts[1]} at {counterpart:g} ms"
            raise ChironError("E001", found, "the same echo times of both")


def _check_slices(volumes: dict[str, list[list[Image]]]) -> None:
    """E002 to E005 and G002: every volume has every position once, and these are evenly spaced without gaps."""
    everything = [image for part in volumes.values() for volume in part for image in volume]
    normal = _normal(everything[0])
    places = _distinct([float(normal @ i.position_mm) for i in everything])
    for part, echoes in volumes.items():
        for number, volume in enumerate(echoes, 1):
            volume.sort(key=lambda image: (float(normal @ image.position_mm), image.file, image.frame))
            _check_volume([float(normal @ i.position_mm) for i in volume], places, f"{part} of echo {number}")
    if len(places) < max(2, everything[0].slices):
        found = f"{len(places)} slices in every volume where the header tells of {max(2, everything[0].slices)}"
        raise ChironError("E002", found, "all of them")
    _check_spacing(np.diff(places), everything[0].thickness_mm)


def _check_volume(found: list[float], places: list[float], name: str) -> None:
    have = _distinct(found)
    if len(have) < len(places):
        lacking = [i for i, place in enumerate(places, 1) if min(abs(place - f) for f in have) > _POSITION_MM]
        listed = ", ".join(map(str, lacking[:5])) + (" ..." if len(lacking) > 5 else "")
        raise ChironError("E002", f"no slice {listed} of {len(places)} in the {name}", "every slice in every volume")
    if len(found) > len(have):
        per_place = len(found) / len(have)
        if per_place.is_integer():
            raise ChironError(
                "E005", f"{per_place:.0f} images at each place in the {name}", "an echo time of its own for each"
            )
        raise ChironError("G002", f"{len(found)} images at {len(have)} places in the {name}", "one image at each place")


def _check_spacing(distances: NDArray[np.float64], thickness: float | None) -> None:
    usual = float(np.median(distances))
    odd = np.flatnonzero(abs(distances - usual) > max(_EVEN * usual, _POSITION_MM))
    if len(odd):
        at, ratio = int(odd[0]), float(distances[odd[0]] / usual)
        if ratio > 1.5 and abs(ratio - round(ratio)) < 0.05:
            raise ChironError(
                "E003", f"a gap of {round(ratio) - 1} slices after slice {at + 1} in all volumes", "no gap"
            )
        raise ChironError(
            "E004", f"{distances[at]:.3f} mm after slice {at + 1} and {usual:.3f} mm elsewhere", "even spacing"
        )
    if thickness and usual > 1.05 * thickness:
        raise ChironError("E003", f"slices of {thickness:g} mm every {usual:.3g} mm", "no gap between slices")


def _notices(images: list[Image], times: tuple[float, ...]) -> list[Notice]:
    found = []
    if len(times) == 1:
        found.append(Notice("E007", "A single echo: phase offsets cannot be told from the field."))
    if any(_conflict(image) for image in images):
        found.append(
            Notice("E009", "Public and private header give different slice positions; the public one is used.")
        )
    if any(image.bipolar for image in images):
        found.append(Notice("E013", "The header tells of a bipolar readout: odd and even echoes may differ in phase."))
    return found


def _conflict(image: Image) -> bool:
    """Whether the private position differs otherwise than by from centre to corner of a pixel, as Philips writes it."""
    if not image.other_position_mm:
        return False
    away = np.subtract(image.position_mm, image.other_position_mm)
    row, column = np.reshape(image.orientation, (2, 3))
    corner = (row * image.spacing_mm[1] + column * image.spacing_mm[0]) / 2
    return bool(min(np.abs(away).max(), np.abs(away - corner).max(), np.abs(away + corner).max()) > 0.05)


def _normal(image: Image) -> NDArray[np.float64]:
    row, column = np.reshape(image.orientation, (2, 3))
    return np.cross(row, column)


def _distinct(values: list[float]) -> list[float]:
    """Rising values, those within the tolerance taken as one."""
    found: list[float] = []
    for value in sorted(values):
        if not found or value - found[-1] > _POSITION_MM:
            found.append(value)
    return found


def _possible(time_ms: float) -> bool:
    return _ECHO_TIMES_MS[0] <= time_ms <= _ECHO_TIMES_MS[1]


def _ms(image: Image) -> float | None:
    return None if image.echo_time_ms is None else round(image.echo_time_ms, 3)


def _by_number(key: EchoKey) -> tuple[float, float]:
    """Where the times are not to be trusted: by number where there is one, else by time."""
    return (key[1] if key[1] is not None else 0), (key[0] or 0.0)


def _by_time(key: EchoKey) -> tuple[float, float]:
    return (key[0] or 0.0), (key[1] or 0)


def _name(key: EchoKey) -> str:
    return f"{key[0]:g} ms" if key[0] is not None else f"echo {key[1]}"
