"""Training: batches line up, steps learn, a checkpoint goes on, several processes hold the same weights."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from test_classical import SHAPE, phantom
from together import ABOUT, TINY, one_of_two, tiny_lesson, tiny_map, tiny_trainer
from torch.multiprocessing.spawn import spawn

from flows.cli import execute
from flows.train import diffusion, scans
from flows.train.pool import AHEAD, FIRST, Pool, Sources
from flows.train.scans import random_scan
from models import weights
from models.diffusion.training import CROP, Held
from models.diffusion.unconditional import unconditional
from models.dip import training as dip
from models.dip.training import Example, crop, example, load_examples, save_example
from models.seen import CHANNELS, OUTSIDE, Given
from models.train import Trainer, corner, cube, go_on, train
from pipeline.errors import ChironError


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
        assert base.shape == (dip.CROP,) * 3 and torch.equal(base, chi)
        assert float((z[0] - base)[inside].abs().max()) < 0.01


def test_beyond_the_volume_the_field_is_not_measured(one: Example) -> None:
    z, base, _, inside = crop(one, random.Random(0))
    assert float(inside.float().mean()) < 1 and bool((z[dip.NOISE][~inside] == OUTSIDE).all())
    assert not bool(base[~inside].any())


@pytest.mark.parametrize("shape", [(20, 60, 33), (90, 49, 48)])
def test_a_cube_is_cut_where_it_was_meant_and_is_a_quarter_inside(shape: tuple[int, int, int]) -> None:
    volume = torch.arange(1.0, 1 + shape[0] * shape[1] * shape[2]).view(shape)
    inside = torch.ones(shape, dtype=torch.bool)
    wide = torch.nn.functional.pad(volume, [CROP] * 6)
    for number in range(20):
        low = corner(inside, CROP, random.Random(number))
        cut = cube(volume, low, CROP)
        assert torch.equal(cut, wide[tuple(slice(a + CROP, a + 2 * CROP) for a in low)])
        assert float((cut > 0).float().mean()) > 0.25 or min(shape) < CROP


def test_a_network_that_knows_nothing_leaves_the_classical_map_and_learns(one: Example, tmp_path: Path) -> None:
    save_example(one, tmp_path / "a.pt")
    lesson = dip.Lesson(tmp_path, seed=0)
    lesson.refresh()
    trainer = Trainer(dip.network(), 0.003)
    trainer.step(lesson.loss, 0.0)
    assert lesson.squares[0] == pytest.approx(lesson.squares[1], rel=1e-4)
    before = [w.detach().clone() for w in trainer.network.parameters()]
    trainer.step(lesson.loss, 0.5)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))


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


def test_the_prior_learns_a_map_and_its_mean_weights_too() -> None:
    trainer, lesson, held = tiny_trainer(), tiny_lesson("1"), Held([tiny_map()], crops=2)
    before = held.losses(trainer.mean, trainer.device)
    for step in range(50):
        trainer.step(lesson.loss, step / 50)
    after = held.losses(trainer.mean, trainer.device)
    assert before == Held([tiny_map()], crops=2).losses(tiny_trainer().mean, trainer.device), "the same crops, noise"
    assert list(after) == ["0.1", "0.3", "1", "5"] and sum(after.values()) < 0.95 * sum(before.values())
    assert after["1"] < 0.85 * before["1"] and 0.5 < float(lesson.said().removeprefix("loss ")) < 1


def test_a_checkpoint_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    whole, stopped, again = tiny_trainer(), tiny_trainer(), tiny_trainer()
    for step in range(4):
        whole.step(tiny_lesson("1").loss, step / 4)
    checkpoint = tmp_path / "checkpoint.pt"
    for step in range(2):
        stopped.step(tiny_lesson("1").loss, step / 4)
    stopped.seconds = 30.0
    train(stopped, tiny_lesson("1"), 0.0, checkpoint, ABOUT, print)
    assert go_on(again, checkpoint, ABOUT) and (again.steps, again.seconds) == (2, 30.0)
    for step in range(2, 4):
        again.step(tiny_lesson("1").loss, step / 4)
    assert same(whole.mean, again.mean) and same(whole.network, again.network)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_checkpoint_of_something_else_is_refused_and_bad_weights_are_not_kept(tmp_path: Path) -> None:
    checkpoint, trainer = tmp_path / "checkpoint.pt", tiny_trainer()
    assert not go_on(trainer, checkpoint, ABOUT)
    train(trainer, tiny_lesson("1"), 0.0, checkpoint, ABOUT, print)
    with pytest.raises(ValueError, match=r"channels \[4, 8\]"):
        go_on(trainer, checkpoint, {**ABOUT, "channels": [4, 16]})
    kept = checkpoint.read_bytes()
    with torch.no_grad():
        next(trainer.network.parameters())[:] = torch.nan
    with pytest.raises(ArithmeticError, match="step 0"):
        train(trainer, tiny_lesson("1"), 0.0, checkpoint, ABOUT, print)
    assert checkpoint.read_bytes() == kept
    checkpoint.write_bytes(kept[:99])
    with pytest.raises(ValueError, match="no checkpoint"):
        go_on(trainer, checkpoint, ABOUT)


def test_two_processes_learn_from_other_crops_and_hold_the_same_weights(tmp_path: Path) -> None:
    spawn(one_of_two, (tmp_path,), 2)
    a, b = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    trainer = tiny_trainer()
    assert go_on(trainer, tmp_path / "checkpoint.pt", ABOUT) and trainer.steps > 0
    alone = tiny_trainer()
    while alone.steps < trainer.steps:
        alone.step(tiny_lesson("0").loss, 0.5)
    assert not same(alone.network, trainer.network), "the other's crops count too"


def test_samples_of_a_prior_that_knows_one_value_are_that_value() -> None:
    class Knows(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
            return torch.full_like(noisy, 0.7)

    class Wiener(torch.nn.Module):  # of independent voxels with variance 1 and mean 0
        def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
            return noisy / (1 + sigma.view(-1, 1, 1, 1) ** 2)

    cpu = torch.device("cpu")
    assert torch.allclose(unconditional(Knows(), 2, 8, 5, cpu, seed=1), torch.tensor(0.7))
    assert float(unconditional(Wiener(), 2, 16, 100, cpu, seed=1).std()) == pytest.approx(1, abs=0.05)


def nifti(file: Path, values: np.ndarray, zooms: Sequence[float] = (1, 1, 1)) -> Path:
    nib.save(nib.Nifti1Image(values, np.diag([*zooms, 1.0])), file)
    return file


def test_a_sites_own_maps_are_read_and_files_of_no_use_are_told_by_their_place(tmp_path: Path) -> None:
    values = np.zeros((9, 8, 7, 1), np.float32)
    values[2:7, 2:6, 1:6] = np.random.default_rng(0).normal(0.02, 0.05, (5, 4, 5, 1))
    good = nifti(tmp_path / "Doe^Jane.nii.gz", values, (0.5, 0.5, 2.0))
    one = Sources(1, own=(good,)).of_site(0)
    assert one.voxel_size_mm == (0.5, 0.5, 2.0) and one.kind == "own" and int(one.inside.sum()) == 100
    assert abs(float(one.chi_ppm.sum())) < 1e-4 and float(one.chi_ppm.std()) > 0.01
    drawn = [Sources(1, own=(good,)).make(n) for n in (0, 2, 3, 5) if random.Random(f"1 {n}").random() < 0.5]
    assert all(d.kind == "own" for d in drawn)
    broken = tmp_path / "broken.nii"
    broken.write_bytes(nifti(tmp_path / "whole.nii", values).read_bytes()[:-900])
    flat = nifti(tmp_path / "flat.nii", values[:, :, 0, 0])
    hertz = nifti(tmp_path / "hertz.nii", 1000 * values)
    empty = nifti(tmp_path / "empty.nii", 0 * values)
    for bad in (broken, flat, hertz, empty):
        with pytest.raises(ChironError, match="X002: own map 2: ") as caught:
            Sources(1, own=(good, bad)).check()
        assert bad.stem not in str(caught.value)
    codes, thick = values[..., 0].astype(np.int16) + 999, nifti(tmp_path / "thick.nii", values, (1, 1, 2))
    for bad in (nifti(tmp_path / "codes.nii", codes), thick):
        with pytest.raises(ChironError, match="X002: label map 1: "):
            Sources(1, labels=(bad,)).check()


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the first maps are made already."""
    monkeypatch.setattr(diffusion, "CONFIGS", {"small": diffusion.Config(TINY, 2), "full": diffusion.Config((4, 4), 2)})
    monkeypatch.setattr(diffusion, "SAMPLING", 3)
    (tmp_path / "maps").mkdir()
    for number in [*range(FIRST + AHEAD), *diffusion.HELD]:
        torch.save((*tiny_map(), (1.0, 1.0, 2.0), "shapes"), tmp_path / "maps" / f"{number}.pt")
    return tmp_path


