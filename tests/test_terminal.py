"""Commands as a person meets them: on a terminal of 80 columns, with what stands on it, and interrupted by a key."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import stand_in
from make_site import free_port
from terminal import INTERRUPT, Terminal, on_terminal

ROOT = Path(__file__).parent.parent
CHIRON = Path(sys.executable).with_name("chiron")
STAND_IN = (sys.executable, stand_in.__file__)  # the same command with stages that take no time
BAR = re.compile(r"[━╸╺]|\d%")
LONG = "averylongnamethatasitegaveitspatient" * 2
KEPT = "what is done is kept, the same command continues"


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "CHIRON_KEY_FILE": str(tmp_path / "key"), "COLUMNS": "", "LINES": ""}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run of two scans, for what comes after one: each test takes a copy."""
    folder = tmp_path_factory.mktemp("finished")
    environment = {**os.environ, "CHIRON_KEY_FILE": str(folder / "key")}
    subprocess.run(run(folder, "a", LONG), env=environment, check=True, capture_output=True)
    return folder / "out"


def run(tmp_path: Path, *scans: str) -> list[str | Path]:
    """The command that runs scans of such names, two at once."""
    (tmp_path / "in").mkdir()
    stand_in.export(tmp_path / "in", **dict.fromkeys(scans, ""))
    words = ["--method", "tkd", "--device", "cpu", "--workers", "2"]
    return [*STAND_IN, "run", tmp_path / "in", tmp_path / "out", *words]


def assert_tidy(terminal: Terminal) -> None:
    """Nothing of a bar is left, no bar ran over the edge, and the next line begins at the left with a cursor."""
    assert not [row for row in terminal.rows if BAR.search(row)], terminal.text
    assert not [text for text in terminal.screen.wrapped if BAR.search(text)]
    assert not terminal.screen.cursor.hidden and terminal.screen.cursor.x == 0
    assert "Traceback" not in terminal.text and "R005" not in terminal.text


def results(output: Path, *labels: str) -> str:
    return "".join(f"sub-{n}  published, do not use\n  {output}/sub-{n}/sub-{n}_qsm.html\n" for n in labels)


def test_one_scan_leaves_its_result_and_nothing_else(tmp_path: Path, surroundings: dict[str, str]) -> None:
    command = run(tmp_path, "a")
    with on_terminal(*command, environment=surroundings | {"CHIRON_TEST_HANG": "1"}) as terminal:
        terminal.see("unwrapping the phase")
        assert sum(bool(BAR.search(row)) for row in terminal.rows) == 1
        assert terminal.end() == 0
    counted = "1 files: 1 in 1 scan, 0 set aside, 0 ignored.\n"
    assert terminal.unwrapped == counted + results(tmp_path / "out", "a")
    assert_tidy(terminal)


def test_results_of_several_scans_stand_above_the_bars(tmp_path: Path, surroundings: dict[str, str]) -> None:
    command = run(tmp_path, "a", "b", "c", LONG)
    with on_terminal(*command, environment=surroundings | {"CHIRON_TEST_HANG": "2"}) as terminal:
        terminal.see("2 of 4 scans")
        rows = [bool(BAR.search(row)) for row in terminal.rows]
        assert rows == sorted(rows), f"results and bars are mixed:\n{terminal.text}"
        assert 2 <= sum(rows) <= 3 and "published" in terminal.text
        assert terminal.screen.display[terminal.screen.cursor.y].strip() == "", "the cursor rests on an empty line"
        assert terminal.end() == 0
    lines = terminal.unwrapped.splitlines()
    for name in ("a", "b", "c", LONG):
        at = lines.index(f"sub-{name}  published, do not use")
        assert lines[at + 1] == f"  {tmp_path}/out/sub-{name}/sub-{name}_qsm.html"
    assert lines[-1] == f"All scans on one page: {tmp_path}/out/summary.html" and len(lines) == 10
    assert_tidy(terminal)


