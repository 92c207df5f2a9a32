"""Maps on finer voxels: where they lie, what is kept of the measurement, the step, and the way of a scan with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

import flows.batch
import pipeline.superres as finer
from flows.cli import execute
from flows.demo import Simulated
from flows.grid import Scores
from flows.grid.cells import Anatomy, Cell, finer_head, scan
from flows.grid.finer import super_resolution
from flows.grid.page import page
from flows.reprocess import stages_from
from models.diffusion import Diffusion, Found
from models.diffusion.measured import Lowpass
from models.diffusion.prior import Denoiser
from models.dipole import Dipole
from pipeline.errors import ChironError
from pipeline.find import find
from pipeline.invert import check_weights
from pipeline.memory import scan_bytes
from pipeline.publish import publish, verify
from pipeline.recipe import Job, recipe, reconstruct
from pipeline.settings import load
from pipeline.volumes import Field, Grid, Susceptibility

QUICK = Diffusion(steps=4, samples=2, start="tkd", temperature=0.0)
OBLIQUE = np.array([[-0.9, 0.0, 0.6, 20.0], [0.0, 1.2, 0.0, -30.0], [0.3, 0.0, 1.8, 5.0], [0.0, 0.0, 0.0, 1.0]])
B0_DIR = (0.3, 0.2, 1.0)
CASES = [((7, 8, 9), (2.0, 2.0, 2.0)), ((10, 12, 11), (1.5, 1.0, 3.0)), ((13, 6, 9), (1.3, 2.5, 1.0))]


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny network that has learned nothing: what it finds likely is small and white."""
    tensors = Denoiser((4, 8)).state_dict()
    card = {"channels": [4, 8], "sha256": "tiny", "voxel_mm": [0.6, 2.0]}
    monkeypatch.setattr("models.diffusion.learned", lambda: (tensors, card))


