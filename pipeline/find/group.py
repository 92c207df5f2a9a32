"""Images of one patient's study -> acquisitions: the images, from one series or several, that belong to one scan.

Scanners put magnitude and phase (or real and imaginary parts) into one series, into neighbouring ones, or each echo
into one of its own. Pieces of series are joined where geometry, timing and frame of reference agree and no slot is
taken twice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import TypeVar

from pipeline.find.headers import Image

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Acquisition = list[Image]
_SAME_TIME_S = 1.0


def acquisitions(images: Iterable[Image]) -> list[Acquisition]:
    """Joined pieces, in the order of series number and time; every image is in exactly one."""
    found: list[Acquisition] = []
    for piece in sorted(_pieces(images), key=_place):
        homes = [a for a in found if _joins(a, piece)]
        if len(homes) > 1 and _time(piece) is None:
            text = f"{piece[0].part} images that fit several series, and no acquisition times that tell which"
            found.append([replace(image, fault=("G002", text)) for image in piece])
        elif homes:
            min(homes, key=lambda a: _distance(a, piece)).extend(piece)
        else:
            found.append(list(piece))
    return _join_unequal(found)


def copies(found: list[Acquisition]) -> list[tuple[Acquisition, str]]:
    """Acquisitions that are another reconstruction (single coils, another filter) of one that is kept, and which."""
    dropped: list[tuple[Acquisition, str]] = []
    for moment in grouped(found, lambda a: (_time(a), _matrix(a[0]), _stance(a[0]), a[0].frame_of_reference)).values():
        if _time(moment[0]) is None or len(moment) == 1:
            continue
        best = min(moment, key=_preference)
        for other in moment:
            if other is best or not slots(other) <= slots(best):
                continue
            if other[0].coil != best[0].coil and not _single_coil(best[0].coil):
                dropped.append((other, "images of a single coil, beside those of all coils"))
            elif _part_processing(other).items() - _part_processing(best).items():
                dropped.append((other, "another filter or correction of a scan that is there without it"))
            elif other[0].multiframe != best[0].multiframe:
                dropped.append((other, "the same scan once more, in the other kind of file"))
    return dropped


def only_single_coils(found: list[Acquisition], acquisition: Acquisition) -> bool:
    """Whether the acquisition is of one coil element, with others of the same moment beside it."""
    return _single_coil(acquisition[0].coil) and any(
        a is not acquisition and _time(a) == _time(acquisition) and _single_coil(a[0].coil) for a in found
    )


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by key, in the order of first appearance."""
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def slots(images: Iterable[Image]) -> set[tuple[str, float | None, int | None]]:
    """The (part, echo time, echo number) that are taken."""
    return {(i.part, _rounded(i.echo_time_ms, 3), i.echo_number) for i in images}


def whole(images: Iterable[Image]) -> bool:
    """Whether every echo has magnitude and phase, or real and imaginary parts."""
    echoes = {
        part: {s[1:] for s in slots(images) if s[0] == part} for part in ("magnitude", "phase", "real", "imaginary")
    }
    return any(echoes[a] and echoes[a] == echoes[b] for a, b in (("magnitude", "phase"), ("real", "imaginary")))


def _pieces(images: Iterable[Image]) -> list[Acquisition]:
    """Images of one series with one geometry; repeats apart where a slot and place would be taken twice."""
    pieces = []
    for piece in grouped(images, lambda i: (_sort(i), i.part, i.processing)).values():
        places = [(i.part, _rounded(i.echo_time_ms, 3), i.echo_number, i.position_mm) for i in piece]
        twice = len(set(places)) < len(places)
        pieces += list(grouped(piece, lambda i: i.repeat).values()) if twice else [piece]
    return _rejoined(pieces)


