"""A scan of a DICOM export -> its stored echoes: pixels and geometry by dcm2niix, each volume compared with pydicom."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from pipeline.acquisition import Acquisition
from pipeline.convert.b0 import B0
from pipeline.convert.dcm2niix import Converted, run
from pipeline.convert.stored import Stored, StoredPhase, given_times, overrides
from pipeline.errors import ChironError
from pipeline.find.files import quiet, read_whole
from pipeline.find.scan import Scan, Volume
from pipeline.find.values import frame_lookup, number, numbers
from pipeline.volumes import Grid

Array = NDArray[Any]
_WHERE = 0.05  # of a voxel: how far converter and header may place a voxel apart
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LONGEST_WORD = 128


def convert_dicom(scan: Scan, acquisition: Acquisition, scratch: Path) -> Stored:
    """See `pipeline.convert.convert`. Volumes that share a file (enhanced DICOM) are converted in one call."""
    try:
        with quiet():
            return _convert(scan, acquisition, scratch)
    except FileNotFoundError:
        raise ChironError("F016", "a file of the scan that vanished", "an export that stays as it is") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def header_grid(scan: Scan) -> tuple[tuple[int, ...], Array]:
    """Shape and affine (column, row, slice -> RAS mm) of the scan's first volume, by its headers."""
    with quiet():
        slices = _Slices(_Reader(scan), scan.volumes[0])
    return slices.shape, np.asarray(_LPS_TO_RAS @ slices.header_affine)


def _convert(scan: Scan, acquisition: Acquisition, scratch: Path) -> Stored:
    calls: dict[frozenset[int], list[Volume]] = {}
    for volume in scan.volumes:
        calls.setdefault(frozenset(volume.files), []).append(volume)
    arrays: dict[tuple[str, int], _Found] = {}
    reader = _Reader(scan)
    for index, (files, volumes) in enumerate(calls.items()):
        made = run([scan.files[f] for f in sorted(files)], scratch / str(index))
        for volume in volumes:
            arrays[volume.part, volume.echo] = _matching(_Slices(reader, volume), made, alone=len(volumes) == 1)
    return _stored(scan, acquisition, arrays, reader)


def _stored(scan: Scan, acquisition: Acquisition, arrays: dict[tuple[str, int], _Found], reader: _Reader) -> Stored:
    first_found = next(iter(arrays.values()))
    values, affine = first_found.converted.values, first_found.converted.affine
    for found in arrays.values():
        if found.converted.values.shape != values.shape or not np.allclose(found.converted.affine, affine, atol=1e-3):
            raise ChironError("E014", "converted volumes of different shape or place", "one grid")
    grid = Grid.from_affine(values.shape, affine)
    times = given_times(scan.echo_times_s, acquisition)
    b0 = B0.of(scan, acquisition)
    first, second = (
        torch.from_numpy(np.stack([arrays[part, e].converted.values for e in range(len(times))])) for part in scan.parts
    )
    return Stored(
        kind="magnitude-phase" if scan.parts[0] == "magnitude" else "real-imaginary",
        first=first,
        second=second,
        echo_times_s=times,
        b0_tesla=b0.tesla,
        grid=grid,
        vendor=scan.vendor,
        facts=_facts(reader, grid, times, b0),
        stored_phase=_stored_phase(reader),
        slice_axis=first_found.slice_axis,
        decisions=(*overrides(acquisition), b0.decision()),
    )


@dataclass(frozen=True)
class _Found:
    """A converted volume that agrees with the headers, and which of its axes counts the slices."""

    converted: Converted
    slice_axis: int


def _matching(slices: _Slices, made: list[Converted], alone: bool) -> _Found:
    """The one converted volume that agrees with the headers and pixels of a volume; E014 where none or several do."""
    reasons = [slices.disagreement(candidate) for candidate in made]
    fitting = [candidate for candidate, reason in zip(made, reasons, strict=True) if not reason]
    if len(fitting) != 1 or (alone and len(made) != 1):
        why = reasons[0] if len(made) == 1 else f"{len(fitting)} of {len(made)} converted volumes fit"
        name = f"{slices.volume.part} of echo {slices.volume.echo + 1}"
        raise ChironError("E014", f"{name}: {why}", "one that agrees with its headers")
    return _Found(fitting[0], slices.slice_axis(fitting[0]))