def test_the_command_trains_a_prior_and_refuses_to_go_on_with_another_configuration(
    prepared: Path, capsys: Any
) -> None:
    words = ["train", "diffusion", str(prepared), "--device", "cpu", "--workers", "1"]
    assert execute([*words, "--minutes", "0.02"]) == 0
    card = json.loads((prepared / "diffusion.json").read_text())
    assert card["steps"] > 0 and card["channels"] == list(TINY) and weights.load("diffusion", prepared)[1] == card
    assert set(card["validation"]) == {"0.1", "0.3", "1", "5"} and card["patients"] == "none"
    assert (card["limit_ppm"], card["patch"], card["voxel_mm"]) == (0.4, 48, [0.6, 2.5])
    assert all((prepared / f"{name}.png").stat().st_size > 1000 for name in ("maps", "samples"))
    assert execute([*words, "--config", "full"]) == 2 and "X002" in capsys.readouterr().err
    assert execute([*words, "--config", "huge"]) == 15
    assert execute([*words, "--device", "cpu,cuda:99"]) == 16


@pytest.mark.slow
def test_two_devices_train_by_the_command(prepared: Path) -> None:
    words = ["train", "diffusion", str(prepared), "--device", "cpu,cpu", "--workers", "1", "--minutes", "0.02"]
    assert execute(words) == 0
    assert json.loads((prepared / "diffusion.json").read_text())["batch"] == 4


