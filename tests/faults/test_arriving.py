"""Exports that are still arriving, that stall and grow, and that are very large."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest
import stand_in
import torch
from make_dicom import KEY, SENTINEL, digests, write

import pipeline.recipe.stages
from flows.batch import Batch, plan
from flows.intake import Arrived, look
from flows.site import Site
from pipeline.find import find
from pipeline.ledger import read_manifests
from pipeline.publish import publish
from pipeline.recipe import Inputs, recipe, run_stage
from pipeline.work import Made

SMALL: dict[str, Any] = {"shape": (4, 4, 3), "times": (0.004, 0.008)}
SLOWLY = """
import sys, time
from pathlib import Path
source, target = map(Path, sys.argv[1:])
for path in sorted(source.iterdir()):
    with (target / path.name).open("wb", buffering=0) as stream:
        content = path.read_bytes()
        for at in range(0, len(content), 300):
            stream.write(content[at : at + 300])
            time.sleep(0.01)
"""


def site(tmp_path: Path, quiet_s: float, patience_s: float) -> Site:
    (tmp_path / f"in {SENTINEL}").mkdir()
    return Site(tmp_path / f"in {SENTINEL}", tmp_path / "out", quiet_s=quiet_s, patience_s=patience_s)


def test_17_an_export_that_is_being_written_is_not_taken_until_it_is_whole_and_still(tmp_path: Path) -> None:
    """A process copies as slowly as a busy network; looks at every moment of it find nothing to start on."""
    here = site(tmp_path, quiet_s=0.6, patience_s=60)
    write(tmp_path / "scanner", **SMALL)
    (wanted,) = find(tmp_path / "scanner", KEY).scans
    command = [sys.executable, "-c", SLOWLY, str(tmp_path / "scanner"), str(here.input)]
    moments, deadline, arrived = 0, time.monotonic() + 60, Arrived(find(here.input, KEY))
    with subprocess.Popen(command) as copying:
        while not arrived.export.scans and time.monotonic() < deadline:
            running = copying.poll() is None
            arrived = look(here, KEY)
            assert not arrived.export.set_aside and not (running and arrived.export.scans)
            moments += running
            time.sleep(0.02)
    (scan,) = arrived.export.scans
    assert moments > 10 and scan.id == wanted.id and scan.content_digest() == wanted.content_digest()


def test_18_an_export_that_stalls_is_not_called_complete_and_late_files_supersede(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stalls for longer than it takes to be still, twice: once incomplete, once as a whole that was not all."""
    stand_in.install(monkeypatch.setattr)
    monkeypatch.setattr(pipeline.recipe.stages, "unwrap", _unwrap)
    here = site(tmp_path, quiet_s=100, patience_s=10_000)
    paths = write(tmp_path / "scanner")
    places = sorted({pydicom.dcmread(path).ImagePositionPatient[2] for path in paths})
    last = [path for path in paths if pydicom.dcmread(path).ImagePositionPatient[2] == places[-1]]
    rest = [path for path in paths if path not in last]

    _copy(rest[:-1], here.input)
    assert _take(here, 0) == [] and _take(here, 5000) == []
    assert not read_manifests(here.output)

    _copy(rest[-1:], here.input)  # every volume now lacks the same slice, which nobody can see
    _take(here, 5001)
    (partial,) = _take(here, 5200)
    _copy(last, here.input)
    assert _take(here, 5300) == []
    (whole,) = _take(here, 5400)
    assert partial["input_digest"] != whole["input_digest"] == find(tmp_path / "scanner", KEY).scans[0].content_digest()
    assert [r["input_digest"] for r in read_manifests(here.output) if r["state"] == "published"] == [
        whole["input_digest"]
    ]
    assert _take(here, 99_999) == []


def test_18_an_export_that_stays_incomplete_is_set_aside_with_what_is_missing(tmp_path: Path) -> None:
    here = site(tmp_path, quiet_s=100, patience_s=1000)
    paths = write(tmp_path / "scanner", **SMALL)
    other = write(tmp_path / "other", "philips", patient="good", **SMALL)
    _copy(paths[1:], here.input)
    _copy(other, here.input / "other")
    before = digests(here.input)
    told = {}
    for now in range(0, 1300, 100):
        arrived = look(here, KEY, now)
        arrived.confirm()
        told |= {now: (len(arrived.export.scans), [aside.code for aside in arrived.export.set_aside])}
    assert {now: found for now, found in told.items() if found != (0, [])} == {100: (1, []), 1000: (0, ["E002"])}
    assert digests(here.input) == before