def test_scans_that_all_fail_unexpectedly_end_in_the_code_for_that(
    tmp_path: Path, surroundings: dict[str, str]
) -> None:
    command = run(tmp_path)
    stand_in.export(tmp_path / "in", a="surprise", b="surprise")
    with on_terminal(*command, environment=surroundings) as terminal:
        assert terminal.end() == 12
    assert terminal.text.count("R005") == 2 and "interrupted" not in terminal.text
    assert all(len(row) <= 80 for row in terminal.rows) and not BAR.search(terminal.rows[-1])


@pytest.mark.parametrize(
    ("keys", "scans"),
    [(1, "a"), (2, "abc"), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, "abc"), (2, "a")])],
)
def test_a_run_that_is_interrupted_says_so_last(
    tmp_path: Path, surroundings: dict[str, str], keys: int, scans: str
) -> None:
    command = run(tmp_path, *scans)
    slow = {"CHIRON_TEST_HANG": "60"} | ({"CHIRON_TEST_DEAF": "1"} if keys > 1 else {})
    with on_terminal(*command, environment=surroundings | slow) as terminal:
        terminal.see("unwrapping the phase")
        for _ in range(keys):
            terminal.press(INTERRUPT)
            terminal.see("stopping")
        assert terminal.end() == 130
    assert terminal.rows[1:] == ["stopping; Ctrl-C again ends it at once", f"interrupted; {KEPT}"]
    assert_tidy(terminal)
    assert not (tmp_path / "out" / "failed").exists()


@pytest.mark.parametrize("keys", [0, 1])
def test_reprocess_is_as_tidy(finished: Path, tmp_path: Path, surroundings: dict[str, str], keys: int) -> None:
    output = shutil.copytree(finished, tmp_path / "out", symlinks=True)
    again = [*STAND_IN, "reprocess", output, "--force", "--from", "unwrap", "--workers", "2"]
    with on_terminal(*again, environment=surroundings | {"CHIRON_TEST_HANG": "60" if keys else "0"}) as terminal:
        if keys:
            terminal.see("unwrapping the phase")
            terminal.press(INTERRUPT)
        assert terminal.end() == (130 if keys else 0)
    assert terminal.rows[0] == "2 to do" and terminal.unwrapped.count("published,") == (0 if keys else 2)
    assert terminal.unwrapped.splitlines()[-1].startswith("interrupted" if keys else "All scans on one page")
    assert_tidy(terminal)


def test_a_result_in_a_file_is_whole_and_alone(tmp_path: Path, surroundings: dict[str, str]) -> None:
    with (tmp_path / "results").open("wb") as file:
        command = run(tmp_path, "a", "b")
        environment = surroundings | {"CHIRON_TEST_HANG": "1"}
        with on_terminal(*command, environment=environment, stdout=file) as terminal:
            terminal.see("unwrapping the phase")
            assert terminal.end() == 0
    assert "published" not in terminal.text
    assert_tidy(terminal)
    written = (tmp_path / "results").read_text()
    assert sorted(written.splitlines()) == sorted(results(tmp_path / "out", "a", "b").splitlines())


def test_a_log_of_progress_has_lines_while_the_terminal_has_results(
    tmp_path: Path, surroundings: dict[str, str]
) -> None:
    command = run(tmp_path, "a")
    with (
        (tmp_path / "log").open("wb") as file,
        on_terminal(*command, environment=surroundings, stderr=file) as terminal,
    ):
        assert terminal.end() == 0
    assert terminal.unwrapped == results(tmp_path / "out", "a")
    log = (tmp_path / "log").read_text()
    assert "\x1b" not in log and "\r" not in log and re.search(r"unwrapping the phase +\d+\.\d s", log)


