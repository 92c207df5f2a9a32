"""What lies in an inbox is taken once it is whole and still, in whatever order and however slowly it came.

The clock is ours: a test says what time it is.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_bids import bids
from make_dicom import KEY, SENTINEL, digests, edit, write

import flows.intake
from flows.intake import Arrived, look
from flows.intake.state import kept
from flows.site import Site
from pipeline.errors import ChironError
from pipeline.find import Export, Scan, find
from pipeline.find.study import study_of

QUIET, PATIENCE = 100.0, 1000.0
SMALL: dict[str, Any] = {"shape": (4, 4, 2), "times": (0.004, 0.008)}  # eight files


@dataclass
class Inbox:
    """A site with a clock."""

    site: Site
    now: float = 1e9

    @property
    def folder(self) -> Path:
        return self.site.input

    def look(self, after: float = 0.0) -> Arrived:
        """Look after so many seconds, and confirm; what is there is never touched and nothing is lost count of."""
        self.now += after
        before = digests(self.folder)
        arrived = look(self.site, KEY, self.now)
        assert digests(self.folder) == before
        export = arrived.export
        used = {path for scan in export.scans for path in scan.files}
        assert export.files_seen == len(used) + len(export.ignored) + sum(a.files for a in export.set_aside)
        assert len({one.ordinal for one in export.ignored}) == len(export.ignored)
        arrived.confirm()
        return arrived

    def settle(self) -> Arrived:
        """Two looks, as far apart as it takes to be still."""
        assert not self.look().export.scans
        return self.look(QUIET)

    def add(self, paths: Iterable[Path], folder: str = ".") -> None:
        """Copies with the times of the originals, as a copying program leaves them."""
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        for path in paths:
            shutil.copy2(path, self.folder / folder / path.name)


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    (tmp_path / f"inbox {SENTINEL}").mkdir()
    return Inbox(Site(tmp_path / f"inbox {SENTINEL}", tmp_path / "out", quiet_s=QUIET, patience_s=PATIENCE))


@pytest.fixture(scope="session")
def exams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Three studies of three patients and vendors."""
    made = {}
    for number, (name, vendor) in enumerate((("one", "siemens"), ("two", "philips"), ("three", "ge"))):
        folder = tmp_path_factory.mktemp(name)
        made[name] = [
            path.rename(folder / f"{number}-{at:02d}.dcm")
            for at, path in enumerate(sorted(write(folder / "as written", vendor, patient=name, **SMALL)))
        ]
    return made


def truth(paths: list[Path]) -> Scan:
    (scan,) = find(paths[0].parent, KEY).scans
    return scan


def same(found: Scan, wanted: Scan) -> bool:
    """The same scan, wherever its files lie."""
    alike = replace(found, files=(), volumes=()) == replace(wanted, files=(), volumes=())
    return alike and found.content_digest() == wanted.content_digest()


def codes(arrived: Arrived) -> set[str]:
    return {aside.code for aside in arrived.export.set_aside}


