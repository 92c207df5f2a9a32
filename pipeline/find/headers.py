"""One file of an export -> the images in it (one, or the frames of an enhanced file), from the header alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from pipeline.find.field_strength import FieldHeader
from pipeline.find.files import NO_FAULT, coded_reading, read_header
from pipeline.find.parts import derived, other_kind, part_of
from pipeline.find.values import Lookup, element, frame_lookup, integer, number, numbers, text, vendor_of, words

_PROCESSING = {"NORM", "ND", "DIS2D", "DIS3D", "FM", "SH", "FIL"}
_MAY_SAY_BIPOLAR = ("SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName", "ScanOptions")
_KEYWORDS = """
    SOPClassUID SOPInstanceUID PatientID IssuerOfPatientID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID
    SeriesNumber AcquisitionNumber InstanceNumber TemporalPositionIdentifier AcquisitionDate AcquisitionTime
    AcquisitionDateTime StudyDate SeriesDescription ProtocolName Manufacturer ImageType ComplexImageComponent
    ScanningSequence SequenceName PulseSequenceName ScanOptions EchoPulseSequence EchoPlanarPulseSequence
    InversionRecovery MagneticFieldStrength ImagingFrequency TransmitterFrequency ImagedNucleus ResonantNucleus EchoTime
    EchoNumbers RepetitionTime FlipAngle Rows Columns SamplesPerPixel NumberOfFrames BitsAllocated PixelSpacing
    SliceThickness ImagePositionPatient ImageOrientationPatient LossyImageCompression SharedFunctionalGroupsSequence
    PerFrameFunctionalGroupsSequence
"""
_ORTHONORMAL = 2e-3
_MOSAIC, _SEQUENCE_GE, _PART_GE = (0x0019, 0x100A), (0x0019, 0x109E), (0x0043, 0x102F)
_COIL_SIEMENS, _SLICES_PHILIPS = (0x0051, 0x100F), (0x2001, 0x1018)
_PART_PHILIPS, _CLASSIC_PHILIPS = (0x2005, 0x1011), (0x2005, 0x140F)
_CREATORS = [(0x0019, 0x10), (0x0043, 0x10), (0x0051, 0x10), (0x2001, 0x10), (0x2005, 0x10), (0x2005, 0x14)]
_PRIVATE = [_MOSAIC, _SEQUENCE_GE, _PART_GE, _COIL_SIEMENS, _SLICES_PHILIPS, _PART_PHILIPS, _CLASSIC_PHILIPS]
_TAGS: list[Any] = [*_KEYWORDS.split(), *_CREATORS, *_PRIVATE]


@dataclass(frozen=True, slots=True)
class Image:
    """One slice of one part and echo, as its header has it. Identifying strings stay in memory, for grouping only."""

    file: int  # ordinal of the file
    frame: int  # counted from 0
    multiframe: bool = False  # one of many in its file
    patient: str = ""
    study: str = ""
    series: str = ""
    sop: str = ""
    frame_of_reference: str = ""
    series_number: int = 0
    repeat: tuple[int, int] = (0, 0)  # acquisition number, temporal position
    time_s: float | None = None  # of the acquisition, since midnight
    date: str = ""
    vendor: str = ""
    part: str = ""
    derived: str = ""  # what it was derived by; empty for an original
    other_kind: str = ""  # what kind of scan; empty for a gradient echo
    processing: frozenset[str] = frozenset()  # words of the image type that name a filter or correction
    coil: str = ""
    echo_time_ms: float | None = None
    echo_number: int | None = None
    field: FieldHeader = FieldHeader()
    rows: int = 0
    columns: int = 0
    orientation: tuple[float, ...] = ()
    position_mm: tuple[float, ...] = ()
    other_position_mm: tuple[float, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    thickness_mm: float | None = None
    slices: int = 0  # of the volume, where the vendor says so
    timing: tuple[float | None, ...] = ()  # repetition time, flip angle
    bipolar: bool = False
    fault: tuple[str, str] = NO_FAULT


def read_images(path: Path, ordinal: int) -> list[Image]:
    """All images of a file. ChironError F002, F003, F004, F012, F013, F015 or F016 where it holds none."""
    with coded_reading("a DICOM file that is damaged in its header"):
        dataset, fault = read_header(path, _TAGS)
        images = list(_images(dataset, ordinal))
    return [replace(image, fault=fault) for image in images] if fault[0] else images


def _images(dataset: Dataset, ordinal: int) -> Iterator[Image]:
    """One image a frame."""
    frames = element(dataset, "PerFrameFunctionalGroupsSequence")
    many = isinstance(frames, pydicom.Sequence)
    for frame in range(len(frames) if many else 1):
        yield replace(_image(frame_lookup(dataset, frame), ordinal, frame), multiframe=many)


def _image(get: Lookup, ordinal: int, frame: int) -> Image:
    vendor = vendor_of(get("Manufacturer"))
    image_type = words(get("FrameType") or get("ImageType"))
    effective = get("EffectiveEchoTime")
    return Image(
        file=ordinal,
        frame=frame,
        patient=text("\\".join(filter(None, (text(get("PatientID")), text(get("IssuerOfPatientID")))))),
        study=text(get("StudyInstanceUID")),
        series=text(get("SeriesInstanceUID")),
        sop=text(get("SOPInstanceUID")),
        frame_of_reference=text(get("FrameOfReferenceUID")),
        series_number=integer(get("SeriesNumber")),
        repeat=(integer(get("AcquisitionNumber")), integer(get("TemporalPositionIdentifier"))),
        time_s=_seconds(get),
        date=text(get("AcquisitionDate") or str(get("AcquisitionDateTime") or "")[:8] or get("StudyDate")),
        vendor=vendor,
        part=part_of(image_type, vendor, text(get("ComplexImageComponent")), _private_part(get), get(_SEQUENCE_GE)),
        derived=derived(image_type, text(get("SeriesDescription"))),
        other_kind=other_kind(get),
        processing=frozenset(_PROCESSING & set(image_type)),
        coil=text(get(_COIL_SIEMENS)),
        echo_time_ms=number(get("EchoTime") if effective is None else effective),
        echo_number=_echo_number(get("EchoNumbers")),
        field=_field(get),
        rows=integer(get("Rows")),
        columns=integer(get("Columns")),
        orientation=numbers(get("ImageOrientationPatient"), 6),
        position_mm=numbers(get("ImagePositionPatient"), 3),
        other_position_mm=_private_position(get),
        spacing_mm=numbers(get("PixelSpacing"), 2),
        thickness_mm=number(get("SliceThickness")),
        slices=integer(get(_SLICES_PHILIPS)),
        timing=(number(get("RepetitionTime")), number(get("FlipAngle"))),
        bipolar=any("bipolar" in str(get(keyword)).lower() for keyword in _MAY_SAY_BIPOLAR),
        fault=_fault(get, "MOSAIC" in image_type or (vendor == "Siemens" and (number(get(_MOSAIC)) or 0) > 1)),
    )


def _field(get: Lookup) -> FieldHeader:
    """Of a classic file, of the frame's modifier in an enhanced one, or of the classic header that Philips repeats."""

    def first(*keywords: str) -> Any:
        values = (get(keyword) for keyword in keywords)
        return next((value for value in values if value is not None), _private_classic(get, keywords[0]))

    nominal = first("MagneticFieldStrength")
    return FieldHeader.of(
        nominal, first("ImagingFrequency", "TransmitterFrequency"), first("ImagedNucleus", "ResonantNucleus")
    )