@pytest.mark.slow
def test_a_pipe_that_may_lead_to_the_same_terminal_gets_lines_beside_it(
    tmp_path: Path, surroundings: dict[str, str]
) -> None:
    command = " ".join(shlex.quote(str(word)) for word in run(tmp_path, "a", "b"))
    words = ["sh", "-c", f"{command} | tee {shlex.quote(str(tmp_path / 'results'))}"]
    with on_terminal(*words, environment=surroundings) as terminal:
        assert terminal.end() == 0
    assert re.search(r"sub-a  unwrapping the phase +\d+\.\d s", terminal.text) and "\x1b[J" not in terminal.text
    for line in results(tmp_path / "out", "a", "b").splitlines():
        assert line in terminal.unwrapped.splitlines()
    assert "unwrapping" not in (tmp_path / "results").read_text()


def test_a_dumb_terminal_gets_lines(tmp_path: Path, surroundings: dict[str, str]) -> None:
    with on_terminal(*run(tmp_path, "a", "b"), environment=surroundings | {"TERM": "dumb"}) as terminal:
        assert terminal.end() == 0
    assert b"\x1b" not in terminal.sent and "unwrapping the phase" in terminal.text
    assert terminal.text.count("published,") == 2


@pytest.mark.slow
def test_no_color_is_obeyed(tmp_path: Path, surroundings: dict[str, str]) -> None:
    environment = surroundings | {"CHIRON_TEST_HANG": "1", "NO_COLOR": "1"}
    with on_terminal(*run(tmp_path, "a"), environment=environment) as terminal:
        terminal.see("unwrapping the phase")
        assert terminal.end() == 0
    styles = {number for group in re.findall(rb"\x1b\[([\d;]*)m", terminal.sent) for number in group.split(b";")}
    assert not {style for style in styles if style[:1] in b"349" and len(style) > 1}
    assert_tidy(terminal)


@pytest.mark.slow
def test_a_window_that_becomes_narrow_holds_whole_rows(tmp_path: Path, surroundings: dict[str, str]) -> None:
    command = run(tmp_path, "a", "b", LONG)
    with on_terminal(*command, environment=surroundings | {"CHIRON_TEST_HANG": "3"}) as terminal:
        terminal.see("unwrapping the phase")
        terminal.resize(40, 24)
        terminal.see(lambda: "━" not in terminal.text and "%" in terminal.text)
        terminal.screen.wrapped.clear()  # of a row that was on its way
        terminal.see("1 of 3 scans")
        rows = [row for row in terminal.rows if BAR.search(row)]
        assert rows and all(re.fullmatch(r".{1,34} +\d+%", row) for row in rows), terminal.text
        assert terminal.end() == 0
    assert_tidy(terminal)


@pytest.mark.slow
def test_a_screen_lower_than_the_rows_keeps_what_fits(tmp_path: Path, surroundings: dict[str, str]) -> None:
    command = [*run(tmp_path, "a", "b", "c", "d"), "--workers", "4"]
    with on_terminal(*command, environment=surroundings | {"CHIRON_TEST_HANG": "1"}, lines=4) as terminal:
        assert terminal.end() == 0
    assert terminal.text.count("published,") == 4
    assert_tidy(terminal)


def step(folder: Path, *words: str) -> list[str | Path]:
    """The command that inverts a small field."""
    (folder / "artefacts").mkdir()
    for name, values in (
        ("localfield", np.random.default_rng(0).normal(0, 0.01, (24, 24, 24))),
        ("mask", np.ones((24,) * 3)),
    ):
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), folder / "artefacts" / f"{name}.nii.gz")
    params = {"TE": [0.004, 0.008], "B0": 3.0, "B0_dir": [0, 0, 1], "voxel_size": [1, 1, 1]}
    (folder / "artefacts" / "params.json").write_text(json.dumps(params))
    return [CHIRON, "step", "dipole", folder / "artefacts", folder / "made", "--device", "cpu", *words]


