"""The brain's mask: the true one at any scale, shading and void; own masks on the scan's axes, wrong ones refused."""

from __future__ import annotations

import math
import sys
import types
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from models.gre import Simulation, simulate_scan
from pipeline.errors import ChironError
from pipeline.mask import Mask, make_mask, phase_quality, read_mask
from pipeline.mask.brain import _shading
from pipeline.mask.shapes import closed, filled, largest, opened, resample, touching
from pipeline.volumes import Echoes, Grid

SHAPE = (12, 10, 9)
GRID = Grid.simple(SHAPE, (1.0, 1.5, 2.0))


def dice(a: Tensor, b: Tensor) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@lru_cache
def head(skull: bool = True, b0: float = 3.0, size: tuple[float, float, float] = (2.5, 2.5, 2.5)) -> Simulation:
    shape = [round(n / s) for n, s in zip((165, 205, 170), size, strict=True)]
    times = (0.004, 0.012, 0.020) if b0 < 5 else (0.004, 0.010, 0.016)
    return simulate_scan(shape, size, echo_times_s=times, b0_tesla=b0, b0_dir=(0.1, -0.2, 1), skull=skull, seed=1)


def scanned(scan: Simulation, signal: Tensor | None = None) -> Echoes:
    signal = scan.signal if signal is None else signal
    grid = Grid.simple(signal.shape[1:], scan.voxel_size_mm, scan.b0_dir)
    return Echoes(signal.abs(), signal.angle(), scan.echo_times_s, scan.b0_tesla, grid)


@lru_cache
def found_in_head() -> Tensor:
    return make_mask(scanned(head())).mask


def ball(scan: Simulation, centre: tuple[int, int, int], radius_mm: float) -> Tensor:
    axes = [
        (torch.arange(n) - c) * s for n, c, s in zip(scan.signal.shape[1:], centre, scan.voxel_size_mm, strict=True)
    ]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 < radius_mm**2


@pytest.mark.parametrize(
    ("skull", "b0", "size"),
    [
        (True, 3.0, (2.5, 2.5, 2.5)),
        (True, 7.0, (2.5, 2.5, 2.5)),
        (False, 3.0, (2.5, 2.5, 2.5)),
        (True, 3.0, (2.0, 2.0, 3.1)),
    ],
)
def test_the_mask_is_the_brain(skull: bool, b0: float, size: tuple[float, float, float]) -> None:
    scan = head(skull, b0, size)
    found = make_mask(scanned(scan))
    assert found.mask.dtype == torch.bool and dice(found.mask, scan.head.brain) > 0.95
    assert found.facts["components"] == 1 and found.facts["source"] == "tissue" and not found.notices
    assert torch.equal(found.reliable, found.mask) and found.facts["reliable_share"] == 1
    assert found.facts["voxels"] == int(found.mask.sum())
    assert found.facts["volume_ml"] == pytest.approx(found.facts["voxels"] * math.prod(size) / 1000, rel=1e-3)
    assert float(found.quality[scan.head.brain].median()) > float(found.quality[scan.signal[0].abs() < 0.005].median())


def test_one_echo_is_enough() -> None:
    scan = head()
    echoes = scanned(scan)
    first = Echoes(echoes.magnitude[:1], echoes.phase_rad[:1], (0.004,), 3.0, echoes.grid)
    assert dice(make_mask(first).mask, scan.head.brain) > 0.95


def test_neither_scale_nor_shading_of_the_magnitude_matters() -> None:
    scan, plain = head(), found_in_head()
    y = torch.linspace(-1, 1, scan.signal.shape[2])[:, None]
    for factor in (4000 * (0.5 + y**2), torch.exp(0.5 * y)):
        assert dice(make_mask(scanned(scan, scan.signal * factor)).mask, plain) > 0.98


def test_the_last_digits_of_the_voxel_size_do_not_matter() -> None:
    """Two exports of a scan may differ in them; an extent of 165 mm lies where rounding to voxels of 2 mm turns."""
    echoes = scanned(head())
    assert echoes.grid.shape[0] * echoes.grid.voxel_size_mm[0] == 165
    affine = np.asarray(echoes.grid.affine)
    for factor in (1 - 1e-7, 1 + 1e-7, 1 - 1e-5, 1 + 1e-5):
        grid = Grid.from_affine(echoes.grid.shape, np.diag([factor, factor, 2 - factor, 1]) @ affine)
        if abs(factor - 1) < 1e-6:
            assert grid.voxel_size_mm == echoes.grid.voxel_size_mm and grid.affine != echoes.grid.affine
        assert torch.equal(make_mask(replace(echoes, grid=grid)).mask, found_in_head()), factor


def test_the_last_digits_of_the_voxel_size_do_not_change_the_shading() -> None:
    total = scanned(head()).magnitude.norm(dim=0)
    found = [_shading(total, (2.0 * factor, 2.0 * factor, 1.9875)) for factor in (1, 1 - 1e-5, 1 + 1e-5)]
    assert float(found[0].std()) > 0.01
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_scan_without_neck_and_crown_is_masked_to_its_ends() -> None:
    scan = head()
    z = slice(24, 56)
    brain = scan.head.brain[..., z]
    assert bool(brain[..., 0].any() and brain[..., -1].any())
    assert dice(make_mask(scanned(scan, scan.signal[..., z])).mask, brain) > 0.93


