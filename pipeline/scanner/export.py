"""Complex echoes on a grid, and an exam -> DICOM files in a folder, one an image, or one enhanced multi-frame file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, MRImageStorage
from torch import Tensor

from pipeline.errors import ChironError
from pipeline.scanner import enhanced, ge, philips, siemens
from pipeline.scanner.geometry import Slices, slices
from pipeline.scanner.images import Exam, Patient, Stack, add_private, decimal
from pipeline.volumes import GAMMA_MHZ_PER_T, Grid

Vendor = Literal["siemens", "philips", "philips-enhanced", "ge"]
SliceOrder = Literal["ascending", "descending", "interleaved"]
VENDORS: dict[Vendor, ModuleType] = {"siemens": siemens, "philips": philips, "philips-enhanced": philips, "ge": ge}
Edit = Callable[[Dataset], None]
_NOMINAL_TESLA = (0.35, 0.55, 1.0, 1.5, 3.0, 5.0, 7.0, 9.4)


def write_export(
    signal: Tensor | NDArray[Any],
    grid: Grid,
    echo_times_s: Sequence[float],
    b0_tesla: float,
    folder: Path,
    *,
    vendor: Vendor,
    patient: Patient | None = None,
    series_number: int = 1,
    seed: int = 0,
    acquired: datetime = datetime(2026, 1, 5, 9, 0),
    protocol: str = "qsm_gre3d",
    slice_order: SliceOrder = "ascending",
    shuffle: bool = False,
    transfer_syntax: str = ExplicitVRLittleEndian,
    edit: Edit | None = None,
) -> list[Path]:
    """Write `signal` (E, X, Y, Z), complex, as `vendor` would; returns the files in the order of their instances.

    `b0_tesla` is the field of the magnet: headers have its frequency, and the nominal strength that is nearest to it.
    The phase of `signal` grows with time where the field is higher. Its slices lie along the grid's third axis,
    wherever that points, and get instance numbers in `slice_order`; `shuffle` deals the numbers out at random instead.
    Identifiers come from `seed` and patient: the same arguments give the same bytes. `edit` may change each dataset
    before it is written (the one of an enhanced file). Siemens takes two series numbers: magnitude, then phase.
    E005 or E011 where echoes and times do not fit, P006 where the signal is not finite or zero; ValueError where the
    grid's B0 is not the scanner's z axis, as DICOM has no word for that.
    """
    values = np.asarray(signal.detach().cpu() if isinstance(signal, Tensor) else signal, dtype=np.complex64)
    _check(values, grid, echo_times_s)
    exam = Exam(patient or Patient(), acquired, protocol, b0_tesla, tuple(echo_times_s), series_number, seed)
    cut = slices(grid)
    maker = VENDORS[vendor]
    images = _ordered(maker.stacks(values, cut, exam), maker, grid.shape[2], slice_order, shuffle, seed)
    datasets = [_image(stack, k, number, cut, exam, vendor, maker.HEADER) for (stack, k), number in images]
    if vendor == "philips-enhanced":
        datasets = [enhanced.join(datasets, exam)]
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(dataset, folder, UID(transfer_syntax), edit) for dataset in datasets]


def magnet_tesla(vendor: Vendor, nominal_tesla: float) -> float:
    """The field of a vendor's magnet of a nominal strength, by the frequency that it works at."""
    frequency: float | None = VENDORS[vendor].FREQUENCY_MHZ.get(nominal_tesla)
    return frequency / GAMMA_MHZ_PER_T if frequency else nominal_tesla


def nominal_tesla(b0_tesla: float) -> float:
    """The strength that a magnet is sold as; an odd one by its own."""
    nearest = min(_NOMINAL_TESLA, key=lambda strength: abs(strength - b0_tesla))
    return nearest if abs(b0_tesla / nearest - 1) < 0.05 else b0_tesla


def _check(signal: NDArray[np.complex64], grid: Grid, echo_times_s: Sequence[float]) -> None:
    expected = (len(echo_times_s), *grid.shape)
    if signal.shape != expected:
        raise ChironError("E011", f"a signal of shape {signal.shape}", f"(echoes, x, y, z) = {expected}")
    if not echo_times_s or list(echo_times_s) != sorted(set(echo_times_s)) or echo_times_s[0] <= 0:
        raise ChironError("E005", f"echo times {tuple(echo_times_s)} s", "positive, rising, no two equal")
    if not np.isfinite(signal).all() or not signal.any():
        raise ChironError("P006", "a signal that is not finite or nothing but zeros", "numbers only")
    if not np.allclose(grid.b0_dir, Grid.from_affine(grid.shape, grid.affine).b0_dir, atol=1e-4):
        raise ValueError("the grid's B0 is not along the scanner's z axis; tilt the affine instead")


