"""What the vendors' files share: who was scanned and how, a stored volume, and the items of DICOM sequences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid


@dataclass(frozen=True)
class Patient:
    """Everything in the headers that identifies a person; tests put a sentinel into each that must never come out."""

    name: str = "Simulated^Head"
    id: str = "SIM-0001"
    birth_date: str = "19800101"
    sex: str = "O"
    accession: str = "A0001"
    institution: str = "Simulated Hospital"
    referring_physician: str = "Referrer^Simulated"
    operator: str = "Operator^Simulated"
    comments: str = ""


@dataclass(frozen=True)
class Exam:
    """One acquisition: patient, time, protocol, field strength, echo times, and the seed of its identifiers."""

    patient: Patient
    acquired: datetime
    protocol: str
    b0_tesla: float
    echo_times_s: tuple[float, ...]
    series_number: int
    seed: int

    @property
    def repetition_time_ms(self) -> float:
        return float(np.ceil(self.echo_times_s[-1] * 1000 + 10))

    def uid(self, *what: object) -> str:
        """A unique identifier that depends on nothing but patient, seed and `what` it names."""
        return str(generate_uid(entropy_srcs=[self.patient.id, str(self.seed), *map(str, what)]))


Private = tuple[int, str, int, str, Any]  # group, creator, element, value representation, value


@dataclass(frozen=True)
class Stack:
    """One volume as stored: integers (X, Y, Z), what it shows, and the header elements that only it has."""

    part: str  # magnitude, phase, real or imaginary
    echo: int  # counted from 0
    stored: NDArray[Any]
    header: dict[str, Any] = field(default_factory=dict)
    private: tuple[Private, ...] = ()
    series: int = 0  # counted from the export's series number


def quantise(values: NDArray[np.floating[Any]], slope: float, intercept: float) -> NDArray[np.uint16]:
    """The 12-bit integers that `slope` and `intercept` turn into `values`."""
    stored: NDArray[np.uint16] = np.clip(np.rint((values - intercept) / slope), 0, 4095).astype(np.uint16)
    return stored


def add_private(dataset: Dataset, elements: Iterable[Private]) -> None:
    for group, creator, element, representation, value in elements:
        dataset.private_block(group, creator, create=True).add_new(element, representation, value)


def items(*datasets: Dataset) -> Sequence:
    return Sequence(datasets)


def item(**elements: Any) -> Dataset:
    """A dataset of DICOM keywords."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def decimal(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return f"{value + 0.0:.9g}"
