"""One file of an export -> the images in it (one, or the frames of an enhanced file), from the header alone.

A file that holds no image raises a coded error; an image that cannot be used bears its code as `fault`, so that its scan
is set aside with the right reason.
"""

from __future__ import annotations

import io
import logging
import math
import re
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_preamble
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from pipeline.errors import ChironError
from pipeline.find.parts import derived, other_kind, part_of

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its messages may quote values that identify

_DEFLATED, _BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
_NATIVE = {"", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _BIG_ENDIAN}
_PROCESSING = {"NORM", "ND", "DIS2D", "DIS3D", "FM", "SH", "FIL"}
_MAY_SAY_BIPOLAR = (
    "SeriesDescription",
    "ProtocolName",
    "SequenceName",
    "PulseSequenceName",
    "ScanOptions",
    "SequenceVariant",
)
_INFLATED_LIMIT = 512 * 2**20
_FORCED_LIMIT = 2**20
_IMAGES = {"1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4"}
_LOSSY = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.(50|51|53|55|81|91|93|112|203)$")
_MAGIC = (
    (0, b"PK\x03\x04"),
    (0, b"\x1f\x8b"),
    (0, b"7z\xbc\xaf\x27\x1c"),
    (0, b"BZh"),
    (0, b"\xfd7zXZ"),
    (0, b"Rar!"),
    (257, b"ustar"),
)
_TAGS: list[Any] = (
    "SOPClassUID SOPInstanceUID PatientID IssuerOfPatientID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID "
    "SeriesNumber AcquisitionNumber InstanceNumber TemporalPositionIdentifier AcquisitionDate AcquisitionTime "
    "AcquisitionDateTime StudyDate SeriesDescription ProtocolName Manufacturer ManufacturerModelName SoftwareVersions "
    "ImageType ComplexImageComponent ScanningSequence SequenceName PulseSequenceName SequenceVariant ScanOptions "
    "MRAcquisitionType EchoPulseSequence EchoPlanarPulseSequence InversionRecovery MagneticFieldStrength "
    "EchoTime EchoNumbers RepetitionTime FlipAngle PixelBandwidth Rows Columns SamplesPerPixel "
    "NumberOfFrames BitsAllocated BitsStored PixelRepresentation PixelSpacing SliceThickness ImagePositionPatient "
    "ImageOrientationPatient RescaleSlope RescaleIntercept RescaleType LossyImageCompression "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
).split() + [
    (0x0019, 0x0010), (0x0019, 0x100A), (0x0019, 0x109E), (0x0043, 0x0010), (0x0043, 0x102F),
    (0x0051, 0x0010), (0x0051, 0x100F), (0x2005, 0x0010), (0x2005, 0x1011), (0x2005, 0x0014), (0x2005, 0x140F),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Image:
    """One slice of one part and echo, as its header describes it. Identifying strings stay in memory, for grouping only."""

    file: int  # ordinal of the file
    frame: int  # counted from 0
    patient: str = ""
    study: str = ""
    series: str = ""
    sop: str = ""
    frame_of_reference: str = ""
    series_number: int = 0
    instance: int = 0
    repeat: tuple[int, int] = (0, 0)  # acquisition number, temporal position
    time_s: float | None = None  # of the acquisition, since midnight
    date: str = ""
    vendor: str = ""
    part: str = ""
    derived: str = ""
    other_kind: str = ""
    processing: frozenset[str] = frozenset()  # words of the image type that name a filter or correction
    coil: str = ""
    echo_time_ms: float | None = None
    echo_time_text: str = ""
    echo_number: int | None = None
    b0_tesla: float | None = None
    rows: int = 0
    columns: int = 0
    orientation: tuple[float, ...] = ()
    position_mm: tuple[float, ...] = ()
    other_position_mm: tuple[float, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    thickness_mm: float | None = None
    protocol: tuple[Any, ...] = ()
    bipolar: bool = False
    fault: tuple[str, str] = ("", "")


def read_images(path: Path, ordinal: int) -> list[Image]:
    """All images of a file. ChironError F002, F003, F004, F012, F013, F015 or F016 where it holds none."""
    try:
        with path.open("rb") as stream, quiet():
            dataset, syntax, body = _header(stream)
            fault = _fault(dataset, syntax, body)
            return [
                replace(image, fault=image.fault if image.fault[0] else fault) for image in _images(dataset, ordinal)
            ]
    except FileNotFoundError:
        raise ChironError("F016", "a file that vanished while it was read") from None
    except OSError as error:
        raise ChironError("F015", f"a file that cannot be read ({error.strerror})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings, which may quote values that identify, from reaching anyone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_dataset(path: Path) -> Dataset:
    """The whole dataset with pixels, inflated within bounds; for conversion, after `read_images` has found it sound."""
    with path.open("rb") as stream:
        preamble = stream.read(132)
        if preamble[128:] != b"DICM":
            stream.seek(0)
            return pydicom.dcmread(stream, force=True)
        stream.seek(0)
        if _syntax(stream) == _DEFLATED:
            return _inflated(stream, stop=False)[0]
        stream.seek(0)
        return pydicom.dcmread(stream)


def frame_lookup(dataset: Dataset, frame: int) -> Any:
    """keyword or tag -> value for one frame: its own functional groups first, then the shared ones, then the file."""
    levels: list[Dataset] = []
    for name, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = _value(dataset, name)
        if groups and index < len(groups):
            levels += _macros(groups[index])
    levels.append(dataset)

    def get(key: Any) -> Any:
        for level in levels:
            value = _value(level, key)
            if value is not None and value != "":
                return value
        return None

    return get


def number(value: Any) -> float | None:
    """A finite float, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def numbers(value: Any, count: int) -> tuple[float, ...]:
    """`count` finite floats, or an empty tuple."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return ()
    found = [number(v) for v in value]
    return tuple(v for v in found if v is not None) if len(found) == count and None not in found else ()


def vendor_of(manufacturer: Any) -> str:
    name = str(manufacturer or "").lower()
    for vendor in ("Siemens", "Philips", "GE"):
        if name.startswith(vendor.lower()):
            return vendor
    return "other"


def _header(stream: BinaryIO) -> tuple[Dataset, str, BinaryIO]:
    """Dataset up to the pixels, transfer syntax, and the stream standing where the pixels begin."""
    head = stream.read(512)
    if any(head[at : at + len(magic)] == magic for at, magic in _MAGIC) and head[128:132] != b"DICM":
        raise ChironError("F013", "an archive or compressed file")
    stream.seek(0)
    if head[128:132] != b"DICM":
        return _forced(stream, head)
    if len(head) == 132:
        raise ChironError("F004", "a DICOM preamble and nothing else", "an MR image")
    try:
        syntax = _syntax(stream)
        stream.seek(0)
        if syntax == _DEFLATED:
            return *_inflated(stream, stop=True), io.BytesIO()
        dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS)
    except (ChironError, OSError):
        raise
    except Exception as error:  # a damaged file can make the parser fail in any way
        raise ChironError("F003", "a DICOM file that breaks off or is damaged in its header", "a whole file") from error
    return dataset, syntax, stream


def _syntax(stream: BinaryIO) -> str:
    read_preamble(stream, False)
    meta = pydicom.filereader._read_file_meta_info(stream)
    return str(meta.get("TransferSyntaxUID", ""))


def _forced(stream: BinaryIO, head: bytes) -> tuple[Dataset, str, BinaryIO]:
    """One read of at most a megabyte of a file without preamble; it must give an MR image's class and rows."""
    if head[:2] not in (b"\x08\x00", b"\x02\x00", b"\x00\x08"):
        raise ChironError("F002", "a file that is no DICOM image")
    try:
        content = io.BytesIO(stream.read(_FORCED_LIMIT))
        dataset = pydicom.dcmread(content, force=True, stop_before_pixels=True, specific_tags=_TAGS)
        known = str(dataset.get("SOPClassUID", "")) in _IMAGES and "Rows" in dataset
    except Exception as error:
        raise ChironError("F002", "a file that is no DICOM image") from error
    if not known:
        raise ChironError("F002", "a file that is no DICOM image")
    stream.seek(content.tell())
    return dataset, str(dataset.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2")), stream


def _inflated(stream: BinaryIO, stop: bool) -> tuple[Dataset, str]:
    """A deflated dataset, inflated within bounds: F012 beyond them. Its pixels are checked here, as they are in memory."""
    preamble = read_preamble(stream, False)
    meta = pydicom.filereader._read_file_meta_info(stream)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(stream.read(), _INFLATED_LIMIT)
    if inflater.unconsumed_tail:
        raise ChironError("F012", f"a file that inflates beyond {_INFLATED_LIMIT // 2**20} MiB")
    if not inflater.eof:
        raise ChironError("F003", "a deflated DICOM file that breaks off", "a whole file")
    plain = pydicom.filereader.read_dataset(io.BytesIO(content), False, True)
    dataset = pydicom.FileDataset("", plain, preamble, meta, is_implicit_VR=False, is_little_endian=True)
    if not stop:
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return dataset, _DEFLATED


def _fault(dataset: Dataset, syntax: str, body: BinaryIO) -> tuple[str, str]:
    """Code and text where the file is no usable image; raises where it is no MR image at all."""
    kind = str(_value(dataset, "SOPClassUID") or "")
    if kind and kind not in _IMAGES:
        raise ChironError("F002", "a DICOM object that is no MR image (" + _class_name(kind) + ")")
    sizes = [_value(dataset, k) for k in ("Rows", "Columns", "BitsAllocated")]
    start = body.read(12)
    if not start and syntax != _DEFLATED:
        return "F003", "a DICOM file that breaks off before its pixels"
    if not kind or not all(isinstance(s, int) and s > 0 for s in sizes) or not _value(dataset, "SeriesInstanceUID"):
        if not _value(dataset, "SeriesInstanceUID"):
            raise ChironError("F004", "a DICOM file without SOP class, series, rows, columns or bits", "an MR image")
        return "F004", "a DICOM file without SOP class, rows, columns or bits"
    if _LOSSY.match(syntax) and not (syntax.endswith(".91") and _value(dataset, "LossyImageCompression") == "00"):
        return "F011", "pixels under lossy compression"
    if str(_value(dataset, "LossyImageCompression") or "") == "01":
        return "F011", "pixels that went through lossy compression"
    frames = int(number(_value(dataset, "NumberOfFrames")) or 1)
    length = math.prod(sizes) // 8 * int(number(_value(dataset, "SamplesPerPixel")) or 1) * frames
    if syntax == _DEFLATED:
        whole = len(dataset.get("PixelData", b"")) >= length
        return ("", "") if whole else ("F003", "a DICOM file without all of its pixels")
    return _native(start, body, syntax, length) if syntax in _NATIVE else _encapsulated(body, syntax)


def _native(start: bytes, body: BinaryIO, syntax: str, length: int) -> tuple[str, str]:
    """Whether all uncompressed pixels that rows and columns ask for are there."""
    explicit = start[4:6].isalpha()
    declared = int.from_bytes(start[8:12] if explicit else start[4:8], "big" if syntax == _BIG_ENDIAN else "little")
    at = body.tell() - (0 if explicit else 4)
    there = min(declared, body.seek(0, io.SEEK_END) - at)
    if there < length:
        return "F003", f"a DICOM file with {max(0, there)} bytes of pixels where {length} belong"
    return "", ""


def _encapsulated(body: BinaryIO, syntax: str) -> tuple[str, str]:
    """Whether a decoder is here, and the compressed fragments end as they should."""
    try:
        known = get_decoder(UID(syntax)).is_available
    except (NotImplementedError, ValueError):
        known = False
    if not known:
        return "F010", "pixels in a compression that no installed decoder reads"
    while len(item := body.read(8)) == 8:
        if item[:4] == b"\xfe\xff\xdd\xe0":
            return "", ""
        body.seek(int.from_bytes(item[4:], "little"), io.SEEK_CUR)
    return "F003", "a DICOM file whose compressed pixels break off"


def _class_name(kind: str) -> str:
    uid = UID(kind)
    return uid.name if uid.name != kind else "an unknown class"


def _images(dataset: Dataset, ordinal: int) -> Iterator[Image]:
    """One image a frame."""
    frames = _value(dataset, "PerFrameFunctionalGroupsSequence")
    for frame in range(len(frames) if frames else 1):
        yield _image(dataset, ordinal, frame)


def _image(dataset: Dataset, ordinal: int, frame: int) -> Image:
    get = frame_lookup(dataset, frame)
    vendor = vendor_of(get("Manufacturer"))
    image_type = tuple(str(word).upper().strip() for word in get("FrameType") or get("ImageType") or ())
    echo_time = get("EffectiveEchoTime") if get("EffectiveEchoTime") is not None else get("EchoTime")
    mosaic = "MOSAIC" in image_type or (vendor == "Siemens" and (number(get((0x0019, 0x100A))) or 0) > 1)
    return Image(
        file=ordinal,
        frame=frame,
        patient=_text("\\".join(filter(None, (_text(get("PatientID")), _text(get("IssuerOfPatientID")))))),
        study=_text(get("StudyInstanceUID")),
        series=_text(get("SeriesInstanceUID")),
        sop=_text(get("SOPInstanceUID")),
        frame_of_reference=_text(get("FrameOfReferenceUID")),
        series_number=int(number(get("SeriesNumber")) or 0),
        instance=int(number(get("InstanceNumber")) or 0),
        repeat=(int(number(get("AcquisitionNumber")) or 0), int(number(get("TemporalPositionIdentifier")) or 0)),
        time_s=_seconds(get),
        date=_text(get("AcquisitionDate") or str(get("AcquisitionDateTime") or "")[:8] or get("StudyDate")),
        vendor=vendor,
        part=sys.intern(part_of(get, vendor, image_type)),
        derived=derived(image_type, str(get("SeriesDescription") or "")),
        other_kind=other_kind(get),
        processing=frozenset(_PROCESSING & set(image_type)),
        coil=_text(get((0x0051, 0x100F))),
        echo_time_ms=number(echo_time),
        echo_time_text="absent" if echo_time is None else "not a finite number",
        echo_number=_echo_number(get("EchoNumbers")),
        b0_tesla=number(get("MagneticFieldStrength")),
        rows=int(number(get("Rows")) or 0),
        columns=int(number(get("Columns")) or 0),
        orientation=numbers(get("ImageOrientationPatient"), 6),
        position_mm=numbers(get("ImagePositionPatient"), 3),
        other_position_mm=_private_position(get),
        spacing_mm=numbers(get("PixelSpacing"), 2),
        thickness_mm=number(get("SliceThickness")),
        protocol=(number(get("RepetitionTime")), number(get("FlipAngle")), number(get("PixelBandwidth"))),
        bipolar=any("bipolar" in str(get(k)).lower() for k in _MAY_SAY_BIPOLAR),
        fault=("E010", "a mosaic of slices in one image") if mosaic else ("", ""),
    )


def _private_position(get: Any) -> tuple[float, ...]:
    """The position that Philips repeats in a private sequence."""
    private = get((0x2005, 0x140F))
    if not private or isinstance(private, bytes):
        return ()
    return numbers(_value(private[0], "ImagePositionPatient"), 3)


def _seconds(get: Any) -> float | None:
    """Acquisition time in seconds since midnight."""
    text = str(get("AcquisitionTime") or str(get("AcquisitionDateTime") or "")[8:])
    found = re.match(r"(\d\d)(\d\d)(\d\d(?:\.\d+)?)", text)
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None


def _echo_number(value: Any) -> int | None:
    first = value[0] if isinstance(value, Iterable) and not isinstance(value, str) and len(list(value)) else value
    found = number(first)
    return int(found) if found is not None and found >= 0 else None


def _macros(group: Dataset) -> list[Dataset]:
    """The first item of every macro of a functional group; a vendor's private ones last."""
    tags = sorted(group.keys(), key=lambda tag: (tag.is_private, tag))
    found = [(tag, _value(group, tag)) for tag in tags]
    public = [value[0] for tag, value in found if not tag.is_private and isinstance(value, pydicom.Sequence) and value]
    return [*public, group]


def _value(dataset: Dataset, key: Any) -> Any:
    """An element's value; None where it is absent or damaged."""
    try:
        if isinstance(key, str):
            return dataset.get(key)
        return dataset[key].value if key in dataset else None
    except Exception:  # a damaged element fails in whatever way its type does when it is read at last
        return None


def _text(value: Any) -> str:
    return sys.intern(str(value or "").strip(" \0"))
