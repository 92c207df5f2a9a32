"""Scans of an export, and the labels that an output folder has given -> each scan under the label that is its own.

A label never changes hands: a scan that comes again has the label that it was given, whatever else is in the export
then, and another scan is numbered on or set aside (G009). A subject's label belongs to one person: a patient, or a
subject of one BIDS dataset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.entities import label_of, split
from pipeline.errors import ChironError
from pipeline.find import Export, Scan, SetAside
from pipeline.publish.register import Entry, Register, Subject

ELSEWHERE = "Use another output folder, or move this dataset to a folder of its own and give it --dataset-label."
OTHER_NAME = "Name it so that its label is its own, by an entity such as acq- or run-, or use another output folder."
OTHER_LABEL = "Give this patient another label with --subject or --labels, or use another output folder."
EARLIER = (
    "An earlier version did not record whose label it is. If it is this person's, run once with the input of a result "
    "that stands under it. If not, give another label."
)


def read_ahead(export: Export, output: Path) -> None:
    """Digest the images that `settled` will compare, before it keeps other processes waiting."""
    labels = Register(output)
    for scan in export.scans:
        if scan.source == "bids" and labels.subject_of(scan.owner):
            _images(scan)


def settled(export: Export, labels: Register) -> Export:
    """The export with every scan under its label and the id that it has here; those whose label another has are set
    aside. What was set aside before has the label of its scan, or of its person, where these are known."""
    scans, aside = _settle(export.scans, labels)
    subjects = {scan.owner: labels.subject(scan.subject) for scan in scans if scan.owner}
    known = [_named(each, subjects.get(each.owner) or labels.subject_of(each.owner)) for each in export.set_aside]
    return replace(export, scans=tuple(scans), set_aside=(*known, *aside))


def _named(aside: SetAside, person: Subject | None) -> SetAside:
    """What was set aside, under a label that is no other scan's; it takes none."""
    if person is None:
        return aside
    entries = [entry for entry in person.entries.values() if set(entry.identity) & set(aside.identity)]
    if len(entries) == 1:
        return replace(aside, label=entries[0].label, scan=entries[0].scan)
    _, session, run, entities = split(aside.label)
    label = label_of(person.label, session, run, entities)
    if label.lower() in person.entries and not entities and not run:
        label = label_of(person.label, session, person.next_run(session))
    return replace(aside, label=label)


def _settle(scans: Sequence[Scan], labels: Register) -> tuple[list[Scan], list[SetAside]]:
    settled: dict[int, Scan] = {}
    aside: list[SetAside] = []
    groups: dict[tuple[str, str], list[int]] = {}
    for place, scan in enumerate(scans):
        groups.setdefault((scan.owner, scan.subject), []).append(place)
    new = {key for key, places in groups.items() if labels.person_of([scans[place] for place in places]) is None}
    claims = Counter(subject.lower() for _, subject in new if not labels.subject(subject).entries)
    for (owner, subject), places in groups.items():
        mine = [scans[place] for place in places]
        try:
            _refuse_other_images(labels, mine)
            if (owner, subject) in new and claims[subject.lower()] > 1:
                raise _taken(subject, "several people of this export")
            person = _person(labels, mine)
        except ChironError as error:
            aside += [SetAside.of(scan, error) for scan in mine]
            continue
        for place, one in zip(places, _labelled(labels, person, mine), strict=True):
            if isinstance(one, ChironError):  # its name, and so its id, may be that of a scan with a result
                aside.append(replace(SetAside.of(scans[place], one), scan="", identity=()))
            else:
                settled[place] = one
    return [settled[place] for place in sorted(settled)], aside


def _refuse_other_images(labels: Register, scans: list[Scan]) -> None:
    """G009 where a BIDS dataset took the place of another: it has none of the images that results were made from."""
    person = labels.person_of(scans)
    if not person or scans[0].source != "bids":
        return
    ids = {sign for scan in scans for sign in (scan.id, *scan.identity)}
    here = [entry for entry in person.entries.values() if ids & {entry.scan, *entry.identity}]
    made_from = set().union(*(labels.images_of(entry.label) for entry in here))
    if made_from and not made_from & set().union(*map(_images, scans)):
        raise _taken(person.label, "another dataset, which was at the same place before,", ELSEWHERE)


def _images(scan: Scan) -> set[str]:
    try:
        return set(scan.image_digests())
    except ChironError:  # of files that cannot be read now, the first stage tells
        return set()


def _person(labels: Register, scans: list[Scan]) -> Subject:
    """The subject whose scans these are; G009 where the label is another's."""
    owner, label, source = scans[0].owner, scans[0].subject, scans[0].label_source
    known = labels.person_of(scans)
    if known:
        if source == "option" and known.label.lower() != label.lower():
            fault = f"a label for someone who has the label sub-{known.label} in this output folder"
            raise ChironError("G009", fault, f"sub-{known.label}", "Leave out --subject, or use another output folder.")
        known.own(owner)
        return known
    subject = labels.subject(label)
    given = bool(subject.owners or (subject.entries and source != "pseudonym"))  # a pseudonym is of one patient
    if owner and owner not in subject.owners and given and not _same_person(labels, subject, scans):
        todo = "" if source == "dataset" else OTHER_LABEL if subject.owners else EARLIER
        raise _taken(label, "another person, or a subject of another dataset", todo)
    subject.own(owner)
    return subject


