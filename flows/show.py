"""What was found or done -> text for a person, or JSON for a program."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table

from flows.engine import print_line
from flows.night import headline, tally
from pipeline.errors import CATALOGUE, ChironError

if TYPE_CHECKING:
    from flows.batch import Outcome
    from flows.doctor import Check
    from flows.night import Entry, Night
    from pipeline.find import Export

WIDTH = 140  # of tables where nobody looks on
NARROW = 60  # columns, below which a table has less
STYLES = {"ok": "green", "warn": "yellow", "fail": "red", "usable": "green", "check": "yellow", "do not use": "red"}


def console(stderr: bool = False) -> Console:
    """A console for results, or for what accompanies them."""
    made = Console(stderr=stderr, highlight=False, soft_wrap=True)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, soft_wrap=True, width=WIDTH)


def as_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


WIDE = 120  # columns, for all that `inspect` says of a scan
DETAILS = ("vendor", "series", "echoes (ms)", "parts")


def say(text: str) -> None:
    """Print a line on standard error."""
    with suppress(RuntimeError):  # in a signal's handler, which interrupted the printing of another line
        print_line(text, sys.stderr)


def error(fault: ChironError) -> None:
    """Code, what was found, what was expected, what to do."""
    lines = [("found", fault.found), ("expected", fault.expected), ("do", fault.todo)]
    print(f"{fault.code}: {fault.fault.what}", file=sys.stderr)
    for name, text in lines:
        if text:
            print(f"  {name + ':':10}{text}", file=sys.stderr)


def export(found: Export, out: Console, provisional: bool = False) -> None:
    """What `inspect` says; `provisional` where the labels are not those that a run will give."""
    first = "scan (provisional label)" if provisional else "scan"
    wide = out.width >= WIDE
    table = Table(Column(first, overflow="fold"), *(DETAILS if wide else ()), "files", Column("", overflow="fold"))
    for scan in found.scans:
        times = ", ".join(f"{1000 * t:g}" for t in scan.echo_times_s)
        notes = "; ".join(f"{n.code}: {n.text}" for n in scan.notices)
        series = ", ".join(map(str, scan.series))
        details: tuple[str, ...] = (scan.vendor, series, times, ", ".join(scan.parts)) if wide else ()
        table.add_row(*map(escape, (scan.label, *details, str(len(scan.files)), notes or "will be run")))
    for aside in found.set_aside:
        details = ("",) * len(DETAILS) if wide else ()
        row = (aside.label, *details, str(aside.files), f"set aside, {aside.code}: {aside.text}")
        table.add_row(*map(escape, row))
    if table.row_count:
        out.print(table)
    out.print(counted(found))
    if provisional:
        out.print("There is no key of the pseudonyms yet: the first run makes it, and gives other labels than these.")


def counted(found: Export) -> str:
    """One sentence that accounts for every file."""
    used, aside = sum(len(s.files) for s in found.scans), sum(a.files for a in found.set_aside)
    scans = f"{len(found.scans)} scan{'' if len(found.scans) == 1 else 's'}"
    sentence = f"{found.files_seen} files: {used} in {scans}, {aside} set aside, {len(found.ignored)} ignored"
    codes = Counter(i.code for i in found.ignored)
    reasons = ", ".join(f"{count} x {code} {CATALOGUE[code].what}" for code, count in sorted(codes.items()))
    return f"{sentence} ({reasons})." if reasons else f"{sentence}."


def export_json(found: Export) -> dict[str, Any]:
    """All but the files' names, which may tell who the patient is."""
    keep = ("id", "subject", "session", "run", "source", "vendor", "series", "echo_times_s", "parts")
    return {
        "scans": [
            {"label": s.label, **{name: getattr(s, name) for name in keep}, "files": len(s.files),
             "notices": [n.json() for n in s.notices]}
            for s in found.scans
        ],
        "set_aside": [{"label": a.label, "code": a.code, "text": a.text, "files": a.files} for a in found.set_aside],
        "ignored": [dataclasses.asdict(i) for i in found.ignored],
        "files_seen": found.files_seen,
    }  # fmt: skip


def outcome(how: Outcome, output: Path, out: Console) -> None:
    """One scan's end, on a line or two."""
    said = f"{how.state}" + (f", {how.verdict}" if how.verdict else "")
    style = STYLES.get(how.verdict, "") if how.state.endswith("published") else "red"
    out.print(f"[bold]{escape(how.label)}[/]  [{style or 'default'}]{escape(said)}[/]")
    if how.text:
        text = how.text if how.text.startswith(how.code) else f"{how.code}: {how.text}"
        if out.is_terminal:
            out.print(Padding(escape(text), (0, 0, 0, 2), expand=False), soft_wrap=False)
        else:
            out.print(f"  {escape(text)}")  # whole, however long: a command may stand at its end
    if how.report:
        out.print(f"  {escape(str(output / how.report))}")


