"""Images with BIDS names -> the dataset and folder that each belongs to, and copies of one image told from others.

Two datasets below one folder may both have a `sub-01`, and these are two people. So an image is known by its dataset
(the folder that holds its `sub-<label>` folder, else the nearest one with a `dataset_description.json`, else its own),
by its folder there, and by its entities.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pipeline.entities import Entities, label_of, of_scan
from pipeline.errors import ChironError
from pipeline.find.listing import Entry
from pipeline.identity import internal_id

PARTS = {"mag": "magnitude", "phase": "phase", "real": "real", "imag": "imaginary"}
DESCRIPTION = "dataset_description.json"
IMAGES = ("sub-*/*.nii*", "sub-*/anat/*.nii*", "sub-*/ses-*/*.nii*", "sub-*/ses-*/anat/*.nii*")  # of a dataset
SOURCES = "sourcedata"  # of a BIDS dataset: what its images were made from


@dataclass(frozen=True)
class Image:
    """A file, its entities, and the facts of its sidecars."""

    entry: Entry
    entities: dict[str, str]
    facts: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.entry.path

    @property
    def part(self) -> str:
        return PARTS[self.entities["part"]]

    @property
    def echo(self) -> int:
        return int(self.entities.get("echo", 1))

    @property
    def slot(self) -> tuple[str, int]:
        """What of the scan it is; each may be there once."""
        return self.part, self.echo

    @cached_property
    def content(self) -> str:
        """Digest of values, place and facts, however the file is packed; of the bytes where it cannot be read."""
        try:
            image = nib.load(self.path)
            values = np.ascontiguousarray(image.dataobj, dtype=np.float64)
            place = np.round(np.asarray(image.affine), 5) + 0.0
            facts = repr(sorted(self.facts.items())).encode()
            return hashlib.sha256(values.tobytes() + place.tobytes() + facts).hexdigest()
        except Exception:  # a damaged file can make the parser fail in any way; it equals nothing but its own bytes
            return _digest_of_bytes(self.path)


@dataclass(frozen=True)
class Origin:
    """Where the images of one scan stand: dataset, folder, suffix, and the entities that they share."""

    root: Path
    home: Path
    suffix: str
    entities: Entities


@dataclass
class ScanImages:
    """The images of a scan, those that are mere copies of them, and the fault where two differ that may not."""

    used: list[Image] = field(default_factory=list)
    copies: list[Image] = field(default_factory=list)
    conflict: ChironError | None = None


class SourceData:
    """The files below an input folder that a BIDS dataset there was made from: those in its `sourcedata`.

    It is told by what is on the disk, for not all of a dataset need be looked at at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._known = folder, dict[Path, bool]()

    def __contains__(self, path: Path) -> bool:
        inside = [parent for parent in path.parents if self.folder in parent.parents]
        return any(parent.name == SOURCES and self._is_dataset(parent.parent) for parent in inside)

    def _is_dataset(self, folder: Path) -> bool:
        if folder not in self._known:
            images = (path for pattern in IMAGES for path in folder.glob(pattern))
            self._known[folder] = next(images, None) is not None
        return self._known[folder]


@dataclass(frozen=True)
class Namer:
    """Labels and keyed identities of what stands below an input folder."""

    folder: Path
    key: bytes
    subject_override: str | None
    dataset_label: str

    def root(self, image: Path) -> Path:
        return root_of(self.folder, image)

    def subject(self, origin: Origin) -> str:
        return self.subject_override or self.dataset_label + dict(origin.entities)["sub"]

    def label(self, origin: Origin) -> str:
        entities = dict(origin.entities)
        return label_of(self.subject(origin), entities.get("ses", ""), entities.get("run", ""), self.others(origin))

    def others(self, origin: Origin) -> Entities:
        """The entities of a label besides subject, session and run."""
        return tuple(pair for pair in of_scan(origin.entities) if pair[0] not in ("sub", "ses", "run"))

    def owner(self, origin: Origin) -> str:
        """A person is a subject of one dataset."""
        return internal_id(self.key, "dataset", str(origin.root.resolve()), dict(origin.entities)["sub"])

    def scan_id(self, origin: Origin) -> str:
        names = [f"{name}-{value}" for name, value in origin.entities]
        place = origin.home.relative_to(origin.root).as_posix()
        return internal_id(self.key, "dataset", str(origin.root.resolve()), place, origin.suffix, *names)


