"""Rows 74 to 77 of the faults: outputs that cannot be used, full disks, killed processes, two runs at once."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
from make_dicom import digests
from owed import Runs, assert_complete, go, kill_at_random, results, states, told, untouched
from stand_in import KEY, SENTINEL, SETTINGS, export

from flows.batch import Batch, run
from flows.crew import Crew, End, Terms
from pipeline.errors import CATALOGUE, ChironError
from pipeline.publish import prepare
from pipeline.recipe import Job


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stand_in.install(monkeypatch.setattr)
    monkeypatch.setenv("CHIRON_OUTPUT", "")
    (tmp_path / SENTINEL).mkdir()
    return export(tmp_path / SENTINEL, a="", b="")


def test_74_an_output_that_is_another_s_is_refused_before_anything_is_done(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    before = digests(tmp_path)
    with pytest.raises(ChironError) as caught:
        run(Batch(output), source, SETTINGS, KEY)
    assert (caught.value.code, caught.value.fault.exit, caught.value.fault.owed) == ("S002", 14, "refuse")
    assert digests(tmp_path) == before and str(tmp_path) not in str(caught.value)


def test_74_an_output_that_may_not_be_written_is_refused_before_anything_is_done(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    prepare(output)
    before, may = digests(tmp_path), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: may(path, mode) and not (mode & os.W_OK and path == output))
    with pytest.raises(ChironError, match="S002"):
        run(Batch(output), source, SETTINGS, KEY)
    assert digests(tmp_path) == before


@contextmanager
def full_disk(at: int) -> Iterator[list[str]]:
    """The disk is full at the write of that number, which leaves half of what was to be written, and has room again."""
    seen: list[str] = []

    def strike(name: str) -> bool:
        seen.append(name)
        return len(seen) == at

    def half(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def write(path: Path, content: Any, *args: Any, **options: Any) -> Any:
            if strike(name):
                real(path, content[: len(content) // 2], *args, **options)
                raise OSError(errno.ENOSPC, "full", str(path))
            return real(path, content, *args, **options)

        return write

    def whole(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def act(*args: Any, **options: Any) -> Any:
            if strike(name):
                raise OSError(errno.ENOSPC, "full")
            return real(*args, **options)

        return act

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Path, "write_bytes"), (Path, "write_text"), (np, "save")):
            patch.setattr(owner, name, half(getattr(owner, name), name))
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "mkdir")):
            patch.setattr(owner, name, whole(getattr(owner, name), name))
        yield seen


def fill_at(source: Path, folder: Path, numbers: list[int], wanted: dict[str, bytes]) -> int:
    """Full disks at those writes; how many a scan noticed. After each I3 and I6, and with room again I8."""
    noticed = 0
    for number in numbers:
        output = folder / f"full{number}"
        with untouched(source):
            try:
                with full_disk(number):
                    ends = go(source, output)
            except ChironError as error:  # before the first scan
                ends = {"": error.code}
        noticed += "S001" in ends.values()
        assert set(ends.values()) <= {"", "S001"}, (number, ends)
        assert_complete(output)
        assert told(output, SENTINEL, without=("job.json", "next.json")) == []
        assert set(go(source, output).values()) == {""}
        assert results(output) == wanted
        assert_complete(output)
    return noticed


def test_75_a_disk_that_is_full_at_any_write(source: Path, tmp_path: Path) -> None:
    with full_disk(0) as writes:
        go(source, tmp_path / "whole")
    assert CATALOGUE["S001"].exit == 14 and len(writes) > 100
    some = sorted(random.Random(75).sample(range(1, len(writes) + 1), 12))
    assert fill_at(source, tmp_path, some, results(tmp_path / "whole")) > 6


@pytest.mark.slow
def test_75_a_disk_that_is_full_at_every_write(source: Path, tmp_path: Path) -> None:
    with full_disk(0) as writes:
        go(source, tmp_path / "whole")
    every = list(range(1, len(writes) + 1))
    assert fill_at(source, tmp_path, every, results(tmp_path / "whole")) > 0.6 * len(every)


def test_76_killed_at_ten_random_instants(source: Path, tmp_path: Path) -> None:
    with Runs() as runs, untouched(source):
        assert kill_at_random(runs, source, tmp_path, 10, seed=10) >= 5


@pytest.mark.slow
def test_76_killed_at_200_random_instants(source: Path, tmp_path: Path) -> None:
    with Runs() as runs, untouched(source):
        assert kill_at_random(runs, source, tmp_path, 200, seed=200) >= 100


def jobs(source: Path, output: Path) -> list[Job]:
    made = [Job(s, SETTINGS, output / ".chiron" / "work" / s.id) for s in stand_in.find(source, KEY).scans]
    for job in made:
        job.save()
    return made


def test_77_two_runs_at_once_do_each_scan_once(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare(output)
    todo, ends = jobs(source, output), list[End]()

    def work() -> None:
        with Crew(output, Terms()) as crew:
            ends.extend(crew.work(todo))

    both = [threading.Thread(target=work) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(120)
    stand_in.dismiss_all()
    assert sorted(end.how for end in ends) == ["already published"] * 2 + ["published"] * 2
    done = (output / ".chiron" / "stages.txt").read_text().splitlines()
    assert sorted(done) == ["a convert", "a unwrap", "b convert", "b unwrap"]
    assert states(output) == {"sub-a": "published", "sub-b": "published"}
    assert_complete(output)


def test_77_a_scan_that_is_held_for_too_long_is_busy(source: Path, tmp_path: Path) -> None:
    from flows.claim import claimed

    output = tmp_path / "out"
    prepare(output)
    todo = jobs(source, output)
    with claimed(todo[0].folder), Crew(output, Terms(wait_s=0)) as crew:
        ends = {end.job.scan.label: (end.how, end.code) for end in crew.work(todo)}
    stand_in.dismiss_all()
    assert ends == {"sub-a": ("failed", "R006"), "sub-b": ("published", "")} and CATALOGUE["R006"].exit == 17
