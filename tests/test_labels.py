"""A label never changes hands: whatever comes later, in whatever order, and whoever it is of."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledgers import SETTINGS, put_record, run_through, states
from make_bids import bids
from make_dicom import KEY, SENTINEL, edit, write

from flows.batch import Batch, plan
from flows.night import counts, look
from pipeline.errors import ChironError
from pipeline.find import find
from pipeline.ledger import NAME, read_manifests
from pipeline.lock import try_lock
from pipeline.publish import prepare
from pipeline.publish.register import FOLDER, Register
from pipeline.recipe import Job

FIRST, SECOND, THIRD = (datetime(2026, 1, 5, 9, minute) for minute in (0, 20, 40))
STUDY = "1.2.3"


def repeat(folder: Path, number: int, at: datetime, **more: Any) -> list[Path]:
    """One more scan of the same study."""
    paths = write(folder / f"scan{number}", series_number=number, acquired=at, seed=number, **more)
    edit(paths, lambda d: d.__setattr__("StudyInstanceUID", STUDY))
    return paths


def published(output: Path) -> dict[str, str]:
    """Label -> digest of the input of what is published."""
    return {r["label"]: r["input_digest"] for r in read_manifests(output) if r["state"] == "published"}


def without_run(label: str) -> str:
    return label.partition("_run-")[2]


def test_a_repeat_that_comes_later_neither_renames_nor_duplicates_the_first(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    repeat(source, 5, SECOND)
    assert list(states(run_through(output, source)).values()) == ["published"]
    before = published(output)
    repeat(source, 9, THIRD)
    repeat(source, 1, FIRST)  # it comes first in every order
    later = run_through(output, source)
    assert sorted(o.state for o in later.values()) == ["already published", "published", "published"]
    after = published(output)
    assert before.items() <= after.items() and sorted(map(without_run, after)) == ["", "2", "3"]
    assert set(states(run_through(output, source)).values()) == {"already published"}
    assert published(output) == after


def test_repeats_that_come_at_once_are_runs_and_stay_so_when_one_goes(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for number, at in ((1, FIRST), (2, SECOND)):
        repeat(source, number, at)
    run_through(output, source)
    before = published(output)
    assert sorted(map(without_run, before)) == ["1", "2"]
    shutil.rmtree(source / "scan1")
    (outcome,) = run_through(output, source).values()
    assert outcome.state == "already published" and outcome.label.endswith("_run-2") and published(output) == before
    repeat(source, 3, THIRD)
    run_through(output, source)
    assert sorted(map(without_run, published(output))) == ["1", "2", "3"]


def test_a_scan_that_grows_keeps_its_label_and_the_repeat_beside_it_its_own(tmp_path: Path) -> None:
    """Late files make another input of the same scan, though its first image is another one then."""
    source, output = tmp_path / "in", tmp_path / "out"
    paths = repeat(source, 1, FIRST, shape=(6, 5, 6))
    repeat(source, 2, SECOND)
    late = [path for path in paths if is_lowest(path)]
    (tmp_path / "late").mkdir()
    for path in late:
        shutil.move(path, tmp_path / "late")
    run_through(output, source)
    before = published(output)
    for path in late:
        shutil.move(tmp_path / "late" / path.name, path)
    outcomes = run_through(output, source)
    assert sorted(o.state for o in outcomes.values()) == ["already published", "published"]
    after = published(output)
    assert after.keys() == before.keys() and sum(after[label] != before[label] for label in after) == 1


def is_lowest(path: Path) -> bool:
    import pydicom

    siblings = {pydicom.dcmread(other).ImagePositionPatient[2] for other in path.parent.iterdir()}
    return bool(pydicom.dcmread(path).ImagePositionPatient[2] == min(siblings))


def test_a_scan_that_failed_or_waits_has_its_label_too(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    repeat(source, 1, FIRST)
    prepare(output)
    plan(Batch(output), find(source, KEY), SETTINGS)  # and the process dies
    repeat(source, 2, SECOND)
    (first, second) = plan(Batch(output), find(source, KEY), SETTINGS)
    assert [job.scan.run for job in (first, second)] == ["", "2"]
    put_record(output, first, ChironError("P007", "an empty mask"))
    shutil.rmtree(source / "scan1")
    assert [job.scan.run for job in plan(Batch(output), find(source, KEY), SETTINGS)] == ["2"]


def test_bids_scans_that_only_entities_tell_apart_have_labels_of_their_own(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    names = ["sub-01_acq-a_run-1", "sub-01_acq-b_run-1", "sub-01_run-11"]
    for scale, name in enumerate(names, 1):
        bids(source, name, scale=scale)
    run_through(output, source)
    assert sorted(published(output)) == names and len(set(published(output).values())) == 3
    assert counts(output)["scans"] == 3 and [entry.label for entry in look(output).entries] == names


def test_another_sites_subject_of_the_same_label_is_set_aside_and_named(tmp_path: Path) -> None:
    """`status` counts both: one published, one set aside."""
    output = tmp_path / "out"
    bids(tmp_path / "siteA", "sub-01")
    bids(tmp_path / "siteB", "sub-01", scale=2)
    bids(tmp_path / "siteB", "sub-01_acq-b", scale=3)  # a label that is free, of a person whose label is not
    run_through(output, tmp_path / "siteA")
    before = published(output)
    outcomes = run_through(output, tmp_path / "siteB")
    assert states(outcomes) == {"sub-01": "G009", "sub-01_acq-b": "G009"} and published(output) == before
    assert "--dataset-label" in outcomes["sub-01"].text and counts(output)["scans"] == 3
    remedy = run_through(output, tmp_path / "siteB", dataset_label="B")
    assert states(remedy) == {"sub-B01": "published", "sub-B01_acq-b": "published"}
    assert counts(output)["scans"] == 3 and not counts(output)["set_aside"]
    again = run_through(output, tmp_path / "siteB")  # it is known now
    assert set(states(again).values()) == {"already published"} and list(again) == list(remedy)
    bids(tmp_path / "siteB", "sub-01_acq-c", scale=4)
    assert states(run_through(output, tmp_path / "siteB"))["sub-B01_acq-c"] == "published"


def test_two_datasets_of_one_input_are_never_mixed(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    bids(source / "a", "sub-01")
    bids(source / "b", "sub-01", scale=2)
    bids(source / "b", "sub-02", scale=3)
    assert states(run_through(output, source)) == {"sub-01": "G009", "sub-02": "published"}
    assert counts(output)["set_aside"] == {"G009": 2}
    run_through(output, source / "a")
    run_through(output, source / "b", dataset_label="b")
    outcomes = run_through(output, source)
    assert states(outcomes) == {
        "sub-01": "already published",
        "sub-02": "already published",
        "sub-b01": "already published",
    }


def test_labels_that_differ_in_capitals_are_one_label(tmp_path: Path) -> None:
    output = tmp_path / "out"
    bids(tmp_path / "a", "sub-P1")
    bids(tmp_path / "b", "sub-p1", scale=2)
    run_through(output, tmp_path / "a")
    assert states(run_through(output, tmp_path / "b")) == {"sub-p1": "G009"}


def test_a_dataset_that_was_moved_is_still_the_same(tmp_path: Path) -> None:
    output = tmp_path / "out"
    bids(tmp_path / "here", "sub-01")
    run_through(output, tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    bids(tmp_path / "there", "sub-01_acq-new", scale=2)
    assert states(run_through(output, tmp_path / "there")) == {
        "sub-01": "already published",
        "sub-01_acq-new": "published",
    }


def test_a_dataset_that_shares_a_scan_with_another_is_not_that_one(tmp_path: Path) -> None:
    """As of one phantom, or one person, in both: what else bears a label of the first is another scan."""
    output = tmp_path / "out"
    for site, scale in (("a", 2), ("b", 3)):
        bids(tmp_path / site, "sub-01_acq-same")
        bids(tmp_path / site, "sub-01_acq-other", scale=scale)
    run_through(output, tmp_path / "a")
    before = published(output)
    assert set(states(run_through(output, tmp_path / "b")).values()) == {"G009"} and published(output) == before


def test_a_scan_that_was_renamed_keeps_its_label(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    bids(source, "sub-01_run-1")
    bids(source, "sub-01_run-2", scale=2)
    run_through(output, source)
    for path in sorted(source.rglob("*_run-1_*")):
        path.rename(path.with_name(path.name.replace("_run-1_", "_acq-first_")))
    assert states(run_through(output, source)) == {
        "sub-01_run-1": "already published",
        "sub-01_run-2": "already published",
    }


def test_what_is_set_aside_stands_under_the_label_of_its_person(tmp_path: Path) -> None:
    """Of a patient whose label was given, of a dataset with a label of its own, and of a scan that has a result."""
    source, output = tmp_path / "in", tmp_path / "out"
    repeat(source / "dicom", 1, FIRST)
    run_through(output, source / "dicom", subject="P7")
    for path in repeat(source / "dicom", 2, SECOND)[:3]:
        path.unlink()
    (label, aside) = states(run_through(output, source / "dicom"))
    assert label.startswith("sub-P7_") and aside == f"{label}_run-2" and counts(output)["scans"] == 2
    repeat(source / "dicom", 3, THIRD)  # which is not kept from a label by what has no result
    repeat(source / "dicom", 2, SECOND)
    assert states(run_through(output, source / "dicom")).keys() == {label, f"{label}_run-2", f"{label}_run-3"}
    assert counts(output)["published"]["usable"] == 3 and not counts(output)["set_aside"]
    bids(source / "b", "sub-01")
    run_through(output, source / "b", dataset_label="B")
    bids(source / "b", "sub-01_acq-b", parts=("mag",))
    assert states(run_through(output, source / "b"))["sub-B01_acq-b"] == "P001"
    next((source / "b").rglob("sub-01_echo-2_part-phase_MEGRE.nii.gz")).unlink()
    assert states(run_through(output, source / "b"))["sub-B01"] == "E001"
    assert counts(output)["published"]["usable"] == 4


def test_runs_that_were_numbered_anew_keep_the_labels_of_their_scans(tmp_path: Path) -> None:
    """A repeat that was found later, and put in front."""
    source, output = tmp_path / "in", tmp_path / "out"
    for run, scale in ((1, 1), (2, 2)):
        bids(source, f"sub-01_run-{run}", scale=scale)
    run_through(output, source)
    before = published(output)
    for run, scale in ((1, 3), (2, 1), (3, 2)):
        bids(source, f"sub-01_run-{run}", scale=scale)
    assert "published" not in states(run_through(output, source)).values() and published(output) == before
    aside = find_aside(output)
    assert len(aside) == 1 and "acq- or run-" in aside[0]


def find_aside(output: Path) -> list[str]:
    return [r["failure"]["sentence"] for r in read_manifests(output) if r["state"] == "set aside"]


def test_sites_without_folders_of_subjects_are_told_apart(tmp_path: Path) -> None:
    output = tmp_path / "out"
    (tmp_path / "dataset_description.json").write_text("{}")
    for scale, site in enumerate("ab", 1):
        bids(tmp_path / "in" / site, f"sub-01_acq-{site}", scale=scale, described=False, folder=".")
    assert set(states(run_through(output, tmp_path / "in")).values()) == {"G009"}
    assert states(run_through(output, tmp_path / "in" / "a")) == {"sub-01_acq-a": "published"}
    assert states(run_through(output, tmp_path / "in" / "b")) == {"sub-01_acq-b": "G009"}


def test_patients_without_identity_are_told_apart_by_the_labels_that_they_are_given(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for number, label in enumerate(("P1", "P2")):
        paths = write(tmp_path / label, seed=number)
        edit(paths, lambda d: d.__setattr__("PatientID", ""))
        assert set(states(run_through(output, tmp_path / label)).values()) == {"G004"}
        (outcome,) = run_through(output, tmp_path / label, subject=label).values()
        assert outcome.state == "published" and outcome.label.startswith(f"sub-{label}_")


def test_records_of_what_is_set_aside_hide_and_replace_no_others(tmp_path: Path) -> None:
    """Three sites with a `sub-01` of their own; and the first one's is done again, later."""
    output = tmp_path / "out"
    for scale, site in enumerate("abc", 1):
        bids(tmp_path / site, "sub-01", scale=scale)
        run_through(output, tmp_path / site)
    assert counts(output)["set_aside"] == {"G009": 2}
    file = output / "sub-01" / NAME
    file.write_text(file.read_text().replace('"finished": "20', '"finished": "29'))
    assert counts(output)["set_aside"] == {"G009": 2}
    for site in "bc":
        run_through(output, tmp_path / site, dataset_label=site)
    assert not counts(output)["set_aside"] and counts(output)["published"]["usable"] == 3


