"""Listed files of a DICOM export -> its scans: read, told apart by patient and study, joined, checked, labelled."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ChironError, Notice
from pipeline.find.check import Checked, check
from pipeline.find.files import quiet, read_whole
from pipeline.find.group import acquisitions, copies, grouped, only_single_coils
from pipeline.find.headers import Image
from pipeline.find.listing import Entry
from pipeline.find.parts import FIELD_MAP
from pipeline.find.reading import read_all
from pipeline.find.scan import UNKNOWN, AcquisitionOf, Export, Ignored, Scan, SetAside, Volume, first_usable, reason
from pipeline.identity import Labels, internal_id, label_of, pseudonym

_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True)
class _Study:
    """Whose images they are, and the labels that these have."""

    key: bytes
    patient: str
    subject: str
    label_source: Literal["pseudonym", "table", "option"]
    session: str

    @property
    def owner(self) -> str:
        """Keyed hash of the patient's identity; where images have none, of the label that a person gave."""
        return internal_id(self.key, "patient", self.patient or f"\\{self.subject}")

    def identity(self, images: Iterable[Image]) -> tuple[str, ...]:
        """Keyed hashes that later files of the scan of these images share with it."""
        return tuple(sorted({internal_id(self.key, "series", repr(r)) for r in {_repeat(image) for image in images}}))


@dataclass
class _Ledger:
    """Where every file went; a file that serves a scan counts as used whatever else is in it."""

    paths: dict[int, Path]
    scans: list[Scan] = field(default_factory=list)
    aside: list[tuple[SetAside, set[int]]] = field(default_factory=list)
    ignored: dict[int, tuple[str, str]] = field(default_factory=dict)
    notices: dict[int, list[Notice]] = field(default_factory=dict)  # of a file, for the scan that uses it

    def ignore(self, images: Iterable[Image], code: str, text: str) -> None:
        for image in images:
            self.ignored.setdefault(image.file, (code, text))

    def set_aside(self, error: ChironError, images: Collection[Image], study: _Study | None = None) -> None:
        """Images of one scan of a `study`, or of nobody who could be named."""
        label = f"sub-{study.subject}_ses-{study.session}" if study else UNKNOWN
        whose = (study.owner, study.identity(images)) if study else ("", ())
        self.aside.append((SetAside(label, error.code, reason(error), 0, "", *whose), {i.file for i in images}))

    def export(self) -> Export:
        taken = {path for scan in self.scans for path in scan.files}
        used = {ordinal for ordinal, path in self.paths.items() if path in taken}
        aside = []
        for what, files in self.aside:
            aside.append(replace(what, files=len(files - used)))
            used |= files
        ignored = tuple(Ignored(o, *reason) for o, reason in sorted(self.ignored.items()) if o not in used)
        return Export(tuple(self.scans), tuple(aside), ignored, len(self.paths))


def find_dicom(
    entries: list[Entry],
    key: bytes,
    subject: str | None,
    acquisition: AcquisitionOf,
    labels: Labels | None = None,
    progress: Callable[[float, str], None] = lambda share, word: None,
) -> Export:
    """See `pipeline.find.find`; patients in `labels` get their label, all others a pseudonym."""
    ledger = _Ledger({entry.ordinal: entry.path for entry in entries})
    images = _mixed_patients(_duplicates(_read(entries, ledger, progress), ledger), ledger)
    table = labels or {}
    subjects = _subjects(images, key, subject, table)
    for patient, own in grouped(images, lambda i: i.patient).items():
        label = subjects[patient]
        if isinstance(label, ChironError):
            ledger.set_aside(label, own)
            continue
        source: Any = "option" if subject else "table" if label_of(table, patient) else "pseudonym"
        for study in grouped(own, lambda i: i.study).values():
            session = pseudonym(key, "study", study[0].patient, study[0].study, length=8)
            _study(study, _Study(key, patient, label, source, session), acquisition, ledger)
    return ledger.export()


