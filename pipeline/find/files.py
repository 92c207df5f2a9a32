"""A file of an export -> its DICOM header, and what is wrong with its pixels; these are measured, not read.

F002, F003, F004, F012 and F013 are raised where the file holds no image that could be told to be part of a scan. What
is wrong with one that can is returned, as its scan is set aside for it.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.errors import ChironError
from pipeline.find.values import element, integer

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its messages may quote values that identify

NO_FAULT = ("", "")
DEFLATED, _BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
_NATIVE = {"", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _BIG_ENDIAN}
_LOSSY = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.(50|51|53|55|81|91|93|112|203)$")
_IMAGES = {"1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4"}
_INFLATED_LIMIT = 512 * 2**20
_FORCED_LIMIT = 2**20
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"BZh", b"\xfd7zXZ", b"Rar!")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings, which may quote values that identify, from reaching anyone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def coded_reading(damaged: str) -> Iterator[None]:
    """Whatever goes wrong within leaves coded: F016, F015, or F003 where the file is `damaged`, in those words."""
    try:
        with quiet():
            yield
    except ChironError:
        raise
    except FileNotFoundError:
        raise ChironError("F016", "a file that vanished while it was read") from None
    except OSError as error:
        raise ChironError("F015", f"a file that cannot be read ({error.strerror})") from None
    except Exception as error:  # a damaged file can make the parser fail in any way
        raise ChironError("F003", damaged, "a whole file") from error


def read_header(path: Path, tags: list[Any]) -> tuple[Dataset, tuple[str, str]]:
    """The named elements of an MR image, and code and text of what is wrong with its pixels."""
    with path.open("rb") as stream:
        head = stream.read(512)
        stream.seek(0)
        if head[128:132] != b"DICM":
            dataset = _forced(stream, head, tags)
        elif len(head) == 132:
            raise ChironError("F004", "a DICOM preamble and nothing else", "an MR image")
        elif DEFLATED.encode() in head:
            return _checked_in_memory(inflated(path, stream))
        else:
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=tags)
        return dataset, _fault(dataset, stream)


def read_whole(path: Path) -> FileDataset:
    """A dataset with its pixels; for a file that `read_header` found sound."""
    with path.open("rb") as stream:
        head = stream.read(512)
        stream.seek(0)
        if head[128:132] == b"DICM" and DEFLATED.encode() in head:
            return inflated(path, stream)
        dataset = pydicom.dcmread(stream, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        explicit = dataset.original_encoding[0] is False
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    return dataset


def inflated(path: Path, stream: BinaryIO) -> FileDataset:
    """A deflated dataset, inflated within bounds: F012 beyond them, F003 where it breaks off."""
    meta = read_file_meta_info(path)
    if str(meta.TransferSyntaxUID) != DEFLATED:
        return pydicom.dcmread(stream)
    stream.seek(144 + integer(meta.FileMetaInformationGroupLength))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(stream.read(), _INFLATED_LIMIT)
    if inflater.unconsumed_tail:
        raise ChironError("F012", f"a file that inflates beyond {_INFLATED_LIMIT // 2**20} MiB")
    if not inflater.eof:
        raise ChironError("F003", "a deflated DICOM file that breaks off", "a whole file")
    plain = read_dataset(io.BytesIO(content), is_implicit_VR=False, is_little_endian=True)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return FileDataset("", plain, bytes(128), meta, is_implicit_VR=False, is_little_endian=True)


def _forced(stream: BinaryIO, head: bytes, tags: list[Any]) -> Dataset:
    """One read of at most a megabyte of a file without preamble; it must give an MR image's class and rows."""
    if head.startswith(_ARCHIVES) or head[257:262] == b"ustar":
        raise ChironError("F013", "an archive or compressed file")
    found = None
    if head[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08"):
        content = io.BytesIO(stream.read(_FORCED_LIMIT))
        found = _attempt(content, tags)
        stream.seek(content.tell())
    if found is None or element(found, "SOPClassUID") not in _IMAGES or not integer(element(found, "Rows")):
        raise ChironError("F002", "a file that is no DICOM image")
    return found


def _attempt(content: BinaryIO, tags: list[Any]) -> Dataset | None:
    try:
        return pydicom.dcmread(content, force=True, stop_before_pixels=True, specific_tags=tags)
    except Exception:  # what is no DICOM can make the parser fail in any way
        return None


def _checked_in_memory(dataset: Dataset) -> tuple[Dataset, tuple[str, str]]:
    """A dataset whose pixels are at hand because it was inflated."""
    kind = _kind(dataset)
    if not kind[0] and len(element(dataset, "PixelData") or b"") < _length(dataset):
        kind = "F003", "a DICOM file without all of its pixels"
    return dataset, kind


def _fault(dataset: Dataset, stream: BinaryIO) -> tuple[str, str]:
    """What is wrong with the file whose header was read up to where the stream stands."""
    start = stream.read(12)
    if len(start) < 12 and element(dataset, "SOPClassUID") in (None, "", *_IMAGES):
        if not element(dataset, "SeriesInstanceUID"):
            raise ChironError("F003", "a DICOM file that breaks off in its header", "a whole file")
        return "F003", "a DICOM file that breaks off before its pixels"
    fault = _kind(dataset)
    if fault[0]:
        return fault
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if _LOSSY.match(syntax) and not (syntax.endswith(".91") and element(dataset, "LossyImageCompression") == "00"):
        return "F011", "pixels under lossy compression"
    return _native(start, stream, syntax, _length(dataset)) if syntax in _NATIVE else _encapsulated(stream, syntax)


def _kind(dataset: Dataset) -> tuple[str, str]:
    """F002 and F004: whether this is an MR image with the elements that one needs."""
    kind = str(element(dataset, "SOPClassUID") or "")
    if kind and kind not in _IMAGES:
        name = UID(kind).name
        raise ChironError("F002", f"a DICOM object that is no MR image ({name if name != kind else 'unknown class'})")
    if not element(dataset, "SeriesInstanceUID"):
        raise ChironError("F004", "a DICOM file that names no series", "an MR image")
    if not kind or not _length(dataset):
        return "F004", "a DICOM file without SOP class, rows, columns or bits"
    if str(element(dataset, "LossyImageCompression") or "") == "01":
        return "F011", "pixels that went through lossy compression"
    return NO_FAULT


def _length(dataset: Dataset) -> int:
    """Bytes of uncompressed pixels; 0 where an element that says it is missing."""
    sizes = [integer(element(dataset, keyword)) for keyword in ("Rows", "Columns", "BitsAllocated")]
    more = [integer(element(dataset, keyword), 1) for keyword in ("SamplesPerPixel", "NumberOfFrames")]
    return max(0, math.prod(sizes)) * math.prod(more) // 8


def _native(start: bytes, stream: BinaryIO, syntax: str, length: int) -> tuple[str, str]:
    """Whether all uncompressed pixels that rows and columns ask for are there."""
    explicit = start[4:6].isalpha()
    declared = int.from_bytes(start[8:12] if explicit else start[4:8], "big" if syntax == _BIG_ENDIAN else "little")
    at = stream.tell() - (0 if explicit else 4)
    there = min(declared, stream.seek(0, io.SEEK_END) - at)
    if there < length:
        return "F003", f"a DICOM file with {max(0, there)} bytes of pixels where {length} belong"
    return NO_FAULT


def _encapsulated(stream: BinaryIO, syntax: str) -> tuple[str, str]:
    """Whether a decoder is here, and the compressed fragments end as they should."""
    try:
        known = get_decoder(UID(syntax)).is_available
    except (NotImplementedError, ValueError):
        known = False
    if not known:
        return "F010", "pixels in a compression that no installed decoder reads"
    while len(item := stream.read(8)) == 8:
        if item[:4] == b"\xfe\xff\xdd\xe0":
            return NO_FAULT
        stream.seek(int.from_bytes(item[4:], "little"), io.SEEK_CUR)
    return "F003", "a DICOM file whose compressed pixels break off"