@pytest.mark.parametrize("lost", [FOLDER, ""])
def test_what_was_set_aside_makes_nobody_the_owner_of_a_label(lost: str, tmp_path: Path) -> None:
    """Where the register, or all of the private folder, is made anew from the manifests."""
    output = tmp_path / "out"
    bids(tmp_path / "a", "sub-01")
    bids(tmp_path / "b", "sub-01_ses-2", scale=2)
    write(tmp_path / "one", patient="one")
    write(tmp_path / "two", patient="two", seed=4)
    run_through(output, tmp_path / "a")
    run_through(output, tmp_path / "one", subject="P7")
    before = published(output)
    for _ in range(2):
        assert states(run_through(output, tmp_path / "b")) == {"sub-01_ses-2": "G009"}
        assert set(states(run_through(output, tmp_path / "two", subject="P7")).values()) == {"G009"}
        shutil.rmtree(output / ".chiron" / lost)
    assert published(output) == before


@pytest.mark.parametrize("name", ["desc-denoised", "space-orig", "res-hi", "foo-1"])
def test_entities_that_a_result_has_itself_become_part_of_acq(name: str, tmp_path: Path) -> None:
    bids(tmp_path / "in", "sub-01")
    bids(tmp_path / "in", f"sub-01_{name}", scale=2)
    labels = run_through(tmp_path / "out", tmp_path / "in")
    assert set(labels) == {"sub-01", f"sub-01_acq-{name.replace('-', '')}"}