def _read(entries: list[Entry], ledger: _Ledger, progress: Callable[[float, str], None]) -> list[Image]:
    images: list[Image] = []
    for entry, found in read_all(entries, progress):
        if not isinstance(found, ChironError):
            images += found
        elif found.fault.owed == "ignore":
            ledger.ignored[entry.ordinal] = found.code, found.found
        else:
            text = f"file {entry.ordinal}: {reason(found)}"
            ledger.aside.append((SetAside(UNKNOWN, found.code, text, 0), {entry.ordinal}))
    return images


def _duplicates(images: list[Image], ledger: _Ledger) -> list[Image]:
    """Leave one of several files with one identity and the same pixels (G001); mark those that differ (G002)."""
    kept: list[Image] = []
    content = cache(lambda ordinal: _content(ledger.paths[ordinal]))
    for (sop, _), same in grouped(images, lambda i: (i.sop, i.frame)).items():
        first, *others = same
        if not sop or not others:
            kept += same
            continue
        if all(content(first.file) == content(other.file) for other in others):
            ledger.ignore(others, "G001", f"the same image as file {first.file}")
            ledger.notices.setdefault(first.file, []).append(
                Notice("G001", "An image was there twice; one of them is used.")
            )
            kept.append(first)
        else:
            kept += [replace(i, fault=("G002", "different images that bear one identifier")) for i in same]
    return kept


def _content(path: Path) -> bytes:
    """Digest of all that makes the image: its pixels, and where and when they were taken."""
    try:
        with quiet():
            dataset = read_whole(path)
            place = [str(dataset.get(k)) for k in ("ImagePositionPatient", "EchoTime", "ImageType", "Rows", "Columns")]
            pixels = bytes(dataset.get("PixelData", b""))
    except Exception:  # a damaged file: it equals nothing but itself
        return hashlib.sha256(path.read_bytes()).digest()
    return hashlib.sha256(pixels + "\n".join(place).encode()).digest()


def _mixed_patients(images: list[Image], ledger: _Ledger) -> list[Image]:
    """Set aside every series that bears two patients."""
    kept: list[Image] = []
    for series, same in grouped(images, lambda i: i.series).items():
        if series and len({image.patient for image in same}) > 1:
            found = f"{len({image.patient for image in same})} patients in one series"
            ledger.set_aside(ChironError("G003", found, "one patient in a series"), same)
        else:
            kept += same
    return kept


def _subjects(images: list[Image], key: bytes, subject: str | None, given: Labels) -> dict[str, str | ChironError]:
    """Patient identity -> label, or why there is none."""
    patients = list(dict.fromkeys(image.patient for image in images))
    if subject and len(patients) > 1:
        error = ChironError("G005", f"{len(patients)} patients and one label", "one patient, where --subject is given")
        return dict.fromkeys(patients, error)
    labels = {p: subject or label_of(given, p) or pseudonym(key, "patient", p) for p in patients}
    taken = Counter(label.lower() for label in labels.values())
    found: dict[str, str | ChironError] = {}
    for patient, label in labels.items():
        if not patient and not subject:
            found[patient] = ChironError("G004", "images without a patient identity", "one that is not empty")
        elif taken[label.lower()] > 1:
            found[patient] = ChironError("G005", f"{taken[label.lower()]} patients with one label", "a label for each")
        else:
            found[patient] = label
    return found


def _study(images: list[Image], study: _Study, acquisition: AcquisitionOf, ledger: _Ledger) -> None:
    """Scans of one study into the ledger, and the rest of it with reasons."""
    original = _originals(images, ledger)
    found = _with_faulty(acquisitions(i for i in original if not i.fault[0]), [i for i in original if i.fault[0]])
    dropped = copies(found)
    for copy, why in dropped:
        ledger.ignore(copy, "G007", why)
    found = [own for own in found if not any(own is copy for copy, _ in dropped)]
    checked: list[tuple[list[Image], Checked]] = []
    override = acquisition(study.owner, study.subject, study.session)
    for own in found:
        if not _is_candidate(own):
            ledger.ignore(own, "F002", f"an image of another kind of scan ({own[0].other_kind}), without phase")
            continue
        try:
            if only_single_coils(found, own):
                raise ChironError("G007", "only images of single coils", "images of all coils, combined")
            usable, notices = first_usable(partial(check, own), override)
            checked.append((own, replace(usable, notices=(*usable.notices, *notices))))
        except ChironError as error:
            ledger.set_aside(error, own, study)
    for number, (used, result) in enumerate(checked, 1):
        run = str(number) if len(checked) > 1 else ""
        scan = _scan(used, result, study, run, ledger)
        if any(scan.id == other.id for other in ledger.scans):  # repeats in one file
            scan = replace(scan, id=internal_id(study.key, scan.id, *scan.identity))
        ledger.scans.append(scan)


