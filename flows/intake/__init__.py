"""A site's inbox -> the studies in it that are whole and that nobody writes any more, each handed over once.

Exports arrive file by file, in any order, and nothing says which file is the last. A study is taken when nothing of it
has changed for a while and nothing is missing that a whole one has; where something stays missing, it is set aside
after the site's patience. Files that come later change the study, and it is handed over again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from flows.intake.state import Sign, Unit, Units, kept
from flows.intake.units import LOOSE, STUDY, SUBJECT, UNREAD, by_path, folder, update
from flows.keep import overrides_for
from flows.site import Site
from pipeline.errors import ChironError
from pipeline.find import AcquisitionOf, Export, Ignored, Scan, SetAside, find
from pipeline.find.listing import Entry, list_files
from pipeline.find.scan import UNKNOWN, reason
from pipeline.identity import Labels, load_labels
from pipeline.publish import prepare
from pipeline.publish.key import record_key

STILL_COMING = {"E001", "E002", "F001", "F003", "F004", "F016"}  # a piece of what is there is missing
MAY_COME = {"P001", "E003", "E004", "E006", "E012", "G007"}  # where there is no scan: the rest of one may mend it


@dataclass(frozen=True)
class Arrived:
    """What is ready now. `confirm` it once its scans are saved as jobs: until then every look hands it over again."""

    export: Export  # ordinals are those among a study's own files, in `ignored` counted on from study to study
    ready: int = 0  # studies
    changed: int = 0  # of these, handed over before with other files
    waiting: int = 0  # studies, and files that cannot be read, of which more may come
    _output: Path = field(default=Path(), repr=False)
    _key: bytes = field(default=b"", repr=False)
    _taken: dict[str, tuple[dict[str, Sign], int]] = field(default_factory=dict, repr=False)

    def confirm(self) -> None:
        """Remember that this was taken, but for what has changed meanwhile. R006, S001 and S002 as of `look`."""
        if not self._taken:
            return
        with kept(self._output, self._key) as units:
            for name, (files, scans) in self._taken.items():
                unit = units.get(name)
                if unit and unit.files == files:
                    unit.done, unit.scans = True, scans


def look(site: Site, key: bytes, now: float | None = None) -> Arrived:
    """Look at the inbox once, at the time `now` in seconds, which is the clock's by default.

    S003 where the inbox cannot be read: it is then as if nobody had looked. R006 where another look does not end, S001
    and S002 where nothing can be remembered, X002 and G005 where the site's labels are not usable.
    """
    now = time.time() if now is None else now
    prepare(site.output)
    record_key(site.output, key)
    with kept(site.output, key) as units:
        update(units, _listed(site, units), site.input, key, now)
        labels = load_labels(Path(site.labels_file)) if site.labels_file else {}
        believed = overrides_for(site.output, site.parsed_settings())
        return _Visit(site, key, now, units, labels, believed).arrived()


def _listed(site: Site, units: Units) -> list[Entry]:
    """What lies in the inbox. S003 where many files were there and all are gone at once: that is a share that went."""
    entries = list_files(site.input)
    before = sum(len(unit.files) for unit in units.values())
    if before > 1 and not entries:
        todo = "Mount the share. Where the inbox was emptied on purpose, the next file in it ends this."
        raise ChironError("S003", f"an empty inbox, which held {before} files at the last look", "its files", todo)
    return entries


@dataclass(frozen=True)
class _Visit:
    """One look: which units are ready, and what is in them."""

    site: Site
    key: bytes
    now: float
    units: Units
    labels: Labels
    acquisition: AcquisitionOf

    def arrived(self) -> Arrived:
        open_ = {name: unit for name, unit in self.units.items() if not unit.done}
        held = self._held()
        ready = [name for name in open_ if self._ready(open_[name], held)]
        taken: dict[str, tuple[dict[str, Sign], int]] = {}
        exports = []
        for names in _together(ready):
            if export := self._take(names):
                exports.append(export)
                taken |= {name: (dict(open_[name].files), len(export.scans)) for name in names}
        studies = [name for name in taken if name.startswith((STUDY, SUBJECT))]
        return Arrived(
            _joined(exports),
            len(studies),
            sum(open_[name].scans is not None for name in studies),
            sum(not name.startswith(LOOSE) for name in open_.keys() - taken.keys()),
            self.site.output,
            self.key,
            taken,
        )

    def _held(self) -> set[str]:
        """Folders with a file that cannot be read yet: which study it belongs to is not known."""
        unread = (unit for name, unit in self.units.items() if name.startswith(UNREAD) and not self._late(unit))
        return {folder(path) for unit in unread for path in unit.files}

    def _ready(self, unit: Unit, held: set[str]) -> bool:
        if self.now - unit.changed < self.site.quiet_s:
            return False
        return self._late(unit) or not (unit.short or held & set(map(folder, unit.files)))

    def _late(self, unit: Unit) -> bool:
        """Whether it is taken as it is, whatever is missing."""
        return self.now - unit.changed >= max(self.site.patience_s, self.site.quiet_s)

    def _take(self, names: list[str]) -> Export | None:
        """What is in the units; None where something of it may still come, or came while we looked."""
        files = {path: sign for name in names for path, sign in self.units[name].files.items()}
        paths = [self.site.input / path for path in files]
        export = self._found(paths)
        now = by_path(list_files(self.site.input, paths), self.site.input)
        if files != {path: [entry.size, entry.mtime_ns] for path, entry in now.items()}:
            return None
        unit = self.units[names[0]]
        if names[0].startswith((STUDY, SUBJECT)) and _short(export) and not self._late(unit):
            unit.short = True
            return None
        return export

    def _found(self, paths: list[Path]) -> Export:
        try:
            return find(self.site.input, self.key, acquisition=self.acquisition, labels=self.labels, files=paths)
        except ChironError:
            raise
        except Exception as error:  # of one study, which must not keep all others from being taken
            found = f"an unexpected {type(error).__name__} while headers were read"
            fault = ChironError("R005", found, "none", "Send the headers, not the images, to the developers.")
            return Export((), (SetAside(UNKNOWN, fault.code, reason(fault), len(paths)),), (), len(paths))


def _together(names: list[str]) -> list[list[str]]:
    """Each study by itself; the files that belong to none at once."""
    rest = [name for name in names if not name.startswith((STUDY, SUBJECT))]
    return [*([name] for name in names if name.startswith((STUDY, SUBJECT))), *([rest] if rest else [])]


def _short(export: Export) -> bool:
    codes = {aside.code for aside in export.set_aside}
    return bool(codes & STILL_COMING or (not export.scans and codes & MAY_COME))


def _joined(exports: list[Export]) -> Export:
    scans: list[Scan] = []
    aside: list[SetAside] = []
    ignored: list[Ignored] = []
    seen = 0
    for export in exports:
        scans += export.scans
        aside += export.set_aside
        ignored += [replace(one, ordinal=one.ordinal + seen) for one in export.ignored]
        seen += export.files_seen
    return Export(tuple(scans), tuple(aside), tuple(ignored), seen)
