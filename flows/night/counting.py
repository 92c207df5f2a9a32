"""What stands in an output folder -> numbers by verdict, state and code, and the sentence that says them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from flows.night.standing import KINDS, Night, look
from pipeline.errors import CATALOGUE

Counts = dict[str, Any]

WORDS = {"usable": "usable", "check": "to check", "do not use": "not to be used", "set aside": "set aside",
         "failed": "failed", "running": "running", "waiting": "waiting"}  # fmt: skip


def counts(output: Path, since: float | None = None) -> Counts:
    """Scans that ended (since `since`, in seconds since 1970), and those that run and wait now. Nothing identifies.

    `{"scans": n, "published": {verdict: n}, "failed": {code: n}, "set_aside": {code: n}, "running": n, "waiting": n}`.
    """
    return tally(look(output, since))


def tally(night: Night) -> Counts:
    """The counts of what was looked at."""
    kinds = Counter(entry.kind for entry in night.entries)
    return {
        "scans": len(night.entries),
        "published": {verdict: kinds[verdict] for verdict in ("usable", "check", "do not use")},
        "failed": _by_code(night, "failed"),
        "set_aside": _by_code(night, "set aside"),
        "running": len(night.running),
        "waiting": len(night.waiting),
    }


def by_kind(found: Counts) -> dict[str, int]:
    """How many of each kind, those that nothing is wrong with first."""
    sums = {"set aside": sum(found["set_aside"].values()), "failed": sum(found["failed"].values())}
    return {kind: {**found["published"], **sums}[kind] for kind in reversed(KINDS)}


def headline(found: Counts) -> str:
    """`212 scans: 187 usable, 9 to check, 13 set aside`, and how many still run or wait."""
    parts = [f"{number} {WORDS[kind]}" for kind, number in by_kind(found).items() if number]
    going = [f"{found[state]} {WORDS[state]}" for state in ("running", "waiting") if found[state]]
    scans = (
        f"{found['scans']:,} scan{'' if found['scans'] == 1 else 's'}" if found["scans"] else "No scan has ended yet"
    )
    said = f"{scans}: {', '.join(parts)}" if parts else scans
    return f"{said}; {', '.join(going)}" if going else said


def causes(found: Counts) -> list[tuple[str, int, str, str]]:
    """Code, number of scans, what it means and what to do, of failed and set aside scans: the most frequent first."""
    codes: Counter[str] = Counter(found["failed"]) + Counter(found["set_aside"])
    rows = []
    for code, number in codes.items():
        fault = CATALOGUE.get(code)
        what, todo = (fault.what, fault.todo) if fault else ("a code of another version", "See the manifest.")
        rows.append((code, number, what, todo))
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def artifact_markdown(found: Counts) -> str:
    """The counts as Markdown, for an artifact of Prefect's."""
    lines = [f"**{headline(found)}**"]
    rows = causes(found)
    if rows:
        lines += ["", "| code | scans | what it means | what to do |", "| --- | ---: | --- | --- |"]
        lines += [f"| {code} | {number} | {what} | {todo} |" for code, number, what, todo in rows]
    return "\n".join(lines) + "\n"


def _by_code(night: Night, kind: str) -> dict[str, int]:
    return dict(sorted(Counter(entry.code or "unknown" for entry in night.of(kind)).items()))
