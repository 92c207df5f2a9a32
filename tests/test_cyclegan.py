"""CycleQSM: one map whole or in tiles, data consistency that solves its equation, mirror images, plain form, a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from flows.cli import execute
from flows.demo import simulate
from models import cyclegan
from models.cyclegan import CycleGAN, Found
from models.cyclegan.network import CycleNet, consistent
from models.dipole import Dipole
from models.seen import CHANNELS, NOISE_PPM, Given
from pipeline.errors import ChironError
from pipeline.find import find
from pipeline.invert import check_weights, invert
from pipeline.publish import publish, read_manifests, verify
from pipeline.recipe import Job, reconstruct
from pipeline.report.curves import curves
from pipeline.report.found import look
from pipeline.settings import load
from pipeline.volumes import Field, Grid

SIZE, B0 = (1.0, 1.2, 1.6), (0.3, -0.4, 0.85)
CARD = {"channels": [4, 8], "voxel_mm": [0.6, 2.5], "thickest_mm": 3.5, "tilt_deg": 20}
PLAIN = CycleGAN(precision="float32")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small random weights in place of the shipped ones."""

    def learned(preset: str = "default") -> tuple[dict[str, Tensor], dict[str, Any]]:
        plain = preset == "seed"
        card = {**CARD, "inputs": 1 if plain else CHANNELS, "outputs": 1 if plain else 2}
        network = CycleNet(card["inputs"], (4, 8), card["outputs"], not plain)
        random = torch.Generator().manual_seed(1)
        made = {k: 0.04 * torch.randn(v.shape, generator=random) for k, v in network.state_dict().items()}
        return made, {**card, "name": preset, "sha256": preset.ljust(64, "0")}

    monkeypatch.setattr(cyclegan, "learned", learned)


def head(shape: tuple[int, int, int], b0_dir: tuple[float, ...] = B0) -> Given:
    """An ellipsoid of smooth random chi: its noisy field."""
    random = torch.Generator().manual_seed(0)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    inside = sum(a**2 for a in torch.meshgrid(*axes, indexing="ij")) < 0.9
    chi = torch.nn.functional.avg_pool3d(torch.randn(1, 1, *shape, generator=random), 3, 1, 1)[0, 0] * inside
    dipole = Dipole(shape, SIZE, b0_dir, padding=0.2)
    field = dipole.forward(0.2 * chi) + 0.002 * torch.randn(shape, generator=random)
    field = torch.where(inside, field - field[inside].mean(), 0)
    return Given(field, inside / 0.002, dipole)


def run(given: Given, **changes: Any) -> Found:
    return cyclegan.reconstruct(given.field, given.weight, given.dipole, replace(PLAIN, **changes))


@pytest.mark.parametrize("preset", ["default", "seed"])
@pytest.mark.parametrize("refine", [0, 2])
def test_tiles_give_the_map_of_the_whole(preset: str, refine: int) -> None:
    given = head((83, 9, 7))
    whole, tiled = (run(given, preset=preset, refine=refine, rate=0.001, tile=tile) for tile in (0, 16))
    torch.testing.assert_close(tiled.chi_ppm, whole.chi_ppm, rtol=0, atol=1e-5)
    assert float((whole.chi_ppm - given.classical("tv")).abs().mean()) > 1e-3
    if preset == "default":
        torch.testing.assert_close(tiled.uncertainty_ppm, whole.uncertainty_ppm)


@pytest.mark.parametrize("shape", [(13, 9, 17), (8, 21, 10), (7, 7, 7)])
def test_any_shape_gives_a_map_of_the_mask_alone(shape: tuple[int, int, int]) -> None:
    given = head(shape)
    found = run(given, views=3, refine=1)
    assert found.uncertainty_ppm is not None and bool((found.uncertainty_ppm[given.mask] > 0).all())
    for volume in (found.chi_ppm, found.uncertainty_ppm):
        assert volume.shape == shape and bool(volume.isfinite().all()) and not volume.requires_grad
        assert not bool(volume[~given.mask].any())
    json.dumps(found.facts)


