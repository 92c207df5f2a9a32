"""Scores of NIfTI files: every metric with its meaning, those that need no truth, and what cannot be scored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from flows.cli import execute
from flows.score import MEANINGS, score
from models.dipole import Dipole
from models.gre import Simulation, simulate_scan
from pipeline.errors import ChironError

VOXEL, B0 = (5.0, 5.0, 6.0), (0.2, 0.0, 1.0)
Save = Callable[[str, torch.Tensor], Path]


@pytest.fixture(scope="module")
def scan() -> Simulation:
    return simulate_scan((36, 44, 30), VOXEL, b0_dir=B0, lesions=("calcification",), seed=3)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(name: str, volume: torch.Tensor) -> Path:
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(volume.float().numpy(), np.diag([*VOXEL, 1.0])), path)
        return path

    return write


def test_with_everything_given_every_metric_is_there(scan: Simulation, save: Save) -> None:
    brain = scan.head.brain
    sd = torch.full(brain.shape, 0.002)
    noise = sd * torch.randn(brain.shape, generator=torch.Generator().manual_seed(0))
    field = Dipole(brain.shape, VOXEL, B0).forward(scan.head.chi_ppm * brain) + noise
    volumes = {"chi": scan.head.chi_ppm, "mask": brain, "labels": scan.head.labels, "field": field, "sd": sd}
    files = {name: save(name, volume) for name, volume in volumes.items()}
    found = score(files["chi"], files["chi"], files["mask"], files["labels"], files["field"], files["sd"], B0)
    assert found.keys() == MEANINGS.keys()
    assert found["nrmse"] == 0 and found["psnr"] is None
    assert found["data_consistency"] == pytest.approx(1, abs=0.03)
    wrong = score(files["chi"], files["chi"], files["mask"], None, files["field"], files["sd"], (1, 0, 0))
    assert wrong["data_consistency"] is not None and wrong["data_consistency"] > 3
    told = score(files["chi"], files["chi"], files["mask"], local_field=files["field"], b0_dir=B0)
    assert told["data_consistency"] is not None and 0 < told["data_consistency"] < 1.5


def test_streaks_inside_the_cone_raise_the_index(scan: Simulation, save: Save) -> None:
    brain, dipole = scan.head.brain, Dipole(scan.head.brain.shape, VOXEL, (0, 0, 1), padding=0)
    noise = torch.randn(brain.shape, generator=torch.Generator().manual_seed(1))
    streaks = dipole.ifft(dipole.fft(noise) * (dipole.kernel.abs() < 0.05))
    files = [save(name, v) for name, v in (("clean", noise), ("streaky", noise + 5 * streaks), ("mask", brain))]
    clean, streaky = (score(chi, files[0], files[2])["streak_index"] for chi in files[:2])
    assert clean is not None and streaky is not None and streaky > 2 * clean


def test_the_command_prints_meanings_and_valid_json(
    scan: Simulation, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    chi, mask = save("chi", scan.head.chi_ppm), save("mask", scan.head.brain)
    words = ["evaluate", str(chi), str(chi), str(mask), "--b0-dir", "0.2,0,1"]
    assert execute(words) == 0
    said = capsys.readouterr().out
    assert MEANINGS["hfen"] in said and re.search(r"^psnr +none ", said, re.MULTILINE)
    assert execute([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["psnr"] is None
    assert execute(["evaluate", str(chi), str(chi), str(mask), "--b0-dir", "up"]) == 2


def test_what_does_not_fit_is_refused(scan: Simulation, save: Save, tmp_path: Path) -> None:
    chi, mask, empty = save("chi", scan.head.chi_ppm), save("mask", scan.head.brain), save("no", scan.head.brain * 0)
    for arguments, code in (((chi, chi, empty), "P007"), ((chi, save("s", scan.head.chi_ppm[1:]), mask), "E011")):
        with pytest.raises(ChironError, match=code):
            score(*arguments)
    with pytest.raises(ChironError, match="X002"):
        score(chi, chi, mask, local_field=tmp_path / "absent.nii.gz")


@pytest.mark.parametrize("affine", [np.diag([-5, 5, 6, 1.0]), np.diag([5, 5, 6, 1.0]) + np.eye(4, k=3) * 3])
def test_what_lies_in_another_place_is_not_compared(affine: np.ndarray, scan: Simulation, save: Save) -> None:
    """A mirrored map, and one that is shifted by more than half a voxel."""
    chi, mask = save("chi", scan.head.chi_ppm), save("mask", scan.head.brain)
    truth = chi.with_name("truth.nii.gz")
    nib.save(nib.Nifti1Image(scan.head.chi_ppm.numpy(), affine), truth)
    with pytest.raises(ChironError, match=r"E011: truth in another place"):
        score(chi, truth, mask)
