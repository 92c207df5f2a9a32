"""One stage alone on NIfTI files: the public contract's names, units and geometry, and that steps in a chain add up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import flows.watch
from flows.cli import execute
from flows.step import STAGES, Artefacts, _noise, overrides, run_step
from models.dip import Found
from models.dipole import Dipole
from pipeline.errors import ChironError
from pipeline.settings import load
from pipeline.volumes import ppm_per_rad

SHAPE = (28, 26, 24)
SIZE_MM = (1.0, 1.0, 1.5)
B0_DIR = (0.6, 0.0, 0.8)
TIMES_S = (0.004, 0.008, 0.012)
AFFINE = np.diag([-1.0, 1.0, 1.5, 1.0])
TKD = load(method="tkd", device="cpu", mask={"bridge_mm": 2.0})  # the phantom is smaller than a head


@pytest.fixture(scope="module")
def phantom() -> dict[str, Any]:
    """A ball with two smaller ones in it, its field, and its echoes with a little noise."""
    axes = [torch.arange(n) * size - n * size / 2 for n, size in zip(SHAPE, SIZE_MM, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    mask = (x**2 + y**2 + z**2).sqrt() < 12
    chi = 0.3 * (((x - 4) ** 2 + y**2 + z**2) < 9).float() - 0.2 * ((x + 4) ** 2 + (y - 2) ** 2 + z**2 < 9).float()
    field = Dipole(SHAPE, SIZE_MM, B0_DIR).forward(chi)
    magnitude = torch.where(mask, 100.0, 2.0)
    generator = torch.Generator().manual_seed(0)
    noise = [0.3 * torch.complex(*torch.randn(2, *SHAPE, generator=generator)) for _ in TIMES_S]
    phases = [field / ppm_per_rad(t, 3.0) for t in TIMES_S]
    echoes = torch.stack([magnitude * torch.exp(1j * p) + n for p, n in zip(phases, noise, strict=True)], -1)
    return {
        "phase": echoes.angle(),
        "magnitude": echoes.abs(),
        "mask": mask,
        "totalfield": field,
        "localfield": field,
        "chi": chi,
    }


def folder(path: Path, phantom: dict[str, Any], names: Sequence[str], **params: Any) -> Path:
    """The named artefacts and params.json, as the contract has them."""
    path.mkdir()
    for name in names:
        values = phantom[name].numpy()
        nib.save(
            nib.Nifti1Image(values.astype(np.uint8 if values.dtype == bool else np.float32), AFFINE),
            path / f"{name}.nii.gz",
        )
    given = {"TE": list(TIMES_S), "B0": 3.0, "B0_dir": list(B0_DIR), "voxel_size": list(SIZE_MM)}
    (path / "params.json").write_text(json.dumps(given | params))
    return path


def result(path: Path, name: str) -> torch.Tensor:
    image = nib.load(path / f"{name}.nii.gz")
    np.testing.assert_allclose(image.affine, AFFINE)
    return torch.from_numpy(np.asarray(image.dataobj))


def error(chi: torch.Tensor, phantom: dict[str, Any]) -> float:
    """Relative to the truth, both without their mean, in the mask."""
    x, y = (values[phantom["mask"]] - values[phantom["mask"]].mean() for values in (chi, phantom["chi"]))
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize(
    ("stage", "reads", "makes"),
    [
        ("field-mapping", ("phase", "magnitude", "mask"), ["totalfield"]),
        ("field-mapping", ("phase", "magnitude"), ["totalfield", "mask"]),
        ("bfr", ("totalfield", "mask"), ["localfield"]),
        ("dipole", ("localfield", "mask"), ["chimap"]),
        ("bfr+dipole", ("totalfield", "mask", "magnitude"), ["chimap"]),
        ("end-to-end", ("phase", "magnitude", "mask"), ["chimap"]),
    ],
)
def test_a_stage_reads_and_writes_what_the_contract_says(
    stage: str, reads: Sequence[str], makes: list[str], phantom: dict[str, Any], tmp_path: Path
) -> None:
    source = folder(tmp_path / "in", phantom, reads)
    before = {path: path.read_bytes() for path in source.iterdir()}
    assert run_step(stage, source, tmp_path / "out", TKD) == [f"{name}.nii.gz" for name in makes]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f"{name}.nii.gz" for name in makes)
    assert all(result(tmp_path / "out", name).shape == SHAPE for name in makes)
    assert {path: path.read_bytes() for path in source.iterdir()} == before


def test_the_field_is_in_ppm_and_positive_where_it_is_higher(phantom: dict[str, Any], tmp_path: Path) -> None:
    run_step("field-mapping", folder(tmp_path / "in", phantom, ("phase", "magnitude", "mask")), tmp_path / "out", TKD)
    found, true = (v[phantom["mask"]] for v in (result(tmp_path / "out", "totalfield"), phantom["totalfield"]))
    slope = float(((found - found.mean()) * (true - true.mean())).sum() / (true - true.mean()).square().sum())
    assert slope == pytest.approx(1, abs=0.05)


def test_steps_in_a_chain_give_what_the_whole_gives(phantom: dict[str, Any], tmp_path: Path) -> None:
    words = ["background.method=vsharp"]  # tfi weighs by the noise, too, which no file hands on
    chosen = load(None, words, method="tkd", device="cpu", mask={"bridge_mm": 2.0})
    whole = folder(tmp_path / "in", phantom, ("phase", "magnitude", "mask"))
    run_step("end-to-end", whole, tmp_path / "whole", chosen)
    run_step("field-mapping", whole, tmp_path / "a", chosen)
    hand_over(whole, tmp_path / "a")
    run_step("bfr", tmp_path / "a", tmp_path / "b", chosen)
    run_step("bfr+dipole", tmp_path / "a", tmp_path / "c", chosen)
    hand_over(whole, tmp_path / "b")
    run_step("dipole", tmp_path / "b", tmp_path / "d", chosen)
    for chained in ("c", "d"):
        torch.testing.assert_close(result(tmp_path / chained, "chimap"), result(tmp_path / "whole", "chimap"))


def hand_over(source: Path, target: Path) -> None:
    for name in ("mask.nii.gz", "params.json"):
        (target / name).write_bytes((source / name).read_bytes())


@pytest.mark.parametrize("wrong", [{"B0_dir": [0, 0, 1]}, {"voxel_size": [2.0, 1.0, 1.0]}])
def test_direction_and_voxel_size_of_the_parameters_are_obeyed(
    wrong: dict[str, Any], phantom: dict[str, Any], tmp_path: Path
) -> None:
    run_step("dipole", folder(tmp_path / "right", phantom, ("localfield", "mask")), tmp_path / "a", TKD)
    run_step("dipole", folder(tmp_path / "wrong", phantom, ("localfield", "mask"), **wrong), tmp_path / "b", TKD)
    right, misled = (error(result(tmp_path / name, "chimap"), phantom) for name in ("a", "b"))
    assert right < 0.55 and misled > 1.3 * right


def test_a_method_that_needs_the_noise_gets_it(phantom: dict[str, Any], tmp_path: Path) -> None:
    settings = load(method="tv", device="cpu")
    run_step("dipole", folder(tmp_path / "in", phantom, ("localfield", "mask")), tmp_path / "out", settings)
    assert error(result(tmp_path / "out", "chimap"), phantom) < 0.5


def test_the_total_field_is_read_by_the_method_that_wants_it(phantom: dict[str, Any], tmp_path: Path) -> None:
    source = folder(tmp_path / "in", phantom, ["totalfield", "localfield", "mask"])
    run_step("bfr+dipole", source, tmp_path / "out", load(method="tfi", device="cpu"))
    chi = result(tmp_path / "out", "chimap")
    assert bool((chi[phantom["mask"]] != 0).all()) and not bool(chi[~phantom["mask"]].any())
    with pytest.raises(ChironError, match=r"X002.*bfr\+dipole"):
        run_step("dipole", source, tmp_path / "no", load(method="tfi", device="cpu"))


def test_a_method_that_follows_the_magnitude_refuses_to_do_without(phantom: dict[str, Any], tmp_path: Path) -> None:
    settings = load(method="medi", device="cpu")
    with pytest.raises(ChironError, match=r"X002.*no magnitude"):
        run_step("dipole", folder(tmp_path / "no", phantom, ["localfield", "mask"]), tmp_path / "out", settings)
    source = folder(tmp_path / "in", phantom, ["localfield", "mask", "magnitude"])
    run_step("dipole", source, tmp_path / "out", settings)
    assert error(result(tmp_path / "out", "chimap"), phantom) < 0.4


@pytest.mark.parametrize("level", [0.002, 0.02])
def test_noise_is_estimated_from_the_field_alone(level: float, phantom: dict[str, Any], tmp_path: Path) -> None:
    found = Artefacts(folder(tmp_path / "in", phantom, ("mask",)), torch.device("cpu"))
    smooth = torch.linspace(-0.5, 0.5, SHAPE[0])[:, None, None].square().expand(SHAPE)
    noise = level * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    estimate = _noise(smooth + noise, phantom["mask"], found)
    assert float(estimate.mean()) == pytest.approx(level, rel=0.1)


def test_noise_is_higher_where_the_signal_is_low(phantom: dict[str, Any], tmp_path: Path) -> None:
    dark = phantom["magnitude"].clone()
    dark[: SHAPE[0] // 2] /= 2
    source = folder(tmp_path / "in", {**phantom, "magnitude": dark}, ("mask", "magnitude"), TE=[1.0])
    noise = _noise(torch.randn(SHAPE), phantom["mask"], Artefacts(source, torch.device("cpu")))
    left, right = (noise[part][phantom["mask"][part]].median() for part in (slice(0, 14), slice(14, None)))
    assert float(left / right) == pytest.approx(2, rel=0.02)


def test_overrides_come_from_the_contracts_file_and_the_command(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"threshold": 0.2, "phase.sign": "-"}')
    words = overrides(tmp_path, ["keep_work=true", "threshold=0.3"], "tkd")
    settings = load(None, words)
    assert (settings.tkd.threshold, settings.phase.sign, settings.keep_work) == (0.3, "-", True)


def test_the_command_runs_a_step_and_names_its_files(
    phantom: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = folder(tmp_path / "in", phantom, ("localfield", "mask")), tmp_path / "out"
    words = ["step", "dipole", str(source), str(out), "--device", "cpu", "--method", "tkd"]
    assert execute(words) == 0
    assert capsys.readouterr().out.split() == [str(out / "chimap.nii.gz")]
    before = result(out, "chimap")
    assert execute([*words, "--set", "threshold=0.3"]) == 0
    assert not torch.equal(before, result(out, "chimap"))


def test_the_time_budget_and_the_progress_reach_the_fit(
    phantom: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets = []

    def fit(field: torch.Tensor, weight: torch.Tensor, dipole: Dipole, params: Any, progress: Any) -> Found:
        budgets.append(params.seconds)
        clock.now += 40
        progress(0.5, "step 1")
        return Found(field, {})

    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(flows.watch, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr("models.dip.reconstruct", fit)
    source = folder(tmp_path / "in", phantom, ("localfield", "mask"))
    words = ["step", "dipole", str(source), str(tmp_path / "out"), "--method", "dip", "--device", "cpu"]
    assert execute([*words, "--max-seconds", "60"]) == 0
    assert budgets == [60.0] and "50 %, step 1, about 40 s left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"B0": 0}, "X002"),
        ({"TE": "soon"}, "X002"),
        ({"B0_dir": [0, 0, 0]}, "X002"),
        ({"voxel_size": [1]}, "X002"),
        ({"TE": [0.004]}, "E011"),
    ],
)
def test_parameters_that_make_no_sense_are_named(
    params: dict[str, Any], code: str, phantom: dict[str, Any], tmp_path: Path
) -> None:
    source = folder(tmp_path / "in", phantom, ("phase", "magnitude", "mask"), **params)
    with pytest.raises(ChironError) as caught:
        run_step("end-to-end", source, tmp_path / "out", TKD)
    assert caught.value.code == code and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, "X002"),
        ({"localfield": torch.zeros(5, 5, 5)}, "E011"),
        ({"localfield": torch.full(SHAPE, float("nan"))}, "P006"),
        ({"localfield": torch.ones(SHAPE), "mask": torch.zeros(SHAPE, dtype=torch.bool)}, "P007"),
    ],
)
def test_artefacts_that_do_not_fit_are_refused(
    change: dict[str, Any], code: str, phantom: dict[str, Any], tmp_path: Path
) -> None:
    given = {"mask": phantom["mask"]} | change
    source = folder(tmp_path / "in", given, tuple(given))
    with pytest.raises(ChironError) as caught:
        run_step("dipole", source, tmp_path / "out", TKD)
    assert caught.value.code == code and not (tmp_path / "out").exists()


def test_a_stage_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ChironError) as caught:
        run_step("super-duper", tmp_path, tmp_path / "out", TKD)
    assert caught.value.fault.exit == 2 and all(stage in caught.value.expected for stage in STAGES)
