"""Presets give what is not set otherwise: what a person sets counts, and what is recorded is what is used."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flows import show
from models.cyclegan import CycleGAN
from models.dip import DIP
from models.dip.params import PRESETS
from models.params import filled
from pipeline.errors import ChironError
from pipeline.invert import invert
from pipeline.publish.manifest import plain_settings
from pipeline.settings import PRESET, Settings, load, parse
from pipeline.volumes import Field, Grid

NAMED = [(section, preset) for section, params in PRESET.items() for preset in params.PRESETS]  # type: ignore[attr-defined]


def other(value: Any) -> Any:
    """Another value that may stand in its place; of a choice the class's own default will do."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 + 0.001 if isinstance(value, float) else value


@pytest.mark.parametrize(("section", "preset"), NAMED)
def test_a_preset_gives_what_is_not_set(section: str, preset: str) -> None:
    params = PRESET[section]
    given = params.PRESETS[preset]  # type: ignore[attr-defined]
    made = getattr(load(words=[f"{section}.preset={preset}"]), section)
    assert made == params(preset=preset) and {name: getattr(made, name) for name in given} == given
    usual = {field.name: field.default for field in fields(params) if field.name not in given}
    assert {name: getattr(made, name) for name in usual if name != "preset"} == {
        name: value for name, value in usual.items() if name != "preset"
    }


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", [n for n in PRESETS["seed"] if isinstance(PRESETS["seed"][n], int | float)])
def test_what_is_set_counts_whatever_the_preset(preset: str, name: str) -> None:
    usual = next(field.default for field in fields(DIP) if field.name == name)
    for value in (usual, other(usual)):  # also where it is what it would be without any preset
        for words in ([f"dip.preset={preset}", f"dip.{name}={value}"], [f"dip.{name}={value}", f"dip.preset={preset}"]):
            assert getattr(load(words=words).dip, name) == value
        assert getattr(DIP(preset=preset, **{name: value}), name) == value  # type: ignore[arg-type]


def test_the_example_of_a_user(tmp_path: Path) -> None:
    assert load(words=["dip.preset=seed", "dip.iterations=50"]).dip.iterations == 50
    (tmp_path / "a.toml").write_text('[dip]\npreset = "seed"\niterations = 30\nchannels = [32, 64, 96]\n')
    settings = load(tmp_path / "a.toml")
    assert (settings.dip.iterations, settings.dip.channels, settings.dip.rate) == (30, (32, 64, 96), 0.001)


def test_a_list_of_all_settings_with_another_preset_is_that_preset(tmp_path: Path) -> None:
    text = show.settings_toml().replace('preset = "default"', 'preset = "seed"')
    (tmp_path / "all.toml").write_text(text)
    assert load(tmp_path / "all.toml").dip == DIP(preset="seed")
    assert load(tmp_path / "all.toml").cyclegan == CycleGAN(preset="seed")
    assert "leave out the lines" in text


def test_settings_say_what_is_used_and_survive_being_saved() -> None:
    settings = load(words=["dip.preset=seed", "dip.iterations=30"])
    plain = plain_settings(settings)
    assert (plain["dip"]["iterations"], plain["dip"]["rate"], plain["dip"]["network"]) == (30, 0.001, "untrained")
    assert parse(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings
    assert replace(settings.dip, tile=8) == DIP(preset="seed", iterations=30, tile=8)


def test_another_preset_for_a_scan_of_before_keeps_what_was_set() -> None:
    before = load(words=["dip.iterations=77", "dip.seeds=2"])
    after = load(words=["dip.preset=seed"], base=before)
    assert after.dip == DIP(preset="seed", iterations=77, seeds=2)
    back = load(words=["dip.preset=default"], base=after)
    assert back.dip == before.dip
    assert load(words=["dip.preset=seed", "dip.iterations=30"], base=before).dip.iterations == 30
    assert load(words=["dip.preset=seed"], base=after).dip == after.dip
    assert load(words=["dip.rate=0.01"], base=after).dip == replace(after.dip, rate=0.01)


def test_what_a_preset_cannot_do_is_refused() -> None:
    with pytest.raises(ChironError, match="X001"):
        load(words=["cyclegan.preset=seed", "cyclegan.consistency=true"])
    assert load(words=["cyclegan.preset=seed"]).cyclegan.consistency is False
    assert filled(CycleGAN, {"preset": "seed", "consistency": True}) == {"preset": "seed", "consistency": True}


def test_the_map_is_made_and_recorded_by_what_is_set() -> None:
    shape = (16, 16, 16)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[3:-3, 3:-3, 3:-3] = True
    ppm = 0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(0)) * mask
    field = Field(ppm, torch.full(shape, 0.001), mask, Grid.simple(shape, (1, 1, 1)))
    params = load(words=["dip.preset=seed", "dip.iterations=3", "dip.channels=[2, 3]", "dip.precision=float32"]).dip
    facts = invert(field, "dip", params).facts
    assert len(facts["loss"]) == 3 and facts["parameters"] == asdict(params)
    assert facts["parameters"]["iterations"] == 3 and facts["parameters"]["channels"] == (2, 3)


def test_a_preset_counts_over_a_printed_list_of_all_settings(tmp_path: Path) -> None:
    (tmp_path / "all.toml").write_text(show.settings_toml())
    words = ["dip.preset=seed", "dip.iterations=100"]
    assert load(tmp_path / "all.toml", words) == load(None, words)
    (tmp_path / "some.toml").write_text("[dip]\nstrength = 0.0\n")  # said by a person, though it is the default
    assert load(tmp_path / "some.toml", words).dip.strength == 0.0


@pytest.mark.parametrize("word", ["also=[5]", "method=5"])
def test_a_method_that_is_no_word_is_told(word: str) -> None:
    with pytest.raises(ChironError, match="X001"):
        load(None, [word])
