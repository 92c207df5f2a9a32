"""Words that name a subject, a session or a run in an output folder -> their labels; X005 where they are not there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flows.night import look
from pipeline.errors import ChironError
from pipeline.names import did_you_mean

LISTED = 5  # names that are told where there are no more
LIST = "`chiron status OUTPUT --all` lists all scans."


def labels_in(output: Path) -> list[str]:
    """The label of every scan that has a record in `output`, is worked on, or waits."""
    night = look(output)
    recorded = (str(record["label"]) for record in night.records)
    return sorted({*recorded, *(scan.label for scan in night.running), *night.waiting_labels})


def named(labels: Iterable[str], subject: str = "", session: str = "", run: str = "") -> tuple[str, str, str]:
    """Subject, session and run, each empty where it was, once it is sure that a scan among `labels` bears them.

    Each may have its prefix; `subject` may be the label of a scan, as `sub-abc_ses-1`, and is returned whole where more
    than the three tells the scan from others, as `sub-abc_acq-a`. X005, with what there is.
    """
    labels, whole = list(labels), f"sub-{_bare('sub', subject)}"
    if whole in labels and _entities(whole).keys() - {"sub", "ses", "run"}:
        return whole, "", ""
    first, *more = subject.split("_")
    wanted = {"sub": first, **_entities("_".join(more))}
    wanted |= {key: value for key, value in (("ses", session), ("run", run)) if value}
    wanted = {key: _bare(key, value) for key, value in wanted.items() if value}
    scans = [_entities(label) for label in labels if label.startswith("sub-")]
    for key, value in wanted.items():
        there = {scan[key] for scan in scans if key in scan}
        if value not in there:
            raise _absent(key, value, there)
        scans = [scan for scan in scans if scan.get(key) == value]
    return wanted.get("sub", ""), wanted.get("ses", ""), wanted.get("run", "")


def _entities(label: str) -> dict[str, str]:
    """`sub-abc_ses-1` -> its parts by their prefix."""
    return {key: value for part in label.split("_") for key, dash, value in [part.partition("-")] if dash}


def _bare(key: str, value: str) -> str:
    """Without the prefix, in whatever case it is written."""
    return value[len(key) + 1 :] if value.lower().startswith(f"{key}-") else value


def _absent(key: str, value: str, there: set[str]) -> ChironError:
    names = sorted(f"{key}-{name}" for name in there)
    listed = ", ".join(names) if 0 < len(names) <= LISTED else f"one of {len(names)}" if names else "none is there"
    what = {"sub": "subject", "ses": "session", "run": "run"}.get(key, "part")
    advice = did_you_mean(f"{key}-{value}", names, LIST)
    return ChironError("X005", f"no {what} {key}-{value} in this output folder", listed, advice)
