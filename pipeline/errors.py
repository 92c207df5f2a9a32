"""Every code that a fault can bear, what it means and what to do -> the errors and notices that carry it.

A fault is owed one of four answers: *ignore* the file, *set aside* the scan, *warn* and go on, or *refuse* the run
before computing. Letters: F file, G identity and grouping, E echoes and geometry, P phase and values, R run,
M model, S storage, X settings.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Owed = Literal["ignore", "set aside", "warn", "refuse"]


@dataclass(frozen=True)
class Fault:
    """One row of the catalogue: what is wrong, what is done about it, what the person can do, and the exit code."""

    what: str
    owed: Owed
    todo: str
    exit: int = 10


CATALOGUE: dict[str, Fault] = {
    "F001": Fault("an empty file", "ignore", "Export the study again if the scan is short of a slice."),
    "F002": Fault("a file that is no MR image", "ignore", "Nothing: such files belong to many exports."),
    "F003": Fault("a truncated DICOM file", "set aside", "Copy or export the scan again."),
    "F004": Fault(
        "a DICOM file without the tags an image needs", "set aside", "Export the scan again from the scanner."
    ),
    "F010": Fault("compressed pixels that no installed decoder reads", "set aside", "Export uncompressed."),
    "F011": Fault("lossy compression", "set aside", "Export uncompressed or losslessly: lossy phase is not usable."),
    "F012": Fault("a file that inflates beyond all bounds", "ignore", "Do not trust where this file came from."),
    "F013": Fault("an archive", "ignore", "Unpack it first and name the folder."),
    "F014": Fault("a link that leaves the export or runs in a circle", "ignore", "Copy the files instead of linking."),
    "F015": Fault("something that cannot be read as a file", "ignore", "Check the rights of the export."),
    "F016": Fault(
        "a file that vanished or changed after it was found", "set aside", "Wait until the export has ended; run again."
    ),
    "G001": Fault("the same image twice", "warn", "Nothing: one of them is used."),
    "G002": Fault(
        "two different images under one identity", "set aside", "Export the scan again into an empty folder."
    ),
    "G003": Fault("two patients in one series", "set aside", "Export each patient by itself."),
    "G004": Fault("no patient identity", "set aside", "Give a label with --subject, one scan at a time."),
    "G005": Fault("two patients with one pseudonym", "set aside", "Use another key file."),
    "G006": Fault("an invalid unique identifier", "warn", "Nothing: an internal one is used."),
    "G007": Fault("a derived or filtered image", "ignore", "Nothing: the original images are used."),
    "G008": Fault("dates that cannot be", "warn", "Nothing: series are ordered by their numbers."),
    "G009": Fault(
        "a label that another scan or person has",
        "set aside",
        "Give this dataset labels of its own with --dataset-label, or use another output folder.",
    ),
    "E001": Fault("an echo is missing in magnitude or phase", "set aside", "Export all echoes, magnitude and phase."),
    "E002": Fault("a slice is missing", "set aside", "Export the scan again."),
    "E003": Fault("a gap between slices", "set aside", "QSM needs a 3D acquisition without gaps."),
    "E004": Fault("unevenly spaced slices", "set aside", "QSM needs a 3D acquisition with even spacing."),
    "E005": Fault("echo times that repeat", "set aside", "Give the true ones with --echo-times."),
    "E006": Fault("echo times that are missing or senseless", "set aside", "Give the true ones with --echo-times."),
    "E007": Fault(
        "a single echo", "warn", "Phase offsets cannot be told from the field; acquire three or more echoes."
    ),
    "E008": Fault("an orientation that is absent or not orthonormal", "set aside", "Export the scan again."),
    "E009": Fault("conflicting positions of a slice", "warn", "Nothing: the public tag is used."),
    "E010": Fault("a mosaic image", "set aside", "QSM needs a 3D gradient-echo scan, not a mosaic."),
    "E011": Fault("matrices that differ between magnitude, phase or echoes", "set aside", "Export one reconstruction."),
    "E012": Fault(
        "a field strength that is missing or implausible", "set aside", "Give the true one in tesla with --b0."
    ),
    "E013": Fault("a bipolar readout", "warn", "Nothing where it was corrected; monopolar scans are better."),
    "E014": Fault(
        "converter and headers disagree", "set aside", "Send the headers, not the images, to the developers."
    ),
    "E020": Fault(
        "an imaging frequency that is missing or unlike the field strength",
        "warn",
        "Nothing where the stated B0 is right; else give it with --b0.",
    ),
    "E021": Fault("images of another nucleus than hydrogen", "set aside", "QSM needs images of hydrogen (1H)."),
    "E022": Fault(
        "NIfTI images without orientation, or with another than --orientation",
        "set aside",
        "Convert the scan again with its orientation, or give it with --orientation, for example --orientation LAS.",
    ),
    "E023": Fault("a voxel size that cannot be", "set aside", "Convert the scan again, with voxel sizes in mm."),
    "P001": Fault("no phase of each echo", "set aside", "Export phase (or real and imaginary) images of every echo."),
    "P002": Fault("a phase range that can be read in two ways", "set aside", "State the range with --phase-range."),
    "P003": Fault(
        "a sign of the phase that nobody tells", "warn", "Veins are bright in a right map; else give --phase-sign."
    ),
    "P004": Fault("phase that is already unwrapped or filtered", "set aside", "Export the unfiltered phase."),
    "P005": Fault("phase or magnitude without content", "set aside", "Export the scan again."),
    "P006": Fault("values that are not finite", "set aside", "Export the scan again."),
    "P007": Fault(
        "a mask that is empty, tiny or everything", "set aside", "Give a mask with --mask, or look at the scan."
    ),
    "P008": Fault("a mask in pieces", "warn", "Look at the outline in the report."),
    "P009": Fault("no fluid to refer the map to", "warn", "Nothing: the map is relative to its mean, as it says."),
    "P010": Fault("wraps left in the phase", "warn", "Look at the field near air; a shorter first echo helps."),
    "R001": Fault("the asked device is not there", "refuse", "Use --device cpu or auto.", 16),
    "R002": Fault("out of memory", "set aside", "Use a machine with more memory, or --device cpu."),
    "R003": Fault("a job beyond its time limit", "set aside", "Look at the machine, then run again."),
    "R004": Fault(
        "a volume too large for the memory", "set aside", "Use a machine with more memory, or fewer workers at once."
    ),
    "R005": Fault("an unexpected failure of our own", "set aside", "Send the code and the trace to the developers.", 1),
    "R006": Fault("another run works on this scan", "refuse", "Wait for it to end.", 17),
    "R007": Fault("the Prefect server cannot be reached", "refuse", "Check PREFECT_API_URL, or unset it.", 18),
    "R008": Fault(
        "a process that died at its work", "set aside", "Look for what kills processes (often memory); run again."
    ),
    "M001": Fault("a reconstruction that diverged", "warn", "The classical map was published in its place."),
    "M002": Fault(
        "an image beside the map that could not be made", "warn", "The map is sound; send the code to the developers."
    ),
    "M003": Fault(
        "network weights that are missing or not those of their card", "refuse", "Install Chiron again, or retrain.", 15
    ),
    "M004": Fault(
        "a scan unlike those that a network has learned from", "warn", "Compare with the classical map beside it."
    ),
    "S001": Fault("the disk is full", "set aside", "Free space; the run continues where it stopped.", 14),
    "S002": Fault("an output folder that cannot be used", "refuse", "Choose another output folder.", 14),
    "S003": Fault("a folder that cannot be read", "refuse", "Check the path and its rights.", 13),
    "X001": Fault("a setting that is unknown or out of range", "refuse", "See `chiron settings`.", 15),
    "X002": Fault("a word or file that is not what the command takes", "refuse", "See the command's --help.", 2),
    "X003": Fault("a tool that is asked for and not installed", "refuse", "Install it, or choose another method.", 15),
    "X004": Fault(
        "another pseudonym key than that of the output folder",
        "refuse",
        "Use the key that OUTPUT was made with, or another OUTPUT: with a new key patients get second pseudonyms.",
        15,
    ),
    "X005": Fault("a subject that is not there", "refuse", "See `chiron status`.", 11),
}


class ChironError(Exception):
    """A fault met: its code, what was found, what was expected, what to do. Safe to print: no patient, no path."""

    def __init__(self, code: str, found: str, expected: str = "", todo: str = "") -> None:
        self.code = code
        self.found = found
        self.expected = expected
        self.todo = todo or CATALOGUE[code].todo
        super().__init__(self.sentence())

    @property
    def fault(self) -> Fault:
        return CATALOGUE[self.code]

    def sentence(self) -> str:
        expected = f" Expected: {self.expected}." if self.expected else ""
        return f"{self.code}: {self.found}.{expected} {self.todo}"

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        return type(self), (self.code, self.found, self.expected, self.todo)


@dataclass(frozen=True)
class Notice:
    """A fault that was lived with: recorded, printed and shown in the report."""

    code: str
    text: str

    def json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Decision:
    """Something detected in the data and acted on: what, as what, on what grounds, and the option that overrides it."""

    what: str
    decided: str
    because: str
    override: str = ""

    def json(self) -> dict[str, str]:
        return asdict(self)
