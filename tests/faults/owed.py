"""What every fault owes, as checks of an input and an output folder; and a run of scans with stages that take no time.

Run as a script, this file does scans in processes of its own, for tests that kill them.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from make_dicom import digests
from stand_in import SETTINGS, find, install

from pipeline.errors import ChironError
from pipeline.publish import prepare, read_manifests, verify
from pipeline.recipe import Job
from pipeline.work import disk_error


@contextmanager
def untouched(source: Path) -> Iterator[None]:
    """I5: inputs are never modified, moved or deleted."""
    before = digests(source)
    yield
    assert digests(source) == before


def assert_complete(output: Path) -> None:
    """I3: what is published has every hash of its manifest."""
    assert verify(output) == []


def results(output: Path) -> dict[str, bytes]:
    """Every image and sidecar that is published; manifests, which tell times, are left out."""
    kept = [path for path in sorted(output.glob("sub-*/**/anat/*")) if not path.name.endswith("_qc.json")]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in kept}


def states(output: Path) -> dict[str, str]:
    return {record["label"]: record["state"] for record in read_manifests(output)}


def told(folder: Path, *words: str, without: tuple[str, ...] = ()) -> list[str]:
    """I6: files below the folder whose name or content holds a word: plain, UTF-16, hexadecimal, in base64, in gzip."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if any(name in path.name for name in without):
            continue
        content = b"\n".join(decoded(path.read_bytes()))
        shapes = {shape.lower() for word in words for shape in disguises(word)}
        if any(shape in content.lower() or shape in os.fsencode(path).lower() for shape in shapes):
            found.append(path.relative_to(folder).as_posix())
    return found


def disguises(word: str) -> list[bytes]:
    return [word.encode(), word.encode("utf-16-le"), word.encode("utf-16-be"), word.encode().hex().encode()]


def decoded(content: bytes) -> Iterator[bytes]:
    """The content, and what is packed in it."""
    yield content
    if content[:2] == b"\x1f\x8b":
        with suppress(OSError, EOFError, zlib.error):  # two bytes that only look like it
            yield from decoded(gzip.decompress(content))
    for run in re.findall(rb"[A-Za-z0-9+/]{12,}", content):
        for start in range(4):
            letters = run[start:] if (len(run) - start) % 4 != 1 else run[start:-1]
            packed = base64.b64decode(letters + b"A" * (-len(letters) % 4))  # the end of it may be missing
            yield from decoded(packed) if packed[:2] == b"\x1f\x8b" else (packed,)


# Scans with the stages of `stand_in`, in this process


def go(source: Path, output: Path) -> dict[str, str]:
    """Do every scan of the source once, without Prefect; label -> code, empty where it was published."""
    from flows.scan import reconstruct
    from flows.site import OUTPUT_VARIABLE

    os.environ[OUTPUT_VARIABLE] = str(output)
    prepare(output)
    ends = {}
    for scan in find(source, b"").scans:
        job = Job(scan, SETTINGS, output / ".chiron" / "work" / scan.id)
        try:
            job.save()
            Job.take(job.folder)
            reconstruct(scan.id, scan.label)
            ends[scan.label] = ""
        except ChironError as error:
            ends[scan.label] = error.code
        except OSError as error:  # of the job's own file
            ends[scan.label] = disk_error(error).code
    return ends


class Runs:
    """Processes that do all scans of a source, each forked from one that has everything loaded. Use as a context."""

    def __enter__(self) -> Runs:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._parent = subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload]
        assert self._parent.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.stdin.close()
        self._parent.wait(30)
        self._parent.stdout.close()

    def run(self, source: Path, output: Path, kill_after_s: float | None = None) -> int:
        """A run, killed after a time or left to its end; its exit code, or minus the signal that ended it."""
        self._parent.stdin.write(json.dumps([str(source), str(output), kill_after_s]) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())


def kill_at_random(runs: Runs, source: Path, folder: Path, count: int, seed: int) -> int:
    """Kill `count` runs at random instants; after each I3, and after a rerun I8. Returns how many were at work."""
    generator, struck = random.Random(seed), 0
    began = time.monotonic()
    assert runs.run(source, folder / "whole") == 0
    usual_s = time.monotonic() - began
    wanted = results(folder / "whole")
    for number in range(count):
        output = folder / f"killed{number}"
        for _ in range(generator.choice((1, 1, 2))):
            struck += runs.run(source, output, generator.uniform(0, usual_s)) == -signal.SIGKILL
            assert_complete(output)
        assert runs.run(source, output) == 0
        assert results(output) == wanted
        assert_complete(output)
        shutil.rmtree(output)
    return struck


def _serve() -> None:
    """Fork a run for every line of standard input; say its process, then how it ended."""
    install(setattr)
    import flows.scan  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        source, output, kill_after_s = json.loads(line)
        process = os.fork()
        if process == 0:
            os._exit(0 if set(go(Path(source), Path(output)).values()) == {""} else 3)
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(process, signal.SIGKILL)  # it was not waited for, so no other process has its number
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