def _with_faulty(found: list[list[Image]], faulty: list[Image]) -> list[list[Image]]:
    """Faulty images, whose headers may be cut short, beside the sound ones of their series; those of no other apart."""
    homes = {(image.series, part): a for a in found for image in a for part in (image.part, "")}
    alone: list[Image] = []
    for image in faulty:
        home = homes.get((image.series, image.part)) or homes.get((image.series, ""))
        (alone if home is None else home).append(image)
    return [*found, *acquisitions(alone)]


def _originals(images: list[Image], ledger: _Ledger) -> list[Image]:
    """Without derived images, and without field maps in Hz where the same series has phase of its own."""
    sound = {image.series for image in images if image.part in ("phase", "real") and not image.derived}
    kept = []
    for image in images:
        if image.derived:
            ledger.ignore([image], "G007", f"{image.derived}, not an original image")
        elif image.part == FIELD_MAP and image.series in sound:
            ledger.ignore([image], "G007", "a field map in Hz, computed by the scanner")
        else:
            kept.append(image)
    return kept


def _is_candidate(images: list[Image]) -> bool:
    """Whether this was meant for QSM: a gradient echo, or anything with phase."""
    return any(image.part != "magnitude" or not image.other_kind for image in images)


def _scan(images: list[Image], checked: Checked, study: _Study, run: str, ledger: _Ledger) -> Scan:
    ledger.ignore(checked.spare, "G007", f"not needed beside {' and '.join(checked.volumes)}")
    used = sorted({i.file for echoes in checked.volumes.values() for volume in echoes for i in volume})
    place = {ordinal: index for index, ordinal in enumerate(used)}
    volumes = tuple(
        Volume(part, echo, tuple(place[i.file] for i in volume), tuple(i.frame for i in volume))
        for part, echoes in checked.volumes.items()
        for echo, volume in enumerate(echoes)
    )
    first = images[0]
    series = sorted({image.series for image in images})
    return Scan(
        internal_id(study.key, first.patient, first.study, *series, min(image.sop for image in images)),
        study.subject,
        study.session,
        run,
        source="dicom",
        vendor=first.vendor,
        series=tuple(sorted({image.series_number for image in images if image.file in place})),
        echo_times_s=checked.echo_times_s,
        parts=tuple(checked.volumes),
        files=tuple(ledger.paths[ordinal] for ordinal in used),
        notices=_notices(images, checked, ledger),
        volumes=volumes,
        **checked.field.facts(),
        shape=(first.columns, first.rows, len(volumes[0].files)),
        owner=study.owner,
        label_source=study.label_source,
        identity=study.identity(images),
    )


def _repeat(image: Image) -> tuple[object, ...]:
    """What a later file of the same scan shares with an image: series, repeat and geometry."""
    stance = tuple(round(c, 2) + 0.0 for c in image.orientation)
    return image.study, image.series, image.repeat, image.multiframe, image.rows, image.columns, stance, image.coil


def _notices(images: list[Image], checked: Checked, ledger: _Ledger) -> tuple[Notice, ...]:
    found = list(checked.notices)
    found += [notice for image in images for notice in ledger.notices.get(image.file, [])]
    if not all(_UID.fullmatch(uid) for i in images for uid in (i.sop, i.series, i.study)):
        found.append(Notice("G006", "An identifier is not valid; an internal one is used."))
    if any(i.date and not _believable(i.date) for i in images):
        found.append(Notice("G008", "A date that cannot be; series are ordered by their numbers."))
    return tuple(dict.fromkeys(found))


def _believable(day: str) -> bool:
    """A date of the past, in the calendar; anonymised exports may bear any of them."""
    try:
        return date(int(day[:4]), int(day[4:6]), int(day[6:8])).toordinal() <= date.today().toordinal() + 1
    except ValueError:
        return False
