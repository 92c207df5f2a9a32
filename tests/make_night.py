"""A number of scans -> an output folder as a night leaves it: simulated labels, verdicts, failures and numbers."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import math
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import ChironError

START = datetime(2026, 11, 20, 21, 0, tzinfo=UTC).timestamp()
FAILURES = (
    ("P001", "phase of the echoes 1 and 3 only"),
    ("E002", "no slice at position 17 of 44 in echo 2"),
    ("F003", "file 211 ends in the middle of its pixels"),
    ("P001", "magnitude only"),
)
BROKEN = (("R003", "a scan that was not done within 7200 s"), ("P007", "a mask of 3 ml"))
REASONS = (
    "The mask's volume is 612 ml (below 700 ml): parts of the brain may be missing, or this is a child or a partial "
    "scan; look at the outline.",
    "The median residual of the field fit is 0.41 (above 0.30): the echoes do not agree with one field: motion, flow, "
    "or wrong echo times.",
    "The power inside the dipole's cone over that beside it is 2.34 (above 2.00): streaks along the cone are likely, "
    "where a brain has about 1.",
)
PICTURE = Image.radial_gradient("L").resize((120, 96)).convert("RGB")


def make(output: Path, scans: int, picture: Image.Image | None = PICTURE, seed: int = 1) -> Path:
    """Of twenty scans seventeen are usable, one is to check, one is set aside and one fails or is not to be used."""
    chance, drift = random.Random(seed), 1.0
    for i in range(scans):
        label = f"sub-{''.join(chance.choices('abcdefghijkmnpqrstuvwxyz234567', k=10))}_ses-{i + 1:03d}"
        drift = 1.0 if i < 0.6 * scans else 1.0 - 0.5 * (i / scans - 0.6) / 0.4
        finished = START + 30000 * i / scans + chance.uniform(0, 20)
        kind = {3: "check", 9: "set aside", 15: "failed" if i % 40 == 15 else "do not use"}.get(i % 20, "usable")
        _write(output, label, f"{i:012x}", kind, finished, drift, chance, picture)
    return output


def write(folder: Path, *records: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "scans": records}))


def record(label: str, state: str = "published", verdict: str = "usable", **more: Any) -> dict[str, Any]:
    """As the manifests hold it; the least that every record has, and `more`."""
    least: dict[str, Any] = {"failure": None, "warnings": [], "methods": ["rts"], "decisions": [], "files": {}}
    moment = datetime.fromtimestamp(START, UTC).isoformat(timespec="seconds")
    return {"label": label, "state": state, "verdict": verdict, "finished": moment} | least | more


def failure(code: str, found: str) -> dict[str, str]:
    return {"code": code, "sentence": ChironError(code, found).sentence()}


def claim(output: Path, scan: str, label: str, name: str = "job.json", now: str = "", held: bool = False) -> Any:
    """A work folder; returns the open lock, which is held as long as it lives."""
    folder = output / ".chiron/work" / scan
    folder.mkdir(parents=True)
    subject, _, session = label.partition("_ses-")
    job = {"scan": {"subject": subject.removeprefix("sub-"), "session": session, "run": ""}}
    (folder / name).write_text(json.dumps(job))
    if now:
        (folder / "now.json").write_text(now)
    lock = (folder / "lock").open("a")
    if held:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def _write(output: Path, label: str, scan: str, kind: str, finished: float, drift: float, chance: random.Random,
           picture: Image.Image | None) -> None:  # fmt: skip
    said: dict[str, Any] = {"finished": datetime.fromtimestamp(finished, UTC).isoformat(timespec="seconds")}
    took = chance.gauss(31, 3)
    said |= {
        "scan": scan,
        "stages": [
            {"stage": "mask", "seconds": took / 3},
            {"stage": "invert-rts", "seconds": took * (kind != "failed")},
        ],
    }
    if kind == "set aside":
        code, found = chance.choice(FAILURES)
        write(output / "set-aside" / label, record(label, kind, "do not use", failure=failure(code, found)) | {
            "finished": said["finished"], "methods": []})  # fmt: skip
        return
    page, report = f"{label}_qsm.html", _report(picture if kind != "failed" else None)
    folder = output / "failed" / label if kind == "failed" else output.joinpath(*label.split("_"))
    folder.mkdir(parents=True)
    (folder / page).write_text(report)
    if kind == "failed":
        broken = failure(*chance.choice(BROKEN))
        write(folder, record(label, kind, "do not use", failure=broken, files={page: {}}, **said))
        return
    (folder / "anat").mkdir()
    (folder / f"anat/{label}_qc.json").write_text(json.dumps(_quality(kind, drift, chance)))
    warnings = [{"stage": "unwrap", "code": "P010", "text": "wraps"}] if kind == "check" else []
    files = {f"anat/{label}_qc.json": {}, page: {}}
    write(folder, record(label, "published", kind, warnings=warnings, files=files, citations=["x" * 200] * 14, **said))


def _quality(kind: str, drift: float, chance: random.Random) -> dict[str, Any]:
    reasons = {"usable": [], "check": chance.sample(REASONS, chance.randint(1, 2)), "do not use": [REASONS[2]]}[kind]
    volume = 612.0 if kind == "check" else chance.gauss(1350, 90)
    return {
        "methods": {"rts": {"data_consistency": math.exp(chance.gauss(0.1, 0.1)) * (2 if kind == "do not use" else 1)}},
        "acquisition": {"snr": chance.gauss(46, 3) * drift, "volume_ml": volume},
        "verdict": {"level": kind, "reasons": reasons},
        "primary": "rts",
    }


def _report(picture: Image.Image | None) -> str:
    """The beginning of a report: what stands above its pictures, and the pictures at a glance."""
    figures = ""
    if picture is not None:
        stream = io.BytesIO()
        picture.save(stream, "WEBP")
        uri = f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
        figures = f'<figure><div class="plane"><img src="{uri}" alt="axial"></div><figcaption>χ, RTS<span>ppm</span>'
    return (
        f'<html>{"x" * 15000}<div class="glance">{figures}</figcaption></figure></div><nav></nav>{"x" * 150000}</html>'
    )
