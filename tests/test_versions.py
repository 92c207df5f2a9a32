"""What a new result takes the place of is kept whole, once, whatever happens; and one scan is told by itself."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from test_publish import FAILED, Killed, _both_ways, _plain_report, content, fault, make_job, start, states, steps_of

from pipeline.errors import ChironError
from pipeline.find import SetAside
from pipeline.ledger import KEPT, NAME
from pipeline.lock import locked
from pipeline.publish import (
    already_published,
    publish,
    read_manifests,
    record_set_aside,
    records_of,
    recover_all,
    verify,
    versions,
)
from pipeline.publish import manifest as ledger
from pipeline.recipe import Job

__all__ = ["_both_ways", "_plain_report"]  # fixtures

LABEL = "sub-x_ses-a"


def values(output: Path, label: str = LABEL) -> list[float]:
    """The value of the map of every version that is kept, each proven whole."""
    found = []
    for record in versions(output, label):
        assert ledger.intact(output, record)
        image = nib.load(output / record["folder"] / f"anat/{label}_Chimap.nii.gz")
        found.append(round(float(np.asarray(image.dataobj)[0, 0, 0]), 3))
    return found


def job_of(folder: Path, value: float, **more: Any) -> Job:
    return make_job(folder / str(value), value=value, **more)


def test_another_result_keeps_what_it_replaces_byte_for_byte(tmp_path: Path) -> None:
    output = tmp_path / "out"
    before = content(publish(job_of(tmp_path, 0.1), output).folder)
    publish(job_of(tmp_path, 0.2), output)
    (kept,) = versions(output, LABEL)
    assert content(output / kept["folder"]) == before
    publish(job_of(tmp_path, 0.3), output)
    assert values(output) == [0.1, 0.2] and states(output) == [0.3]
    assert (output / KEPT).parent.stat().st_mode & 0o777 == 0o700
    assert [r["folder"] for r in read_manifests(output)] == ["sub-x/ses-a"]


def test_the_same_bytes_keep_nothing(tmp_path: Path) -> None:
    output, job = tmp_path / "out", job_of(tmp_path, 0.1)
    for _ in range(3):
        publish(job, output)
    image = output / "sub-x/ses-a/anat/sub-x_ses-a_Chimap.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(b"damaged")
    publish(job, output)
    assert image.read_bytes() == whole and versions(output, LABEL) == [] and not (output / KEPT).exists()


def test_a_failure_keeps_nothing_and_replaces_nothing(tmp_path: Path) -> None:
    output, job = tmp_path / "out", job_of(tmp_path, 0.1)
    publish(job, output)
    publish(job, output, FAILED)
    publish(job, output, FAILED)
    assert states(output) == [0.1] and not (output / KEPT).exists()


def test_only_the_run_that_changes_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "out"
    publish(job_of(tmp_path, 0.1, run="1"), output)
    publish(job_of(tmp_path, 0.2, run="2"), output)
    assert not (output / KEPT).exists()
    (output / "sub-x/ses-a/note.txt").write_text("a reader's")
    publish(job_of(tmp_path, 0.3, run="2"), output)
    assert values(output, f"{LABEL}_run-2") == [0.2] and versions(output, f"{LABEL}_run-1") == []
    assert states(output) == [0.1, 0.3] and not list((output / KEPT).rglob("note.txt"))


def test_another_input_under_the_same_label_is_noted(tmp_path: Path) -> None:
    output, first = tmp_path / "out", job_of(tmp_path, 0.1)
    publish(first, output)
    publish(replace(first, settings=first.settings.model_copy(update={"also": ()})), output)
    assert not [d for d in read_manifests(output)[0]["decisions"] if d["stage"] == "publish"]
    finished = read_manifests(output)[0]["finished"]
    publish(job_of(tmp_path, 0.2), output)
    (noted,) = [d for d in read_manifests(output)[0]["decisions"] if d["stage"] == "publish"]
    assert (noted["what"], noted["decided"]) == ("input", "another") and finished in noted["because"]


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_step_loses_neither_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _both_ways: str, stride: int
) -> None:
    old, new = job_of(tmp_path, 0.1), job_of(tmp_path, 0.2)
    before = start(tmp_path, [old])
    count = steps_of(monkeypatch, new, before("probe"))
    seen = set()
    for nth in range(1, count + 1, stride):
        output = before(f"out{nth}")
        with fault(monkeypatch, nth, Killed, True), pytest.raises(Killed):
            publish(new, output)
        found, kept = states(output), values(output)
        seen.add((*found, "kept", *kept))
        assert 0.1 in found + kept and found in [[0.1], [0.2], *([[]] if _both_ways == "two renames" else [])]
        recover_all(output)
        assert states(output) in ([0.1], [0.2]) and not list((output / ".chiron/publish").iterdir())
        publish(new, output)
        assert (states(output), values(output)) == ([0.2], [0.1])
        assert len(list((output / KEPT / LABEL).iterdir())) == 1
    assert seen >= {(0.1, "kept"), (0.2, "kept", 0.1)}


def test_a_disk_that_is_full_while_keeping_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    publish(job_of(tmp_path, 0.1), output)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch, pytest.raises(ChironError, match="S001"):
        patch.setattr(os, "link", full)
        publish(job_of(tmp_path, 0.2), output)
    assert (
        states(output) == [0.1] and versions(output, LABEL) == [] and not list((output / ".chiron/publish").iterdir())
    )


def test_without_links_the_old_version_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: Any) -> None:
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "link", no_links)
    publish(job_of(tmp_path, 0.1), tmp_path / "out")
    publish(job_of(tmp_path, 0.2), tmp_path / "out")
    assert values(tmp_path / "out") == [0.1]


# One scan by itself


def test_one_scan_is_told_as_all_manifests_tell_it(tmp_path: Path) -> None:
    output = tmp_path / "out"
    publish(job_of(tmp_path, 0.1, run="1"), output)
    publish(job_of(tmp_path, 0.2, run="2"), output, FAILED)
    publish(job_of(tmp_path, 0.3, session=""), output)
    publish(job_of(tmp_path, 0.3, session=""), output, FAILED)
    publish(job_of(tmp_path, 0.4, session="b"), output, FAILED)
    publish(job_of(tmp_path, 0.4, session="b"), output)
    record_set_aside(output, [SetAside("sub-x_ses-a", "P001", "no phase", 3), SetAside("unknown", "F003", "cut", 1)])
    everything = read_manifests(output)
    labels = {r["label"] for r in everything}
    assert len(labels) == 6 and len(everything) == 7
    for label in labels | {"sub-none", "sub-x_ses-none"}:
        assert records_of(output, label) == [r for r in everything if r["label"] == label]


def test_whether_a_scan_is_published_is_told_by_its_own_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, job = tmp_path / "out", job_of(tmp_path, 0.1)
    publish(job, output)
    for number in range(20):
        (output / f"sub-other{number}").mkdir()
        (output / f"sub-other{number}" / NAME).write_text(json.dumps({"format": 1, "scans": []}))
    read: list[Path] = []
    whole = Path.read_text

    def noted(path: Path) -> str:
        read.append(path)
        return whole(path)

    monkeypatch.setattr(Path, "read_text", noted)
    assert already_published(output, job)
    assert not [path for path in read if "other" in str(path)] and len(read) <= 3


# What an interrupted publication left


def test_a_publication_that_died_between_two_renames_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    publish(job_of(tmp_path, 0.1), output)
    aside = output / ".chiron/publish/sub-x_ses-a"
    aside.mkdir()
    (output / "sub-x/ses-a").rename(aside / "old")
    record_set_aside(output, [SetAside("unknown", "F003", "cut", 1)])
    (output / ".chiron/publish/set-aside_unknown/new").mkdir(parents=True)
    (output / ".chiron/publish/failed_sub-x_ses-a/new").mkdir(parents=True)
    with locked(output / ".chiron/locks/sub-x.lock"):
        assert recover_all(output) == ["unknown"] and states(output) == []
    assert recover_all(output) == [LABEL, LABEL] and states(output) == [0.1] and verify(output) == []
    assert recover_all(output) == []


def test_a_lock_whose_file_was_pruned_keeps_nobody_out(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock):
        lock.unlink()
        with locked(lock, 0.1), pytest.raises(ChironError, match="R006"), locked(lock, 0.1):
            pass
