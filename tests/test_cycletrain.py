"""CycleQSM's training: what a crop is, what is learned, what comes of maps, scans and a site's own fields."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flows.cli import execute
from flows.train import cyclegan, examples, scans
from flows.train.examples import APART, MapExamples, Shelf, block, own_fields, simulated_fields
from flows.train.plan import Plan
from flows.train.pool import AHEAD, FIRST, STEPS
from flows.train.scans import Shown
from models import weights
from models.cyclegan import crops, form
from models.cyclegan import scanned as scanning
from models.cyclegan.critic import Critic, hinge, wasserstein
from models.cyclegan.crops import Example, cut, example, save_example
from models.cyclegan.form import Form
from models.cyclegan.held import Held
from models.cyclegan.network import told
from models.cyclegan.scanned import TILT, Scanned, scanned
from models.cyclegan.training import Lesson
from models.dipole import Dipole
from models.maps import Map
from models.seen import Given
from models.train import Trainer, Turn, go_on, train
from pipeline.errors import ChironError
from pipeline.publish.nifti import image_bytes
from pipeline.publish.sidecars import sidecar
from pipeline.volumes import Grid

SHAPE, VOXEL, B0 = (20, 22, 18), (1.0, 1.2, 1.6), (0.6, 0.0, 0.8)
TINY, CROP = (4, 8), 24
NOTHING = Form(consistency=False, adversary="none")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(form, "WIDTHS", TINY)
    monkeypatch.setattr(crops, "CROP", CROP)
    crops._dipole.cache_clear()  # of crops of this size alone
    yield
    crops._dipole.cache_clear()


def tiny_map(strength: float = 1.0) -> Map:
    """Blocks of 4 voxels in an ellipsoid."""
    coarse = torch.randn(5, 6, 5, generator=torch.Generator().manual_seed(3))
    chi = coarse.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    chi = 0.05 * strength * chi[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    x, y, z = (torch.linspace(-1, 1, n) for n in SHAPE)
    inside = x[:, None, None] ** 2 + y[:, None] ** 2 + z**2 < 1
    return Map(torch.where(inside, chi - chi[inside].mean(), 0), inside, VOXEL, "procedural")


def seen(one: Map, scan: Scanned) -> Given:
    return Given(scan.field_ppm, scan.weight, Dipole(SHAPE, VOXEL, scan.b0_dir, padding=0.2))


@pytest.fixture(scope="module")
def one() -> Example:
    made = tiny_map()
    return example(seen(made, scanned(made.chi_ppm, made.inside, VOXEL, 4)), made.chi_ppm)


@pytest.fixture(scope="module")
def field(one: Example) -> Example:
    return Example(**{**vars(one), "chi": None, "size": float(one.left.float()[one.mask].abs().mean()) * 0.05})


def lesson_of(one: Example, field: Example, form: Form) -> Lesson:
    torch.manual_seed(0)
    return Lesson(lambda step: [field], lambda step: [one], form, "1", 0.003)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_network_that_knows_nothing_leaves_the_classical_map_and_one_learns(one: Example, field: Example) -> None:
    lesson, held = lesson_of(one, field, NOTHING), Held([one], NOTHING)
    trainer = Trainer(NOTHING.network(), 0.02)
    before = held.measured(trainer.mean, CPU)
    assert before["error_over_tv"] == pytest.approx(1) and before["misfit_over_tv"] == pytest.approx(1)
    assert before == Held([one], NOTHING).measured(trainer.mean, CPU), "the same crops"
    lesson.loss(trainer.network, CPU, 0)
    assert 0.8 < float(lesson.said().split()[1]) < 1.1
    for step in range(25):
        trainer.step(lesson.loss, step / 60)
    assert held.measured(trainer.network, CPU)["error_over_tv"] < 0.85


def test_data_consistency_leaves_less_of_the_field(one: Example) -> None:
    network = Form().network()
    with torch.no_grad():
        network.tenths.fill_(-0.3)
    found = Held([one], Form()).measured(network, CPU)
    assert found["misfit_over_tv"] < 0.9 and found["slope"] > 0.5


def test_a_crop_as_it_is_has_its_own_strength_and_a_turned_one_its_own_geometry(one: Example) -> None:
    for number in range(6):
        crop, again = (cut(one, Form(), random.Random(number), as_it_is=True) for _ in range(2))
        assert torch.equal(crop.seen, again.seen) and crop.size == one.size
        assert float(crop.base.abs().max()) == pytest.approx(float(one.base.abs().max()))
        turned = told(crop.turn.sizes(one.voxel_size_mm), crop.turn.direction(one.b0_dir))
        assert torch.equal(crop.told, turned)
    sizes = {round(cut(one, Form(), random.Random(number)).size / one.size, 3) for number in range(6)}
    assert len(sizes) == 6


def test_a_turned_scan_is_that_of_the_turned_geometry() -> None:
    chi = tiny_map().chi_ppm
    field = Dipole(SHAPE, VOXEL, B0).forward(chi)
    for number in range(6):
        turn = Turn.random(random.Random(number))
        there = turn.apply(chi)
        assert torch.equal(turn.undo(there), chi)
        assert torch.equal(turn.undo(turn.apply(torch.stack([chi, field]))), torch.stack([chi, field]))
        own = Dipole(there.shape, turn.sizes(VOXEL), turn.direction(B0)).forward(there)
        assert torch.allclose(own, turn.apply(field), atol=1e-5)
    assert torch.allclose(told(VOXEL, B0), told(VOXEL, [-b for b in B0])), "B0's sign does not matter"


def test_training_goes_on_as_if_never_stopped_and_the_critic_too(one: Example, field: Example, tmp_path: Path) -> None:
    form = Form(begins=0, ramp=1)

    def fresh() -> tuple[Trainer, Lesson]:
        lesson = lesson_of(one, field, form)
        return Trainer(form.network(), 0.003, beside=lesson.beside()), lesson

    (whole, long), (stopped, first), (again, last) = fresh(), fresh(), fresh()
    for step in range(4):
        whole.step(long.loss, step / 4)
    for step in range(2):
        stopped.step(first.loss, step / 4)
    train(stopped, first, 0.0, tmp_path / "checkpoint.pt", {"method": "cyclegan"}, print)
    assert not same(last.critic, first.critic) and go_on(again, tmp_path / "checkpoint.pt", {"method": "cyclegan"})
    for step in range(2, 4):
        again.step(last.loss, step / 4)
    assert same(whole.network, again.network) and same(whole.mean, again.mean) and same(long.critic, last.critic)


@pytest.mark.parametrize("adversary", ["hinge", "wgan-gp"])
def test_a_critic_learns_to_tell_maps_from_what_was_made(adversary: str) -> None:
    torch.manual_seed(0)
    critic = Critic(adversary == "hinge")
    optimiser = torch.optim.Adam(critic.parameters(), lr=0.002)
    inside, sizes = torch.ones(2, 16, 16, 16, dtype=torch.bool), torch.zeros(2, 3)
    smooth = torch.linspace(-2, 2, 16).expand(2, 16, 16, 16)
    real, made = (smooth, inside, sizes), (smooth + torch.randn(2, 16, 16, 16), inside, sizes)

    def gap() -> float:
        with torch.no_grad():
            return float(critic(*real).mean() - critic(*made).mean())

    before = gap()
    for _ in range(15):
        between = torch.full((2, 1, 1, 1), 0.5)
        value = (
            hinge(critic(*real), critic(*made)) if adversary == "hinge" else wasserstein(critic, real, made, between)
        )
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert gap() > before + 0.1


def test_a_scan_is_the_same_by_number_as_noisy_as_it_says_and_its_background_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = tiny_map()
    scan, again, other = (scanned(made.chi_ppm, made.inside, VOXEL, n) for n in (1, 1, 2))
    assert torch.equal(scan.field_ppm, again.field_ppm) and scan.b0_dir == again.b0_dir != other.b0_dir
    assert all(scanned(made.chi_ppm, made.inside, VOXEL, n).b0_dir[2] > 0.999 * 2**-0.5 for n in range(9)), TILT
    for number in range(4):
        noise = scanned(0 * made.chi_ppm, made.inside, VOXEL, number)
        mask = noise.weight > 0
        assert not bool((mask & ~made.inside).any()) and not bool(noise.field_ppm[~mask].any())
        assert float((noise.field_ppm * noise.weight)[mask].std()) == pytest.approx(1, abs=0.1)
    monkeypatch.setattr(scanning, "NOISE_PPM", (1e-9, 1e-9))
    monkeypatch.setattr(scanning, "STEEP", 0.0)
    shares = []
    for number in range(8):
        scan = scanned(made.chi_ppm, made.inside, VOXEL, number)
        mask = scan.weight > 0
        true = Dipole(SHAPE, VOXEL, scan.b0_dir, padding=scanning.PADDING).forward(made.chi_ppm)
        shares.append(float((scan.field_ppm - true)[mask].std() / true[mask].std()))
    assert 0.02 < max(shares) <= scanning.BACKGROUND * 1.001


class Drawn:
    """Maps of which the first is lost in noise."""

    seed = 1

    def __init__(self) -> None:
        self.asked: list[int] = []

    def make(self, number: int) -> Map:
        self.asked.append(number)
        return tiny_map(1e-3 if number < APART else 1.0)


def test_a_hopeless_map_is_drawn_again_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "TRIES", 2)
    maps: Any = Drawn()
    one, again = MapExamples(maps).make(5), MapExamples(maps).make(5)
    assert maps.asked == [5, 5 + APART] * 2 and one.chi is not None
    assert torch.equal(one.features, again.features) and one.b0_dir == again.b0_dir
    monkeypatch.setattr(examples, "APART", 1)
    with pytest.raises(ChironError, match="X002: 2 maps"):
        MapExamples(maps).make(5)


def test_a_large_volume_is_cut_to_a_block_with_much_inside(monkeypatch: pytest.MonkeyPatch, one: Example) -> None:
    assert one.mask[block(one.mask, random.Random(0))].shape == SHAPE
    monkeypatch.setattr(examples, "EDGE", 12)
    inside = torch.zeros(40, 40, 8, dtype=torch.bool)
    inside[20:] = True
    boxes = [block(inside, random.Random(number)) for number in range(8)]
    assert len(set(map(str, boxes))) == 8 and all(inside[box].shape == (12, 12, 8) for box in boxes)
    assert all(float(inside[box].float().mean()) > 0.3 for box in boxes)
    part = examples.part(one, block(one.mask, random.Random(1)))
    assert part.features.shape[1:] == part.base.shape == part.mask.shape == (12, 12, 12)


def published(folder: Path, name: str, ppm: Tensor, b0: tuple[float, float, float] = B0, **changed: Any) -> Path:
    """A local field as it is published, its sidecar changed."""
    grid = Grid.simple(ppm.shape, VOXEL, b0)
    convert = {"grid": grid.json(), "echo_times_s": [0.01], "b0_tesla": 3.0}
    file = folder / f"sub-{name}" / "ses-1" / "anat" / f"sub-{name}_desc-local_fieldmap.nii.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(image_bytes(ppm, grid))
    said = {**json.loads(sidecar(convert, Units="ppm")), **changed}
    file.with_name(f"sub-{name}_desc-local_fieldmap.json").write_text(json.dumps(said))
    return file


def tiny_field(number: int) -> Tensor:
    made = tiny_map()
    scan = scanned(made.chi_ppm, made.inside, VOXEL, number)
    return torch.nn.functional.pad(scan.field_ppm, (5, 5, 0, 0, 3, 3))


def test_a_sites_own_fields_are_read_as_published_and_prepared_once(tmp_path: Path) -> None:
    told: list[str] = []
    published(tmp_path / "site", "doe", tiny_field(1))
    (stored,) = own_fields(tmp_path / "site", tmp_path / "fields", told.append)
    one = crops.load_example(stored)
    assert one.voxel_size_mm == pytest.approx(VOXEL) and one.b0_dir == pytest.approx(B0) and one.chi is None
    assert int(one.mask.sum()) == int(tiny_field(1).count_nonzero()) and one.mask.shape < tiny_field(1).shape
    assert 0 < one.size < 0.05 and abs(float(one.left.float()[one.mask].mean())) < 1e-3
    was = stored.stat().st_mtime_ns
    published(tmp_path / "site", "abel", tiny_field(2))
    both = own_fields(tmp_path / "site", tmp_path / "fields", told.append)
    assert len(both) == 2 and stored in both and stored.stat().st_mtime_ns == was
    assert not any(name in word for name in ("doe", "abel", str(tmp_path)) for word in [*told, *(f.name for f in both)])


def test_fields_of_no_use_are_told_by_their_place(tmp_path: Path) -> None:
    with pytest.raises(ChironError, match="S003"):
        own_fields(tmp_path / "none", tmp_path / "fields", print)
    with pytest.raises(ChironError, match="X002: no own field"):
        own_fields(tmp_path, tmp_path / "fields", print)
    good = tiny_field(1)
    published(tmp_path / "a", "abel", good)
    bad = {
        "zoe1": (good[..., :12], {}),
        "zoe2": (good * 1e4, {}),
        "zoe3": (0 * good, {}),
        "zoe4": (good, {"B0Direction": [0, 0, 0]}),
        "zoe5": (good, {"B0Direction": None}),
        "zoe6": (good, {"Units": "Hz"}),
    }
    for name, (ppm, changed) in bad.items():
        published(tmp_path / "a", name, ppm, **changed)
        with pytest.raises(ChironError, match="X002: own field 2: ") as caught:
            own_fields(tmp_path / "a", tmp_path / "fields", print)
        assert "zoe" not in str(caught.value)
        for file in (tmp_path / "a" / f"sub-{name}").rglob("*.*"):
            file.unlink()
    file = published(tmp_path / "a", "zoe7", good)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ChironError, match="X002: own field 2: "):
        own_fields(tmp_path / "a", tmp_path / "fields", print)
    published(tmp_path / "a", "zoe7", good).with_name("sub-zoe7_desc-local_fieldmap.json").unlink()
    with pytest.raises(ChironError, match="X002: own field 2: no sidecar"):
        own_fields(tmp_path / "a", tmp_path / "fields", print)
    assert not (tmp_path / "fields").exists(), "before any is prepared"


def test_fields_of_simulated_scans_are_kept_without_their_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_map()
    given = seen(made, scanned(made.chi_ppm, made.inside, VOXEL, 1))
    cell = SimpleNamespace(voxel_mm=VOXEL, snr=50.0, b0_tesla=3.0)
    drawn: list[int] = []
    monkeypatch.setattr(scans, "random_scan", lambda number, maps: (drawn.append(number), cell))
    shown = [Shown(name, given, made.chi_ppm, made.inside) for name in ("dipole", "whole")]
    monkeypatch.setattr(scans, "scan_fields", lambda scan, cell: iter(shown))
    plan = Plan(scans=2, first=7)
    files = simulated_fields(plan, [], tmp_path, print)
    assert [file.name for file in files] == ["7-dipole.pt", "7-whole.pt", "8-dipole.pt", "8-whole.pt"]
    assert files == simulated_fields(plan, [], tmp_path, print) and drawn == [7, 8]
    assert crops.load_example(files[0]).chi is None
    shelf = Shelf(files, most=3)
    assert len(shelf(0)) == 3 and shelf(0)[0] is shelf(STEPS - 1)[0]
    kept = shelf(0)[1]
    assert shelf(STEPS)[0] is kept and list(shelf.ready) == files[1:]
    monkeypatch.setattr(scans, "scan_fields", lambda scan, cell: iter([]))
    with pytest.raises(ChironError, match="X002: no field"):
        simulated_fields(plan, [], tmp_path / "b", print)


def test_the_command_trains_by_own_fields_and_goes_on(
    one: Example, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(cyclegan, "CHECKED", 100)
    out = tmp_path / "out"
    (out / "maps").mkdir(parents=True)
    for number in [*range(FIRST + AHEAD), *cyclegan.HELD]:
        save_example(one, out / "maps" / f"{number}.pt")
    published(tmp_path / "site", "doe", tiny_field(1))
    words = ["train", "cyclegan", str(out), "--fields", str(tmp_path / "site"), "--device", "cpu", "--workers", "1"]
    assert execute([*words, "--minutes", "0.02"]) == 0
    card = json.loads((out / "cyclegan.json").read_text())
    tensors, found = weights.load("cyclegan", out)
    assert found == card and card["steps"] > 0 and card["channels"] == list(TINY) and "tenths" in tensors
    assert (card["inputs"], card["outputs"], card["patch"]) == (7, 2, 48) and card["form"]["adversary"] == "hinge"
    assert card["patients"] == "1 fields of a site" and card["licence"] == "that of the site's data"
    assert set(card["validation"]) == {"error_over_tv", "worst_over_tv", "slope", "misfit_over_tv"}
    assert (out / "validation.png").stat().st_size > 1000
    assert execute([*words, "--minutes", "0.04"]) == 0
    told = capsys.readouterr()
    assert "going on from step" in told.err and "cyclegan.safetensors" in told.out and "doe" not in told.err
    rows = list(csv.DictReader((out / "validation.csv").read_text().splitlines()))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps)) and steps[0] == card["steps"] < steps[-1]
    assert float(rows[-1]["slope"]) == json.loads((out / "cyclegan.json").read_text())["validation"]["slope"]
    assert execute([*words, "--adversary", "none"]) == 2 and "X002" in capsys.readouterr().err


def test_what_is_none_is_refused(tmp_path: Path) -> None:
    words = ["train", "cyclegan", str(tmp_path / "out"), "--device"]
    assert execute([*words, "cpu", "--preset", "odd"]) == execute([*words, "cpu", "--adversary", "lsgan"]) == 15
    assert execute([*words, "cpu,cpu"]) == 15
    assert execute([*words, "cpu", "--fields", str(tmp_path / "none")]) == 13
    assert execute([*words, "cpu", "--maps", str(tmp_path)]) == 2
    assert execute(["train", "dip", str(tmp_path / "out"), "--preset", "seed"]) == 2


def test_the_plain_form_sees_the_field_alone(one: Example) -> None:
    form = cyclegan._form(Plan(preset="seed"))
    assert form.plain and not form.consistency and form.adversary == "wgan-gp"
    assert cyclegan._form(Plan(preset="seed", adversary="none")).adversary == "none"
    assert cut(one, form, random.Random(0)).seen.shape == (1, CROP, CROP, CROP)
    network = form.network()
    found = Held([one], form).measured(network, CPU)
    assert found["error_over_tv"] > 1 and found["slope"] == pytest.approx(0, abs=1e-6)
