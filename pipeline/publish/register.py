"""The labels that an output folder has given: to which scan of which person, and by what these are recognised later.

The register in the private folder is an index. Where it is absent, the manifests and the jobs in the work folders tell
what was given.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.disk import coded_disk
from pipeline.entities import split
from pipeline.errors import ChironError
from pipeline.find import Scan
from pipeline.ledger import Record, read_manifests, records_of, records_of_subject
from pipeline.lock import locked
from pipeline.publish.dataset import private
from pipeline.publish.swap import write_in_place
from pipeline.recipe import Job

FOLDER = "labels"


@dataclass(frozen=True)
class Entry:
    """A label that was given: to which scan, and what later files of that scan are recognised by."""

    label: str
    scan: str
    identity: tuple[str, ...] = ()  # empty for a scan of an earlier version
    suffix: str = ""  # of a BIDS name


@dataclass
class Subject:
    """The labels of one person."""

    label: str
    owners: list[str] = field(default_factory=list)  # keyed hashes of the person; none for an earlier version
    entries: dict[str, Entry] = field(default_factory=dict)  # by label, in small letters: many disks know no others

    def own(self, owner: str) -> None:
        if owner and owner not in self.owners:
            self.owners.append(owner)

    def of_session(self, session: str) -> list[str]:
        return [entry.label for entry in self.entries.values() if split(entry.label)[1] == session]

    def next_run(self, session: str) -> str:
        runs = [int(run) for label in self.of_session(session) if (run := split(label)[2] or "1").isdigit()]
        return str(max(runs, default=0) + 1)

    def add(self, label: str, scan: str, identity: Iterable[str] = (), suffix: str = "") -> Entry:
        before = self.entries.get(label.lower(), Entry(label, scan))
        entry = Entry(label, scan, tuple(sorted({*before.identity, *identity})), suffix or before.suffix)
        self.entries[label.lower()] = entry
        return entry

    def json(self) -> dict[str, Any]:
        scans = {
            e.label: {"scan": e.scan, "identity": list(e.identity), "suffix": e.suffix} for e in self.entries.values()
        }
        return {"subject": self.label, "owners": self.owners, "scans": scans}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Subject:
        """KeyError, TypeError, AttributeError or ValueError where it is damaged."""
        subject = cls(str(value["subject"]), list(map(str, value["owners"])))
        for label, scan in value["scans"].items():
            subject.add(label, str(scan["scan"]), map(str, scan["identity"]), str(scan.get("suffix", "")))
        return subject


class Register:
    """The labels that an output folder has given, read as they are needed. Open it with `register`.

    Without an output it knows none.
    """

    def __init__(self, output: Path | None) -> None:
        self.output, self.folder = output or Path(os.devnull), private(output or Path(os.devnull)) / FOLDER
        self._subjects: dict[str, Subject] = {}

    def subject(self, label: str) -> Subject:
        """What is known of a subject's label; an empty subject where it was never given."""
        name = label.lower()
        if name not in self._subjects:
            subject = Subject(label)
            with suppress(KeyError, TypeError, AttributeError, ValueError):  # absent or damaged: the manifests tell
                subject = Subject.from_json(_json(self.folder / f"sub-{name}.json") or {})
            self._subjects[name] = subject
            for record in records_of_subject(self.output, label):
                self._put(record)
        return self._subjects[name]

    def subject_of(self, owner: str) -> Subject | None:
        """The subject that a person has here."""
        label = (_json(self.folder / f"owner-{owner}.json") or {}).get("subject") if owner else None
        subject = self.subject(label) if isinstance(label, str) else None
        return subject if subject and owner in subject.owners else None

    def person_of(self, scans: Iterable[Scan]) -> Subject | None:
        """The subject of these scans, all of one person; of results of an earlier version, the scans' ids tell."""
        for scan in scans:
            label = (_json(self.folder / f"scan-{scan.id}.json") or {}).get("subject")
            if person := self.subject_of(scan.owner) or (self.subject(label) if isinstance(label, str) else None):
                return person
        return None

    def files_of(self, entry: Entry) -> set[Path]:
        """Where the files of a scan were when it was last planned."""
        try:
            return set(Job.load(private(self.output) / "work" / entry.scan, next=True).scan.files)
        except (OSError, ValueError, KeyError, TypeError):
            return set()

    def unchanged_files_of(self, entry: Entry) -> set[Path]:
        """The same, where they are still what the result was made from."""
        try:
            scan = Job.load(private(self.output) / "work" / entry.scan, next=True).scan
            return set(scan.files) if scan.content_digest() in self.digests_of(entry.label) else set()
        except (OSError, ValueError, KeyError, TypeError, ChironError):
            return set()

    def digests_of(self, label: str) -> set[str]:
        """Digests of the inputs that results of a label were made from."""
        return {str(record.get("input_digest")) for record in records_of(self.output, label)}

    def images_of(self, label: str) -> set[str]:
        """Digests of the images that the result of a label was made from."""
        records = [r for r in records_of(self.output, label) if r["state"] == "published"]
        return {image for record in records for image in record.get("input_images") or ()}

    def build(self) -> None:
        """From the manifests, and the jobs of scans that have none yet; all of it appears at once."""
        final, self.folder = self.folder, self.folder.with_name(f"{FOLDER}.new")
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for record in read_manifests(self.output):
            if record["state"] != "set aside":  # which takes no label
                self._put(record)
        for folder in (private(self.output) / "work").glob("*"):
            try:
                scan = Job.load(folder, next=True).scan
            except (OSError, ValueError, KeyError, TypeError):
                continue
            names = ("owner", "identity", "suffix")
            self._put({"label": scan.label, "scan": scan.id, **{name: getattr(scan, name) for name in names}})
        self.save()
        self.folder = self.folder.rename(final)

    def save(self) -> None:
        for name, subject in self._subjects.items():
            if not subject.entries:
                continue
            self._write(f"sub-{name}.json", subject.json())
            for owner in subject.owners:
                self._write(f"owner-{owner}.json", {"subject": subject.label})
            for entry in subject.entries.values() if not subject.owners else ():
                self._write(f"scan-{entry.scan}.json", {"subject": subject.label})

    def _put(self, record: Record) -> None:
        """Note what a manifest or a job tells, unless the label is known to be another scan's."""
        subject = self.subject(split(record["label"])[0])
        known, owner = subject.entries.get(record["label"].lower()), record.get("owner")
        if "scan" in record and (known is None or known.scan == record["scan"]):
            subject.add(record["label"], record["scan"], record.get("identity") or (), record.get("suffix") or "")
            subject.own(owner or "")

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_in_place(self.folder / name, json.dumps(content).encode(), private(self.output))


@contextmanager
def register(output: Path) -> Iterator[Register]:
    """The labels of `output`, for one process at a time; what was given meanwhile is saved. R006, S001 or S002."""
    with coded_disk(), locked(private(output) / "locks" / "labels.lock", held="another run gives labels"):
        labels = Register(output)
        if not labels.folder.is_dir():
            labels.build()
        yield labels
        labels.save()


def _json(file: Path) -> dict[str, Any] | None:
    try:
        plain = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return plain if isinstance(plain, dict) else None