def test_the_register_holds_nobody_up_to_read_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read before, and once, however often they are compared."""
    import hashlib

    import pipeline.find.scan

    source, output = tmp_path / "in", tmp_path / "out"
    bids(source, "sub-01")
    run_through(output, source)
    pipeline.find.scan._digest_of.cache_clear()
    read: list[bool] = []
    true, lock = hashlib.file_digest, output / ".chiron/locks/labels.lock"

    def watched(stream: Any, kind: str) -> Any:
        with lock.open() as handle:
            read.append(try_lock(handle.fileno()))
        return true(stream, kind)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    assert states(run_through(output, source)) == {"sub-01": "already published"}
    assert read == [True] * 12


def test_a_suffix_tells_two_scans_of_a_dataset_apart(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    bids(source, "sub-01", suffix="T2starw", scale=2)
    run_through(output, source)
    before = published(output)
    bids(source, "sub-01")
    run_through(output, source)
    assert sorted(published(output)) == ["sub-01", "sub-01_acq-MEGRE"] and before.items() <= published(output).items()


def test_a_patient_has_one_label_whatever_is_asked_for_later(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    repeat(source, 1, FIRST)
    (first,) = run_through(output, source, subject="P7")
    assert first.startswith("sub-P7_")
    assert states(run_through(output, source)) == {first: "already published"}
    repeat(source, 2, SECOND)
    assert set(run_through(output, source)) == {first, f"{first}_run-2"}
    outcome = next(iter(run_through(output, source, subject="P8").values()))
    assert outcome.code == "G009" and "sub-P7" in outcome.text


def test_a_given_label_does_not_change_hands(tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(tmp_path / "one", patient="one")
    write(tmp_path / "two", patient="two", seed=4)
    (label,) = run_through(output, tmp_path / "one", subject="P7")
    before = published(output)
    (outcome,) = run_through(output, tmp_path / "two", subject="P7").values()
    assert outcome.code == "G009" and published(output) == before and list(before) == [label]


def forget(output: Path) -> None:
    """Make the output what an earlier version left: no register, no owners, no identities."""
    shutil.rmtree(output / ".chiron" / FOLDER)
    for path in output.rglob(NAME):
        manifest = json.loads(path.read_text())
        for record in manifest["scans"]:
            for name in ("owner", "identity", "override"):
                record.pop(name, None)
        path.write_text(json.dumps(manifest))
    for path in output.glob(".chiron/work/*/job.json"):
        job = json.loads(path.read_text())
        for name in ("owner", "identity", "entities", "suffix"):
            job["scan"].pop(name, None)
        path.write_text(json.dumps(job))


def test_an_output_of_an_earlier_version_stays_valid(tmp_path: Path) -> None:
    """Of DICOM and of BIDS: what was published keeps its label, and what comes new gets the next."""
    source, output = tmp_path / "in", tmp_path / "out"
    repeat(source, 1, FIRST)
    bids(source / "dataset", "sub-01_acq-a")
    run_through(output, source)
    before = published(output)
    rename(output, "sub-01_acq-a", "sub-01_run-1")  # as an earlier version named it
    forget(output)
    known = {("sub-01_run-1" if label == "sub-01_acq-a" else label): digest for label, digest in before.items()}
    assert published(output) == known
    repeat(source, 2, SECOND)
    bids(source / "dataset", "sub-01_acq-b", scale=2)
    outcomes = run_through(output, source)
    assert sorted(o.state for o in outcomes.values()) == ["already published"] * 2 + ["published"] * 2
    assert known.items() <= published(output).items()
    assert {"sub-01_acq-b", "sub-01_run-1"} < published(output).keys()


def test_a_label_of_a_table_does_not_change_hands_in_an_output_of_an_earlier_version(tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(tmp_path / "one", patient="one")
    write(tmp_path / "two", patient="two", seed=4)
    (label,) = run_through(output, tmp_path / "one", labels={f"{SENTINEL}-one": "P7"})
    forget(output)
    before = published(output)
    (outcome,) = run_through(output, tmp_path / "two", labels={f"{SENTINEL}-two": "P7"}).values()
    assert outcome.code == "G009" and published(output) == before
    assert states(run_through(output, tmp_path / "one", labels={f"{SENTINEL}-one": "P7"})) == {
        label: "already published"
    }
    repeat(tmp_path / "later", 2, SECOND, patient="one")
    mine = {f"{SENTINEL}-one": "P7"}
    (outcome,) = run_through(output, tmp_path / "later", labels=mine).values()
    assert outcome.state == "published"  # what its text says has been done meanwhile


def test_a_label_that_was_given_to_an_earlier_version_holds_without_being_given(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    repeat(source, 1, FIRST)
    (label,) = run_through(output, source, subject="P7")
    forget(output)
    repeat(source, 2, SECOND)
    assert states(run_through(output, source)) == {label: "already published", f"{label}_run-2": "published"}


def test_a_dataset_that_an_earlier_version_numbered_may_move(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for scale, acquired in enumerate("ab", 1):
        bids(tmp_path / "here", f"sub-01_acq-{acquired}", scale=scale)
    run_through(output, tmp_path / "here")
    for number, acquired in enumerate("ab", 11):
        rename(output, f"sub-01_acq-{acquired}", f"sub-01_run-{number}")
    forget(output)
    (tmp_path / "here").rename(tmp_path / "there")
    shutil.rmtree(output / ".chiron" / "work")
    assert states(run_through(output, tmp_path / "there")) == {
        "sub-01_run-11": "already published",
        "sub-01_run-12": "already published",
    }


def test_another_dataset_in_the_place_of_one_of_an_earlier_version_is_another(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    bids(source, "sub-01")
    run_through(output, source)
    before = published(output)
    forget(output)
    shutil.rmtree(source)
    bids(source, "sub-01", scale=2)
    bids(source, "sub-01_acq-b", scale=3)
    assert set(states(run_through(output, source)).values()) == {"G009"} and published(output) == before


def rename(output: Path, old: str, new: str) -> None:
    for path in [*output.rglob(NAME)]:
        path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))
    for path in output.glob(".chiron/work/*/job.json"):
        job = json.loads(path.read_text())
        if Job.load(path.parent).scan.label == old:
            job["scan"] |= {"entities": [], "run": new.rpartition("-")[2]}
            path.write_text(json.dumps(job))


def test_the_register_is_an_index_that_the_manifests_make_anew(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for number, at in ((1, FIRST), (2, SECOND)):
        repeat(source, number, at)
    run_through(output, source, subject="P7")
    before = published(output)
    shutil.rmtree(output / ".chiron" / FOLDER)
    assert set(states(run_through(output, source)).values()) == {"already published"}
    for path in (output / ".chiron" / FOLDER).iterdir():
        path.write_text("{")
    prepare(output)
    assert Register(output).subject("P7").entries.keys() == {label.lower() for label in before}


def test_the_register_tells_no_identity(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write(source, patient="Zebedee")
    run_through(output, source)
    content = "".join(path.read_text() for path in (output / ".chiron" / FOLDER).iterdir())
    assert "zebedee" not in content.lower() and str(source) not in content and STUDY not in content


def test_two_processes_give_no_label_twice(tmp_path: Path) -> None:
    """Two repeats of a study, each in an export of its own, planned at once."""
    import threading

    output = tmp_path / "out"
    prepare(output)
    exports = []
    for number, at in ((1, FIRST), (2, SECOND), (3, THIRD)):
        repeat(tmp_path / f"in{number}", number, at)
        exports.append(find(tmp_path / f"in{number}", KEY))
    jobs: list[Job] = []
    threads = [threading.Thread(target=lambda e=e: jobs.extend(plan(Batch(output), e, SETTINGS))) for e in exports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job.scan.run for job in jobs) == ["", "2", "3"]
    assert len({job.scan.id for job in jobs}) == 3


def test_random_arrivals_leave_every_label_with_its_scan(tmp_path: Path) -> None:
    """Whatever subset of a study's scans is looked at, in whatever order: a digest never changes its label."""
    chance = np.random.default_rng(1)
    for number in range(5):
        repeat(tmp_path / "all", number + 1, datetime(2026, 1, 5, 9, 10 * number))
        bids(tmp_path / "all" / "dataset", f"sub-01_acq-{'abcde'[number]}", scale=number + 1)
    output = tmp_path / "out"
    seen: dict[str, str] = {}
    for visit in range(6):
        source = tmp_path / f"visit{visit}"
        for number in chance.permutation(5)[: chance.integers(1, 6)]:
            shutil.copytree(tmp_path / "all" / f"scan{number + 1}", source / f"scan{number + 1}")
        run_through(output, source)
        now = {digest: label for label, digest in published(output).items()}
        assert seen.items() <= now.items() and len(now) == len(published(output))
        seen = now