def test_a_maker_that_dies_or_finds_a_bad_file_ends_the_training(tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii"
    bad.write_bytes(b"no image")
    pool = Pool(Sources(0, own=(bad,)), tmp_path / "a", 1)
    try:
        own = next(n for n in range(9) if random.Random(f"0 {n}").random() < 0.5)
        pool.order(pool.sources, [own])
        with pytest.raises(ChironError, match="X002: own map 1"):
            pool.get(own)
        assert pool.makers
        pool.coming[own] = pool.makers.submit(os._exit, 1)  # type: ignore[assignment]
        with pytest.raises(ChironError, match="has died"):
            pool.get(own)
        with pytest.raises(ChironError, match="has died"):
            pool.order(pool.sources, [own])
    finally:
        pool.close()


def test_a_pool_forgets_old_maps_and_asks_for_those_still_wanted_alone(tmp_path: Path) -> None:
    pool = Pool(Sources(0), tmp_path, workers=0)
    for number in range(100, 100 + FIRST + 96):
        torch.save((*tiny_map(), (1.0, 1.0, 2.0), "shapes"), pool.file(number))
    newest = 100 + 96
    assert len(pool((newest - FIRST) * 100)) == 96 and min(pool.ready) == 100
    assert len(pool((newest + 1 - FIRST) * 100)) == 96 and min(pool.ready) == 101


def test_the_command_makes_examples_trains_and_writes_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(scans, "SIZES", (((6.0, 6.0, 6.0), (1, 1, 1), 1),))
    words = ["train", "dip", str(tmp_path), "--scans", "1", "--first", "3", "--device", "cpu"]
    assert execute([*words, "--minutes", "0.01"]) == 0
    card = json.loads((tmp_path / "dip.json").read_text())
    assert card["steps"] > 0 and weights.load("dip", tmp_path)[1] == card
    assert execute([*words, "--minutes", "0.03"]) == 0 and "going on from step" in capsys.readouterr().err
    assert json.loads((tmp_path / "dip.json").read_text())["steps"] > card["steps"]


def test_another_method_its_options_and_a_missing_folder_are_refused(tmp_path: Path, capsys: Any) -> None:
    assert execute(["train", "cnn", str(tmp_path)]) == 2
    assert execute(["train", "dip", str(tmp_path), "--config", "full"]) == 2
    assert execute(["train", "diffusion", str(tmp_path), "--scans", "3"]) == 2
    assert "--scans is not for diffusion" in capsys.readouterr().err
    assert execute(["train", "dip", str(tmp_path), "--device", "cpu,cpu"]) == 15
    assert execute(["train", "diffusion", str(tmp_path), "--maps", str(tmp_path)]) == 2
    assert "no own map" in capsys.readouterr().err
    for method in ("dip", "diffusion"):
        assert execute(["train", method, str(tmp_path), "--labels", str(tmp_path / "none")]) == 13
        assert execute(["train", method, str(tmp_path), "--device", "abacus"]) == 16


@pytest.mark.parametrize("name", ["dip", "diffusion"])
def test_the_shipped_weights_are_those_of_their_card(name: str) -> None:
    tensors, card = weights.load(name)
    assert card["patients"] == "none" and card["licence"] == "Apache-2.0"
    assert all(value.dtype == torch.float32 for value in tensors.values())
    assert (weights.FOLDER / f"{name}.safetensors").stat().st_size == card["bytes"] < 40e6


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