@pytest.mark.parametrize("keys", [0, 1, 2])
def test_a_step_shows_how_far_it_is(tmp_path: Path, surroundings: dict[str, str], keys: int) -> None:
    more = ["--set", "dip.preset=untrained", "--max-seconds", "120" if keys else "3"]
    with on_terminal(*step(tmp_path, "--method", "dip", *more), environment=surroundings) as terminal:
        terminal.see("running, ")
        for _ in range(keys):
            terminal.press(INTERRUPT)
        assert terminal.end() == (130 if keys else 0)
    assert terminal.unwrapped == ("interrupted\n" if keys else f"{tmp_path}/made/chimap.nii.gz\n")
    assert_tidy(terminal)


@pytest.mark.parametrize("columns", [80, pytest.param(40, marks=pytest.mark.slow)])
def test_watching_ends_with_what_it_shows_and_a_free_line(
    finished: Path, surroundings: dict[str, str], columns: int
) -> None:
    command = [CHIRON, "status", finished, "--watch"]
    with on_terminal(*command, environment=surroundings, columns=columns) as terminal:
        terminal.see("2 scans")
        terminal.press(INTERRUPT)
        assert terminal.end() == 0
    assert "do not use" in terminal.text and "^C" not in terminal.text and not terminal.screen.wrapped
    assert not terminal.screen.cursor.hidden and terminal.screen.cursor.x == 0
    assert sum("2 scans" in row for row in terminal.rows) == 1
    cells = "".join(row.split("│")[1].strip() for row in terminal.rows if row.startswith("│"))
    assert f"sub-{LONG}" in cells and "sub-a" in cells


BENCH = ["bench", "--size", "24x24x24", "--echoes", "3", "--step", "invert-dip"]
TRAIN = ["train", "diffusion", "weights", "--minutes", "5", "--workers", "1", "--device", "cpu"]
TELLING = {
    "bench": (BENCH, "[1/1]"),
    "grid": (["grid", "--cells", "2mm", "--method", "tkd"], "2mm"),
    "train": (TRAIN, "making the first maps"),
}


@pytest.mark.slow
@pytest.mark.parametrize("keys", [1, 2])
@pytest.mark.parametrize("name", TELLING)
def test_what_tells_its_progress_in_lines_is_interrupted_in_one(
    tmp_path: Path, surroundings: dict[str, str], name: str, keys: int
) -> None:
    words, seen = TELLING[name]
    with on_terminal(CHIRON, *words, environment=surroundings, cwd=tmp_path) as terminal:
        terminal.see(seen)
        terminal.press(INTERRUPT * keys)
        assert terminal.end() == 130
    printed = [row for row in terminal.rows if row != "^C"]  # a key pressed after the end is echoed by the terminal
    assert printed[-1] == "interrupted" and "R005" not in terminal.text
    assert_tidy(terminal)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [1, 2])
def test_serving_ends_as_it_says(tmp_path: Path, surroundings: dict[str, str], keys: int) -> None:
    (tmp_path / "in").mkdir()
    plain = {name: value for name, value in surroundings.items() if not name.startswith("PREFECT_")}
    command = [CHIRON, "serve", "in", "out", "--port", str(free_port())]
    with on_terminal(*command, environment=plain, cwd=tmp_path) as terminal:
        terminal.see("Its password is")
        terminal.press(INTERRUPT)
        terminal.see("stopping")
        if keys == 2:
            terminal.press(INTERRUPT)
        assert terminal.end() == (130 if keys == 2 else 0)
    assert terminal.rows[-1] == ("interrupted" if keys == 2 else "stopping") and "^C" not in terminal.text
    assert_tidy(terminal)


