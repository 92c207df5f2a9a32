"""Complex echoes -> stacks of a Siemens scanner (classic): a series of magnitude, and one of phase as 0..4095."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scanner.geometry import Slices
from pipeline.scanner.images import Exam, Stack, quantise

HEADER = {
    "Manufacturer": "SIEMENS",
    "ManufacturerModelName": "Prisma_fit",
    "SoftwareVersions": "syngo MR E11",
    "SequenceName": "*fl3d1r",
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
}
FREQUENCY_MHZ = {1.5: 63.68, 3.0: 123.25, 7.0: 297.2}  # at which magnets of a nominal strength in tesla work


def stacks(signal: NDArray[np.complex64], slices: Slices, exam: Exam) -> list[Stack]:
    """Magnitude under the series number, phase under the next; 2 * stored - 4096 is the phase in units of pi / 4096."""
    peak = float(np.abs(signal).max())
    found = []
    for e, echo in enumerate(signal):
        magnitude = quantise(np.abs(echo), peak / 4000, 0)
        phase = (np.rint(np.angle(echo) / np.pi * 2048).astype(int) + 2048) % 4096
        found.append(Stack("magnitude", e, magnitude, {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]}))
        rescale = {"RescaleSlope": "2", "RescaleIntercept": "-4096", "RescaleType": "US"}
        header: dict[str, Any] = {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"], **rescale}
        found.append(Stack("phase", e, phase.astype(np.uint16), header, series=1))
    return found


def order(stack: Stack, position: int) -> tuple[int, ...]:
    """Echo after echo, slice after slice."""
    return stack.series, stack.echo, position