def _copy(paths: list[Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in paths:
        (folder / path.name).write_bytes(path.read_bytes())


def _take(here: Site, now: float) -> list[dict[str, Any]]:
    """Look, plan what is ready, do it and publish it; the records of what was published."""
    arrived = look(here, KEY, now)
    batch = Batch(here.output)
    done = []
    for job in plan(batch, arrived.export, stand_in.SETTINGS):
        for stage in recipe(job.settings):
            run_stage(stage, job, lambda share, word: None)
        publish(job, here.output)
        done += [r for r in read_manifests(here.output) if r["label"] == job.scan.label]
    batch.finish()
    arrived.confirm()
    return done


def _unwrap(inputs: Inputs) -> Made:
    echoes = torch.ones(2, *stand_in.SHAPE)
    return Made({"unwrapped_rad": echoes, "offset_rad": echoes[0]})


SEARCH = """
import resource, sys
from pathlib import Path
from pipeline.find import find
peak = lambda who: resource.getrusage(who).ru_maxrss * 1024
find(Path(sys.argv[1]), b"k" * 32)
before = peak(resource.RUSAGE_SELF)
found = find(Path(sys.argv[2]), b"k" * 32)
print(len(found.scans), found.files_seen, before, peak(resource.RUSAGE_SELF), peak(resource.RUSAGE_CHILDREN))
"""


def _memory(few: Path, many: Path) -> tuple[int, int, int, int, int]:
    """Scans, files, and bytes: at most before `many`, at most with it, and at most in a process that helps."""
    said = subprocess.run([sys.executable, "-c", SEARCH, few, many], capture_output=True, text=True, check=True)
    scans, files, before, after, helper = map(int, said.stdout.split())
    return scans, files, before, after, helper


def _multiply(folder: Path, target: Path, count: int) -> None:
    """`count` files in one folder: studies that differ from the one in `folder` in the digits of their identifiers."""
    target.mkdir()
    exports = []
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        kinds = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        exports.append((path.read_bytes(), [str(dataset[kind].value).encode() for kind in kinds]))
    for number in range(count):
        content, uids = exports[number % len(exports)]
        study = number // len(exports)
        for uid in uids:
            content = content.replace(uid, uid[:-5] + b"%05d" % study)
        (target / f"{number:06d}").write_bytes(content)


def test_19_a_thousand_files_take_little_memory_each(tmp_path: Path) -> None:
    """At 9 KB a file, 100,000 stay under a gigabyte."""
    write(tmp_path / "one", **{**SMALL, "shape": (4, 4, 25)})
    _multiply(tmp_path / "one", tmp_path / "many", 3000)
    scans, files, before, after, _ = _memory(tmp_path / "one", tmp_path / "many")
    assert (scans, files) == (30, 3000)
    assert (after - before) / files < 9_000


@pytest.mark.slow
def test_19_a_hundred_thousand_files_in_a_folder_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    write(tmp_path / "one", **{**SMALL, "shape": (4, 4, 50)})
    _multiply(tmp_path / "one", tmp_path / "many", 100_000)
    scans, files, _, after, helper = _memory(tmp_path / "one", tmp_path / "many")
    assert (scans, files) == (500, 100_000)
    assert after < 700e6 and helper < 200e6


@pytest.mark.slow
def test_19_of_an_inbox_of_a_hundred_thousand_files_no_header_is_read_where_nothing_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = site(tmp_path, quiet_s=100, patience_s=1000)
    write(tmp_path / "one", **{**SMALL, "shape": (4, 4, 50)})
    _multiply(tmp_path / "one", here.input / "many", 100_000)
    assert look(here, KEY, 0).waiting == 500
    monkeypatch.setattr("flows.intake.units.study_of", lambda *_: pytest.fail("a header was read"))
    assert look(here, KEY, 1).waiting == 500
    assert (here.output / ".chiron" / "intake.json").stat().st_size < 20e6
