"""Many small simulated exports, each of a patient of its own, and faults to put into some of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom

from models.gre import simulate_scan
from pipeline.scanner import Patient, write_export
from pipeline.volumes import Grid

SHAPE, VOXEL_MM, TIMES_S = (32, 38, 32), (6.0, 6.0, 6.0), (0.004, 0.010, 0.016)
UID = re.compile(rb"(1\.2\.826\.[0-9.]{20,60}?)[0-9]{6}(?=[^0-9.])")
PATIENT = b"SOAK000000"

Fault = Callable[[list[Path]], None]


def write_patterns(folder: Path, seeds: int = 4) -> list[Path]:
    """Exports of a few heads by all vendors, to be copied; one folder each."""
    made = []
    for seed in range(seeds):
        scan = simulate_scan(SHAPE, VOXEL_MM, echo_times_s=TIMES_S, oversample=2, seed=seed)
        for vendor in ("philips-enhanced", "siemens", "ge"):
            into = folder / f"{vendor}-{seed}"
            who = Patient(id=PATIENT.decode(), name=PATIENT.decode())
            write_export(
                scan.signal, Grid.simple(SHAPE, VOXEL_MM), TIMES_S, 3.0, into, vendor=vendor, patient=who, seed=seed
            )  # type: ignore[arg-type]
            made.append(into)
    return made


def copy(pattern: Path, into: Path, number: int) -> list[Path]:
    """The export of another patient: the same images under an identity and identifiers of its own."""
    into.mkdir(parents=True)
    paths = []
    for file in sorted(pattern.iterdir()):
        content = file.read_bytes().replace(PATIENT, b"SOAK%06d" % number)
        (into / file.name).write_bytes(UID.sub(lambda uid: uid[1] + b"%06d" % number, content))
        paths.append(into / file.name)
    return paths


def _edit(paths: list[Path], change: Callable[[pydicom.Dataset], None]) -> None:
    for path in paths:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)


def _where(paths: list[Path], **wanted: str) -> Iterator[Path]:
    """Files whose elements are these."""
    for path in paths:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        if all(str(dataset.get(keyword)) == value for keyword, value in wanted.items()):
            yield path


def _is_phase(path: Path) -> bool:
    return "P" in pydicom.dcmread(path, stop_before_pixels=True).ImageType


def _truncated(paths: list[Path]) -> None:
    paths[5].write_bytes(paths[5].read_bytes()[:-100])


def _echo_missing(paths: list[Path]) -> None:
    for path in [p for p in _where(paths, EchoNumbers="2") if _is_phase(p)]:
        path.unlink()


def _slice_missing(paths: list[Path]) -> None:
    phase = [p for p in _where(paths, EchoNumbers="2") if _is_phase(p)]
    phase[len(phase) // 2].unlink()


def _no_phase(paths: list[Path]) -> None:
    for path in [p for p in paths if _is_phase(p)]:
        path.unlink()


def _blank(dataset: pydicom.Dataset) -> None:
    if "P" not in dataset.ImageType:
        dataset.PixelData = bytes(len(dataset.PixelData))


def _two_images_under_one_name(paths: list[Path]) -> None:
    other = paths[0].with_name("other.dcm")
    other.write_bytes(paths[0].read_bytes())

    def change(dataset: pydicom.Dataset) -> None:
        dataset.PixelData = np.random.default_rng(1).bytes(len(dataset.PixelData))

    _edit([other], change)


# Code that each earns -> what is done to a Siemens export.
FAULTS: dict[str, Fault] = {
    "F003": _truncated,
    "F011": lambda paths: _edit(paths, lambda d: setattr(d, "LossyImageCompression", "01")),
    "G002": _two_images_under_one_name,
    "E001": _echo_missing,
    "E002": _slice_missing,
    "E005": lambda paths: _edit(paths, lambda d: setattr(d, "EchoTime", "4")),
    "E008": lambda paths: _edit(paths, lambda d: delattr(d, "ImageOrientationPatient")),
    "E012": lambda paths: _edit(paths, lambda d: setattr(d, "MagneticFieldStrength", "30000")),
    "P001": _no_phase,
    "P005": lambda paths: _edit(paths, _blank),
}
