"""Words that name a subject, a session, a run or a scan of an output folder -> the labels of the scans meant."""

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


def matching(labels: Iterable[str], subject: str = "", session: str = "", run: str = "") -> set[str]:
    """Those of the labels that bear all that is given; X005, with what there is, where none does.

    Each word may have its prefix, and `subject` may be the label of a scan or the beginning of one, as
    `sub-abc_ses-1_acq-a`.
    """
    first, *more = subject.split("_")
    pairs = [("sub", first), *_entities("_".join(more)).items(), ("ses", session), ("run", run)]
    scans = {label: _entities(label) for label in labels if label.startswith("sub-")}
    for key, word in pairs:
        if not word:
            continue
        value, there = _bare(key, word), {scan[key] for scan in scans.values() if key in scan}
        if value not in there:
            raise _absent(key, value, there)
        scans = {label: scan for label, scan in scans.items() if scan.get(key) == value}
    return set(scans)


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
