"""Complex echoes -> stacks of a GE scanner: real and imaginary parts, conjugate, with slices alternating in sign."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scanner.geometry import Slices
from pipeline.scanner.images import Exam, Private, Stack

HEADER = {
    "Manufacturer": "GE MEDICAL SYSTEMS",
    "ManufacturerModelName": "SIGNA Architect",
    "SoftwareVersions": ["27", "LX", "MR Software release:DV27.0_R01_1850.a"],
    "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 1,
}
FREQUENCY_MHZ = {1.5: 63.86, 3.0: 127.73, 7.0: 298.0}  # at which magnets of a nominal strength in tesla work
_KINDS = {"real": 2, "imaginary": 3}


def stacks(signal: NDArray[np.complex64], slices: Slices, exam: Exam) -> list[Stack]:
    """The phase runs against the other vendors'; every second slice is negated, as its k-space was not shifted."""
    sign = np.where(np.arange(signal.shape[3]) % 2, -1, 1)
    stored = np.conj(signal) * sign * (16000 / float(np.abs(signal).max()))
    found = []
    for e, echo in enumerate(stored):
        for part, values in (("real", echo.real), ("imaginary", echo.imag)):
            private = _private(_KINDS[part], len(signal), signal.shape[3])
            found.append(Stack(part, e, np.rint(values).astype(np.int16), {}, private))
    return found


def order(stack: Stack, position: int) -> tuple[int, ...]:
    """Slice after slice, each with all its echoes, each with both parts."""
    return position, stack.echo, _KINDS[stack.part]


def _private(kind: int, echoes: int, slices: int) -> tuple[Private, ...]:
    elements: list[tuple[int, str, int, str, Any]] = [
        (0x0009, "GEMS_IDEN_01", 0x02, "SH", "GEHC"),
        (0x0019, "GEMS_ACQU_01", 0x7E, "SS", echoes),
        (0x0021, "GEMS_RELA_01", 0x4F, "SS", slices),
        (0x0043, "GEMS_PARM_01", 0x2F, "SS", kind),
    ]
    return tuple(elements)
