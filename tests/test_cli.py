"""The command line: what it prints, what it exits with, and that each option reaches the settings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field, fields
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from rich.console import Console

import flows.batch
import flows.cli
import flows.doctor
import flows.engine
import pipeline.find
from flows import show
from flows.batch import Batch, Outcome
from flows.cli import EXIT_CODES, app, execute
from flows.cli.options import override_from
from flows.crew import Terms
from flows.doctor import Check
from models import diffusion, weights
from pipeline.errors import CATALOGUE, ChironError, Notice
from pipeline.find import Export, Ignored, Scan, SetAside
from pipeline.publish import prepare
from pipeline.publish.key import record_key
from pipeline.settings import Settings, load, parse, sections

COMMANDS = ("run", "demo", "inspect", "step", "train", "evaluate", "bench", "grid", "doctor", "settings", "explain",
            "status", "report", "serve", "deploy", "worker", "reprocess", "reconcile", "prune")  # fmt: skip


@pytest.fixture(autouse=True)
def _own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "key"))


def found() -> Export:
    scan = Scan(
        "0" * 12, "abc", "1", "", "dicom", "Siemens", (3, 4), (0.004, 0.0085), ("magnitude", "phase"),
        (Path("/secret/patient"),) * 4, (Notice("E007", "a single echo"),),
    )  # fmt: skip
    ignored = (Ignored(1, "F002", "no image"), Ignored(2, "F002", "no image"))
    return Export((scan,), (SetAside("sub-xyz", "P001", "no phase", 3),), ignored, 9)


@dataclass
class Ran:
    """What the command line asked the batch for."""

    settings: list[Settings] = field(default_factory=list)
    subject: str | None = None
    labels: Any = None
    terms: Terms = field(default_factory=Terms)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """`run` computes nothing but says that it published one scan, not to be used."""
    seen = Ran()

    def run(batch: Batch, source: Path, settings: Settings, key: bytes, subject: str | None, *more: Any) -> None:
        seen.settings.append(settings)
        seen.subject, seen.terms, seen.labels = subject, batch.terms, more[1]
        batch.add(Outcome("sub-abc", "published", "do not use", "sub-abc/page.html"))

    monkeypatch.setattr(flows.batch, "run", run)
    return seen


def folders(tmp_path: Path) -> list[str]:
    (tmp_path / "in").mkdir(exist_ok=True)
    return [str(tmp_path / "in"), str(tmp_path / "out")]


def test_light_commands_import_nothing_heavy() -> None:
    heavy = "{'torch', 'prefect', 'numpy', 'matplotlib'}"
    code = f"import sys, flows.cli; flows.cli.execute(['--help']); print('heavy:', {heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: set()"


def test_every_command_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--help"]) == 0
    top = capsys.readouterr().out
    assert {command.callback.__name__ for command in app.registered_commands if command.callback} == set(COMMANDS)
    for command in COMMANDS:
        assert command in top
        assert execute([command, "--help"]) == 0
        said = capsys.readouterr().out
        assert "Example: " in said and f"chiron {command} " in f"{said.partition('Example: ')[2]} "


def test_help_names_every_exit_code_that_errors_have() -> None:
    named = {int(number) for number in re.findall(r"\b\d+\b", EXIT_CODES)}
    assert {fault.exit for fault in CATALOGUE.values()} <= named


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["nonsense"], 2),
        (["run"], 2),
        (["run", "IN", "OUT", "--no-such-option"], 2),
        (["explain", "P002"], 0),
        (["explain", "p002"], 0),
        (["explain", "Q999"], 2),
        (["inspect", "absent"], 13),
        (["run", "absent", "OUT"], 13),
        (["run", "IN", "OUT", "--method", "guess"], 15),
        (["run", "IN", "OUT", "--set", "tkd.treshold=0.1"], 15),
        (["run", "IN", "OUT", "--set", "tkd.threshold=9"], 15),
        (["run", "IN", "OUT", "--config", "absent.toml"], 15),
        (["run", "IN", "OUT", "--echo-times", "0.004,0.008"], 2),
        (["run", "IN", "OUT", "--echo-times", "four"], 2),
        (["run", "IN", "OUT", "--device", "cuda:99"], 16),
        (["run", "IN", "IN/results"], 14),
        (["run", "IN", "OUT"], 11),
        (["status", "absent"], 13),
        (["report", "IN", "abc"], 13),
        (["demo", "OUT", "--vendor", "unknown"], 2),
        (["demo", "OUT", "--voxel-size", "0.1"], 2),
        (["evaluate", "a.nii", "b.nii", "c.nii"], 2),
        (["step", "super-resolution", "IN", "OUT"], 2),
    ],
)
def test_exit_codes(words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "IN").mkdir()
    assert execute(words) == code


def test_an_error_says_code_found_expected_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    show.error(ChironError("E012", "a field of 30000 T", "0.5 to 11 T"))
    said = capsys.readouterr().err
    assert all(text in said for text in ("E012", "30000", "0.5 to 11", CATALOGUE["E012"].todo))


def test_a_surprise_is_an_internal_error_without_its_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def surprise(*args: Any) -> None:
        raise ValueError("/export/Zebedee")

    monkeypatch.setattr(flows.batch, "run", surprise)
    assert execute(["run", *folders(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "R005" in said and "ValueError" in said and "Zebedee" not in said
    monkeypatch.setenv("CHIRON_TRACE", "1")
    execute(["run", *folders(tmp_path)])
    assert "Zebedee" in capsys.readouterr().err


def test_run_says_how_many_at_once_and_for_how_long(ran: Ran, tmp_path: Path) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text("Zebedee\ts01\n")
    labels.chmod(0o600)
    words = ["--workers", "3", "--time-limit", "90", "--labels", str(labels)]
    assert execute(["run", *folders(tmp_path), *words]) == 0
    assert (ran.terms.workers, ran.terms.time_limit_s) == (3, 90.0) and dict(ran.labels) == {"Zebedee": "s01"}
    assert execute(["run", *folders(tmp_path)]) == 0
    assert ran.terms.workers >= 1 and ran.labels is None
    labels.chmod(0o644)
    assert execute(["run", *folders(tmp_path), *words]) == 2


def test_an_interrupt_ends_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(flows.batch, "run", interrupted)
    assert execute(["run", *folders(tmp_path)]) == 130
    assert "continues" in capsys.readouterr().err
    monkeypatch.setattr(pipeline.find, "find", interrupted)
    assert execute(["inspect", str(tmp_path)]) == 130


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["--method", "tv"], {"method": "tv"}),
        (["--also", "tkd,rts", "--also", "tv"], {"also": ["tkd", "rts", "tv"]}),
        (["--device", "cpu"], {"device": "cpu"}),
        (["--set", "tkd.threshold=0.2"], {"tkd.threshold": 0.2}),
        (["--set", "keep_work=true"], {"keep_work": True}),
        (["--echo-times", "4,8.5,12"], {"acquisition.echo_times_s": [0.004, 0.0085, 0.012]}),
        (["--b0", "7"], {"acquisition.b0_tesla": 7.0}),
        (["--orientation", "LAS"], {"acquisition.orientation": "LAS"}),
        (["--phase-range", "+-4096"], {"phase.range": "+-4096"}),
        (["--phase-range", "0-4095"], {"phase.range": "0-4095"}),
        (["--phase-sign", "-"], {"phase.sign": "-"}),
        (["--mask", "/a folder/mask.nii.gz"], {"mask.file": "/a folder/mask.nii.gz"}),
        (["--max-seconds", "90"], {"dip.seconds": 90.0, "diffusion.seconds": 90.0}),
        (["--set", "dip.seconds=5", "--max-seconds", "1.5"], {"dip.seconds": 1.5, "diffusion.seconds": 1.5}),
    ],
)
def test_each_option_changes_its_setting_and_no_other(
    words: list[str], changed: dict[str, Any], ran: Ran, tmp_path: Path
) -> None:
    assert execute(["run", *folders(tmp_path), *words]) == 0
    before, after = flat(load().model_dump(mode="json")), flat(ran.settings[0].model_dump(mode="json"))
    assert {name: value for name, value in after.items() if before[name] != value} == changed


@pytest.mark.parametrize("command", [["run", "IN", "OUT"], ["step", "dipole", "IN", "OUT"]], ids=["run", "step"])
@pytest.mark.parametrize("seconds", ["-1", "soon", "nan", "inf", "1e9", ""])
def test_a_time_that_is_none_is_refused_by_its_code(
    command: list[str],
    seconds: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "IN").mkdir()
    assert execute([*command, "--max-seconds", seconds]) == CATALOGUE["X001"].exit
    said = capsys.readouterr().err
    assert said.startswith("X001") and ("dip.seconds" in said or "--max-seconds" in said)
    assert not (tmp_path / "OUT").exists()


def test_options_go_before_the_file_of_settings(ran: Ran, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('method = "rts"\n[tkd]\nthreshold = 0.3\n[phase]\nsign = "+"\n')
    words = ["--config", str(tmp_path / "mine.toml"), "--set", "tkd.threshold=0.2", "--phase-sign", "-"]
    execute(["run", *folders(tmp_path), *words])
    execute(["run", *folders(tmp_path), *words, "--method", "tv", "--subject", "anna"])
    assert [s.method for s in ran.settings] == ["rts", "tv"] and ran.subject == "anna"
    assert {(s.tkd.threshold, s.phase.sign) for s in ran.settings} == {(0.2, "-")}


def test_red_quality_fails_the_run_only_where_asked(ran: Ran, tmp_path: Path) -> None:
    assert execute(["run", *folders(tmp_path)]) == 0
    assert execute(["run", *folders(tmp_path), "--fail-on-qc"]) == 19


def test_run_prints_json_for_programs(ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute(["run", *folders(tmp_path), "--json"])
    (said,) = json.loads(capsys.readouterr().out)
    assert (said["label"], said["state"], said["verdict"]) == ("sub-abc", "published", "do not use")


def test_run_says_for_each_scan_how_it_ended(ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute(["run", *folders(tmp_path)])
    said = capsys.readouterr().out
    assert "sub-abc" in said and "do not use" in said and "sub-abc/page.html" in said


def test_inspect_accounts_for_every_file_and_names_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline.find, "find", lambda *args, **more: found())
    assert execute(["inspect", str(tmp_path)]) == 10
    said = capsys.readouterr().out
    assert "9 files: 4 in 1 scan, 3 set aside, 2 ignored" in said and "2 x F002" in said
    assert all(text in said for text in ("sub-abc_ses-1", "Siemens", "3, 4", "4, 8.5", "P001", "E007"))
    assert execute(["inspect", str(tmp_path), "--json"]) == 10
    as_json = capsys.readouterr().out
    (scan,) = json.loads(as_json)["scans"]
    assert (scan["label"], scan["echo_times_s"], scan["files"]) == ("sub-abc_ses-1", [0.004, 0.0085], 4)
    assert "secret" not in said + as_json


def test_settings_printed_are_the_defaults_with_every_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["settings"]) == 0
    text = capsys.readouterr().out
    assert parse(tomllib.loads(text)) == load()
    for name, params in sections().items():
        for parameter in fields(params):
            assert parameter.metadata["help"][1:].rstrip(".") in text, f"{name}.{parameter.name}"
    for line, before in zip(text.splitlines()[1:], text.splitlines(), strict=False):
        assert not re.match(r"\w+ =", line) or before.startswith("# ")


def test_settings_printed_and_changed_are_obeyed(capsys: pytest.CaptureFixture[str], ran: Ran, tmp_path: Path) -> None:
    execute(["settings"])
    text = capsys.readouterr().out.replace("threshold = 0.15", "threshold = 0.25")
    (tmp_path / "mine.toml").write_text(text)
    execute(["run", *folders(tmp_path), "--config", str(tmp_path / "mine.toml")])
    assert ran.settings[0].tkd.threshold == 0.25


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_every_code_is_explained(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["explain", code]) == 0
    said = capsys.readouterr().out
    assert CATALOGUE[code].what in said and CATALOGUE[code].todo in said


def test_evaluate_scores_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = np.random.default_rng(0).normal(size=(12, 11, 10)).astype(np.float32)
    values = {"chi": 1.1 * truth + 0.5, "truth": truth, "mask": np.ones_like(truth), "small": truth[1:]}
    paths = {name: tmp_path / f"{name}.nii.gz" for name in values}
    for name, path in paths.items():
        nib.save(nib.Nifti1Image(values[name], np.eye(4)), path)
    files = [str(paths[name]) for name in ("chi", "truth", "mask")]
    assert execute(["evaluate", *files, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["nrmse"] == pytest.approx(10, rel=1e-3) and scores["r"] == pytest.approx(1)
    assert execute(["evaluate", *files]) == 0
    assert "nrmse" in capsys.readouterr().out
    assert execute(["evaluate", str(paths["small"]), *files[1:]]) == 10


def test_status_and_report_read_the_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path / "out")
    for name in ("a", "ab"):
        record: dict[str, Any] = {
            "label": f"sub-{name}_run-1",
            "state": "published",
            "verdict": "check",
            "methods": ["rts"],
            "failure": None,
        }
        record |= {"files": {"page.html": {}}, "warnings": [{"code": "P003"}], "finished": "2026-01-01T00:00:00"}
        (tmp_path / "out" / f"sub-{name}").mkdir()
        (tmp_path / "out" / f"sub-{name}" / "manifest.json").write_text(json.dumps({"format": 1, "scans": [record]}))
    assert execute(["status", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert all(text in said for text in ("sub-ab_run-1", "published", "check", "rts", "P003"))
    assert execute(["status", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["scans"]) == 2 and told["counts"]["published"]["check"] == 2 and told["running"] == []
    for subject in ("a", "sub-a", "sub-a_run-1"):
        assert execute(["report", str(tmp_path / "out"), subject]) == 0
        assert capsys.readouterr().out.split() == [str(tmp_path / "out" / "sub-a" / "page.html")]


def test_doctor_finds_this_machine_well_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["doctor", str(tmp_path), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert all(text in said for text in ("Python", "torch", "dcm2niix", "key", "disk")) and "fail" not in said
    assert re.search(
        "network weights: dip, [0-9a-f]{12}; diffusion, [0-9a-f]{12}; cyclegan, [0-9a-f]{12}; cyclegan-seed", said
    )


def test_doctor_finds_weights_that_are_not_those_of_their_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights.store("diffusion", {"a": torch.ones(3)}, {}, tmp_path)
    (tmp_path / "diffusion.safetensors").write_bytes(b"others")
    monkeypatch.setattr(diffusion, "learned", lambda: weights.load("diffusion", tmp_path))
    check = flows.doctor._weights()
    assert check.level == "fail" and "diffusion.safetensors" in check.found


def test_doctor_names_a_key_that_others_may_read_and_a_device_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_bytes(b"k" * 32)
    (tmp_path / "key").chmod(0o644)
    assert execute(["doctor", str(tmp_path), "--device", "cpu"]) == 15
    assert "chmod 600" in capsys.readouterr().out
    (tmp_path / "key").chmod(0o600)
    assert execute(["doctor", str(tmp_path), "--device", "cuda:99"]) == 16


def test_doctor_knows_what_prefect_does_not_work_with(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"fastapi": "0.155.1", "sqlalchemy": "2.0.44"}
    monkeypatch.setattr(flows.doctor, "version", lambda name: installed.get(name, "1.0"))
    assert [c.what for c in flows.doctor._packages() if c.level == "fail"] == ["fastapi"]


def test_findings_are_printed_and_the_first_failure_decides(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [Check("a", "warn", "low", "More."), Check("b", "fail", "gone", "Buy.", 16), Check("c", "fail", "bad")]
    assert show.checks(findings, show.console()) == 16
    said = capsys.readouterr().out
    assert "low" in said and "More." in said and "Buy." in said


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{name}" if name else section: leaf
        for section, value in settings.items()
        for name, leaf in (value.items() if isinstance(value, dict) else [("", value)])
    }


def test_a_long_word_on_a_scan_is_whole_in_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command stands at its end."""
    text = "This result stays. " * 20 + "To make it anew: chiron reprocess out sub-01"
    show.outcome(Outcome("sub-01", "already published", text=text), tmp_path, show.console())
    assert f"  {text}" in capsys.readouterr().out.splitlines()


