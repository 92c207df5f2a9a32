"""Output that nobody takes: the command's work goes on, and the loss is told by its code, without a trace."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from make_dicom import write

from flows.cli.streams import Stream, exit_code
from pipeline.publish import prepare

ROOT = Path(__file__).resolve().parents[1]
MAIN = "import sys; sys.argv[0] = 'chiron'; from flows.cli import main; main()"
COMMANDS = [["--help"], ["settings"], ["status", "OUT"], ["inspect", "IN", "--json"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    write(folder / "IN")
    prepare(folder / "OUT")
    return folder


def ran(words: list[str], folder: Path, redirected: str) -> subprocess.CompletedProcess[str]:
    """The command in a shell, its standard output as `redirected` says; of a pipe the command's own exit code."""
    quoted = " ".join(f'"{word}"' for word in words)
    script = f'{sys.executable} -c "{MAIN}" {quoted} {redirected}; exit ${{PIPESTATUS[0]}}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CHIRON_KEY_FILE": str(folder / "absent")}
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_output_on_a_full_disk_is_told(words: list[str], folder: Path) -> None:
    done = ran(words, folder, "> /dev/full")
    assert done.returncode == 14 and done.stderr.startswith("S001") and "Traceback" not in done.stderr


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_reader_that_has_enough_is_no_fault(words: list[str], folder: Path) -> None:
    done = ran(words, folder, "| true")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failure_says_more_than_its_lost_output(folder: Path) -> None:
    done = ran(["status", "absent"], folder, "> /dev/full 2>&1")
    assert done.returncode == 13
    assert ran(["status", "absent"], folder, ">&- 2>&- <&-").returncode == 13


def test_a_closed_output_is_no_file_of_ours(folder: Path) -> None:
    code = "import os; from flows.cli.streams import guarded\nwith guarded():\n open('opened', 'w'); "
    code += "print('text'); os.write(2, os.readlink('/proc/self/fd/1').encode())"
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$CODE" >&-'],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CODE": code},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == "/dev/null" and (folder / "opened").read_text() == ""


class Refusing:
    """A stream of which each write fails."""

    def __init__(self, code: int) -> None:
        self.code, self.asked = code, 0

    def write(self, text: str) -> int:
        self.asked += 1
        raise OSError(self.code, os.strerror(self.code))

    def flush(self) -> None:
        raise OSError(self.code, os.strerror(self.code))

    encoding = "utf-8"


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, 14), (errno.EDQUOT, 14), (errno.EIO, 14), (errno.EPIPE, 0)]
)
def test_what_follows_a_failed_write_is_dropped(number: int, expected: int, capsys: pytest.CaptureFixture[str]) -> None:
    refusing = Refusing(number)
    stream = Stream(refusing)  # type: ignore[arg-type]
    assert print("one", file=stream) is None and print("two", file=stream) is None
    stream.flush()
    assert refusing.asked == 1 and stream.encoding == "utf-8"
    assert exit_code(0, stream) == expected and exit_code(12, stream) == 12
    assert ("cannot be written" in capsys.readouterr().err) == (expected == 14)
