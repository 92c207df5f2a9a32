"""Listed files of a BIDS dataset -> its scans: `_part-mag|phase_MEGRE` images, their sidecars and labels."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib

from pipeline.acquisition import Acquisition
from pipeline.entities import in_order
from pipeline.errors import ChironError, Notice
from pipeline.find.dataset import PARTS, Image, Namer, Origin, ScanImages, SourceData, home, without_copies
from pipeline.find.field_strength import FieldHeader, FieldStrength, field_strength
from pipeline.find.listing import Entry
from pipeline.find.orientation import Orientation, orientation
from pipeline.find.scan import AcquisitionOf, Export, Ignored, Scan, SetAside, Volume, first_usable, reason
from pipeline.find.values import number, numbers, vendor_of

_NAME = re.compile(
    r"(?P<entities>sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9]+)*)_(?P<suffix>MEGRE|GRE|T2starw)\.nii(?:\.gz)?$"
)


def image_entries(folder: Path, entries: list[Entry]) -> list[Entry]:
    """The entries that are images of a gradient echo by their name, outside of derivatives and source data."""
    named = [e for e in entries if _entities(e.path) and "derivatives" not in e.path.relative_to(folder).parts]
    sources = SourceData(folder)
    return [e for e in named if e.path not in sources]


def find_bids(
    folder: Path, entries: list[Entry], key: bytes, subject: str | None, acquisition: AcquisitionOf, dataset_label: str
) -> Export:
    """Scans of the images among `entries`, each of one dataset and one folder; they keep their entities.

    `dataset_label` is put in front of every subject's label. The export accounts for the images and their sidecars.
    """
    names = Namer(folder, key, subject, dataset_label)
    groups: dict[Origin, list[Image]] = defaultdict(list)
    ignored: dict[int, tuple[str, str]] = {}
    for entry in image_entries(folder, entries):
        if entry.code:
            ignored[entry.ordinal] = (entry.code, entry.text)
            continue
        entities, suffix = _entities(entry.path), _suffix(entry.path)
        root = names.root(entry.path)
        shared = in_order((k, v) for k, v in entities.items() if k not in ("echo", "part"))
        origin = Origin(root, home(root, entry.path), suffix, shared)
        groups[origin].append(Image(entry, entities, _facts(root, entry.path, entities)))
    if subject and len({dict(origin.entities)["sub"] for origin in groups}) > 1:
        raise ChironError("X001", "one label for several subjects", "no --subject for a dataset of several")
    return _export(without_copies(groups), {e.path: e.ordinal for e in entries}, ignored, names, acquisition)


def _export(
    groups: dict[Origin, ScanImages],
    ordinals: dict[Path, int],
    ignored: dict[int, tuple[str, str]],
    names: Namer,
    acquisition: AcquisitionOf,
) -> Export:
    scans: list[Scan] = []
    aside: list[SetAside] = []
    rest = {ordinal: ignored.get(ordinal, ("F002", "a sidecar without its image")) for ordinal in ordinals.values()}
    for origin, images in groups.items():
        files = _with_sidecars(images.used, ordinals)
        rest |= {ordinals[path]: ("G001", "the same image twice") for path in _with_sidecars(images.copies, ordinals)}
        for path in files:
            rest.pop(ordinals[path], None)
        if not files:
            continue
        try:
            if images.conflict:
                raise images.conflict
            scans.append(_scan(origin, images, files, names, acquisition))
        except ChironError as error:
            identity = names.owner(origin), (names.scan_id(origin),)
            aside.append(SetAside(names.label(origin), error.code, reason(error), len(files), "", *identity))
    listed = tuple(Ignored(ordinal, *why) for ordinal, why in sorted(rest.items()))
    return Export(tuple(scans), tuple(aside), listed, len(ordinals))


def _with_sidecars(images: list[Image], ordinals: dict[Path, int]) -> list[Path]:
    paths = [image.path for image in images]
    return list(dict.fromkeys([*paths, *(side for path in paths if (side := _sidecar(path)) in ordinals)]))


def _scan(origin: Origin, images: ScanImages, files: list[Path], names: Namer, acquisition: AcquisitionOf) -> Scan:
    parts = _parts(images.used)
    used = [image for image in images.used if image.part in parts]
    numbers_of = {part: sorted(image.echo for image in used if image.part == part) for part in parts}
    if numbers_of[parts[0]] != numbers_of[parts[1]]:
        found = " and ".join(f"{len(numbers_of[part])} of {part}" for part in parts)
        raise ChironError("E001", f"echoes: {found}", "the same echoes of both")
    entities = dict(origin.entities)
    believed = acquisition(names.owner(origin), names.subject(origin), entities.get("ses", ""))
    b0_dir = numbers(used[0].facts.get("B0_dir"), 3)
    b0_dir = b0_dir if any(b0_dir) else ()  # a vector of zeros states nothing
    (times, field, placed), given = first_usable(partial(_headers, used, numbers_of[parts[0]], b0_dir), believed)
    order = {echo: place for place, echo in enumerate(sorted(times, key=lambda e: times[e]))}
    volumes = (Volume(image.part, order[image.echo], (files.index(image.path),), (0,)) for image in used)
    return Scan(
        names.scan_id(origin),
        names.subject(origin),
        entities.get("ses", ""),
        entities.get("run", ""),
        source="bids",
        vendor=vendor_of(used[0].facts.get("Manufacturer")),
        series=(),
        echo_times_s=tuple(sorted(times.values())),
        parts=parts,
        files=tuple(files),
        notices=(*_notices(images, times), *field.notices, *placed.notices, *given),
        volumes=tuple(sorted(volumes, key=lambda v: (parts.index(v.part), v.echo))),
        **field.facts(),
        b0_dir=b0_dir,
        shape=_shape(used[0].path),
        phase_unit=next((str(image.facts.get("Units", "")) for image in used if image.part == "phase"), ""),
        entities=names.others(origin),
        suffix=origin.suffix,
        header_times_s=_header_times(images.used, numbers_of[parts[0]]),
        owner=names.owner(origin),
        label_source="option" if names.subject_override else "dataset",
        identity=(names.scan_id(origin),),
    )


def _headers(
    used: list[Image], echoes: list[int], b0_dir: tuple[float, ...], acquisition: Acquisition
) -> tuple[dict[int, float], FieldStrength, Orientation]:
    """Echo times, B0 and orientation, by the sidecars and headers or by what is believed instead."""
    times = _echo_times(used, echoes, acquisition)
    vendor = vendor_of(used[0].facts.get("Manufacturer"))
    field = field_strength([FieldHeader.of_sidecar(image.facts) for image in used], vendor, acquisition.b0_tesla)
    return times, field, orientation([image.path for image in used], acquisition.orientation, b0_dir)


def _header_times(used: list[Image], echoes: list[int]) -> tuple[float, ...]:
    try:
        return tuple(sorted(_echo_times(used, echoes, Acquisition()).values()))
    except ChironError:
        return ()


def _notices(images: ScanImages, times: dict[int, float]) -> tuple[Notice, ...]:
    copies = [Notice("G001", "An image was there twice; one of them is used.")] if images.copies else []
    single = [Notice("E007", "A single echo: phase offsets cannot be told from the field.")] if len(times) == 1 else []
    return (*copies, *single)


def _parts(images: list[Image]) -> tuple[str, str]:
    there = {image.part for image in images}
    for pair in (("magnitude", "phase"), ("real", "imaginary")):
        if set(pair) <= there:
            return pair
    raise ChironError(
        "P001", f"only {' and '.join(sorted(there))}", "magnitude and phase, or real and imaginary, images"
    )


def _echo_times(used: list[Image], echoes: list[int], given: Acquisition) -> dict[int, float]:
    """Echo number -> time in seconds; E005 or E006 where they are not usable."""
    if given.echo_times_s:
        if len(given.echo_times_s) != len(echoes):
            found = f"{len(given.echo_times_s)} echo times were given for {len(echoes)} echoes"
            raise ChironError("E005", found, "one for each echo")
        return dict(zip(echoes, given.echo_times_s, strict=True))
    times: dict[int, float] = {}
    for image in used:
        time, echo = number(image.facts.get("EchoTime")), image.echo
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


def _facts(root: Path, image: Path, entities: dict[str, str]) -> dict[str, Any]:
    """What the sidecars of its dataset say of an image; nearer ones override (BIDS inheritance principle)."""
    facts: dict[str, Any] = {}
    for parent in [p for p in reversed(image.parents) if p == root or root in p.parents]:
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
    return entities if entities.get("part") in PARTS and entities.get("echo", "1").isdigit() else {}


def _suffix(image: Path) -> str:
    return image.name.split(".")[0].split("_")[-1]


def _sidecar(image: Path) -> Path:
    return image.with_name(image.name.split(".nii")[0] + ".json")