def night(found: Night, everything: bool = False, watched: bool = False, columns: int = WIDTH) -> RenderableType:
    """What `status` says: scans that run, those that need a look and, where `everything` is asked for, the others.

    The sum of it stands at the end, or first where it is `watched`, for a screen may be too small for all. On a
    narrow one, of few columns, methods and times are left out.
    """
    shown = [entry for entry in found.entries if everything or entry.kind != "usable"]
    unshown = len(found.entries) - len(shown)
    more = f" {unshown:,} usable {'one is' if unshown == 1 else 'ones are'} not listed (--all)." if unshown else ""
    said = escape(f"{headline(tally(found))}.{more}")
    tables = [*([_running(found)] if found.running else []), *([_ended(shown, columns)] if shown else [])]
    return Group(said, *tables) if watched else Group(*tables, said)


def night_json(found: Night) -> dict[str, Any]:
    """The records of all manifests, the counts, and what runs now."""
    running = [dataclasses.asdict(scan) for scan in found.running]
    return {"scans": list(found.records), "counts": tally(found), "running": running}


def _running(found: Night) -> Table:
    table = Table(Column("running scan", overflow="fold"), "step", "for")
    for scan in found.running:
        seconds = "" if scan.since is None else f"{max(0.0, time.time() - scan.since):.0f} s"
        table.add_row(escape(scan.label), escape(scan.title or scan.stage), seconds)
    return table


def _ended(entries: Iterable[Entry], columns: int) -> Table:
    narrow = columns < NARROW
    table = Table(Column("scan", overflow="fold"), "state", *([] if narrow else ["verdict", "methods", "ended"]), "why")
    for entry in entries:
        record, reasons = entry.record, entry.reasons
        more = [f"(and {len(reasons) - 1} more)"] if len(reasons) > 1 else []
        notices = [f"Notices: {', '.join(entry.warnings)}."] if entry.warnings and not entry.code else []
        why = [*([entry.code] if entry.code else []), *reasons[:1], *more, *notices]
        state = record["verdict"] or record["state"] if narrow else record["state"]
        more_of_it = [] if narrow else [record["verdict"], ", ".join(record["methods"]), entry.when]
        row = [entry.label, state, *more_of_it, " ".join(why)]
        table.add_row(*map(escape, row), style=_tone(entry.kind))
    return table


def _tone(kind: str) -> str:
    return {"check": "yellow", "do not use": "red", "failed": "red"}.get(kind, "")


def checks(found: Iterable[Check], out: Console) -> int:
    """Print each finding as it comes; returns the exit code of the first that failed, or 0."""
    code = 0
    for check in found:
        todo = f"  {check.todo}" if check.todo and check.level != "ok" else ""
        out.print(f"[{STYLES[check.level]}]{check.level:4}[/]  {check.what}: {escape(check.found)}{escape(todo)}")
        code = code or (check.exit if check.level == "fail" else 0)
    return code


def metrics(methods: Mapping[str, Mapping[str, Any]], out: Console) -> None:
    """Accuracy of each method against the truth, in the mask as far as it lies in the true brain."""
    table = Table("method", "NRMSE (%)", "XSIM", "r")
    for method, numbers in methods.items():
        table.add_row(
            method, *(f"{numbers[name]:.{digits}f}" for name, digits in (("nrmse", 1), ("xsim", 3), ("r", 3)))
        )
    out.print(table)
    out.print("Scored in the mask of the map, as far as it lies in the true brain.")


def settings_toml() -> str:
    """Every setting with its default, range and meaning, as the TOML file that --config takes."""
    from pipeline.settings import Settings, load, sections

    lines = ["# All settings of Chiron, at their defaults. Keep those you change; give the file with --config."]
    plain, hints = load().model_dump(mode="json"), get_type_hints(Settings)
    for name, info in Settings.model_fields.items():
        if name not in sections():
            lines += _setting(name, plain[name], info.description or "", hints[name], {})
    for section, params in sections().items():
        lines += ["", f"[{section}]"]
        if hasattr(params, "PRESETS"):
            lines += ["# With another preset, leave out the lines that it shall give: what stands here counts."]
        types = get_type_hints(params)
        for field in dataclasses.fields(params):
            help = field.metadata["help"]
            lines += _setting(field.name, plain[section][field.name], help, types[field.name], field.metadata)
    return "\n".join(lines) + "\n"


def _setting(name: str, value: Any, help: str, kind: Any, limits: Mapping[str, Any]) -> list[str]:
    meaning = help[0].upper() + help[1:].rstrip(".") + "."
    if get_origin(kind) is Literal:
        meaning += " One of " + ", ".join(map(str, get_args(kind))) + "."
    bounds = [
        f"{word} {limits[end]:g}" for end, word in (("low", "from"), ("high", "to")) if limits.get(end) is not None
    ]
    return [
        f"# {meaning}{' ' + ' '.join(bounds).capitalize() + '.' if bounds else ''}",
        f"{name} = {json.dumps(value)}",
    ]
