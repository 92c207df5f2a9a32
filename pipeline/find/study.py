"""A file that may still be being written -> the study it belongs to, from its first bytes and without ever waiting."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial

from pipeline.errors import ChironError
from pipeline.find.files import DEFLATED, coded_reading, inflated
from pipeline.find.values import element, text

_PATIENT, _STUDY = 0x00100020, 0x0020000D
_FIRST_READ, _LONGEST_READ = 2**16, 2**24
_GROUPS = (b"\x08\x00", b"\x02\x00", b"\x00\x08")  # that a file without preamble begins with
_DIRECTORY = "1.2.840.10008.1.3.10"
_CUT = "a file whose header cannot be read to its end"


def study_of(path: Path) -> str:
    """What files of one study have in common; it identifies, so it stays in memory.

    F002 where the file is no DICOM object of a study, F003 where its header cannot be read, or not yet; F012, F015 and
    F016 as `find` has them.
    """
    with coded_reading(_CUT), _opened(path) as stream:
        dataset = _header(path, stream)
        return text(element(dataset, "StudyInstanceUID")) or f"of patient {text(element(dataset, 'PatientID'))}"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, if it is one: a pipe that took its place would wait for a writer, a link lead elsewhere."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ChironError("F015", "a pipe, socket or device")
        yield stream


def _header(path: Path, stream: BinaryIO) -> Dataset:
    first = stream.read(_FIRST_READ)
    if not first.strip(b"\0") or (128 <= len(first) < 132 and b"DICM".startswith(first[128:])):
        raise _cut()  # empty, room that was made for what is to come, or the first bytes of a DICOM file
    if first[128:132] != b"DICM" and first[:2] not in _GROUPS:
        raise ChironError("F002", "a file that is no DICOM object")
    if first[128:132] == b"DICM" and DEFLATED.encode() in first[:512]:
        return inflated(path, stream)
    found = _beginning(first)
    if found is None and len(first) == _FIRST_READ:
        found = _beginning(first + stream.read(_LONGEST_READ))
    if found is None:
        raise _cut()
    return found


def _beginning(content: bytes) -> Dataset | None:
    """Elements up to that of the study; None where the content ends before the next one begins."""
    beyond = []

    def stop(tag: Any, vr: str | None, length: int) -> bool:
        if tag > _STUDY:
            beyond.append(tag)
        return bool(beyond)

    found = read_partial(io.BytesIO(content), stop, specific_tags=[_PATIENT, _STUDY], force=True)
    if text(element(found.file_meta, "MediaStorageSOPClassUID")) == _DIRECTORY:
        raise ChironError("F002", "a directory of a DICOM medium")
    return found if beyond else None


def _cut() -> ChironError:
    return ChironError("F003", _CUT, "a whole file")