def _ordered(
    stacks: list[Stack], maker: ModuleType, count: int, slice_order: SliceOrder, shuffle: bool, seed: int
) -> list[tuple[tuple[Stack, int], int]]:
    """Every (stack, slice) with its instance number, counted from 1 in each series."""
    ascending = list(range(count))
    orders = {"ascending": ascending, "descending": ascending[::-1], "interleaved": ascending[::2] + ascending[1::2]}
    found: list[tuple[tuple[Stack, int], int]] = []
    generator = np.random.default_rng(seed)
    for series in sorted({stack.series for stack in stacks}):
        placed = [
            (stack, k, i) for i, k in enumerate(orders[slice_order]) for stack in stacks if stack.series == series
        ]
        placed.sort(key=lambda image: maker.order(image[0], image[2]))
        numbers = generator.permutation(len(placed)) if shuffle else np.arange(len(placed))
        numbered = [((stack, k), int(n) + 1) for (stack, k, _), n in zip(placed, numbers, strict=True)]
        found += sorted(numbered, key=lambda image: image[1])
    return found


def _image(
    stack: Stack, k: int, number: int, cut: Slices, exam: Exam, vendor: Vendor, vendor_header: dict[str, Any]
) -> Dataset:
    """The dataset of one slice, with what all vendors write."""
    pixels = cut.cut(stack.stored, k)
    series = exam.series_number + stack.series
    day, time = exam.acquired.strftime("%Y%m%d"), exam.acquired.strftime("%H%M%S.%f")
    person = exam.patient
    header: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": exam.uid(vendor, series, stack.part, stack.echo, k),
        "StudyDate": day, "SeriesDate": day, "AcquisitionDate": day, "ContentDate": day,
        "StudyTime": time, "SeriesTime": time, "AcquisitionTime": time, "ContentTime": time,
        "AccessionNumber": person.accession,
        "Modality": "MR",
        "InstitutionName": person.institution,
        "ReferringPhysicianName": person.referring_physician,
        "OperatorsName": person.operator,
        "StationName": "SCANNER",
        "StudyDescription": "Head",
        "SeriesDescription": exam.protocol,
        "PatientName": person.name,
        "PatientID": person.id,
        "PatientBirthDate": person.birth_date,
        "PatientSex": person.sex,
        "PatientComments": person.comments,
        "BodyPartExamined": "BRAIN",
        "ScanningSequence": "GR",
        "SequenceVariant": "SP",
        "ScanOptions": "",
        "MRAcquisitionType": "3D",
        "SliceThickness": decimal(cut.spacing_mm),
        "SpacingBetweenSlices": decimal(cut.spacing_mm),
        "RepetitionTime": decimal(exam.repetition_time_ms),
        "EchoTime": decimal(exam.echo_times_s[stack.echo] * 1000),
        "EchoNumbers": stack.echo + 1,
        "EchoTrainLength": len(exam.echo_times_s),
        "NumberOfAverages": "1",
        "ImagingFrequency": decimal(GAMMA_MHZ_PER_T * exam.b0_tesla),
        "ImagedNucleus": "1H",
        "MagneticFieldStrength": decimal(nominal_tesla(exam.b0_tesla)),
        "PixelBandwidth": "400",
        "FlipAngle": "15",
        "DeviceSerialNumber": "10001",
        "ProtocolName": exam.protocol,
        "InPlanePhaseEncodingDirection": "ROW",
        "AcquisitionMatrix": [0, pixels.shape[0], pixels.shape[1], 0],
        "PatientPosition": "HFS",
        "StudyInstanceUID": exam.uid("study", exam.acquired.date()),
        "SeriesInstanceUID": exam.uid(vendor, "series", series),
        "StudyID": "1",
        "SeriesNumber": series,
        "AcquisitionNumber": 1,
        "InstanceNumber": number,
        "ImagePositionPatient": [decimal(c) for c in cut.positions_mm[k]],
        "ImageOrientationPatient": [decimal(c) for c in cut.orientation],
        "FrameOfReferenceUID": exam.uid("frame of reference"),
        "PositionReferenceIndicator": "",
        "SliceLocation": decimal(cut.location_mm(k)),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "PixelSpacing": [decimal(c) for c in cut.pixel_spacing_mm],
        "BitsAllocated": 16,
        "WindowCenter": decimal(float(pixels.mean())),
        "WindowWidth": decimal(float(np.ptp(pixels)) + 1),
        **vendor_header,
        **stack.header,
    }  # fmt: skip
    dataset = Dataset()
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    add_private(dataset, stack.private)
    dataset.add_new("PixelData", "OW", pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())
    return dataset


def _write(dataset: Dataset, folder: Path, syntax: UID, edit: Edit | None) -> Path:
    """Write one dataset under a name that a scanner could give it: series and instance."""
    if edit:
        edit(dataset)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax.is_compressed and not syntax.is_deflated:
        dataset.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    path = folder / f"{dataset.SeriesNumber:04d}_{dataset.InstanceNumber:06d}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path
