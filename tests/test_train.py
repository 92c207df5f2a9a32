"""Training: examples line up, a step learns, a checkpoint goes on, weights are those of their card."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_classical import SHAPE, phantom

from flows.cli import execute
from flows.train import scans
from flows.train.scans import random_scan
from models import train, weights
from models.dip.features import CHANNELS, OUTSIDE, Given
from models.train import Example, Trainer, crop, example, load_examples, save_example


@pytest.fixture(scope="module")
def one() -> Example:
    p = phantom()
    made = example(Given(p.field, p.weight, p.dipole), p.chi, p.weight > 0)
    assert made
    return made


def test_an_example_has_the_error_of_its_classical_map(one: Example) -> None:
    assert one.features.shape == (CHANNELS, *SHAPE) and one.base.shape == one.chi.shape == SHAPE
    off = (one.base.float() - one.chi.float())[one.inside]
    assert float(off.square().mean()) == pytest.approx(one.error, rel=0.02)


def test_a_hopeless_scan_is_no_example() -> None:
    p = phantom()
    assert example(Given(p.field.flip(0), p.weight, p.dipole), p.chi, p.weight > 0) is None


def test_all_parts_of_a_crop_are_turned_alike(one: Example) -> None:
    ramp = torch.arange(float(one.base.numel())).view(SHAPE) % 97 / 97
    marked = Example(one.features * 0 + ramp, ramp, ramp, one.inside, 1.0)
    for number in range(8):
        z, base, chi, inside = crop(marked, random.Random(number))
        assert base.shape == (train.CROP,) * 3 and torch.equal(base, chi)
        assert float((z[0] - base)[inside].abs().max()) < 0.01


def test_beyond_the_volume_the_field_is_not_measured(one: Example) -> None:
    z, base, _, inside = crop(one, random.Random(0))
    assert float(inside.float().mean()) < 1 and bool((z[train.NOISE][~inside] == OUTSIDE).all())
    assert not bool(base[~inside].any())


def test_a_network_that_knows_nothing_leaves_the_classical_map_and_learns(one: Example) -> None:
    trainer = Trainer(0, 0.003)
    first, classical = trainer.step([one], 0.0)
    assert first == pytest.approx(classical, rel=1e-4)
    before = [w.detach().clone() for w in trainer.network.parameters()]
    trainer.step([one], 0.5)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))


def test_a_checkpoint_goes_on_where_it_was(one: Example, tmp_path: Path) -> None:
    trainer = Trainer(0, 0.001)
    trainer.step([one], 0.0)
    torch.save(trainer.state(), tmp_path / "checkpoint.pt")
    again = Trainer(5, 0.001)
    again.resume(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert again.steps == 1
    for name, value in trainer.mean.state_dict().items():
        assert torch.equal(value, again.mean.state_dict()[name])


def test_examples_are_read_once(one: Example, tmp_path: Path) -> None:
    save_example(one, tmp_path / "a.pt")
    known = load_examples(tmp_path, {})
    save_example(one, tmp_path / "b.pt")
    both = load_examples(tmp_path, known)
    assert list(both) == [tmp_path / "a.pt", tmp_path / "b.pt"]
    assert both[tmp_path / "a.pt"] is known[tmp_path / "a.pt"]
    assert torch.equal(both[tmp_path / "b.pt"].features, one.features)


def test_a_number_makes_one_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "SIZES", (((8.0, 8.0, 8.0), (1, 1, 1), 1),))
    (first, cell), (again, _), (other, another) = (random_scan(number, []) for number in (7, 7, 8))
    assert torch.equal(first.signal, again.signal)
    assert cell != another and not torch.equal(first.local_ppm, other.local_ppm)


def test_the_shipped_weights_are_those_of_their_card() -> None:
    tensors, card = weights.load("dip")
    assert card["inputs"] == CHANNELS and card["patients"] == "none" and card["licence"] == "Apache-2.0"
    assert all(value.dtype == torch.float32 for value in tensors.values())
    assert (weights.FOLDER / "dip.safetensors").stat().st_size == card["bytes"] < 20e6


def test_weights_that_are_not_those_of_their_card_are_refused(tmp_path: Path) -> None:
    weights.store("net", {"a": torch.ones(3)}, {"name": "net"}, tmp_path)
    tensors, card = weights.load("net", tmp_path)
    assert torch.equal(tensors["a"], torch.ones(3)) and card["name"] == "net"
    content = bytearray((tmp_path / "net.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "net.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="hash"):
        weights.load("net", tmp_path)
    with pytest.raises(ValueError, match="finite"):
        weights.store("net", {"a": torch.tensor([1e9])}, {}, tmp_path)


def test_the_command_makes_examples_trains_and_writes_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(scans, "SIZES", (((6.0, 6.0, 6.0), (1, 1, 1), 1),))
    words = ["train", "dip", str(tmp_path), "--scans", "1", "--minutes", "0.01", "--first", "3"]
    assert execute(words) == 0
    card = json.loads((tmp_path / "dip.json").read_text())
    assert card["steps"] > 0 and weights.load("dip", tmp_path)[1] == card
    assert execute(words) == 0 and "going on from step" in capsys.readouterr().err
    assert json.loads((tmp_path / "dip.json").read_text())["steps"] > card["steps"]


def test_another_method_and_a_missing_folder_are_refused(tmp_path: Path, capsys: Any) -> None:
    assert execute(["train", "cnn", str(tmp_path)]) == 2
    assert execute(["train", "dip", str(tmp_path), "--labels", str(tmp_path / "none")]) == 13