def test_a_study_is_taken_once_it_is_still_and_only_once(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    inbox.add(exams["one"])
    assert inbox.look().waiting == 1
    assert inbox.look(QUIET - 1).waiting == 1
    arrived = inbox.look(1)
    (scan,) = arrived.export.scans
    assert same(scan, truth(exams["one"])) and (arrived.ready, arrived.changed, arrived.waiting) == (1, 0, 0)
    for after in (0, QUIET, PATIENCE):
        assert inbox.look(after).export == Export((), (), (), 0)


def test_what_is_not_confirmed_is_handed_over_again(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    inbox.add(exams["one"])
    look(inbox.site, KEY, 0.0)
    first = look(inbox.site, KEY, QUIET)
    assert first.export.scans == look(inbox.site, KEY, QUIET).export.scans != ()
    inbox.add(exams["one"][:1], "again")  # a copy, which came after the look that is confirmed
    look(inbox.site, KEY, QUIET + 1)
    first.confirm()
    (scan,) = look(inbox.site, KEY, 3 * QUIET).export.scans
    assert {notice.code for notice in scan.notices} == {"G001"}


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_any_order_and_any_pauses_end_with_each_study_taken_as_it_is(
    exams: dict[str, list[Path]], data: st.DataObject
) -> None:
    order = data.draw(st.permutations([path for paths in exams.values() for path in paths]))
    cuts = data.draw(st.lists(st.integers(1, len(order) - 1), max_size=4, unique=True).map(sorted))
    flat = data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "in").mkdir()
        inbox = Inbox(Site(Path(scratch) / "in", Path(scratch) / "out", quiet_s=QUIET, patience_s=PATIENCE))
        for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True):
            for number, path in enumerate(order[start:end]):
                inbox.add([path], "." if flat else f"{start}/{number % 3}")
            inbox.look(data.draw(st.sampled_from([1.0, QUIET, PATIENCE])))
        whole = [truth(paths) for paths in exams.values()]
        late = [scan for _ in range(3) for scan in inbox.look(PATIENCE).export.scans]
        assert all(sum(same(scan, wanted) for scan in late) <= 1 for wanted in whole)
        with kept(inbox.site.output, KEY) as units:
            assert [(unit.short, unit.done, unit.scans) for unit in units.values()] == [(False, True, 1)] * 3


@given(order=st.permutations(range(24)), step=st.floats(0, QUIET * 0.99), flat=st.booleans())
@settings(max_examples=5, deadline=None)
def test_what_comes_without_a_long_pause_is_taken_exactly_once(
    exams: dict[str, list[Path]], order: list[int], step: float, flat: bool
) -> None:
    files = [path for paths in exams.values() for path in paths]
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "in").mkdir()
        inbox = Inbox(Site(Path(scratch) / "in", Path(scratch) / "out", quiet_s=QUIET, patience_s=PATIENCE))
        found: list[Scan] = []
        for number in order:  # the last file of each study is touched by every look, so that no study is ever still
            inbox.add([files[number]], "." if flat else str(number % 2))
            for paths in exams.values():
                inbox.add(paths[-1:], "." if flat else str(files.index(paths[-1]) % 2))
                os.utime(next(inbox.folder.rglob(paths[-1].name)), ns=(0, number))
            if number % 6 == 0:
                found += inbox.look(step).export.scans
        assert not found
        for _ in range(4):
            found += inbox.look(QUIET).export.scans
        assert sorted(scan.label for scan in found) == sorted(truth(paths).label for paths in exams.values())
        assert all(any(same(scan, truth(paths)) for scan in found) for paths in exams.values())


