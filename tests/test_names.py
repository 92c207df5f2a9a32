"""Names that a person writes: in any case, and with the nearest one in the answer where it is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

import pipeline.device
from flows.cli import app, execute
from flows.step import STAGES
from models import methods
from pipeline.device import device_name, devices_here, pick_device
from pipeline.errors import CATALOGUE, ChironError
from pipeline.invert import CLASSICAL, PARAMS
from pipeline.learned import LEARNED
from pipeline.scanner import VENDORS
from pipeline.settings import Settings, load, sections


def test_there_is_one_list_of_methods() -> None:
    assert tuple(CLASSICAL) == methods.CLASSICAL and tuple(LEARNED) == methods.LEARNED
    assert tuple(PARAMS) == methods.METHODS == (*methods.CLASSICAL, *methods.LEARNED)
    assert ("auto", "classical", *methods.METHODS) == methods.CHOICES
    assert get_args(Settings.model_fields["method"].annotation) == methods.CHOICES
    assert all(sections()[name] is PARAMS[name] for name in methods.METHODS)


def helped(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "500")
    assert execute([command, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "demo", "reprocess", "step", "serve", "deploy"])
def test_the_help_of_method_lists_every_method(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = helped(command, capsys, monkeypatch)
    (line,) = [line for line in said.splitlines() if "Reconstruction to publish" in line]
    assert "--method" in line
    assert set(methods.CHOICES) <= set(re.findall(r"\w+", line.partition("Reconstruction to publish")[2]))


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        ("run", "--also", methods.METHODS),
        ("grid", "--method", methods.METHODS),
        ("demo", "--vendor", VENDORS),
        ("step", "stage", tuple(STAGES)),
        ("train", "method", methods.LEARNED),
    ],
)
def test_other_helps_list_all_that_there_is(
    command: str,
    option: str,
    names: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = helped(command, capsys, monkeypatch)
    (line,) = [line for line in said.splitlines() if re.search(rf"[│*] +{re.escape(option)} ", line)]
    assert all(re.search(rf"(?<![\w+-]){re.escape(name)}(?![\w+-])", line) for name in names), line


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["method=TV"], "method", "tv"),
        (["method= Cyclegan "], "method", "cyclegan"),
        (["also=['RTS','tkd']"], "also", ("rts", "tkd")),
        (["also=rts,TKD"], "also", ("rts", "tkd")),
        (["device=CPU"], "device", "cpu"),
        (["device=CUDA:01"], "device", "cuda:1"),
    ],
)
def test_a_name_may_be_written_in_any_case(words: list[str], name: str, value: object) -> None:
    assert getattr(load(words=words), name) == value


def test_a_choice_of_a_section_may_be_written_in_any_case(tmp_path: Path) -> None:
    assert load(words=["background.method=VSHARP"]).background.method == "vsharp"
    (tmp_path / "a.toml").write_text('method = "Rts"\n[unwrap]\nmethod = "ROMEO"\n')
    settings = load(tmp_path / "a.toml", also=["TKD"])
    assert (settings.method, settings.unwrap.method, settings.also) == ("rts", "romeo", ("tkd",))


@pytest.mark.parametrize(
    ("words", "near", "exit"),
    [
        (["run", "IN", "OUT", "--method", "tvv"], "tv", 15),
        (["run", "IN", "OUT", "--method", "difusion"], "diffusion", 15),
        (["run", "IN", "OUT", "--also", "tkd,RST"], "rts", 15),
        (["run", "IN", "OUT", "--set", "tv.strenght=3"], "tv.strength", 15),
        (["run", "IN", "OUT", "--set", "background.method=vshrap"], "vsharp", 15),
        (["run", "IN", "OUT", "--config", "typo.toml"], "tkd.threshold", 15),
        (["run", "IN", "OUT", "--phase-range", "radian"], "radians", 15),
        (["step", "dipol", "IN", "OUT"], "dipole", 2),
        (["demo", "OUT", "--vendor", "simens"], "siemens", 2),
        (["train", "diff", "OUT"], "diffusion", 2),
        (["train", "cyclegan", "OUT", "--preset", "ful"], "full", 15),
        (["train", "diffusion", "OUT", "--config", "smal"], "small", 15),
        (["grid", "--method", "tvv"], "tv", 2),
        (["bench", "--step", "invert-tvv"], "invert-tv", 2),
        (["explain", "E0055"], "E005", 2),
        (["rnu"], "run", 2),
        (["reprocess", "OURS", "--state", "publshed"], "published", 2),
        (["reprocess", "OURS", "--verdict", "usabel"], "usable", 2),
        (["reprocess", "OURS", "--code", "P0022"], "P002", 2),
        (["worker", "OUT", "--pool", "gpus"], "gpu", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_typo_is_answered_with_the_nearest_name(
    words: list[str],
    near: str,
    exit: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "key"))
    (tmp_path / "IN").mkdir()
    (tmp_path / "OURS" / ".chiron").mkdir(parents=True)
    (tmp_path / "typo.toml").write_text("[tkd]\ntreshold = 0.2\n")
    assert execute(words) == exit
    assert re.search(rf"Did you mean '?{re.escape(near)}'?\?", capsys.readouterr().err)
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize(("word", "code"), [("e5", "E005"), ("E05", "E005"), (" p002 ", "P002"), ("x1", "X001")])
def test_a_code_may_be_written_short(word: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["explain", word]) == 0
    assert capsys.readouterr().out.startswith(f"{code}: {CATALOGUE[code].what}")


def test_stages_and_vendors_may_be_written_in_any_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.step import run_step

    with pytest.raises(ChironError, match="X002") as caught:
        run_step("DIPOLE", tmp_path, tmp_path / "out", load(method="tkd", device="cpu"))
    assert "dipole" not in caught.value.found  # the stage was known: what is missing is its input


@pytest.mark.parametrize(
    "name", ["gpu", "GPU", "mps", "rocm", "hip", "nonsense", "", "cuda:", "cuda:x", "cuda:-1", "cuda:1,cuda:2", "0"]
)
def test_a_word_that_is_no_device_is_answered_with_those_that_are(name: str) -> None:
    for ask in (
        device_name,
        pick_device,
        lambda word: load(words=[f"device='{word}'"]),
        lambda word: load(device=word),
    ):
        with pytest.raises(ChironError) as caught:
            ask(name)
        assert caught.value.code == "R001" and caught.value.fault.exit == 16
        assert devices_here() in caught.value.found and caught.value.expected == "auto, cpu, cuda or cuda:N"


@pytest.mark.parametrize("name", ["cuda:7", "CUDA:7", "cuda:100", "cuda:4294967297"])
def test_a_gpu_that_is_not_there_is_answered_with_those_that_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Model {number}")
    with pytest.raises(ChironError, match="R001") as caught:
        pick_device(name)
    assert "cpu, cuda:0 (Model 0), cuda:1 (Model 1)" in caught.value.found
    assert pick_device("CUDA:1") == torch.device("cuda:1")


def test_without_a_gpu_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for version, why in ((None, "installed without CUDA"), ("13.0", "sees no GPU")):
        monkeypatch.setattr(pipeline.device.torch.version, "cuda", version)
        assert why in devices_here() and "CUDA_VISIBLE_DEVICES" in devices_here()
        with pytest.raises(ChironError, match="cpu alone"):
            pick_device("cuda")


@pytest.mark.parametrize(
    "words",
    [
        ["run", "IN", "OUT"],
        ["demo", "OUT"],
        ["step", "dipole", "IN", "OUT"],
        ["train", "dip", "OUT"],
        ["bench", "--quick"],
        ["grid", "--quick"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_every_command_answers_in_words_and_with_16(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHIRON_KEY_FILE", str(tmp_path / "key"))
    (tmp_path / "IN").mkdir()
    assert execute([*words, "--device", "gpu"]) == 16
    said = capsys.readouterr()
    assert "here is cpu" in said.out + said.err and not (tmp_path / "OUT").exists()


def test_all_commands_that_take_a_method_are_tried() -> None:
    import typer

    group = typer.main.get_command(app)
    with_method = {n for n, c in group.commands.items() for p in c.params if "--method" in p.opts}  # type: ignore[attr-defined]
    assert with_method == {"run", "demo", "reprocess", "step", "serve", "deploy", "grid"}