def ball(shape: tuple[int, ...], share: float, at: tuple[float, ...] = (0.5, 0.5, 0.5)) -> Tensor:
    """Where a volume lies within an ellipsoid that spans so large a share of each axis of the field of view."""
    axes = [((torch.arange(n) + 0.5) / n - c) / (share / 2) for n, c in zip(shape, at, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 < 1


def head(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Chi of two balls, without its mean in the mask, and the mask."""
    mask = ball(shape, 0.8)
    chi = 0.1 * ball(shape, 0.25, (0.4, 0.5, 0.5)).float() - 0.05 * ball(shape, 0.2, (0.65, 0.45, 0.5)).float()
    return torch.where(mask, chi - chi[mask].mean(), 0), mask


def coarse_map(shape: tuple[int, ...], fine: tuple[int, ...], mean: float = 0.0) -> Susceptibility:
    mask = ball(shape, 0.8)
    chi = Lowpass(fine, shape, mask.device).forward(head(fine)[0])
    return Susceptibility(torch.where(mask, chi + mean, 0), mask, Grid.simple(shape, (2, 2, 2), B0_DIR), "tv", {})


def coarse_field(shape: tuple[int, ...], fine: tuple[int, ...], b0_dir: tuple[float, ...] = B0_DIR) -> Field:
    """The field on voxels of 2 mm of a head on finer ones over the same field of view, with a little noise."""
    size = [2 * n / m for n, m in zip(shape, fine, strict=True)]
    field = Lowpass(fine, shape, torch.device("cpu")).forward(Dipole(fine, size, b0_dir).forward(head(fine)[0]))
    noise = 0.001 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sd, mask = torch.full(shape, 0.001), ball(shape, 0.8)
    return Field(torch.where(mask, field + noise, 0), sd, mask, Grid.simple(shape, (2, 2, 2), b0_dir))


@pytest.mark.parametrize(("shape", "upsample"), CASES)
def test_both_grids_share_the_edges_of_the_field_of_view(
    shape: tuple[int, int, int], upsample: tuple[float, ...]
) -> None:
    grid = Grid.from_affine(shape, OBLIQUE)
    made = finer.finer_grid(grid, upsample)
    assert made.shape == tuple(int(n * f + 0.5) for n, f in zip(shape, upsample, strict=True))
    assert made.b0_dir == grid.b0_dir
    for corner in ((0, 0, 0), (1, 0, 1), (1, 1, 1)):
        here, there = (np.array(g.affine) @ [*(np.array(corner) * g.shape - 0.5), 1.0] for g in (grid, made))
        np.testing.assert_allclose(here, there, atol=1e-9)


@pytest.mark.parametrize("upsample", [(1, 1, 1), (1.01, 1, 1), (2, 0.5, 1)])
def test_a_grid_that_is_no_finer_is_refused(upsample: tuple[float, ...]) -> None:
    with pytest.raises(ChironError, match="X001"):
        finer.finer_grid(Grid.simple((8, 8, 8), (1, 1, 1)), upsample)


@pytest.mark.parametrize(("shape", "upsample"), CASES)
def test_the_box_is_whole_voxels_of_both_grids_around_the_mask(
    shape: tuple[int, int, int], upsample: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finer, "MARGIN", 1)
    mask = ball(shape, 0.4, (0.6, 0.5, 0.4))
    place = finer._place(mask, Grid.simple(shape, (2, 2, 2)), upsample)
    for a, b, n, m in zip(place.coarse, place.fine, shape, place.grid.shape, strict=True):
        assert a.start * m == b.start * n and a.stop * m == b.stop * n and 0 <= a.start < a.stop <= n
    assert int(mask[place.coarse].sum()) == int(mask.sum())
    assert 0 < int(place.mask[place.fine].sum()) == int(place.mask.sum())
    assert any(a.stop - a.start < n for a, n in zip(place.coarse, shape, strict=True))


@pytest.mark.parametrize("shape", [(15, 14, 12), (17, 16, 20)])
def test_what_is_interpolated_stays_where_it_is_and_keeps_its_mean(shape: tuple[int, int, int]) -> None:
    fine = (30, 21, 32)
    axes = [
        torch.exp(-(((torch.arange(n) + 0.5) / n - c) ** 2) / 0.02)
        for n, c in zip(shape, (0.45, 0.5, 0.6), strict=True)
    ]
    blob = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    lowpass = Lowpass(fine, shape, blob.device)
    for way in (finer.cubic, finer.zero_filled):
        made = way(blob, fine)
        assert made.shape == fine and float(made.mean()) == pytest.approx(float(blob.mean()), rel=0.01)
        for axis, centre in enumerate((0.45, 0.5, 0.6)):
            profile = made.sum(dim=[a for a in range(3) if a != axis])
            place = (torch.arange(fine[axis]) + 0.5) / fine[axis]
            assert float((profile * place).sum() / profile.sum()) == pytest.approx(centre, abs=0.003)
        torch.testing.assert_close(way(torch.ones(shape), fine), torch.ones(fine), atol=1e-4, rtol=0)
        torch.testing.assert_close(lowpass.forward(made), blob, atol=0.02, rtol=0)


def test_a_finer_mask_has_the_same_volume_and_no_steps() -> None:
    coarse, fine = ball((16, 18, 15), 0.8), ball((32, 36, 30), 0.8)
    made = finer.finer_mask(coarse, fine.shape)
    assert int(made.sum()) == pytest.approx(int(fine.sum()), rel=0.02)
    blocks = coarse.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert int((made ^ fine).sum()) < int((blocks ^ fine).sum())


@pytest.mark.parametrize(("shape", "upsample"), [((16, 15, 14), (2.0, 2.0, 2.0)), ((16, 15, 14), (1.5, 1.0, 2.5))])
def test_a_finer_map_agrees_with_the_coarser_one(shape: tuple[int, int, int], upsample: tuple[float, ...]) -> None:
    fine = finer.finer_shape(shape, upsample)
    given = coarse_map(shape, fine, mean=0.03)
    made = finer.refine(given, upsample, QUICK)
    assert made.ppm.shape == made.mask.shape == made.grid.shape == fine
    assert not bool(made.ppm[~made.mask].any())
    assert float(made.ppm[made.mask].mean()) == pytest.approx(float(given.ppm[given.mask].mean()), abs=1e-4)
    again = Lowpass(fine, shape, made.ppm.device).forward(torch.where(made.mask, made.ppm - 0.03, 0))
    inner = ball(shape, 0.6)
    assert float((again - given.ppm + 0.03)[inner].abs().max()) < 0.01
    assert made.facts["task"] == "SR" and made.facts["data_misfit"] < 3 and made.uncertainty_ppm is not None


def test_a_field_is_inverted_onto_finer_voxels() -> None:
    shape, fine = (16, 15, 14), (32, 30, 28)
    true, mask = head(fine)
    made = finer.invert_finer(coarse_field(shape, fine), (2, 2, 2), QUICK)
    wrong = finer.invert_finer(
        Field(**{**vars(coarse_field(shape, fine)), "grid": Grid.simple(shape, (2, 2, 2), (1, 0, 0))}), (2, 2, 2), QUICK
    )
    inside = mask & made.mask
    right, misled = (float(torch.corrcoef(torch.stack([m.ppm[inside], true[inside]]))[0, 1]) for m in (made, wrong))
    assert right > 0.6 > 0 > misled
    assert abs(float(made.ppm[made.mask].mean())) < 1e-6 and made.facts["reference"]["region"]
    assert made.facts["data_misfit"] < 2 < wrong.facts["data_misfit"]
    assert made.grid.voxel_size_mm == (1, 1, 1)


def test_a_map_that_there_is_already_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, fine = (16, 15, 14), (32, 30, 28)
    field = coarse_field(shape, fine)
    given = finer.invert(field, "diffusion", QUICK)
    whole = finer.invert_finer(field, (2, 2, 2), QUICK)
    monkeypatch.setattr(finer, "invert", None)
    torch.testing.assert_close(finer.invert_finer(field, (2, 2, 2), QUICK, first=given).ppm, whole.ppm)
    stages = {
        method: next(s for s in recipe(load(method=method, device="cpu", upsample=2)) if s.name == "upsample")
        for method in ("diffusion", "tkd")
    }
    assert "invert-diffusion" in stages["diffusion"].after
    assert stages["tkd"].after == ("convert", "background")


def test_where_memory_is_short_patches_are_smaller_and_what_is_not_finite_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, tried = coarse_map((12, 12, 12), (24, 24, 24)), []

    def sample(measured: Any, start: Tensor, params: Diffusion, progress: Any) -> Found:
        tried.append(params.patch)
        if params.patch != 48:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Found(start, {})

    monkeypatch.setattr("models.diffusion.sample", sample)
    made = finer.refine(given, (2, 2, 2), Diffusion())
    assert tried == [96, 48] and len(made.facts["too_large"]) == 1
    monkeypatch.setattr("models.diffusion.sample", lambda measured, start, *rest: Found(start * torch.nan, {}))
    with pytest.raises(ChironError, match="M001"):
        finer.refine(given, (2, 2, 2), QUICK)


def test_missing_weights_are_told_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise ValueError("no weights diffusion")

    monkeypatch.setattr("models.diffusion.learned", gone)
    asks: list[Callable[[], Any]] = [
        lambda: check_weights(load(method="tkd", device="cpu", upsample=2)),
        lambda: finer.refine(coarse_map((8, 8, 8), (16, 16, 16)), (2, 2, 2), QUICK),
    ]
    for ask in asks:
        with pytest.raises(ChironError, match="M003"):
            ask()
    check_weights(load(method="tkd", device="cpu"))


@pytest.mark.parametrize(
    ("word", "value"),
    [("2", (2, 2, 2)), ("2,2,1", (2, 2, 1)), ("[1, 1.5, 4]", (1, 1.5, 4)), ("1", (1, 1, 1))],
)
def test_one_factor_counts_for_all_axes(word: str, value: tuple[float, ...]) -> None:
    assert load(words=[f"upsample={word}"]).upsample == load(upsample=word.strip("[]")).upsample == value


@pytest.mark.parametrize("word", ["0.5", "5", "2,2", "two", "nan", "2,2,2,2"])
def test_a_factor_that_cannot_be_is_refused(word: str) -> None:
    with pytest.raises(ChironError, match=r"X001.*upsample"):
        load(words=[f"upsample={word}"])


def artefacts(folder: Path, **volumes: Tensor) -> Path:
    folder.mkdir()
    for name, volume in volumes.items():
        nib.save(nib.Nifti1Image(volume.numpy().astype(np.float32), OBLIQUE), folder / f"{name}.nii.gz")
    (folder / "params.json").write_text(json.dumps({"TE": [0.01], "B0": 3.0, "B0_dir": list(B0_DIR)}))
    return folder


def test_the_step_makes_a_finer_map_of_a_map_or_a_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape, fine = (14, 12, 13), (28, 12, 26)
    chi, field = coarse_map(shape, fine), coarse_field(shape, fine)
    both = artefacts(tmp_path / "both", chimap=chi.ppm, localfield=field.ppm, mask=chi.mask)
    alone = artefacts(tmp_path / "alone", localfield=field.ppm, mask=field.mask)
    none = artefacts(tmp_path / "none", mask=field.mask)
    words = ["--device", "cpu", "--set", "diffusion.steps=2", "--set", "diffusion.start=tkd"]
    for source in (both, alone):
        out = tmp_path / f"{source.name}-out"
        asked = ["step", "super-resolution", str(source), str(out), *words, "--set", "upsample=2,1,2"]
        assert execute(asked) == 0
        assert capsys.readouterr().out.split() == [str(out / f"{name}.nii.gz") for name in ("chimap", "mask")]
        made, mask = (nib.load(out / f"{name}.nii.gz") for name in ("chimap", "mask"))
        assert made.shape == mask.shape == fine and mask.get_data_dtype() == np.uint8
        np.testing.assert_allclose(made.affine, finer.finer_affine(OBLIQUE, shape, fine), atol=1e-6)
        assert np.isfinite(made.get_fdata()).all() and made.get_fdata().std() > 0.005
    different = [nib.load(tmp_path / f"{name}-out" / "chimap.nii.gz").get_fdata() for name in ("both", "alone")]
    assert not np.allclose(*different, atol=1e-3)
    refused = ["step", "super-resolution", str(both), str(tmp_path / "no"), *words]
    assert execute(refused) == 15 and "X001" in capsys.readouterr().err
    assert execute(["step", "super-resolution", str(none), str(tmp_path / "no"), *words, "--set", "upsample=2"]) == 2
    assert "X002" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_a_scan_has_a_finer_map_beside_its_own_where_asked(
    demo: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = find(demo.export, b"k" * 32).scans[0]
    words = ["diffusion.steps=2", "diffusion.start=tkd", "reference.region=csf", "upsample=2,1.5,1"]
    job = Job(one, load(words=words, method="tkd", device="cpu"), tmp_path / "work")
    assert "upsample" not in [s.name for s in recipe(load(method="tkd", device="cpu"))]
    (stage,) = (s for s in recipe(job.settings) if s.name == "upsample")
    assert stage.on_card and "upsample" in stages_from(job, "upsample") and "upsample" in stages_from(job, "invert")
    reconstruct(job)
    monkeypatch.setattr("pipeline.recipe.stages.invert_finer", None)  # what is proven is not made again
    reconstruct(job)
    folder = publish(job, tmp_path / "out").folder
    assert not verify(tmp_path / "out")
    stem = f"anat/{one.label}"
    own, made, mask, spread = (
        nib.load(folder / f"{stem}_{name}.nii.gz")
        for name in ("Chimap", "res-fine_desc-diffusion_Chimap", "res-fine_desc-brain_mask",
                     "res-fine_desc-diffusion_Chiuncertainty")
    )  # fmt: skip
    assert made.shape == mask.shape == spread.shape == finer.finer_shape(own.shape, (2, 1.5, 1))
    np.testing.assert_allclose(made.affine, finer.finer_affine(own.affine, own.shape, made.shape), atol=1e-3)
    inside = nib.load(folder / f"{stem}_desc-local_fieldmap.nii.gz").get_fdata() != 0
    means = made.get_fdata()[mask.get_fdata() > 0].mean(), own.get_fdata()[inside].mean()
    assert means[0] == pytest.approx(means[1], abs=1e-4)  # both relative to fluid, or to the mean
    said = json.loads((folder / f"{stem}_res-fine_desc-diffusion_Chimap.json").read_text())
    assert said["Method"] == "diffusion" and "2 x 1.5 x 1 times finer" in said["Resolution"]
    report = (folder / f"{one.label}_qsm.html").read_text()
    assert 'id="finer"' in report and "guess beyond what was measured" in report
    (record,) = json.loads((folder / "manifest.json").read_text())["scans"]
    assert record["settings"]["upsample"] == [2, 1.5, 1] and "upsample" in [s["stage"] for s in record["stages"]]
    assert record["methods"][0] == "tkd" and any("Xiong" in paper for paper in record["citations"])
    assert [w["stage"] for w in record["warnings"] if w["code"] == "M004"] == ["upsample"]  # 3 x 4 x 6 mm
    assert "on finer voxels was made" in report
    assert scan_bytes(one, (2, 2, 2)) > scan_bytes(one)


def test_the_command_hands_the_factors_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(flows.batch, "run", lambda batch, source, settings, *rest: given.append(settings))
    (tmp_path / "in").mkdir()
    words = ["run", str(tmp_path / "in"), str(tmp_path / "out"), "--method", "tkd", "--device", "cpu"]
    for more in ([], ["--upsample", "2"], ["--upsample", "2,2,1"]):
        execute([*words, *more])
    assert [settings.upsample for settings in given] == [(1, 1, 1), (2, 2, 2), (2, 2, 1)]
    assert execute([*words, "--upsample", "9"]) == 15


def test_the_grid_compares_the_prior_with_interpolation() -> None:
    cell = Cell((10.0, 10.0, 6.0), (2, 2, 1), snr=50.0)
    whole = finer_head(cell, Anatomy("procedural 1", 1))
    settings = load(words=["diffusion.steps=2", "diffusion.samples=1", "diffusion.start=tkd"], device="cpu")
    rows = list(super_resolution(whole, scan(cell, Anatomy("", 1), whole), cell, settings))
    assert [(row["task"], row["method"]) for row in rows] == [
        ("SR", "cubic"), ("SR", "zero-filled"), ("SR", "diffusion"),
        ("SR-DipInv", "tv, cubic"), ("SR-DipInv", "diffusion"),
    ]  # fmt: skip
    assert all(0 < row["nrmse"] < 150 and 0 < row["xsim"] < 1 and row["seconds"] > 0 for row in rows)
    placed = [{"cell": "a", "anatomy": "b", **row} for row in rows]
    text = page(Scores(settings, {}, super_resolution=placed), "the defaults")
    assert "chiron grid --part super-resolution" in text
    assert text.count("zero-filled` |") == 2 and "SR-DipInv, median (worst)" in text