def _rejoined(pieces: list[Acquisition]) -> list[Acquisition]:
    """Undo the split by part and processing within a series where it only kept parts of one acquisition apart."""
    found: list[Acquisition] = []
    for piece in pieces:
        for other in found:
            alike = _sort(other[0]) == _sort(piece[0]) and other[0].repeat == piece[0].repeat
            if alike and not slots(other) & slots(piece):
                other.extend(piece)
                break
        else:
            found.append(list(piece))
    return found


def _sort(image: Image) -> Hashable:
    return image.series, image.multiframe, _matrix(image), _stance(image), image.coil


def _joins(acquisition: Acquisition, piece: Acquisition) -> bool:
    """Whether the piece can be another part or echo of the acquisition."""
    a, b = acquisition[0], piece[0]
    alike = (
        (_matrix(a), _stance(a), _timing(a), a.coil) == (_matrix(b), _stance(b), _timing(b), b.coil)
        and (a.frame_of_reference, a.vendor, a.multiframe) == (b.frame_of_reference, b.vendor, b.multiframe)
        and not slots(acquisition) & slots(piece)
    )
    if alike and (whole(acquisition) or whole(piece)):
        times = _time(acquisition), _time(piece)
        return None not in times and abs(times[0] - times[1]) <= _SAME_TIME_S  # type: ignore[operator]
    return alike


def _join_unequal(found: list[Acquisition]) -> list[Acquisition]:
    """Join what lacks a part with the only one that has it though their matrices differ, so that this can be told."""
    lone = [a for a in found if not whole(a)]
    for phase in [a for a in lone if {i.part for i in a} == {"phase"}]:
        near = [a for a in lone if a is not phase and {i.part for i in a} == {"magnitude"} and _almost(a, phase)]
        if near:
            home = min(near, key=lambda a: _distance(a, phase))
            home.extend(phase)
            lone = [a for a in lone if a is not home and a is not phase]
            found = [a for a in found if a is not phase]
    return found


def _almost(a: Acquisition, b: Acquisition) -> bool:
    same = a[0].frame_of_reference == b[0].frame_of_reference and _timing(a[0]) == _timing(b[0])
    return same and {s[1] for s in slots(a)} == {s[1] for s in slots(b)}


def _distance(a: Acquisition, b: Acquisition) -> tuple[float, bool, int]:
    """Nearest in time, then in processing, then in series number."""
    times = _time(a), _time(b)
    apart = abs(times[0] - times[1]) if times[0] is not None and times[1] is not None else 0.0
    unlike = {p - {"NORM"} for p in _processing(a)} != {p - {"NORM"} for p in _processing(b)}
    return (0.0 if apart <= _SAME_TIME_S else apart), unlike, min(abs(i.series_number - b[0].series_number) for i in a)


def _processing(images: Acquisition) -> set[frozenset[str]]:
    return {i.processing for i in images}


def _preference(images: Acquisition) -> tuple[bool, bool, int, int]:
    correction = sum(len(i.processing - {"ND"}) for i in images)
    return not whole(images), _single_coil(images[0].coil), correction, images[0].series_number


def _part_processing(images: Acquisition) -> dict[str, frozenset[str]]:
    return {i.part: i.processing for i in images}


def _single_coil(name: str) -> bool:
    """Siemens names one element `H1` or `HE2`, and those of a combined image `HEA;HEP` or `HC1-7`."""
    return re.fullmatch(r"[A-Z]{1,3}\d{1,2}", name) is not None


def _time(images: Acquisition) -> float | None:
    return min((i.time_s for i in images if i.time_s is not None), default=None)


def _place(images: Acquisition) -> tuple[int, tuple[int, int], float, int]:
    return images[0].series_number, images[0].repeat, _time(images) or 0.0, images[0].file


def _matrix(image: Image) -> Hashable:
    return image.rows, image.columns, tuple(round(s, 3) for s in image.spacing_mm)


def _stance(image: Image) -> Hashable:
    return tuple(round(c, 2) + 0.0 for c in image.orientation)


def _timing(image: Image) -> Hashable:
    return tuple(_rounded(value, 1) for value in image.timing)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
