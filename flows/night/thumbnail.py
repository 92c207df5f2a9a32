"""A scan's report -> its picture of the map, small enough for a table of many scans."""

from __future__ import annotations

import base64
import io
import re
from functools import lru_cache
from pathlib import Path

from PIL import Image

LARGEST_PX = 72
LARGEST_BYTES = 3000
HEAD_BYTES = 400_000  # of a report: the pictures at a glance stand at its beginning
FIGURE = re.compile(
    r'<img src="data:image/webp;base64,([A-Za-z0-9+/=]+)"[^>]*>(?:(?!</?figure>).)*?<figcaption>([^<]*)', re.S
)


def thumbnail(report: Path) -> str:
    """A data URI of the map as the report shows it, or of the last picture before it; empty where there is none."""
    try:
        changed = report.stat().st_mtime_ns
    except OSError:
        return ""
    return _made(report, changed)


@lru_cache(maxsize=1000)
def _made(report: Path, changed: int) -> str:
    """Of a report that was written at `changed`."""
    try:
        with report.open("rb") as stream:
            text = stream.read(HEAD_BYTES).decode("utf-8", "replace")
        glance = text[text.index('<div class="glance"') : text.index("<nav")]
        figures = FIGURE.findall(glance)
        picture = next((data for data, title in figures if title.startswith("χ")), figures[-1][0])
        return _small(base64.b64decode(picture))
    except (OSError, ValueError, IndexError):
        return ""


def _small(picture: bytes) -> str:
    with Image.open(io.BytesIO(picture)) as image:
        image.thumbnail((LARGEST_PX, LARGEST_PX))
        stream = io.BytesIO()
        image.save(stream, "WEBP", quality=70, method=4)
    content = stream.getvalue()
    return "data:image/webp;base64," + base64.b64encode(content).decode() if len(content) <= LARGEST_BYTES else ""