def _digest_of_bytes(path: Path) -> str:
    """Of a file that cannot be read its path, which no other equals: its conversion will tell."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return str(path)


def root_of(folder: Path, image: Path) -> Path:
    """The dataset of an image below the input `folder`."""
    return _holder(image) or _described(folder, image) or image.parent


def home(root: Path, image: Path) -> Path:
    """The folder of the subject (or session) that an image stands in, or its own folder where there is none such."""
    inside = [parent for parent in image.parents if parent == root or root in parent.parents]
    return next((parent for parent in inside if parent.name.startswith(("ses-", "sub-"))), image.parent)


def without_copies(groups: dict[Origin, list[Image]]) -> dict[Origin, ScanImages]:
    """Each scan with one image for every part and echo: equal copies are used once, different ones are a fault."""
    by_origin = {origin: _one_of_each(images) for origin, images in groups.items()}
    alike: dict[tuple[str, Entities], list[Origin]] = defaultdict(list)
    for origin in by_origin:
        alike[origin.suffix, origin.entities].append(origin)
    for origins in alike.values():
        if len(origins) > 1:
            _across_folders([by_origin[origin] for origin in origins], len({origin.root for origin in origins}) > 1)
    return by_origin


def _one_of_each(images: list[Image]) -> ScanImages:
    slots: dict[tuple[str, int], list[Image]] = defaultdict(list)
    for image in images:
        slots[image.slot].append(image)
    differing = next((same for same in slots.values() if len({i.content for i in same} if same[1:] else "1") > 1), None)
    if differing:
        return ScanImages(images, conflict=_conflict(differing))
    return ScanImages([same[0] for same in slots.values()], [copy for same in slots.values() for copy in same[1:]])


def _conflict(images: list[Image]) -> ChironError:
    ordinals = " and ".join(str(image.entry.ordinal) for image in images)
    part, echo = images[0].slot
    todo = "Keep the right one of them in the input."
    return ChironError("G002", f"files {ordinals} are different {part} images of echo {echo}", "one image", todo)


def _across_folders(copies: list[ScanImages], of_several_datasets: bool) -> None:
    """One name in several folders: of equal scans one is used; of different ones none, or one of each dataset."""
    first, *others = copies
    if not any(each.conflict for each in copies) and all(_equal(first, other) for other in others):
        for other in others:
            first.copies += [*other.used, *other.copies]
            other.used, other.copies = [], []
        return
    for each in () if of_several_datasets else copies:
        fault = f"different images under one label in {len(copies)} folders of a dataset"
        each.conflict = ChironError("G002", fault, "one", "Keep the right ones in the input.")


def _equal(one: ScanImages, other: ScanImages) -> bool:
    """Whether both have the same images; one that differs is enough to know."""
    a, b = ({image.slot: image for image in each.used} for each in (one, other))
    return a.keys() == b.keys() and all(a[slot].content == b[slot].content for slot in a)


def _described(folder: Path, image: Path) -> Path | None:
    """The nearest folder above an image, `folder` or one in it, that says it is a dataset."""
    inside = [parent for parent in image.parents if parent == folder or folder in parent.parents]
    return next((parent for parent in inside if (parent / DESCRIPTION).is_file()), None)


def _holder(image: Path) -> Path | None:
    """The folder that holds the folder of an image's subject."""
    subject = image.name.partition("_")[0]
    return next((parent.parent for parent in image.parents if parent.name == subject), None)