def test_data_consistency_solves_its_equation_where_the_weight_is_even() -> None:
    shape, sd, trust = (16, 18, 12), 0.003, torch.tensor(0.7, dtype=torch.float64)
    dipole = Dipole(shape, SIZE, B0, padding=0, dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    chi, left = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    left = left / left.abs().median() * 0.6745 * sd  # as much as the noise
    u = consistent(chi, left, torch.full(shape, 1 / sd), dipole, trust) - chi
    mu = float(trust.exp()) * (sd / NOISE_PPM) ** 2
    torch.testing.assert_close(dipole.forward(dipole.forward(u)) + mu * u, dipole.forward(left), rtol=0, atol=1e-9)
    assert abs(float(u.mean())) < 1e-9
    assert float((left - dipole.forward(u)).norm()) < 0.999 * float(left.norm())
    torch.testing.assert_close(consistent(chi, left, torch.ones(shape) / sd, dipole, trust + 60), chi)
    more = consistent(chi, 9 * left, torch.full(shape, 1 / sd), dipole, trust) - chi  # nine times what noise explains
    assert float(more.norm()) < 3 * float(u.norm())
    noisy = torch.full(shape, 1 / sd)
    noisy[:6] /= 10
    less = consistent(chi, left, noisy, dipole, trust) - chi
    assert float(less[:5].square().mean()) < 0.5 * float(less[7:].square().mean())


def test_data_consistency_brings_the_map_nearer_to_the_field_and_can_be_left_out() -> None:
    given = head((19, 16, 14))
    bare, ended = run(given, consistency=False), run(given)
    assert bare.facts["last_misfit"] == bare.facts["first_misfit"] == ended.facts["first_misfit"]
    assert ended.facts["last_misfit"] < ended.facts["first_misfit"]
    assert not torch.equal(bare.chi_ppm, ended.chi_ppm)


def test_a_fit_lowers_the_misfit_and_is_the_same_each_time() -> None:
    given, said = head((19, 16, 14)), []
    params = replace(PLAIN, refine=9, rate=0.001)
    found = cyclegan.reconstruct(
        given.field, given.weight, given.dipole, params, lambda share, word: said.append((share, word))
    )
    facts = found.facts
    assert len(facts["misfit"]) == 9 and facts["misfit"][0] == pytest.approx(facts["first_misfit"], rel=1e-4)
    assert facts["last_misfit"] < facts["refined_misfit"] < 0.95 * facts["first_misfit"]
    torch.rand(3)
    assert torch.equal(found.chi_ppm, run(given, refine=9, rate=0.001).chi_ppm)
    assert said[-1][0] == pytest.approx(1) and said[-1][1].startswith("step 9") and len(said) == 10


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_scan_has_the_mirrored_map_where_all_views_are_averaged(axis: int) -> None:
    given = head((16, 24, 16))
    mirrored_b0 = tuple(-b if i == axis else b for i, b in enumerate(B0))
    dipole = Dipole((16, 24, 16), SIZE, mirrored_b0, padding=0.2)
    mirrored = Given(given.field.flip(axis), given.weight.flip(axis), dipole)
    away = {}
    for views in (1, 8):
        here, there = (run(scan, views=views, consistency=False).chi_ppm for scan in (given, mirrored))
        away[views] = float((here.flip(axis) - there).abs().max())
    assert away[8] < 3e-4 < 3e-3 < away[1]


def test_the_plain_form_sees_the_field_alone_and_says_no_uncertainty() -> None:
    given = head((17, 14, 12))
    found = run(given, preset="seed")
    assert found.uncertainty_ppm is None and found.facts["last_misfit"] == found.facts["first_misfit"]
    other = Given(given.field, 3 * given.weight, Dipole(given.field.shape, (2, 1, 1), (0, 0, 1), padding=0.2))
    assert torch.equal(found.chi_ppm, run(other, preset="seed").chi_ppm)
    assert not torch.equal(found.chi_ppm, run(replace(given, field=1.1 * given.field), preset="seed").chi_ppm)
    assert not torch.allclose(run(given).chi_ppm, run(other).chi_ppm, atol=1e-3)


def test_it_is_told_b0_and_voxel_size() -> None:
    """The features being the same, another direction is another map; its opposite is not."""
    scan, turned, opposite = (
        cyclegan.Scan(head((16, 14, 12), b), PLAIN) for b in (B0, (0.9, 0.1, 0.4), (-0.3, 0.4, -0.85))
    )
    with torch.no_grad():
        away = [
            float((replace(scan.generator, told=other.generator.told).chi(scan.seen) - scan.answer()[0]).abs().max())
            for other in (turned, opposite)
        ]
    assert away[0] > 1e-4 > 1e-6 > away[1]


@pytest.mark.parametrize(("preset", "name"), [("default", "cyclegan"), ("seed", "cyclegan-seed")])
def test_weights_that_are_not_there_refuse_the_run_before_it_begins(
    preset: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    cyclegan.learned.cache_clear()

    def gone(name: str) -> None:
        raise ValueError(f"no weights {name}, or no card")

    monkeypatch.setattr("models.weights.load", gone)
    with pytest.raises(ChironError, match=rf"M003.*no weights {name},"):
        check_weights(load(method="cyclegan", cyclegan={"preset": preset}))


@pytest.mark.parametrize("preset", ["default", "seed"])
def test_a_direction_and_voxels_that_were_not_learned_are_told(preset: Any) -> None:
    given = head((19, 16, 14))
    sd = torch.full(given.field.shape, 0.002)
    told = {}
    for size, b0 in (((1, 1, 1), (0, 0.2, 1)), ((1, 4, 1), (0, 0.6, 0.8))):
        field = Field(given.field, sd, given.mask, Grid.simple(given.field.shape, size, b0))
        told[size] = invert(field, "cyclegan", replace(PLAIN, preset=preset)).facts["unlearned"].keys() - {"misfit"}
    assert told == {(1, 1, 1): set(), (1, 4, 1): {"voxels", "tilt"}}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("made"), "siemens", 6.0, 1).export


def test_a_run_publishes_map_uncertainty_and_the_classical_map_and_says_how(export: Path, tmp_path: Path) -> None:
    scan = find(export, b"k" * 32).scans[0]
    settings = load(words=["cyclegan.refine=2"], method="cyclegan", device="cpu")
    job = Job(scan, settings, tmp_path / "work")
    reconstruct(job)
    done = publish(job, tmp_path / "out")
    anat = [path.name.removeprefix(f"{scan.label}_") for path in (done.folder / "anat").iterdir()]
    assert {"Chimap.nii.gz", "Chiuncertainty.nii.gz", "desc-tv_Chimap.nii.gz"} <= set(anat)
    assert json.loads((done.folder / "anat" / f"{scan.label}_Chimap.json").read_text())["Method"] == "cyclegan"
    page = done.report.read_text()
    for words in (
        "made by CycleQSM, a network that learned",
        " σ² from the network, ",
        " after 2 steps of fitting to the scan",
        "The total variation map is shown beside it.",
        "Uncertainty of χ, CycleQSM",
        "Misfit to the local field",
        "CycleQSM, a cycle-consistent network",
        "arxiv.org/abs/2012.03842",
        "<code>M004</code>",
    ):
        assert words in page, words
    (curve,) = [c for c in curves(look(job.work, settings)) if c.title.startswith("CycleQSM: ")]
    assert "misfit" in curve.title
    quality = json.loads(next(done.folder.glob("anat/*_qc.json")).read_text())
    assert quality["methods"]["cyclegan"]["data_consistency"] > 0 and quality["verdict"]["level"] != "usable"
    (record,) = read_manifests(tmp_path / "out")
    assert any("voxels of 6 x 6 x 6 mm" in w["text"] for w in record["warnings"]) and verify(tmp_path / "out") == []


def test_the_weights_of_the_preset_are_what_a_result_rests_on(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.recipe import _key, recipe

    scan = find(export, b"k" * 32).scans[0]
    shas = {"default": "a" * 64, "seed": "b" * 64}
    monkeypatch.setattr(cyclegan, "learned", lambda preset="default": ({}, {"sha256": shas[preset]}))

    def key(preset: str) -> str:
        job = Job(scan, load(method="cyclegan", cyclegan={"preset": preset}, device="cpu"), tmp_path / "work")
        (stage,) = (s for s in recipe(job.settings) if s.name == "invert-cyclegan")
        return _key(stage, job, {})

    before = {preset: key(preset) for preset in shas}
    shas["seed"] = "c" * 64
    assert key("default") == before["default"] and key("seed") != before["seed"]


def test_the_step_takes_it_with_its_settings(tmp_path: Path) -> None:
    given = head((16, 14, 12))
    source = tmp_path / "in"
    source.mkdir()
    for name, volume in (("localfield", given.field), ("mask", given.mask)):
        affine = np.diag([*SIZE, 1.0])
        nib.save(nib.Nifti1Image(volume.numpy().astype(np.float32), affine), source / f"{name}.nii.gz")
    (source / "params.json").write_text(json.dumps({"TE": [0.01], "B0": 3.0, "B0_dir": list(B0)}))
    made = []
    for preset in ("default", "seed"):
        out, words = tmp_path / preset, ["--method", "cyclegan", "--device", "cpu", "--set", f"preset={preset}"]
        assert execute(["step", "dipole", str(source), str(out), *words]) == 0
        made.append(nib.load(out / "chimap.nii.gz").get_fdata())
    assert made[0].std() > 1e-3 and not np.allclose(*made, atol=1e-3)