def demo(output: Path, *more: str) -> list[str]:
    """The line of the Makefile that `make demo` is for, as the shell gets it, with larger voxels and little time."""
    (line,) = re.findall(r"^\t(\S*chiron demo .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    words = shlex.split(line.replace("$(BIN)", str(CHIRON.parent)).replace("$(DEMO)", str(output)))
    return [*words, "--voxel-size", "6", "--set", "dip.seconds=1", "--device", "cpu", *more]


def test_make_demo_on_a_terminal(tmp_path: Path, surroundings: dict[str, str]) -> None:
    with on_terminal(*demo(tmp_path / "demo"), environment=surroundings) as terminal:
        terminal.see("sub-demo_ses")
        assert terminal.end(300) == 0
    lines = terminal.unwrapped.splitlines()
    assert lines[0] == "simulating a head and its scan"
    assert any(re.fullmatch(rf"  {tmp_path}/demo/sub-demo/ses-\w+/sub-demo_ses-\w+_qsm.html", line) for line in lines)
    assert {"dip", "tkd", "rts", "tv"} <= set(re.findall(r"│ (\w+) +│", terminal.text))
    assert not [text for text in terminal.screen.wrapped if BAR.search(text)]
    assert not terminal.screen.cursor.hidden and "R005" not in terminal.text


@pytest.mark.parametrize("seen", ["simulating", "sub-demo_ses"])
def test_the_demo_can_be_interrupted_at_any_time(tmp_path: Path, surroundings: dict[str, str], seen: str) -> None:
    with on_terminal(*demo(tmp_path / "demo"), environment=surroundings) as terminal:
        terminal.see(seen)
        terminal.press(INTERRUPT)
        assert terminal.end() == 130
    assert terminal.rows[-1].startswith("interrupted")
    assert_tidy(terminal)


@pytest.mark.parametrize("words", [["reconcile"], ["prune"]], ids=lambda words: words[0])
def test_tidying_says_its_line(finished: Path, tmp_path: Path, surroundings: dict[str, str], words: list[str]) -> None:
    output = shutil.copytree(finished, tmp_path / "out", symlinks=True)
    with on_terminal(CHIRON, *words, output, environment=surroundings) as terminal:
        assert terminal.end() == 0
    assert_tidy(terminal)


def test_a_run_in_the_background_leaves_the_prompt_alone(tmp_path: Path, surroundings: dict[str, str]) -> None:
    """What a person types meanwhile stays; only whole lines appear."""
    words = shlex.join(map(str, run(tmp_path, "a")))
    shell = surroundings | {"CHIRON_TEST_HANG": "4", "PS1": "$ "}
    with on_terminal("bash", "--norc", "--noprofile", "-i", environment=shell, columns=200) as terminal:
        terminal.see("$")
        terminal.press(f"{words} &\n".encode())
        terminal.see("1 files: 1 in 1 scan")
        terminal.press(b"echo typed")
        terminal.see(lambda: (tmp_path / "out/.chiron/stages.txt").exists())
        terminal.see("echo typed")
        terminal.see("published")
        assert "echo typed" in terminal.text and not [row for row in terminal.rows if BAR.search(row)]


def test_ctrl_z_stops_the_work_and_fg_goes_on_with_it(tmp_path: Path, surroundings: dict[str, str]) -> None:
    words = shlex.join(map(str, run(tmp_path, "a")))
    shell = surroundings | {"CHIRON_TEST_HANG": "3", "PS1": "$ "}
    with on_terminal("bash", "--norc", "--noprofile", "-i", environment=shell, columns=200) as terminal:
        terminal.see("$")
        terminal.press(f"{words}\n".encode())
        terminal.see("unwrapping the phase")
        terminal.press(b"\x1a")
        terminal.see("Stopped")
        assert set(states_of_workers(surroundings["CHIRON_KEY_FILE"])) == {"T"}
        terminal.press(b"fg\n")
        terminal.see("published")


def states_of_workers(key: str) -> Iterator[str]:
    """Of the processes that a run with this key has started for its scans: S and R where they go on, T where not."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            if b"\0worker\0" in words and f"CHIRON_KEY_FILE={key}\0".encode() in environment:
                yield (folder / "stat").read_text().rpartition(")")[2].split()[0]