def _fault(get: Lookup, mosaic: bool) -> tuple[str, str]:
    """What makes one image unusable, whatever stands beside it."""
    axes, spacing = numbers(get("ImageOrientationPatient"), 6), numbers(get("PixelSpacing"), 2)
    if mosaic:
        return "E010", "a mosaic of slices in one image"
    if not spacing or min(spacing) <= 0:
        return "F004", "a DICOM file without the distance between pixels"
    if not axes or not numbers(get("ImagePositionPatient"), 3):
        return "E008", "an image without orientation or position"
    row, column = axes[:3], axes[3:]
    lengths = [sum(a * b for a, b in zip(p, q, strict=True)) for p, q in ((row, row), (column, column), (row, column))]
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(lengths[2])) > _ORTHONORMAL:
        return "E008", "an orientation whose axes are not at right angles or not of length 1"
    return NO_FAULT


def _private_part(get: Lookup) -> str:
    """GE's number (0 to 3) or Philips' letter for the part, as text."""
    found = get(_PART_GE)
    if found is None:
        found = get(_PART_PHILIPS)
    if isinstance(found, bytes):  # of an implicit file whose private creator is unknown
        found = int.from_bytes(found[:2], "little") if len(found) == 2 and found[1] == 0 else found.decode("latin-1")
    return text(found)


def _private_position(get: Lookup) -> tuple[float, ...]:
    """The position that Philips repeats in a private sequence."""
    return numbers(_private_classic(get, "ImagePositionPatient"), 3)


def _private_classic(get: Lookup, keyword: str) -> Any:
    """An element of the classic header that Philips repeats in a private sequence of an enhanced file, or None."""
    private = get(_CLASSIC_PHILIPS)
    return element(private[0], keyword) if isinstance(private, pydicom.Sequence) and private else None


def _seconds(get: Lookup) -> float | None:
    """Acquisition time in seconds since midnight."""
    time = str(get("AcquisitionTime") or str(get("AcquisitionDateTime") or "")[8:])
    found = re.match(r"(\d\d)(\d\d)(\d\d(?:\.\d+)?)", time)
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None


def _echo_number(value: Any) -> int | None:
    found = number(value[0] if isinstance(value, list | pydicom.multival.MultiValue) and value else value)
    return int(found) if found is not None and found >= 0 else None