class _Reader:
    """Datasets of a scan with their pixels; only the last few are kept."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self._read: dict[int, Dataset] = {}

    def dataset(self, volume: Volume, k: int) -> Dataset:
        file = volume.files[k]
        if file not in self._read:
            if len(self._read) >= 4:
                self._read.clear()
            self._read[file] = read_whole(self.scan.files[file])
        return self._read[file]

    def lookup(self, volume: Volume, k: int) -> Any:
        return frame_lookup(self.dataset(volume, k), volume.frames[k])


class _Slices:
    """The headers and, of three slices, the pixels of a volume, as pydicom reads them."""

    def __init__(self, reader: _Reader, volume: Volume) -> None:
        self.reader, self.volume = reader, volume
        first, last = reader.lookup(volume, 0), reader.lookup(volume, len(volume.files) - 1)
        self.header_affine = _affine(first, last, len(volume.files))
        self.echo_time_ms = number(first("EffectiveEchoTime") or first("EchoTime"))
        self.shape = (int(first("Columns")), int(first("Rows")), len(volume.files))

    def disagreement(self, made: Converted) -> str:
        """What does not agree; empty where everything does."""
        if sorted(made.values.shape) != sorted(self.shape):
            return f"a shape of {made.values.shape} where the headers have {self.shape}"
        if made.echo_time_s and self.echo_time_ms and abs(1000 * made.echo_time_s - self.echo_time_ms) > 0.02:
            return "another echo time than in the headers"
        to_header = self._to_header(made)
        corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]).T
        corners[:3] *= np.array(made.values.shape)[:, None] - 1
        placed = (to_header @ corners)[:3]
        limit = np.array(self.shape)[:, None] - 1
        if np.abs(placed - np.where(placed > limit / 2, limit, 0)).max() > _WHERE:
            return "another place or orientation than in the headers"
        return self._pixels_differ(made, np.rint(to_header))

    def _pixels_differ(self, made: Converted, to_header: Array) -> str:
        columns, rows, count = self.shape
        back = np.rint(np.linalg.inv(to_header))
        for k in sorted({0, count // 2, count - 1}):
            column, row = np.meshgrid(np.arange(columns), np.arange(rows))
            index = np.stack([column, row, np.full_like(row, k), np.ones_like(row)]).reshape(4, -1)
            x, y, z = np.rint(back @ index)[:3].astype(int)
            mine = self._pixels(k).ravel()
            if not np.allclose(made.values[x, y, z], mine, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(mine).max())):
                return f"other pixels in slice {k + 1} than those decoded a second way"
        return ""

    def slice_axis(self, made: Converted) -> int:
        return int(np.abs(self._to_header(made)[2, :3]).argmax())

    def _to_header(self, made: Converted) -> Array:
        """Voxel index of the converted volume -> (column, row, slice)."""
        return np.asarray(np.linalg.inv(self.header_affine) @ _LPS_TO_RAS @ made.affine)

    def _pixels(self, k: int) -> Array:
        """Slice `k` (rows, columns) after its rescale."""
        dataset, get = self.reader.dataset(self.volume, k), self.reader.lookup(self.volume, k)
        many = int(number(dataset.get("NumberOfFrames")) or 1) > 1
        try:
            raw = pixel_array(dataset, index=self.volume.frames[k] if many else None)
        except Exception as error:  # decoders fail in ways of their own
            raise ChironError("F003", "pixels that cannot be decoded", "a whole file") from error
        return raw.astype(np.float64) * _slope(get) + (number(get("RescaleIntercept")) or 0.0)


def _affine(first: Any, last: Any, count: int) -> Array:
    """(column, row, slice) -> LPS+ mm, from the positions of the first and last slice (DICOM PS3.3 C.7.6.2.1.1)."""
    row, column = np.reshape(numbers(first("ImageOrientationPatient"), 6), (2, 3))
    between_rows, between_columns = numbers(first("PixelSpacing"), 2)
    start, end = (np.array(numbers(f("ImagePositionPatient"), 3)) for f in (first, last))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * between_columns, column * between_rows
    affine[:3, 2] = (end - start) / max(1, count - 1)
    affine[:3, 3] = start
    return affine


def _slope(get: Any) -> float:
    return number(get("RescaleSlope")) or 1.0


def _stored_phase(reader: _Reader) -> StoredPhase:
    """What the headers of all phase images say together."""
    volumes = [v for v in reader.scan.volumes if v.part == "phase"]
    says: set[tuple[float, float, int, int, str]] = set()
    for volume in volumes:
        for k in sorted({0, len(volume.files) // 2, len(volume.files) - 1}):
            get = reader.lookup(volume, k)
            bits, signed = int(number(get("BitsStored")) or 16), int(number(get("PixelRepresentation")) or 0)
            unit = str(get("RescaleType") or "")
            says.add((_slope(get), number(get("RescaleIntercept")) or 0.0, bits, signed, unit))
    if not says:
        return StoredPhase()
    ranges = {_range(slope, intercept, bits, signed) for slope, intercept, bits, signed, _ in says}
    slope, intercept, bits, _, unit = next(iter(says))
    same = len({(s[0], s[1]) for s in says}) == 1
    return StoredPhase(
        unit,
        slope if same else None,
        intercept if same else None,
        bits,
        next(iter(ranges)) if len(ranges) == 1 else None,
    )


def _range(slope: float, intercept: float, bits: int, signed: int) -> tuple[float, float]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return round(low * slope + intercept, 3), round(high * slope + intercept, 3)


def _facts(reader: _Reader, grid: Grid, times: tuple[float, ...], b0: B0) -> dict[str, Any]:
    """What a report says of the acquisition; nothing that is not named here leaves the headers."""
    get = reader.lookup(reader.scan.volumes[0], 0)
    words = {
        "manufacturer": get("Manufacturer"),
        "model": get("ManufacturerModelName"),
        "software": get("SoftwareVersions"),
        "dimensions": get("MRAcquisitionType"),
        "sequence": get("ScanningSequence") or get("EchoPulseSequence"),
        "sequence_variant": get("SequenceVariant"),
    }
    values = {
        "repetition_time_ms": number(get("RepetitionTime")),
        "flip_angle_deg": number(get("FlipAngle")),
        "bandwidth_hz_per_pixel": number(get("PixelBandwidth")),
    }
    return {
        **{name: _plain(value) for name, value in words.items() if value},
        **{name: value for name, value in values.items() if value is not None and math.isfinite(value)},
        **b0.header(),
        "echo_times_ms": [round(1000 * t, 4) for t in times],
        "matrix": list(grid.shape),
        "voxel_size_mm": [round(v, 4) for v in grid.voxel_size_mm],
    }


def _plain(value: Any) -> str:
    """One line of printable words, however long or odd the header's are."""
    words = str(value) if isinstance(value, str) else " ".join(map(str, value))
    return "".join(letter for letter in words if letter.isprintable())[:_LONGEST_WORD]
