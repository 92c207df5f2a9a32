"""The brain's mask: it overlaps with the true one; own masks are brought to the scan's axes, and wrong ones refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from models.gre import simulate_scan
from pipeline.errors import ChironError
from pipeline.mask import Mask, make_mask, phase_quality, read_mask
from pipeline.volumes import Echoes, Grid

SHAPE = (12, 10, 9)
GRID = Grid.simple(SHAPE, (1.0, 1.5, 2.0))


def dice(a: Tensor, b: Tensor) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize(("skull", "b0"), [(True, 3.0), (True, 7.0), (False, 3.0)])
def test_the_mask_is_the_brain(skull: bool, b0: float) -> None:
    shape, size = (66, 82, 68), (2.5, 2.5, 2.5)
    times = (0.004, 0.012, 0.020) if b0 < 5 else (0.004, 0.010, 0.016)
    scan = simulate_scan(shape, size, echo_times_s=times, b0_tesla=b0, b0_dir=(0.1, -0.2, 1), skull=skull, seed=1)
    echoes = Echoes(scan.signal.abs(), scan.signal.angle(), times, b0, Grid.simple(shape, size, scan.b0_dir))
    found = make_mask(echoes)
    assert found.mask.dtype == torch.bool and dice(found.mask, scan.head.brain) > 0.9
    assert found.facts["components"] == 1 and found.facts["source"] == "found" and not found.notices
    assert found.facts["voxels"] == int(found.mask.sum())
    assert found.facts["volume_ml"] == pytest.approx(found.facts["voxels"] * 2.5**3 / 1000)
    assert float(found.quality[scan.head.brain].median()) > float(found.quality[scan.signal[0].abs() < 0.005].median())


def flat(level: float = 1.0) -> Echoes:
    return Echoes(torch.full((2, *SHAPE), level), torch.zeros((2, *SHAPE)), (0.004, 0.010), 3.0, GRID)


def pattern() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:7, 1:8, 3:6] = 1
    mask[8, 2, 4] = 1
    return mask


def save(path: Path, values: np.ndarray, affine: np.ndarray) -> Mask:
    nib.save(nib.Nifti1Image(values, affine), path)
    return Mask(file=str(path))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SRA", "PIR"])
def test_an_own_mask_may_have_its_axes_in_another_order(axes: str, tmp_path: Path) -> None:
    image = nib.Nifti1Image(pattern(), np.asarray(GRID.affine))
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    )
    nib.save(turned, tmp_path / "mask.nii.gz")
    found = make_mask(flat(), Mask(file=str(tmp_path / "mask.nii.gz")))
    assert torch.equal(found.mask, torch.from_numpy(pattern() > 0)) and found.facts["source"] == "own"


def test_an_own_mask_is_brought_to_a_scan_whose_axes_are_turned(tmp_path: Path) -> None:
    affine = np.array([[0, 0, -2.0, 8], [1.0, 0, 0, -3], [0, -1.5, 0, 5], [0, 0, 0, 1]])
    save(tmp_path / "turned.nii", pattern(), affine)
    nib.save(nib.as_closest_canonical(nib.load(tmp_path / "turned.nii")), tmp_path / "canonical.nii")
    grid = Grid.from_affine(SHAPE, affine)
    for name in ("turned.nii", "canonical.nii"):
        assert torch.equal(read_mask(tmp_path / name, grid), torch.from_numpy(pattern() > 0))


def test_a_mask_that_is_not_the_scans_is_refused(tmp_path: Path) -> None:
    affine = np.asarray(GRID.affine)
    elsewhere = affine.copy()
    elsewhere[0, 3] += 3
    (tmp_path / "text.nii").write_text("no image")
    for name, params in {
        "missing": Mask(file=str(tmp_path / "missing.nii")),
        "text": Mask(file=str(tmp_path / "text.nii")),
        "shape": save(tmp_path / "shape.nii", pattern()[:-1], affine),
        "place": save(tmp_path / "place.nii", pattern(), elsewhere),
        "size": save(tmp_path / "size.nii", pattern(), affine @ np.diag([1.5, 1, 1, 1])),
    }.items():
        with pytest.raises(ChironError) as caught:
            make_mask(flat(), params)
        assert caught.value.code == "X002", name
        assert str(tmp_path) not in str(caught.value)


def test_an_image_without_signal_is_a_fault() -> None:
    with pytest.raises(ChironError, match="P005"):
        make_mask(flat(0.0))


@pytest.mark.parametrize("voxels", [0, 1, 12 * 10 * 9])
def test_a_mask_that_is_empty_tiny_or_everything_is_a_fault(voxels: int, tmp_path: Path) -> None:
    values = (np.arange(12 * 10 * 9) < voxels).astype(np.uint8).reshape(SHAPE)
    with pytest.raises(ChironError, match="P007"):
        make_mask(flat(), save(tmp_path / "mask.nii", values, np.asarray(GRID.affine)))


@pytest.mark.parametrize(("second", "said"), [(4, ["P008"]), (0, [])])
def test_a_mask_in_pieces_is_noticed(second: int, said: list[str], tmp_path: Path) -> None:
    values = np.zeros(SHAPE, np.uint8)
    values[1:5, 1:9, 1:8] = 1
    values[7 : 7 + second, 1:9, 1:8] = 1
    found = make_mask(flat(), save(tmp_path / "mask.nii", values, np.asarray(GRID.affine)))
    assert [n.code for n in found.notices] == said
    assert found.facts["components"] == 1 + len(said)


def test_quality_is_a_share_and_lower_in_noise() -> None:
    noise = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(0)) * 6 - 3
    noise[:, :6] = 0.2
    quality = phase_quality(Echoes(torch.ones((2, *SHAPE)), noise, (0.004, 0.010), 3.0, GRID))
    assert float(quality.min()) >= 0 and float(quality.max()) <= 1
    assert float(quality[1:5, 1:-1, 1:-1].min()) > float(quality[8:-1].median())
