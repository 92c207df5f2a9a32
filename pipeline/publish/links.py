"""A scan and its output -> BIDS URIs of the scan's images, and the link to their dataset in the output's description.

A link shows no more of a path than the name of the input's own folder: it is relative, to a BIDS dataset that lies next
to the output, or next to a folder that holds the output. Other datasets are linked by their DOI, where they have one,
or by a link that somebody wrote into `DatasetLinks`. Of a DICOM export nothing is published.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pipeline.find import Scan
from pipeline.publish.dataset import DESCRIPTION, revise
from pipeline.publish.sidecars import as_json

SOURCEDATA = "sourcedata"  # BIDS' folder, within a dataset, for what it was made from
_DOI = re.compile(r"(?:doi:|https?://(?:dx\.)?doi\.org/)?(10\.\d{4,9}/[\w.()/:;-]+)")


@dataclass(frozen=True)
class _Origin:
    """The dataset that a scan comes from: where it lies, its name, and the link and DOI to publish, if any."""

    root: Path
    name: str
    link: str
    doi: str = ""


def link_input(output: Path, scan: Scan) -> dict[str, list[str]]:
    """Add the dataset that a scan comes from to `DatasetLinks` and `SourceDatasets` of a prepared output.

    Returns the BIDS URIs of the scan's images by part. Without a link, or where the subject has another label than
    in the dataset, there are none. Links to other inputs stay. Raises OSError where the output cannot be written.
    """
    output = output.resolve()
    origin = _origin(output, scan)
    if origin is None:
        return {}
    description = json.loads(revise(output, DESCRIPTION, lambda text: _linked(text, output, origin)))
    name = _name_of(_links(description), output, origin)
    return _uris(name, scan) if name and scan.source == "bids" else {}


def _origin(output: Path, scan: Scan) -> _Origin | None:
    within, folders = output / SOURCEDATA, {path.parent for path in scan.files}
    if folders and all(within in (folder / "file").resolve().parents for folder in folders):
        return _Origin(within, SOURCEDATA, SOURCEDATA)
    dataset = _dataset_of(scan.files[0]) if folders else None
    if scan.source != "bids" or dataset is None:
        return None
    root, doi = dataset.parent.resolve() / dataset.name, _doi(dataset)
    return _Origin(root, "raw", _relative(output, root) or (f"doi:{doi}" if doi else ""), doi)


def _dataset_of(image: Path) -> Path | None:
    """The folder that holds an image's `sub-<label>` folder."""
    return next((folder.parent for folder in image.parents if folder.name.startswith("sub-")), None)


def _relative(output: Path, root: Path) -> str:
    """The way from `output` to a BIDS dataset that holds it, or that lies next to it or to a folder that holds it.

    Nothing is said of what lies right below the root of the file system: it may be another folder outside a container.
    """
    adjacent = root.parent in output.parents and root.parent != Path(root.anchor) and (root / DESCRIPTION).is_file()
    return quote(Path(os.path.relpath(root, output)).as_posix()) if root in output.parents or adjacent else ""


def _doi(root: Path) -> str:
    """The DOI that a dataset has given itself."""
    try:
        text = json.loads((root / DESCRIPTION).read_text(encoding="utf-8")).get("DatasetDOI")
    except (OSError, ValueError, AttributeError):
        return ""
    match = _DOI.fullmatch(text.strip()) if isinstance(text, str) else None
    return match[1] if match else ""


def _linked(text: str, output: Path, origin: _Origin) -> str:
    """The description with the link and the source dataset; what it has already stays."""
    description: dict[str, Any] = json.loads(text)
    links, sources = _links(description), _sources(description)
    if origin.link and not _name_of(links, output, origin):
        description["DatasetLinks"] = {**links, _free_name(origin.name, links): origin.link}
    url = f"https://doi.org/{origin.doi}" if origin.link.startswith("doi:") else origin.link
    source = {key: value for key, value in (("URL", url), ("DOI", origin.doi and f"doi:{origin.doi}")) if value}
    if source and not any(source.get(key) == one.get(key) for one in sources for key in source):
        description["SourceDatasets"] = [*sources, source]
    return as_json(description).decode()


def _name_of(links: Mapping[str, str], output: Path, origin: _Origin) -> str:
    """The name that the dataset has in `links`, by the same link or another one that leads there; empty if none."""
    same = (name for name, link in links.items() if link == origin.link or _place(output, link) == origin.root)
    return next(same, "")


def _place(output: Path, link: str) -> Path | None:
    """Where a link leads on this machine; None where it leads elsewhere."""
    try:
        parts = urlsplit(link)
    except ValueError:  # of a link that somebody wrote
        return None
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost") or not parts.path:
        return None
    path = output / unquote(parts.path)
    return path.parent.resolve() / path.name if path.name != ".." else path.resolve()


def _free_name(name: str, links: Mapping[str, str]) -> str:
    """`raw`, or `raw2` and so on where other inputs have these names."""
    return name if name not in links else next(f"{name}{n}" for n in count(2) if f"{name}{n}" not in links)


def _uris(name: str, scan: Scan) -> dict[str, list[str]]:
    """By part; none where the subject's label in the dataset is another than the published one."""
    uris: dict[str, list[str]] = {}
    for volume in scan.volumes:
        for path in (scan.files[number] for number in volume.files):
            place = path.relative_to(_dataset_of(path) or path.anchor)
            if place.parts[0] != f"sub-{scan.subject}":
                return {}
            uris.setdefault(volume.part, []).append(f"bids:{name}:{quote(place.as_posix())}")
    return uris


def _links(description: Mapping[str, Any]) -> dict[str, str]:
    links = description.get("DatasetLinks")
    return {k: v for k, v in links.items() if isinstance(v, str)} if isinstance(links, dict) else {}


def _sources(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    sources = description.get("SourceDatasets")
    return [one for one in sources if isinstance(one, dict)] if isinstance(sources, list) else []
