"""Listed files of a BIDS dataset -> its scans: `_part-mag|phase_MEGRE` images, their sidecars and labels."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib

from pipeline.acquisition import Acquisition
from pipeline.errors import ChironError, Notice
from pipeline.find.field_strength import FieldHeader, field_strength
from pipeline.find.listing import Entry
from pipeline.find.orientation import orientation
from pipeline.find.scan import Export, Ignored, Scan, SetAside, Volume, reason
from pipeline.find.values import number, numbers, vendor_of
from pipeline.identity import internal_id

_NAME = re.compile(
    r"(?P<entities>sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9]+)*)_(?P<suffix>MEGRE|GRE|T2starw)\.nii(?:\.gz)?$"
)
_PARTS = {"mag": "magnitude", "phase": "phase", "real": "real", "imag": "imaginary"}
_Image = tuple[Entry, dict[str, str], dict[str, Any]]  # file, entities, facts of the sidecars


def is_bids(folder: Path, entries: list[Entry]) -> bool:
    """Whether the folder says so, or holds images that are named so."""
    return (folder / "dataset_description.json").is_file() or any(_entities(entry.path) for entry in entries)


def find_bids(folder: Path, entries: list[Entry], key: bytes, subject: str | None, acquisition: Acquisition) -> Export:
    """Scans by subject, session, run and whatever else tells them apart; labels are kept as they are."""
    groups: dict[tuple[tuple[str, str], ...], list[_Image]] = defaultdict(list)
    ignored: dict[int, tuple[str, str]] = {}
    for entry in entries:
        entities = _entities(entry.path)
        if entry.code or not entities or "derivatives" in entry.path.relative_to(folder).parts:
            ignored[entry.ordinal] = (entry.code or "F002", entry.text or "a file that is no multi-echo image")
            continue
        names = tuple((k, v) for k, v in entities.items() if k not in ("echo", "part"))
        groups[names].append((entry, entities, _facts(folder, entry.path, entities)))
    return _export(folder, entries, groups, ignored, key, subject, acquisition)


def _export(
    folder: Path,
    entries: list[Entry],
    groups: dict[tuple[tuple[str, str], ...], list[_Image]],
    ignored: dict[int, tuple[str, str]],
    key: bytes,
    subject: str | None,
    acquisition: Acquisition,
) -> Export:
    if subject and len({dict(names)["sub"] for names in groups}) > 1:
        raise ChironError("X001", "one label for several subjects", "no --subject for a dataset of several")
    by_path = {entry.path: entry.ordinal for entry in entries}
    scans: list[Scan] = []
    aside: list[SetAside] = []
    for names, images in groups.items():
        files = [e.path for e, _, _ in images] + [p for e, _, _ in images if (p := _sidecar(e.path)) in by_path]
        label = "_".join(f"{k}-{v}" for k, v in names if k in ("sub", "ses", "run"))
        for path in files:
            ignored.pop(by_path[path], None)
        try:
            scans.append(_scan(dict(names), images, files, key, subject, acquisition))
        except ChironError as error:
            aside.append(SetAside(label, error.code, reason(error), len(files)))
    listed = tuple(Ignored(ordinal, *reason) for ordinal, reason in sorted(ignored.items()))
    return Export(tuple(_told_apart(scans)), tuple(aside), listed, len(entries))


def _told_apart(scans: list[Scan]) -> list[Scan]:
    """Number the scans that other entities than subject, session and run tell apart, as runs."""
    labels = Counter(scan.label for scan in scans)
    counts: Counter[str] = Counter()
    found = []
    for scan in scans:
        counts[scan.label] += 1
        alone = labels[scan.label] == 1
        found.append(scan if alone else replace(scan, run=f"{scan.run}{counts[scan.label]}"))
    return found


def _scan(
    names: dict[str, str], images: list[_Image], files: list[Path], key: bytes, subject: str | None, given: Acquisition
) -> Scan:
    parts = _parts(images)
    used = [image for image in images if _part(image) in parts]
    numbers_of = {
        part: sorted(int(e.get("echo", 1)) for _, e, _ in used if _PARTS[e["part"]] == part) for part in parts
    }
    if numbers_of[parts[0]] != numbers_of[parts[1]]:
        found = " and ".join(f"{len(numbers_of[part])} of {part}" for part in parts)
        raise ChironError("E001", f"echoes: {found}", "the same echoes of both")
    times = _echo_times(used, numbers_of[parts[0]], given)
    order = {echo: place for place, echo in enumerate(sorted(times, key=lambda e: times[e]))}
    volumes = tuple(
        sorted(
            (Volume(_part(i), order[int(i[1].get("echo", 1))], (files.index(i[0].path),), (0,)) for i in used),
            key=lambda v: (parts.index(v.part), v.echo),
        )
    )
    facts = used[0][2]
    vendor = vendor_of(facts.get("Manufacturer"))
    field = field_strength([FieldHeader.of_sidecar(image[2]) for image in used], vendor, given.b0_tesla)
    b0_dir = numbers(facts.get("B0_dir"), 3)
    placed = orientation([image[0].path for image in used], given.orientation, b0_dir)
    single = Notice("E007", "A single echo: phase offsets cannot be told from the field.")
    notices = (*((single,) if len(times) == 1 else ()), *field.notices, *placed.notices)
    return Scan(
        internal_id(key, *(f"{k}-{v}" for k, v in names.items())),
        subject or names["sub"],
        names.get("ses", ""),
        names.get("run", ""),
        source="bids",
        vendor=vendor,
        series=(),
        echo_times_s=tuple(sorted(times.values())),
        parts=parts,
        files=tuple(files),
        notices=notices,
        volumes=volumes,
        **field.facts(),
        b0_dir=b0_dir,
        shape=_shape(used[0][0].path),
        phase_unit=next((str(f.get("Units", "")) for _, e, f in used if e.get("part") == "phase"), ""),
    )


def _parts(images: list[_Image]) -> tuple[str, str]:
    there = {_part(image) for image in images}
    for pair in (("magnitude", "phase"), ("real", "imaginary")):
        if set(pair) <= there:
            return pair
    raise ChironError(
        "P001", f"only {' and '.join(sorted(there))}", "magnitude and phase, or real and imaginary, images"
    )


def _echo_times(used: list[_Image], echoes: list[int], given: Acquisition) -> dict[int, float]:
    """Echo number -> time in seconds; E005 or E006 where they are not usable."""
    if given.echo_times_s:
        if len(given.echo_times_s) != len(echoes):
            found = f"{len(given.echo_times_s)} echo times were given for {len(echoes)} echoes"
            raise ChironError("E005", found, "one for each echo")
        return dict(zip(echoes, given.echo_times_s, strict=True))
    times: dict[int, float] = {}
    for _, entities, facts in used:
        time, echo = number(facts.get("EchoTime")), int(entities.get("echo", 1))
        if time is None or not 0.0002 <= time <= 0.5:
            raise ChironError(
                "E006", f"echo {echo} with an EchoTime that is absent or senseless", "seconds, 0.0002 to 0.5"
            )
        if abs(times.setdefault(echo, time) - time) > 2e-5:
            raise ChironError("E001", f"echo {echo} with two echo times", "the same in magnitude and phase")
    if len(set(times.values())) < len(times):
        raise ChironError("E005", f"{len(times)} echoes with {len(set(times.values()))} echo times", "no two equal")
    return times


def _shape(image: Path) -> tuple[int, ...]:
    """Voxels of a volume, from its header; empty where that cannot be read, of which its conversion will tell."""
    try:
        return tuple(int(n) for n in nib.load(image).shape[:3])
    except Exception:  # a damaged file can make the parser fail in any way
        return ()


def _facts(folder: Path, image: Path, entities: dict[str, str]) -> dict[str, Any]:
    """What the sidecars say that apply to an image; nearer ones override (BIDS inheritance principle)."""
    facts: dict[str, Any] = {}
    for parent in [p for p in reversed(image.parents) if p == folder or folder in p.parents]:
        for path in sorted(parent.glob("*.json")):
            own = dict(p.split("-", 1) for p in path.stem.split("_")[:-1] if "-" in p)
            if path.stem.split("_")[-1] == _suffix(image) and own.items() <= entities.items():
                facts |= _json(path)
    return facts


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _entities(path: Path) -> dict[str, str]:
    """Entities of a GRE image's name that says its part; else an empty dict."""
    found = _NAME.match(path.name)
    entities = dict(e.split("-", 1) for e in found["entities"].split("_")) if found else {}
    return entities if entities.get("part") in _PARTS and entities.get("echo", "1").isdigit() else {}


def _suffix(image: Path) -> str:
    return image.name.split(".")[0].split("_")[-1]


def _sidecar(image: Path) -> Path:
    return image.with_name(image.name.split(".nii")[0] + ".json")


def _part(image: _Image) -> str:
    return _PARTS[image[1]["part"]]