def test_doctor_judges_no_folder_that_it_was_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder may be another program's dataset."""
    (tmp_path / "dataset_description.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert execute(["doctor", "--device", "cpu"]) == 0
    assert execute(["doctor", ".", "--device", "cpu"]) == 14


def test_doctor_finds_that_the_key_of_an_output_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "out")
    record_key(tmp_path / "out", b"k" * 32)
    for content in (None, b"x" * 32):
        monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / f"key{content is None}"))
        if content:
            (tmp_path / "keyFalse").write_bytes(content)
            (tmp_path / "keyFalse").chmod(0o600)
        assert execute(["doctor", str(tmp_path / "out"), "--device", "cpu"]) == 15
        assert "fingerprint" in capsys.readouterr().out or content is None


def test_doctor_asks_the_server_that_runs_are_reported_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(flows.engine, "REMOTE_S", 0.2)
    assert flows.doctor._prefect().level == "fail"


@pytest.mark.parametrize("section", ["mask", "phase", "acquisition"])
def test_a_whole_section_of_settings_is_a_word_too(section: str) -> None:
    override = override_from([f"{section}={{}}"])
    assert override and override.settings and all(name.startswith(f"{section}.") for name in override.settings)


@pytest.mark.parametrize("columns", [60, 80, 100, 160])
def test_what_inspect_says_is_whole_on_any_terminal(columns: int) -> None:
    """Labels can be copied, and reasons read."""
    out = Console(file=StringIO(), width=columns)
    label = "sub-averylonglabelindeed_ses-abcdefgh_run-12"
    aside = SetAside(label, "P001", "phase of the echoes 1 and 3 only, " * 3 + "END", 3)
    show.export(Export((), (aside,), (), 3), out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    cells = [[cell.strip() for cell in row.split("│")[1:-1]] for row in text.splitlines() if row.startswith("│")]
    assert "".join(row[0] for row in cells) == label and cells[-1][-1].endswith("END") and "…" not in text


def test_a_setting_out_of_range_is_told_with_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    for word, found, expected in (
        ("tkd.threshold=99", "tkd.threshold = 99", "0.01 to 0.5"),
        ("acquisition.echo_times_s=4,10", "acquisition.echo_times_s", "[0.004, 0.01]"),
    ):
        with pytest.raises(ChironError) as caught:
            load(None, [word])
        assert found in caught.value.found and expected in caught.value.expected


def test_paragraphs_of_a_help_fill_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", "--help"]) == 0
    _, _, text = capsys.readouterr().out.partition("A scan that cannot be used")
    lines = [line.strip() for line in text.partition("Example")[0].splitlines()]
    assert all(len(line) > 50 for line in lines[1:3]), lines