def test_a_growing_file_keeps_its_study_from_being_taken(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    *others, last = exams["one"]
    inbox.add(others)
    whole = last.read_bytes()
    for share in (0.7, 0.8, 0.9, 1.0):
        (inbox.folder / last.name).write_bytes(whole[: int(share * len(whole))])
        assert not inbox.look(QUIET).export.scans
    assert inbox.look(QUIET).export.scans


@pytest.mark.parametrize("content", [0, 60, 132, 400, 4000 * b"\0"], ids=["0", "60", "132", "400", "zeros"])
def test_a_file_that_has_just_begun_keeps_its_folder_from_being_taken(
    inbox: Inbox, exams: dict[str, list[Path]], content: int | bytes
) -> None:
    """Of which study it is, nobody can know yet: empty, cut within its header, or room made for what is to come."""
    inbox.add(exams["one"], "a")
    inbox.add(exams["two"], "b")
    begun = content if isinstance(content, bytes) else exams["three"][0].read_bytes()[:content]
    (inbox.folder / "a" / "begun").write_bytes(begun)
    assert [scan.subject for scan in inbox.settle().export.scans] == [truth(exams["two"]).subject]
    for _ in range(8):
        assert inbox.look(QUIET).waiting == 2  # the other study, and the file
    arrived = inbox.look(QUIET)  # out of patience
    assert [scan.subject for scan in arrived.export.scans] == [truth(exams["one"]).subject]
    told = {one.code for one in arrived.export.ignored} | codes(arrived)
    assert told <= {"F001", "F002", "F003", "F004"} and told and arrived.waiting == 0
    assert inbox.look(PATIENCE).export.files_seen == 0
    inbox.add([exams["three"][0]], "a")
    (inbox.folder / "a" / "begun").unlink()
    inbox.add(exams["three"][1:], "a")
    assert [scan.subject for scan in inbox.settle().export.scans] == [truth(exams["three"]).subject]


def test_what_is_incomplete_is_waited_for_and_then_set_aside(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    inbox.add(exams["one"][:-1])
    arrived = inbox.settle()
    assert arrived.waiting == 1 and not arrived.export.set_aside
    assert not inbox.look(PATIENCE - QUIET - 1).export.set_aside
    arrived = inbox.look(1)
    assert codes(arrived) <= {"E001", "E002"} and len(arrived.export.set_aside) == 1 and not arrived.export.scans
    inbox.add(exams["one"][-1:])
    arrived = inbox.settle()
    assert same(arrived.export.scans[0], truth(exams["one"])) and arrived.changed == 1


def test_headers_are_read_once_while_a_study_is_waited_for(
    inbox: Inbox, exams: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.add(exams["one"][:-1])
    inbox.settle()
    read: list[Path] = []
    monkeypatch.setattr("flows.intake.units.study_of", lambda path: read.append(path) or study_of(path))
    monkeypatch.setattr(flows.intake, "find", lambda *a, **k: pytest.fail("nothing has changed"))
    for _ in range(5):
        inbox.look(QUIET)
    assert not read
    inbox.add(exams["one"][-1:], "late")
    inbox.look(QUIET)
    assert [path.name for path in read] == [exams["one"][-1].name]


def test_magnitude_alone_waits_for_its_phase_but_not_beside_a_scan(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    magnitude = [path for path in exams["one"] if "M" in pydicom.dcmread(path).ImageType]
    inbox.add(magnitude)
    assert inbox.settle().waiting == 1
    inbox.add(exams["one"])
    assert len(inbox.settle().export.scans) == 1
    copies = [shutil.copy2(path, inbox.folder / f"localizer {path.name}") for path in magnitude]

    def another(dataset: pydicom.Dataset) -> None:
        dataset.SeriesInstanceUID += ".9"
        dataset.SOPInstanceUID += ".9"
        dataset.SeriesNumber, dataset.EchoTime, dataset.RepetitionTime = 9, 3, 9
        dataset.AcquisitionTime = "235900"

    edit(copies, another)
    arrived = inbox.settle()
    assert codes(arrived) == {"P001"} and len(arrived.export.scans) == 1 and arrived.changed == 1


def test_studies_lie_anywhere(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    """Several in a folder, one in several, and what belongs to none beside them."""
    for number, path in enumerate(path for paths in zip(*exams.values(), strict=True) for path in paths):
        inbox.add([path], ("flat", "deep/er", ".")[number % 5 % 3])
    (inbox.folder / "flat" / "readme.txt").write_text(SENTINEL)
    (inbox.folder / "link").symlink_to("flat")
    os.mkfifo(inbox.folder / "flat" / "pipe")
    arrived = inbox.settle()
    assert all(any(same(scan, truth(paths)) for scan in arrived.export.scans) for paths in exams.values())
    assert sorted(one.code for one in arrived.export.ignored) == ["F002", "F014", "F015"]
    assert arrived.ready == 3 and inbox.look(PATIENCE).export.files_seen == 0


def test_a_file_replaced_in_place_changes_its_study(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    inbox.add(exams["one"])
    (before,) = inbox.settle().export.scans
    digest = before.content_digest()
    path = inbox.folder / exams["one"][0].name
    edit([path], lambda d: d.__setattr__("PixelData", bytes(len(d.PixelData))))
    os.utime(path, ns=(1, 1))  # older than what it replaces
    arrived = inbox.settle()
    assert arrived.changed == 1 and arrived.export.scans[0].content_digest() != digest
    shutil.copy2(exams["two"][0], path)  # of another study; the first stays as it was taken
    arrived = inbox.settle()
    assert not arrived.export.scans and arrived.waiting == 1


def test_moved_files_are_handed_over_where_they_lie_now(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    inbox.add(exams["one"], "incoming")
    (before,) = inbox.settle().export.scans
    digest = before.content_digest()
    (inbox.folder / "incoming").rename(inbox.folder / "by day")
    (after,) = inbox.settle().export.scans
    assert same(after, truth(exams["one"])) and after.content_digest() == digest and after.id == before.id
    assert all(path.exists() for path in after.files)


def test_a_bids_name_hides_no_dicom_export(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    """The archive's download of a session: DICOM files, and one image of it that somebody converted."""
    inbox.add(exams["one"], "scans/11/DICOM")
    bids(inbox.folder, "sub-01", echoes=(1,), parts=("mag",), described=False, folder="scans/11/NIFTI")
    arrived = inbox.settle()
    assert [scan.source for scan in arrived.export.scans] == ["dicom"] and not codes(arrived)
    late = inbox.look(PATIENCE)
    assert [(aside.label, aside.code) for aside in late.export.set_aside] == [("sub-01", "P001")]


def test_tidying_up_does_not_make_a_scan_smaller(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    """Whoever deletes old files one after another leaves half a study; it was taken as a whole."""
    inbox.add(exams["one"])
    assert inbox.settle().export.scans
    for path in exams["one"]:
        (inbox.folder / path.name).unlink()
        arrived = inbox.look(PATIENCE)
        assert arrived.export.files_seen == arrived.waiting == 0
    inbox.add(exams["one"])  # forgotten, so taken like a new one
    arrived = inbox.settle()
    assert len(arrived.export.scans) == 1 and arrived.changed == 0


def test_what_vanishes_before_it_is_taken_is_waited_for(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    inbox.add(exams["one"])
    inbox.look()
    (inbox.folder / exams["one"][3].name).unlink()
    assert inbox.look(QUIET).waiting == 1
    assert inbox.look(QUIET).waiting == 1  # incomplete
    assert codes(inbox.look(PATIENCE)) <= {"E001", "E002"}


def test_removing_what_was_wrong_brings_the_study_back(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    inbox.add(exams["one"])
    inbox.add(exams["one"][:1], "again")
    edit([inbox.folder / "again" / exams["one"][0].name], lambda d: d.__setattr__("PixelData", bytes(len(d.PixelData))))
    assert codes(inbox.settle()) == {"G002"}
    shutil.rmtree(inbox.folder / "again")
    assert inbox.settle().export.scans


def test_an_inbox_that_vanishes_loses_nothing(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    inbox.add(exams["one"])
    inbox.look()
    inbox.folder.rename(inbox.folder.with_name("away"))
    with pytest.raises(ChironError, match="S003"):
        look(inbox.site, KEY, inbox.now + 1)
    inbox.folder.with_name("away").rename(inbox.folder)
    assert inbox.look(QUIET).export.scans


def test_a_file_that_changes_while_it_is_looked_at_is_not_handed_over(
    inbox: Inbox, exams: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.add(exams["one"])
    inbox.look()

    def slow(*args: Any, **options: Any) -> Export:
        found = find(*args, **options)
        with (inbox.folder / exams["one"][0].name).open("ab") as stream:
            stream.write(bytes(2))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(flows.intake, "find", slow)
        arrived = look(inbox.site, KEY, inbox.now + QUIET)
    assert not arrived.export.scans and arrived.waiting == 1


def test_one_study_that_defeats_us_does_not_keep_the_others(
    inbox: Inbox, exams: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.add(exams["one"])
    inbox.add(exams["two"])

    def fails(*args: Any, **options: Any) -> Export:
        if any(path.name == exams["one"][0].name for path in options["files"]):
            raise ZeroDivisionError(SENTINEL)
        return find(*args, **options)

    monkeypatch.setattr(flows.intake, "find", fails)
    arrived = inbox.settle()
    assert codes(arrived) == {"R005"} and same(arrived.export.scans[0], truth(exams["two"]))
    assert SENTINEL not in arrived.export.set_aside[0].text


@pytest.mark.parametrize("jump", [-1e8, -50.0])
def test_a_clock_that_is_set_back_makes_us_wait_anew_and_no_longer(
    inbox: Inbox, exams: dict[str, list[Path]], jump: float
) -> None:
    inbox.add(exams["one"])
    inbox.look()
    assert not inbox.look(jump).export.scans
    assert inbox.look(QUIET).export.scans


def test_files_from_the_future_and_the_past_are_taken_alike(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    inbox.add(exams["one"])
    for number, path in enumerate(sorted(inbox.folder.iterdir())):
        os.utime(path, (4e9 if number % 2 else 0,) * 2)
    assert inbox.settle().export.scans


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-9], lambda b: b.replace(b"true", b"fals"), bytes.upper]
)
def test_a_damaged_memory_is_begun_anew(
    inbox: Inbox, exams: dict[str, list[Path]], damage: Callable[[bytes], bytes]
) -> None:
    inbox.add(exams["one"])
    inbox.settle()
    memory = inbox.site.output / ".chiron" / "intake.json"
    memory.write_bytes(damage(memory.read_bytes()))
    arrived = inbox.settle()
    assert len(arrived.export.scans) == 1 and arrived.changed == 0


def test_another_key_is_refused_and_begins_anew_elsewhere(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    """Where a site moves to another key with a new output, or late files would not be known to be of the study."""
    inbox.add(exams["one"])
    inbox.settle()
    with pytest.raises(ChironError, match="X004"):
        look(inbox.site, b"x" * 32, inbox.now)
    (inbox.site.output / ".chiron" / "key-fingerprint").unlink()
    assert not look(inbox.site, b"x" * 32, inbox.now).export.scans
    assert look(inbox.site, b"x" * 32, inbox.now + QUIET).export.scans


def test_a_share_that_goes_away_is_a_fault_and_no_news(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    """Its files come back as they were: nothing of them is taken anew."""
    inbox.add(exams["one"])
    inbox.add(exams["two"])
    assert len(inbox.settle().export.scans) == 2
    away = inbox.folder.with_name("away")
    inbox.folder.rename(away)
    inbox.folder.mkdir()
    for _ in range(2):
        with pytest.raises(ChironError, match="S003: an empty inbox"):
            inbox.look(PATIENCE)
    inbox.folder.rmdir()
    away.rename(inbox.folder)
    assert inbox.settle().export.files_seen == 0


def test_the_memory_is_its_owners_and_names_nobody(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    inbox.add(exams["one"])
    inbox.settle()
    memory = inbox.site.output / ".chiron" / "intake.json"
    assert stat.S_IMODE(memory.stat().st_mode) == 0o600 and stat.S_IMODE(memory.parent.stat().st_mode) == 0o700
    dataset = pydicom.dcmread(exams["one"][0])
    text = memory.read_text()
    assert SENTINEL not in text and dataset.StudyInstanceUID not in text


def test_a_name_that_is_no_text_is_remembered(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    inbox.add(exams["one"])
    (inbox.folder / exams["one"][0].name).rename(inbox.folder / os.fsdecode(b"\xff\n\xfe.dcm"))
    assert inbox.settle().export.scans and inbox.look(PATIENCE).export.files_seen == 0


def test_an_unreadable_file_is_waited_for(
    inbox: Inbox, exams: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rights may come with the end of the copy."""
    inbox.add(exams["one"])
    closed = {exams["one"][0].name}
    opened = os.open

    def refuse(path: Any, *args: Any, **options: Any) -> int:
        if Path(os.fsdecode(path)).name in closed:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert inbox.settle().waiting == 2
    closed.clear()
    assert not inbox.look().export.scans
    assert inbox.look(QUIET).export.scans


def test_images_without_a_study_are_taken_by_patient(inbox: Inbox, exams: dict[str, list[Path]]) -> None:
    inbox.add([*exams["one"], *exams["two"]])
    edit(list(inbox.folder.iterdir()), lambda d: d.__delattr__("StudyInstanceUID"))
    arrived = inbox.settle()
    assert len(arrived.export.scans) == arrived.ready == 2


def test_a_subject_of_a_bids_dataset_is_taken_as_one(inbox: Inbox) -> None:
    bids(inbox.folder, "sub-01")
    arrived = inbox.settle()
    assert [scan.subject for scan in arrived.export.scans] == ["01"] and arrived.ready == 1
    bids(inbox.folder, "sub-02")
    assert [scan.subject for scan in inbox.settle().export.scans] == ["02"]
    next(inbox.folder.rglob("sub-01*part-phase*.nii*")).touch()
    assert [scan.subject for scan in inbox.settle().export.scans] == ["01"]


def test_two_looks_at_once_are_one_after_the_other(
    inbox: Inbox, exams: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.intake.state.WAIT_S", 0.1)
    inbox.add(exams["one"])
    inbox.look()
    with kept(inbox.site.output, KEY), pytest.raises(ChironError, match="R006: another look"):
        look(inbox.site, KEY)
    assert inbox.look(QUIET).export.scans


COPY = """
import sys, time
for source, target in zip(*(iter(sys.argv[1:]),) * 2):
    content = open(source, "rb").read()
    with open(target, "wb", buffering=0) as stream:
        for at in range(0, len(content), 400):
            stream.write(content[at : at + 400])
            time.sleep(0.005)
"""


def test_a_slow_copy_by_a_real_process_is_taken_whole(tmp_path: Path, exams: dict[str, list[Path]]) -> None:
    (tmp_path / "in").mkdir()
    site = Site(tmp_path / "in", tmp_path / "out", quiet_s=0.5, patience_s=30)
    pairs = [str(p) for path in [*exams["one"], *exams["two"]] for p in (path, site.input / path.name)]
    found, looks, deadline = list[Scan](), 0, time.monotonic() + 30
    with subprocess.Popen([sys.executable, "-c", COPY, *pairs]) as copying:
        while len(found) < 2 and time.monotonic() < deadline:
            arrived = look(site, KEY)
            arrived.confirm()
            found += arrived.export.scans
            looks += 1
            time.sleep(0.02)
    assert copying.returncode == 0 and looks > 3
    assert [same(scan, truth(exams[name])) for scan, name in zip(found, ("one", "two"), strict=True)] == [True, True]


def test_the_sources_of_a_dataset_are_no_studies(inbox: Inbox) -> None:
    """Though a look takes each study by itself, and the dataset is not in it."""
    bids(inbox.folder / "ds", "sub-01")
    write(inbox.folder / "ds/sourcedata/sub-01", patient="one")
    bids(inbox.folder / "ds/sourcedata", "sub-02", described=False, scale=2)
    bids(inbox.folder / "other/sourcedata/raw", "sub-03", scale=3)  # where there is no dataset
    scans = inbox.settle().export.scans
    assert sorted(scan.label for scan in scans) == ["sub-01", "sub-03"]
    assert sorted(scan.label for scan in find(inbox.folder, KEY).scans) == ["sub-01", "sub-03"]