def test_a_void_is_left_out_at_the_rim_and_kept_inside() -> None:
    scan = head()
    x, y, z = (int(c) for c in scan.head.brain.nonzero().float().mean(0))
    front = int(scan.head.brain[x, :, z].nonzero().max())
    rim, inside = ball(scan, (x, front - 2, z), 15), ball(scan, (x + 10, y, z + 6), 8)
    noise = 1e-4 * torch.randn(scan.signal.shape, generator=torch.Generator().manual_seed(2))
    found = make_mask(scanned(scan, torch.where(rim | inside, noise, scan.signal))).mask
    assert float(found[rim & scan.head.brain].float().mean()) < 0.4
    assert bool(found[inside].all())
    assert dice(found & ~rim, scan.head.brain & ~rim) > 0.95


def test_a_lower_threshold_and_a_wider_closing_take_in_more() -> None:
    echoes, plain = scanned(head()), int(found_in_head().sum())
    assert int(make_mask(echoes, Mask(threshold=0.5)).mask.sum()) > plain
    assert int(make_mask(echoes, Mask(close_mm=2.0)).mask.sum()) < plain
    eroded = make_mask(echoes, Mask(erode_mm=5.0)).mask
    assert int(eroded.sum()) < 0.9 * plain and not bool((eroded & ~found_in_head()).any())


def test_two_passes_leave_incoherent_phase_out_of_the_reliable_voxels() -> None:
    scan = head()
    x, y, z = (int(c) for c in scan.head.brain.nonzero().float().mean(0))
    lesion = ball(scan, (x + 10, y, z + 6), 10)
    angle = 6 * torch.rand(scan.signal.shape, generator=torch.Generator().manual_seed(3))
    echoes = scanned(scan, torch.where(lesion, torch.polar(scan.signal.abs(), angle), scan.signal))
    two = make_mask(echoes, Mask(two_pass=True))
    assert not bool((two.reliable & ~two.mask).any())
    assert bool(two.mask[lesion].all()) and float(two.reliable[lesion].float().mean()) < 0.1
    assert two.facts["reliable_share"] == pytest.approx(float(two.reliable.sum() / two.mask.sum()))
    assert 0.8 < two.facts["reliable_share"] < 1


def test_deepbet_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepbet", None)
    with pytest.raises(ChironError, match=r"X003.*deepbet"):
        make_mask(flat(), Mask(method="deepbet"))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """In deepbet's place: what of the image is brighter than its mean, by deepbet's calls and warnings."""

    class BrainExtraction:
        def __init__(self, no_gpu: bool = False) -> None:
            warnings.warn("torch.jit.load is deprecated", DeprecationWarning, stacklevel=1)

        def run(self, image: nib.Nifti1Image) -> tuple[nib.Nifti1Image, nib.Nifti1Image, float]:
            values = image.get_fdata()
            assert values.max() > values.min(), "Not enough foreground to calculate bounding box"
            mask = (values > values.mean()).astype(np.uint8)
            return image, nib.Nifti1Image(mask, image.affine), float(mask.sum())

    monkeypatch.setitem(sys.modules, "deepbet", types.SimpleNamespace(BrainExtraction=BrainExtraction))


@pytest.mark.usefixtures("stand_in")
def test_deepbet_is_given_the_first_echo() -> None:
    magnitude = torch.ones((2, *SHAPE))
    magnitude[0, 3:9, 2:8, 2:7] = 5
    magnitude[1, :2] = 50
    found = make_mask(Echoes(magnitude, torch.zeros_like(magnitude), (0.004, 0.010), 3.0, GRID), Mask(method="deepbet"))
    assert torch.equal(found.mask, magnitude[0] > 2) and found.facts["source"] == "deepbet"


@pytest.mark.usefixtures("stand_in")
def test_deepbet_finding_nothing_is_a_fault() -> None:
    with pytest.raises(ChironError, match="P007"):
        make_mask(flat(), Mask(method="deepbet"))


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


@pytest.mark.parametrize("size", [(1.0, 1.5, 2.0), (3.0, 3.0, 3.0)])
def test_shapes_keep_to_what_they_say(size: tuple[float, float, float]) -> None:
    mask = torch.rand((13, 17, 11), generator=torch.Generator().manual_seed(4)) > 0.8
    shut = closed(mask, size, 4.0)
    assert bool((shut | ~mask).all()) and int(shut.sum()) > int(mask.sum())
    assert not bool((opened(mask, size, 4.0) & ~mask).any())
    assert bool((filled(mask) | ~mask).all())
    parts = touching(mask, largest(mask))
    assert torch.equal(parts, largest(mask)) and not bool(touching(mask, ~mask).any())


def test_resampling_keeps_constants_and_slopes() -> None:
    volume = torch.linspace(0, 1, 24)[:, None, None].expand(2, 24, 9, 7)
    for shape in ((12, 9, 5), (11, 14, 7), (24, 9, 7)):
        found = resample(volume, shape)
        assert tuple(found.shape) == (2, *shape)
        assert float(found[..., :1, :1].std(dim=(0, 2, 3)).max()) < 1e-6
        steps = found[0, 1:, 0, 0] - found[0, :-1, 0, 0]
        assert float(steps.min()) > 0 and float(found.mean()) == pytest.approx(0.5, abs=1e-3)
