"""Coils combined: nothing cancels, the field comes out whatever the coils add, and one coil alone stays as it is."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from flows.step import run_step
from models.gre import Simulation, scan_head
from models.head import simulate_head
from pipeline.coils import combine
from pipeline.errors import ChironError
from pipeline.field import total_field
from pipeline.settings import load
from pipeline.unwrap import unwrap
from pipeline.volumes import Echoes, Grid

SHAPE, SIZE, B0_DIR = (41, 49, 37), (4.2, 4.0, 4.6), (0.1, -0.2, 0.97)
GRID = Grid.simple(SHAPE, SIZE, B0_DIR)
EQUAL, UNEQUAL, ONE = (0.004, 0.009, 0.014), (0.004, 0.0095, 0.017), (0.012,)
COUNT = 6


@cache
def scan(times: tuple[float, ...] = EQUAL) -> Simulation:
    head = simulate_head(SHAPE, SIZE, seed=3, skull=False)
    return scan_head(head, echo_times_s=times, b0_dir=B0_DIR, phase_offset=False, snr=200)


@cache
def sensitivity() -> Tensor:
    """Complex (C, X, Y, Z): coils around the head, strongest next to them, with a phase that turns on the way."""
    axes = [torch.arange(n) * size - n * size / 2 for n, size in zip(SHAPE, SIZE, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    coils = []
    for angle in torch.arange(COUNT) * (2 * torch.pi / COUNT):
        far = ((x - 120 * angle.cos()) ** 2 + (y - 120 * angle.sin()) ** 2 + z**2).sqrt()
        coils.append(torch.polar((60 / far) ** 2, far / 40 + 2.0 * angle))
    return torch.stack(coils)


def coils(times: tuple[float, ...] = EQUAL) -> tuple[Tensor, Tensor]:
    signal = scan(times).signal * sensitivity()[:, None]
    noise = torch.randn((*signal.shape, 2), generator=torch.Generator().manual_seed(1))
    signal = signal + 0.005 * float(signal.abs()[:, 0][:, brain()].mean()) * torch.view_as_complex(noise)
    return signal.abs(), signal.angle()


def brain() -> Tensor:
    return scan().head.brain


@pytest.mark.parametrize("times", [EQUAL, pytest.param(EQUAL[:2], marks=pytest.mark.slow), UNEQUAL])
def test_the_field_comes_out_whatever_the_coils_add(times: tuple[float, ...]) -> None:
    magnitude, phase = combine(*coils(times), times, GRID)
    found = unwrap(Echoes(magnitude, phase, times, 3.0, GRID), brain())
    fitted = total_field(found.echoes, found.mask).field
    inside = brain() & fitted.mask
    error, truth = (v[inside] - v[inside].median() for v in (fitted.ppm - scan(times).total_ppm, scan(times).total_ppm))
    assert float(error.abs().median()) < 0.05 * float(truth.std())


@pytest.mark.parametrize("times", [EQUAL, UNEQUAL, ONE])
def test_no_signal_cancels(times: tuple[float, ...]) -> None:
    each, phase = coils(times)
    magnitude, _ = combine(each, phase, times, GRID)
    whole = each.square().sum(0).sqrt()
    inside = brain().expand_as(whole)
    assert float(magnitude.max() / whole.max()) <= 1.0001
    assert float((magnitude / whole)[inside].quantile(0.02)) > 0.97
    plain = torch.polar(each, phase).sum(0).abs() / each.sum(0)
    assert float(plain[inside].quantile(0.02)) < 0.5, "coils out of phase, that would cancel"


def test_after_the_first_echo_nothing_is_left_of_the_coils() -> None:
    _, phase = combine(*coils(), EQUAL, GRID)
    turned = torch.polar(torch.ones_like(phase[1]), phase[1] - phase[0] - (scan().signal[1] / scan().signal[0]).angle())
    assert float(turned.angle()[brain()].abs().median()) < 0.01


def test_one_echo_keeps_the_contrast_of_its_phase() -> None:
    _, phase = combine(*coils(ONE), ONE, GRID)
    left = torch.polar(torch.ones(SHAPE), phase[0] - scan(ONE).signal[0].angle())
    for axis in range(3):
        step = left.narrow(axis, 1, SHAPE[axis] - 1) * left.narrow(axis, 0, SHAPE[axis] - 1).conj()
        both = brain().narrow(axis, 1, SHAPE[axis] - 1) & brain().narrow(axis, 0, SHAPE[axis] - 1)
        assert float(step.angle()[both].abs().median()) < 0.1


def test_the_order_and_the_unit_of_the_coils_do_not_matter() -> None:
    magnitude, phase = coils()
    one = combine(magnitude, phase, EQUAL, GRID)
    other = combine(7 * magnitude.flip(0), phase.flip(0), EQUAL, GRID)
    torch.testing.assert_close(other[0][:, brain()], 7 * one[0][:, brain()], rtol=1e-3, atol=0)
    turned = torch.polar(one[0], other[1] - one[1]).angle()
    assert float(turned[:, brain()].abs().max()) < 1e-2


def test_one_coil_is_read_at_a_time() -> None:
    magnitude, phase = coils()

    class File:
        shape = magnitude.shape

        def __init__(self, values: Tensor) -> None:
            self.values = values

        def __getitem__(self, coil: int) -> Tensor:
            assert isinstance(coil, int)
            return self.values[coil]

    torch.testing.assert_close(
        combine(File(magnitude), File(phase), EQUAL, GRID), combine(magnitude, phase, EQUAL, GRID)
    )


def test_a_step_takes_single_coils(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    magnitude, phase = coils()
    for name, values in (("magnitude", magnitude), ("phase", phase), ("mask", brain()[None, None])):
        stored = values.permute(2, 3, 4, 1, 0).squeeze().numpy().astype(np.float32)
        nib.save(nib.Nifti1Image(stored, np.diag([*SIZE, 1])), source / f"{name}.nii.gz")
    given = {"TE": list(EQUAL), "B0": 3.0, "B0_dir": list(B0_DIR), "voxel_size": list(SIZE)}
    (source / "params.json").write_text(json.dumps(given))
    run_step("field-mapping", source, tmp_path / "out", load(device="cpu"))
    found = torch.from_numpy(nib.load(tmp_path / "out" / "totalfield.nii.gz").get_fdata(dtype=np.float32))
    inside = brain() & (found != 0)
    error = (found - scan().total_ppm)[inside]
    assert float((error - error.median()).abs().median()) < 0.05 * float(scan().total_ppm[inside].std())
    (source / "magnitude.nii.gz").unlink()
    with pytest.raises(ChironError, match="X002"):
        run_step("field-mapping", source, tmp_path / "other", load(device="cpu"))


def test_shapes_that_do_not_fit_are_a_fault() -> None:
    magnitude, phase = coils()
    for wrong in ((magnitude[:, :2], phase), (magnitude[:, :2], phase[:, :2]), (magnitude[0], phase[0])):
        with pytest.raises(ChironError, match="E011"):
            combine(*wrong, EQUAL, GRID)