def test_a_dataset_that_takes_the_place_of_another_is_another(tmp_path: Path) -> None:
    """A mount point or an inbox that is used again: nothing of it is taken for the scan that was there."""
    source, output = tmp_path / "in", tmp_path / "out"
    bids(source, "sub-01")
    run_through(output, source)
    before = published(output)
    shutil.rmtree(source)
    bids(source, "sub-01", scale=2)
    bids(source, "sub-01_acq-b", scale=3)
    assert states(run_through(output, source)) == {"sub-01": "G009", "sub-01_acq-b": "G009"}
    assert published(output) == before


@pytest.mark.parametrize("parent", ["sub-studies", "all"])
def test_no_folder_above_makes_two_sites_one(parent: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for scale, site in enumerate(("a", "b"), 1):
        bids(tmp_path / parent / site, "sub-01", scale=scale, described=False)
    (tmp_path / "dataset_description.json").write_text("{}")
    assert states(run_through(output, tmp_path / parent / "a")) == {"sub-01": "published"}
    assert states(run_through(output, tmp_path / parent / "b")) == {"sub-01": "G009"}


def test_the_order_of_entities_makes_no_second_scan(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    bids(source, "sub-01_acq-a_run-1")
    run_through(output, source)
    bids(source, "sub-01_run-1_acq-a")
    assert states(run_through(output, source)) == {"sub-01_acq-a_run-1": "already published"}


def test_a_register_that_was_not_written_to_its_end_is_made_anew(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    repeat(source, 1, FIRST)
    run_through(output, source, subject="P7")
    before, folder = published(output), output / ".chiron" / FOLDER
    folder.rename(folder.with_name(f"{FOLDER}.new"))
    assert set(states(run_through(output, source)).values()) == {"already published"}
    for path in folder.glob("owner-*"):
        path.write_text("[]")
    repeat(source, 2, SECOND)
    run_through(output, source, subject="P7")
    assert before.items() <= published(output).items() and all("sub-P7" in label for label in published(output))


@pytest.mark.parametrize("damage", ["[]", "{}", '{"subject": "01", "owners": 5, "scans": []}', "\x00\xff"])
def test_a_damaged_register_stops_nothing(damage: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for number in (1, 2):
        bids(tmp_path / "in", f"sub-0{number}", scale=number)
    run_through(output, tmp_path / "in")
    (output / ".chiron" / FOLDER / "sub-01.json").write_text(damage, encoding="latin-1")
    assert set(states(run_through(output, tmp_path / "in")).values()) == {"already published"}