def _taken(subject: str, who: str, todo: str = "") -> ChironError:
    return ChironError("G009", f"the label sub-{subject}, which {who} has too", "one person for each label", todo)


def _same_person(labels: Register, subject: Subject, scans: list[Scan]) -> bool:
    """Whether a scan has the id or the very content of one that has a label, or lies beside it where that is unchanged:
    a dataset that was moved, or looked at by an earlier version, which did not tell whose a label is.

    Not where a scan has the label of one and other images."""
    if any(_is_another(labels, subject, scan) for scan in scans):
        return False
    for entry in subject.entries.values():
        for scan in scans:
            if scan.id == entry.scan or _holds_same(labels, entry, scan):
                return True
    if subject.owners or scans[0].source != "bids":
        return False
    homes = {home for entry in subject.entries.values() for home in map(_home, labels.unchanged_files_of(entry))}
    return any(_home(path) in homes for scan in scans for path in scan.files)


def _home(path: Path) -> Path:
    """The folder of a file's subject, else of the file."""
    return next((parent for parent in path.parents if parent.name.startswith("sub-")), path.parent)


def _is_another(labels: Register, subject: Subject, scan: Scan) -> bool:
    entry = subject.entries.get(scan.label.lower())
    return entry is not None and entry.scan != scan.id and _has_other_images(labels, entry, scan)


def _has_other_images(labels: Register, entry: Entry, scan: Scan) -> bool:
    """Whether the result of a label was made from none of the images of a scan with a BIDS name."""
    images = labels.images_of(entry.label) if scan.source == "bids" else set()
    return bool(images) and not images & _images(scan)


def _holds_same(labels: Register, entry: Entry, scan: Scan) -> bool:
    """Whether a scan has the content that was published under this label, whatever it is called now."""
    digests = labels.digests_of(entry.label)
    try:
        return bool(digests) and scan.content_digest() in digests
    except ChironError:
        return False


def _labelled(labels: Register, person: Subject, scans: list[Scan]) -> list[Scan | ChironError]:
    """Each scan of a person under its label, or why it has none."""
    scans = [replace(scan, subject=person.label) for scan in scans]
    known = _recognised(labels, person, scans)
    sessions = {scan.session: person.of_session(scan.session) for scan in scans}
    order = sorted(range(len(scans)), key=lambda place: (place not in known, scans[place].suffix not in ("", "MEGRE")))
    result: dict[int, Scan | ChironError] = {}
    for place in order:
        scan, entry = scans[place], known.get(place)
        label = entry.label if entry else _free_label(person, scan, bool(sessions[scan.session]))
        if not label:
            found = f"the label {scan.label}, which another scan has"
            result[place] = ChironError("G009", found, "one for each scan", OTHER_NAME)
            continue
        added = person.add(label, entry.scan if entry else scan.id, scan.identity, scan.suffix)
        owner = person.owners[0] if person.owners else ""
        result[place] = replace(scan.named(label), id=added.scan, owner=owner)
    return [result[place] for place in range(len(scans))]


def _recognised(labels: Register, person: Subject, scans: list[Scan]) -> dict[int, Entry]:
    """Place of a scan -> the label that it has been given. The surest sign first: its id, its images, its files."""
    signs: tuple[Callable[[Entry, Scan], bool], ...] = (
        lambda entry, scan: entry.scan == scan.id,
        lambda entry, scan: bool(set(entry.identity) & set(scan.identity)),
        lambda entry, scan: not entry.identity and _has_same_files(labels, entry, scan),
        lambda entry, scan: scan.source == "bids" and _holds_same(labels, entry, scan),
    )
    known: dict[int, Entry] = {}
    for sign in signs:
        for entry in person.entries.values():
            if entry in known.values():
                continue
            matches = [place for place, scan in enumerate(scans) if place not in known and sign(entry, scan)]
            if len(matches) == 1 and not _has_other_images(labels, entry, scans[matches[0]]):
                known[matches[0]] = entry
    return known


def _has_same_files(labels: Register, entry: Entry, scan: Scan) -> bool:
    """Whether the scan has files that a scan of an earlier version had, in the same session."""
    return split(entry.label)[1] == scan.session and bool(labels.files_of(entry) & set(scan.files))


def _free_label(person: Subject, scan: Scan, session_known: bool) -> str:
    """The label that the scan claims, or the next run; empty where neither is free.

    Scans of one BIDS dataset that only the suffix tells apart are told apart by `acq-`.
    """
    if scan.source == "bids":
        acquired = dict(scan.entities).get("acq", "") + scan.suffix
        others = [pair for pair in scan.entities if pair[0] != "acq"]
        apart = replace(scan, entities=(("acq", acquired), *others)).label
        holder = person.entries.get(scan.label.lower())
        claims = (scan.label, apart) if holder and holder.suffix not in ("", scan.suffix) else (scan.label,)
        return next((label for label in claims if label.lower() not in person.entries), "")
    if not session_known and scan.label.lower() not in person.entries:
        return scan.label
    return replace(scan, run=person.next_run(scan.session)).label
