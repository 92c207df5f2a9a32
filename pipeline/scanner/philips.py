"""Complex echoes -> stacks of a Philips scanner (classic): one series of magnitude and phase, phase in milliradians."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scanner.geometry import Slices
from pipeline.scanner.images import Exam, Private, Stack, quantise

HEADER = {
    "Manufacturer": "Philips",
    "ManufacturerModelName": "Ingenia Elition X",
    "SoftwareVersions": ["5.7.1", "5.7.1.1"],
    "PulseSequenceName": "T1FFE",
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
}
FREQUENCY_MHZ = {1.5: 63.87, 3.0: 127.76, 7.0: 298.04}  # at which magnets of a nominal strength in tesla work
RAD_PER_STEP = 2 * np.pi / 4095  # stored 0..4095 is -pi..pi; the rescale rounds pi to 3142 milliradians
_ORIENTATIONS = ("SAGITTAL", "CORONAL", "TRANSVERSAL")


def stacks(signal: NDArray[np.complex64], slices: Slices, exam: Exam) -> list[Stack]:
    """All parts of all echoes in one series; the private scale slope turns stored values into radians or signal."""
    slope = float(np.abs(signal).max()) / 4000
    shared: tuple[Private, ...] = (
        (0x2001, "Philips Imaging DD 001", 0x0B, "CS", _ORIENTATIONS[slices.normal]),
        (0x2001, "Philips Imaging DD 001", 0x14, "SL", len(signal)),
        (0x2001, "Philips Imaging DD 001", 0x18, "SL", signal.shape[3]),
    )
    found = []
    for e, echo in enumerate(signal):
        magnitude = _rescale(slope, 0, "normalized", ["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"])
        private = (*shared, *_scale("M", 1 / slope, 0))
        found.append(Stack("magnitude", e, quantise(np.abs(echo), slope, 0), magnitude, private))
        stored = quantise(np.angle(echo), RAD_PER_STEP, -np.pi)
        phase = _rescale(2 * 3142 / 4095, -3142, "mrad", ["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"])
        private = (*shared, *_scale("P", 1 / RAD_PER_STEP, np.pi / RAD_PER_STEP))
        found.append(Stack("phase", e, stored, phase, private))
    return found


def order(stack: Stack, position: int) -> tuple[int, ...]:
    """All magnitude, then all phase; the echoes of a slice follow each other."""
    return int(stack.part == "phase"), position, stack.echo


def _rescale(slope: float, intercept: float, unit: str, image_type: list[str]) -> dict[str, Any]:
    values = {"RescaleSlope": f"{slope:.10g}", "RescaleIntercept": f"{intercept:g}", "RescaleType": unit}
    return {"ImageType": image_type, **values}


def _scale(letter: str, slope: float, intercept: float) -> tuple[Private, ...]:
    """Philips' second scale: (stored - intercept) / slope is what the reconstruction computed."""
    block = (0x2005, "Philips MR Imaging DD 001")
    return (*block, 0x0D, "FL", intercept), (*block, 0x0E, "FL", slope), (*block, 0x11, "CS", letter)
