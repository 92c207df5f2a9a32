"""Every metric against a case that can be worked out by hand or by another way of computing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff
from scipy import ndimage
from skimage.metrics import structural_similarity
from torch import Tensor

from models.dipole import Dipole
from pipeline.errors import ChironError
from pipeline.quality import (
    CHECKS,
    asymmetry,
    base,
    beyond_share,
    calcification,
    core,
    cut_share,
    dark_share,
    data_consistency,
    dnrmse,
    evaluate,
    hfen,
    judge,
    limits,
    measure,
    neighbour_correlation,
    nrmse,
    pearson,
    psnr,
    read_truth,
    rim_energy,
    robust_spread,
    slope_deviation,
    streak_index,
    unexplained_share,
    xsim,
)
from pipeline.quality.plausibility import components, snr, wraps_left
from pipeline.volumes import Grid
from pipeline.work import Made, Result, Work

SHAPE = (25, 23, 20)


def noise(seed: int, shape: tuple[int, ...] = SHAPE, scale: float = 0.05) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ball(shape: tuple[int, int, int] = SHAPE, radius: float = 8) -> Tensor:
    centre = [(n - 1) / 2 for n in shape]
    axes = torch.meshgrid(*(torch.arange(n) - c for n, c in zip(shape, centre, strict=True)), indexing="ij")
    return torch.stack(axes).square().sum(0) <= radius**2


# --- against the truth -----------------------------------------------------------------------------------------------


def test_a_perfect_map_has_no_error() -> None:
    y, mask = noise(0), ball()
    labels = torch.randint(1, 17, SHAPE, generator=torch.Generator().manual_seed(1))
    found = evaluate(y, y, mask, labels)
    for name in ("nrmse", "dnrmse", "dnrmse_tissue", "dnrmse_dgm", "dnrmse_blood", "slope_deviation", "hfen"):
        assert found[name] == pytest.approx(0, abs=1e-10), name
    for name in ("xsim", "xsim_uniform5", "r"):
        assert found[name] == pytest.approx(1, abs=1e-10), name
    assert found["psnr"] == math.inf
    assert found["psnr_range_ppm"] == pytest.approx(float(y[mask].max() - y[mask].min()))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 5), st.floats(-1, 1))
def test_what_scale_and_offset_change(scale: float, offset: float) -> None:
    y, mask = noise(0), ball()
    x = scale * y + offset
    assert nrmse(x, y, mask) == pytest.approx(100 * abs(scale - 1), abs=1e-6)
    assert dnrmse(x, y, mask) == pytest.approx(0, abs=1e-6)
    assert dnrmse(x + noise(1), y, mask) == pytest.approx(dnrmse(x + noise(1) + 3, y, mask))
    assert pearson(x, y, mask) == pytest.approx(1)
    assert pearson(-x, y, mask) == pytest.approx(-1)


def test_nrmse_of_an_empty_map_is_100_and_outside_the_mask_nothing_counts() -> None:
    y, mask = noise(0), ball()
    assert nrmse(torch.zeros(SHAPE), y, mask) == pytest.approx(100)
    assert math.isnan(nrmse(y, torch.ones(SHAPE), mask))
    spoilt = torch.where(mask, y, 1e3 * noise(2))
    assert evaluate(spoilt, y, mask) == evaluate(y, y, mask)


def test_dnrmse_of_added_noise() -> None:
    """Detrended noise that is uncorrelated with the truth leaves its own share: |n| / |a y|."""
    y, mask = noise(0), torch.ones(SHAPE, dtype=torch.bool)
    n = noise(1)
    y, n = y - y.mean(), n - n.mean()
    n = n - (n * y).sum() / (y * y).sum() * y
    assert dnrmse(2 * y + n, y, mask) == pytest.approx(float(100 * n.norm() / (2 * y).norm()))


def test_psnr() -> None:
    y, mask = noise(0), ball()
    value, peak = psnr(y + 0.01, y, mask)
    assert value == pytest.approx(20 * math.log10(peak / 0.01))


def test_slope_deviation_uses_the_means_of_the_nuclei() -> None:
    labels = torch.arange(SHAPE[0])[:, None, None].expand(SHAPE) // 3  # 0 to 8; 7 and 8 are no nuclei
    truth = torch.where(labels < 7, 0.03 * labels.double(), -5.0)
    chi = 0.8 * truth + 0.01 + torch.where(labels < 7, 0, 100.0)
    chi[:, ::2] += 0.3
    chi[:, 1::2] -= 0.3 * 12 / 11  # noise of zero mean in every nucleus
    everywhere = torch.ones(SHAPE, dtype=torch.bool)
    assert slope_deviation(chi, truth, everywhere, labels, (1, 2, 3, 4, 5, 6)) == pytest.approx(0.2)
    assert math.isnan(slope_deviation(chi, truth, labels < 2, labels, (1, 2, 3, 4, 5, 6)))


def test_regions_are_those_of_the_challenge() -> None:
    labels = torch.zeros(SHAPE, dtype=torch.int16)
    labels[4:8], labels[8:12], labels[12:16], labels[20, 10, 10] = 8, 3, 7, 11
    truth, mask = noise(0), torch.ones(SHAPE, dtype=torch.bool)
    tissue, vein = truth.clone(), truth.clone()
    tissue[4:8] += noise(1)[4:8]
    vein[21, 11, 11] += 1  # a corner of the cube around the vein
    assert evaluate(tissue, truth, mask, labels)["dnrmse_tissue"] > 10
    assert evaluate(tissue, truth, mask, labels)["dnrmse_dgm"] == pytest.approx(0, abs=1e-9)
    found = evaluate(vein, truth, mask, labels)
    assert found["dnrmse_blood"] > 10 and found["dnrmse_tissue"] == pytest.approx(0, abs=1e-9)
    assert "slope_deviation" not in found and "calc_streak" not in found  # one nucleus, no calcification


def calcified() -> tuple[Tensor, Tensor, Tensor]:
    """A calcification of 3 x 4 x 5 voxels at -1 ppm in a flat brain, its truth, and where it is."""
    where = torch.zeros(40, 41, 42, dtype=torch.bool)
    where[18:21, 18:22, 18:23] = True
    truth = torch.where(where, -1.0, 0.0).double()
    return truth.clone(), truth, where


def test_the_moment_of_a_calcification() -> None:
    chi, truth, where = calcified()
    assert max(calcification(chi, truth, where)) == pytest.approx(0)
    assert calcification(0.7 * chi, truth, where)[0] == pytest.approx(0.3 * 60)
    chi[15, 15, 15] = -0.045  # in the box of 3 voxels to spare
    chi[15, 15, 16] = -0.035  # not below the threshold, which the shell sets to -0.04
    chi[7, 7, 7] = -0.0301  # the shell's far corner
    assert calcification(chi, truth, where)[0] == pytest.approx(0.045)
    chi[6, 7, 7] = -2  # beyond the shell: does not move the threshold
    assert calcification(chi, truth, where)[0] == pytest.approx(0.045)
    chi[7, 7, 7] = -0.05
    assert calcification(chi, truth, where)[0] == pytest.approx(0)
    assert calcification(torch.zeros_like(chi), truth, where)[0] == pytest.approx(60)
    assert math.isnan(calcification(torch.zeros_like(chi), truth, where)[1])


def test_streaks_around_a_calcification() -> None:
    chi, truth, where = calcified()
    truth[~where] = 0.01 * noise(3, (40, 41, 42), 1)[~where]
    rim = torch.zeros_like(where)
    rim[11:28, 11:29, 11:30] = True
    rim[15:24, 15:25, 15:26] = False
    chi = torch.where(rim, 0.5 * truth + 0.02, truth)
    box = chi[15:24, 15:25, 15:26]
    assert calcification(chi, truth, where)[1] == pytest.approx(0, abs=1e-9)  # a scale is no streak
    streaks = noise(4, (40, 41, 42), 0.03)
    level = calcification(torch.where(rim, chi + streaks, chi), truth, where)[1]
    assert level == pytest.approx(0.03 / float(box[box < -0.1].mean().abs()), rel=0.05)


def test_hfen_is_the_norm_after_a_laplacian_of_gaussian() -> None:
    x, y, mask = noise(0), noise(1), ball()
    r2 = np.square(np.indices((15, 15, 15)) - 7).sum(0)
    gaussian = np.exp(-r2 / 4.5)
    kernel = gaussian / gaussian.sum() * (r2 - 6.75) / 1.5**4
    kernel -= kernel.mean()
    response = [ndimage.convolve(np.pad((v * mask).numpy(), 7), kernel, mode="constant") for v in (x, y)]
    expected = 100 * np.linalg.norm(response[0] - response[1]) / np.linalg.norm(response[1])
    assert hfen(x, y, mask) == pytest.approx(expected)
    assert hfen(1.3 * y, y, mask) == pytest.approx(30)


def test_xsim_uniform_is_structural_similarity() -> None:
    x, y, mask = noise(0), noise(1), ball()
    full = structural_similarity(
        x.numpy(), y.numpy(), win_size=5, K1=0.01, K2=0.001, data_range=1, use_sample_covariance=False, full=True
    )[1]
    assert xsim(x, y, mask, "uniform5") == pytest.approx(full[mask.numpy()].mean())


def test_xsim_gaussian_in_one_voxel() -> None:
    x, y = noise(0), noise(1) + 0.02
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[12, 11, 10] = True
    w = torch.exp(-(torch.arange(-3.0, 4.0).double() ** 2) / 4.5)
    w = w[:, None, None] * w[:, None] * w
    w = w / w.sum()
    a, b = x[9:16, 8:15, 7:14], y[9:16, 8:15, 7:14]
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
    expected = (2 * ma * mb + 1e-4) * (2 * cov + 1e-6) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 1e-6))
    assert xsim(x, y, mask) == pytest.approx(float(expected))


# --- without a truth -------------------------------------------------------------------------------------------------


def test_data_consistency_is_in_units_of_noise() -> None:
    mask, size = ball(), (1.0, 1.2, 1.5)
    dipole = Dipole(SHAPE, size, (0.2, -0.3, 1), dtype=torch.float64)
    chi, sd = noise(0) * mask, 0.002 + 0.01 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(5))
    clean = dipole.forward(chi)
    local = clean + sd * noise(6, scale=1)
    assert data_consistency(chi, clean, sd, mask, dipole) == pytest.approx(0, abs=1e-8)
    value = data_consistency(chi, local, sd, mask, dipole)
    assert value == pytest.approx(1, abs=0.05)
    assert data_consistency(chi, local, 2 * sd, mask, dipole) == pytest.approx(value / 2)
    assert data_consistency(chi - 0.1 * mask, local + 0.02, sd, mask, dipole) == pytest.approx(value)
    assert data_consistency(0.5 * chi, local, sd, mask, dipole) > 1.2 * value
    sd[mask] = torch.where(noise(7)[mask] > 0.1, 0, sd[mask])  # no noise estimate: does not count
    assert data_consistency(chi, local, sd, mask, dipole) == pytest.approx(1, abs=0.05)
    assert math.isnan(data_consistency(chi, local, 0 * sd, mask, dipole))


@pytest.mark.parametrize("shape", [(20, 18, 16), (15, 25, 27)])
def test_streak_index_counts_the_whole_spectrum(shape: tuple[int, int, int]) -> None:
    chi, mask = noise(0, shape), torch.ones(shape, dtype=torch.bool)
    dipole = Dipole(shape, (1, 1, 2), (0, 0, 1), padding=0, dtype=torch.float64)
    padded = np.zeros(dipole.padded)
    padded[tuple(slice(n) for n in shape)] = chi - chi.mean()
    k = np.meshgrid(*(np.fft.fftfreq(n, d) for n, d in zip(dipole.padded, (1, 1, 2), strict=True)), indexing="ij")
    k2 = sum(c**2 for c in k)
    k2[0, 0, 0] = 1
    kernel = np.abs(1 / 3 - k[2] ** 2 / k2)
    kernel[0, 0, 0] = 9
    power = np.abs(np.fft.fftn(padded)) ** 2
    expected = power[kernel < 0.1].sum() / power[(kernel >= 0.1) & (kernel < 0.2)].sum()
    assert streak_index(chi, mask, dipole) == pytest.approx(expected, rel=1e-6)
    assert streak_index(chi + 7, mask, dipole) == pytest.approx(expected, rel=1e-6)


def test_streaks_raise_the_streak_index() -> None:
    chi, mask = noise(0, (24, 24, 24)), torch.ones(24, 24, 24, dtype=torch.bool)
    dipole = Dipole((24, 24, 24), (1, 1, 1), (0, 0, 1), padding=0, dtype=torch.float64)
    streaky = torch.fft.irfftn(dipole.fft(chi) * (1 + 2 * (dipole.kernel.abs() < 0.1)), s=(24, 24, 24))
    assert streak_index(streaky, mask, dipole) == pytest.approx(9 * streak_index(chi, mask, dipole), rel=1e-6)


def test_rim_energy() -> None:
    chi, mask = noise(0, scale=1), ball()
    core = torch.from_numpy(ndimage.binary_erosion(mask.numpy(), iterations=2))
    chi[core] = (chi[core] - chi[core].mean()) / chi[core].std()
    chi[mask & ~core] = 3 * (chi[mask & ~core] / chi[mask & ~core].std())
    assert rim_energy(chi, mask) == pytest.approx(3)
    assert math.isnan(rim_energy(chi, ball(radius=1)))


def test_share_beyond() -> None:
    chi, mask = torch.zeros(SHAPE), torch.zeros(SHAPE, dtype=torch.bool)
    mask[0, 0, :10] = True
    chi[0, 0, :3] = torch.tensor([0.6, -0.7, 0.5])
    chi[1] = 9
    assert beyond_share(chi, mask) == pytest.approx(0.2)


def test_wraps_left_counts_edges_in_the_mask() -> None:
    mask = torch.zeros(8, 9, 10, dtype=torch.bool)
    mask[1:7, 1:8, 1:9] = True
    phase = 0.4 * torch.arange(10.0).expand(2, 8, 9, 10).clone()
    phase[:, 0] = 100
    assert wraps_left(phase, mask) == 0
    phase[1, 4:] += 2 * math.pi
    edges = 5 * 7 * 8 + 6 * 6 * 8 + 6 * 7 * 7
    assert wraps_left(phase, mask) == pytest.approx(7 * 8 / (2 * edges))


def test_snr_and_components() -> None:
    mask = ball()
    assert snr(100 + noise(0, scale=5) + 2 * torch.arange(20.0), mask) == pytest.approx(119 / 5, rel=0.1)
    mask[0, 0, 0] = True
    assert components(mask) == 2


def test_the_unexplained_share_is_0_of_a_perfect_map_and_1_of_an_empty_one() -> None:
    mask, chi = ball(), noise(0) * ball()
    dipole = Dipole(SHAPE, (1.0, 1.2, 1.5), (0.2, -0.3, 1), dtype=torch.float64)
    field, sd = dipole.forward(chi), torch.full(SHAPE, 0.002)
    shares = [unexplained_share(scale * chi, field + 0.4, sd, mask, dipole) for scale in (1, 0.5, 0)]
    assert shares == pytest.approx([0, 0.25, 1], abs=1e-6)
    assert math.isnan(unexplained_share(chi, field, torch.zeros(SHAPE), mask, dipole))


def test_the_robust_spread_is_blind_to_a_bright_rim() -> None:
    mask = ball()
    inner = core(mask, (1.0, 1.0, 1.0), rim_mm=3)
    assert bool(ball(radius=4.5)[~inner].any()) is False and not bool((inner & ~ball(radius=6)).any())
    flat = torch.where(inner, 1e-4 * noise(0), 0.5)
    assert float(flat[mask].std()) > 0.2 and robust_spread(flat[inner]) < 1e-4
    assert robust_spread(noise(0, (60, 60, 60))) == pytest.approx(0.05, rel=0.02)
    assert torch.equal(core(ball(radius=2), (1.0, 1.0, 1.0)), ball(radius=2))  # all of a mask that is too thin


def test_asymmetry_tells_the_sign_of_a_map() -> None:
    values = noise(0, (40, 40, 40)).flatten()
    assert asymmetry(values) == pytest.approx(0, abs=0.05)
    values[:640] = 0.3
    assert asymmetry(values) > 0.3 and asymmetry(-values) == pytest.approx(-asymmetry(values))
    assert math.isnan(asymmetry(0.01 * values)) and math.isnan(asymmetry(values[:1000]))


def test_neighbours_are_alike_in_tissue_and_not_in_noise() -> None:
    grain = noise(0, (40, 40, 40))
    tissue = torch.from_numpy(ndimage.gaussian_filter(grain.numpy(), 1.5)) * 5
    everywhere = torch.ones(40, 40, 40, dtype=torch.bool)
    assert neighbour_correlation(grain, everywhere) == pytest.approx(0, abs=0.03)
    assert neighbour_correlation(tissue, everywhere) > 0.8
    striped = tissue + 0.2 * torch.randn(1, 1, 40, generator=torch.Generator().manual_seed(1))
    assert neighbour_correlation(striped, everywhere) < 0.3  # along the axis where it is least


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LPI", "SLA", "PIR"])
def test_the_base_lies_towards_the_feet_in_any_orientation(codes: str) -> None:
    mask, affine = ball(radius=9), np.diag([2.0, 2.0, 2.0, 1.0])
    turn = axcodes2ornt(codes)
    turned = torch.from_numpy(apply_orientation(mask.numpy().astype(np.uint8), turn).copy()).bool()
    low = base(turned, affine @ inv_ornt_aff(turn, SHAPE), height_mm=10)
    back = apply_orientation(low.numpy().astype(np.uint8), inverse(turn))
    heights = np.argwhere(back)[:, 2]
    assert heights.min() == int(mask.nonzero()[:, 2].min()) and 4 <= np.ptp(heights) <= 6


def inverse(turn: Any) -> Any:
    """The orientation that undoes `turn`."""
    order = np.argsort(turn[:, 0])
    return np.stack([order, turn[order, 1]], axis=1)


def test_dark_voxels_and_a_cut_brain_are_counted() -> None:
    region = torch.ones(10, 10, 10, dtype=torch.bool)
    magnitude = torch.full((10, 10, 10), 100.0)
    magnitude[:2] = 49
    assert dark_share(magnitude, region) == pytest.approx(0.2)
    whole = ball(radius=8)
    assert cut_share(whole) == 0
    lower = whole[:, :, 10:]
    assert cut_share(lower) == pytest.approx(float(lower[:, :, 0].sum()) / float(lower.sum(dim=(0, 1)).max()))
    assert math.isnan(cut_share(torch.zeros(SHAPE, dtype=torch.bool)))


# --- the verdict -----------------------------------------------------------------------------------------------------

SOUND = {
    "finite_share": 1.0, "core_spread_ppm": 0.025, "asymmetry": 0.2, "neighbour_correlation": 0.7, "volume_ml": 1400,
    "components": 1, "eroded_share": 0.1, "wraps_left": 0.0, "excluded_share": 0.0, "field_noise_ppm": 0.001,
    "echoes": 5, "first_echo_ms": 4.0, "last_echo_ms": 25.0, "longest_edge_mm": 1.0, "cut_share": 0.05,
    "base_dark_share": 0.02, "base_beyond_share": 0.01, "unexplained_share": 0.2, "data_consistency": 1.0,
    "beyond_share": 0.0, "rim_energy": 1.2, "streak_index": 0.8, "classical_correlation": 0.9,
}  # fmt: skip


def test_a_sound_scan_is_usable() -> None:
    assert judge(SOUND) == {"level": "usable", "reasons": []}
    assert judge(dict.fromkeys(SOUND)) == {"level": "usable", "reasons": []}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.number}-{check.side}-{check.limit}")
def test_every_check_can_fail_and_says_why(check: Any) -> None:
    off = 0.1 * abs(check.limit) or 0.1
    beyond = check.limit + (off if check.side == "above" else -off)
    found = judge({**SOUND, check.number: beyond})
    assert found["level"] == check.level
    assert len(found["reasons"]) == 1
    assert check.form.format(beyond) in found["reasons"][0] and check.form.format(check.limit) in found["reasons"][0]
    assert check.sentence(check.limit) not in judge({**SOUND, check.number: check.limit})["reasons"]
    assert check.form.format(check.limit) in limits(check.number) and len(check.why) > 10


def test_the_gravest_reason_comes_first() -> None:
    found = judge({**SOUND, "rim_energy": 2.0, "beyond_share": 0.5})
    assert found["level"] == "do not use"
    assert ["0.5 ppm" in reason for reason in found["reasons"]] == [True, False]


# --- the stage -------------------------------------------------------------------------------------------------------


def oblique(shape: tuple[int, int, int] = SHAPE) -> Grid:
    c, s = np.cos(0.4), np.sin(0.4)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag([1, 1.1, 1.4])
    affine[:3, 3] = [-20, 31, 7.5]
    return Grid.from_affine(shape, affine)


def stages(folder: Path, maps: dict[str, Tensor], grid: Grid) -> dict[str, Result]:
    """Finished stages of a scan whose local field the first of `maps` explains within noise."""
    mask, final = ball(radius=9), ball(radius=8)
    field = Dipole(SHAPE, grid.voxel_size_mm, grid.b0_dir).forward((next(iter(maps.values())) * final).float())
    made = {
        "convert": Made(
            {"magnitude": (100 + noise(8, (3, *SHAPE), 2)).float()},
            facts={"grid": grid.json(), "echo_times_s": [0.004, 0.012, 0.020], "b0_tesla": 3.0},
        ),
        "mask": Made({"mask": mask.to(torch.uint8)}),
        "unwrap": Made({"unwrapped_rad": noise(9, (3, *SHAPE), 0.1).float()}),
        "field": Made({"total_ppm": field, "sd_ppm": torch.full(SHAPE, 0.004), "residual": torch.full(SHAPE, 0.02)}),
        "background": Made(
            {"local_ppm": ((field + noise(10, scale=0.004)) * final).float(), "mask": final.to(torch.uint8)}
        ),
        **{f"invert-{name}": Made({"chi_ppm": (chi * final).float()}) for name, chi in maps.items()},
    }
    return {name: Work(folder).write(name, "key", m, {}) for name, m in made.items()}


def smooth(seed: int) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(noise(seed, scale=0.3).numpy(), 1))


def save(path: Path, chi: Tensor, grid: Grid, codes: str = "RAS") -> Path:
    """Write `chi` with its voxel axes exchanged and flipped, at the same place."""
    turn = axcodes2ornt(codes)
    affine = np.asarray(grid.affine) @ inv_ornt_aff(turn, grid.shape)
    nib.save(nib.Nifti1Image(apply_orientation(chi.numpy(), turn), affine), path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SLA", "PIR", "IAL"])
def test_the_truth_may_lie_in_any_axis_order(tmp_path: Path, codes: str) -> None:
    chi, grid = noise(0), oblique()
    assert torch.equal(read_truth(save(tmp_path / "chi.nii", chi, grid, codes), grid), chi)


def test_a_truth_elsewhere_is_refused(tmp_path: Path) -> None:
    chi, grid = noise(0), oblique()
    shifted, larger = np.asarray(grid.affine).copy(), np.asarray(grid.affine).copy()
    shifted[0, 3] += 1
    larger[:3, :3] *= 2
    cases = [(chi, shifted), (chi, larger), (chi[1:], np.asarray(grid.affine)), (chi, np.diag([1, 1.1, 1.4, 1]))]
    for values, affine in cases:
        nib.save(nib.Nifti1Image(values.numpy(), affine), tmp_path / "chi.nii")
        with pytest.raises(ChironError, match="X002"):
            read_truth(tmp_path / "chi.nii", grid)
    for content in (None, b"no image"):
        path = tmp_path / "other.nii"
        if content:
            path.write_bytes(content)
        with pytest.raises(ChironError, match="X002"):
            read_truth(path, grid)


def test_measure_puts_the_numbers_together(tmp_path: Path) -> None:
    grid, chi = oblique(), smooth(0)
    done = stages(tmp_path / "work", {"dip": chi - 0.01, "rts": 0.8 * chi}, grid)
    truth = save(tmp_path / "chi.nii", chi + 5, grid, "LPS")
    made = measure(done, "dip", "rts", truth, torch.device("cpu"))
    facts = json.loads(json.dumps(made.facts, allow_nan=False))
    assert set(facts) == {"methods", "acquisition", "verdict", "primary", "classical", "truth"}
    dip, rts = facts["methods"]["dip"], facts["methods"]["rts"]
    assert dip["data_consistency"] == pytest.approx(1, abs=0.05)
    assert rts["data_consistency"] > 1.1
    assert dip["nrmse"] == pytest.approx(0, abs=1e-3) and rts["nrmse"] == pytest.approx(20, abs=1e-3)
    assert dip["classical_correlation"] == pytest.approx(1) and "classical_correlation" not in rts
    assert facts["truth"] and facts["primary"] == "dip" and made.arrays["truth_ppm"].shape == SHAPE
    scan = facts["acquisition"]
    assert scan["volume_ml"] == pytest.approx(int(ball(radius=9).sum()) * 1.54 / 1000)
    assert scan["eroded_share"] == pytest.approx(1 - int(ball(radius=8).sum()) / int(ball(radius=9).sum()))
    assert (scan["echoes"], scan["components"], scan["wraps_left"]) == (3, 1, 0)
    assert (scan["first_echo_ms"], scan["last_echo_ms"], scan["excluded_share"]) == (4, 20, 0)
    assert scan["field_noise_ppm"] == pytest.approx(0.004) and scan["longest_edge_mm"] == pytest.approx(1.4)
    assert scan["fit_residual"] == pytest.approx(0.02) and scan["snr"] == pytest.approx(50, rel=0.1)
    assert facts["verdict"]["level"] == "check"
    assert any("5 ml (below 700 ml)" in reason for reason in facts["verdict"]["reasons"])
    assert dip["asymmetry"] is None  # too few voxels for extremes


def test_accuracy_is_that_in_the_true_brain_where_it_is_known(tmp_path: Path) -> None:
    grid, chi = oblique(), smooth(0)
    brain = torch.arange(SHAPE[0])[:, None, None].expand(SHAPE) > SHAPE[0] // 2
    done = stages(tmp_path / "work", {"rts": chi}, grid)
    truth = save(tmp_path / "true_Chimap.nii", torch.where(brain, chi + 5, 9.4), grid, "LPS")

    def measured() -> Made:
        return measure(done, "rts", "rts", truth, torch.device("cpu"))

    everywhere = measured()
    save(tmp_path / "true_desc-brain_mask.nii", brain.to(torch.int16), grid, "SLA")
    inside = measured()
    (before,), (after,) = (made.facts["methods"].values() for made in (everywhere, inside))
    assert before["nrmse"] > 50 and after["nrmse"] == pytest.approx(0, abs=1e-3) and after["xsim"] > 0.999
    scored = brain & done["background"].array("mask").bool()
    assert float(inside.arrays["truth_ppm"][scored].mean()) == pytest.approx(0, abs=1e-6)
    assert after["spread_ppm"] == before["spread_ppm"]  # what needs no truth is that of the whole mask


def test_without_a_truth_there_are_no_errors(tmp_path: Path) -> None:
    made = measure(stages(tmp_path, {"rts": smooth(0)}, oblique()), "rts", "rts", None, torch.device("cpu"))
    assert made.facts["truth"] is False and not made.arrays
    assert not {"nrmse", "xsim", "r"} & set(made.facts["methods"]["rts"])


@pytest.mark.parametrize("failed", [torch.zeros(SHAPE), torch.full(SHAPE, math.nan)])
def test_a_map_that_holds_nothing_is_not_published(tmp_path: Path, failed: Tensor) -> None:
    done = stages(tmp_path / "two", {"rts": smooth(0), "dip": failed}, oblique())
    made = measure(done, "dip", "rts", None, torch.device("cpu"))
    json.dumps(made.facts, allow_nan=False)
    assert made.facts["primary"] == "rts" and [n.code for n in made.notices] == ["M001"]
    assert made.facts["verdict"]["level"] == "do not use"
    alone = measure({k: v for k, v in done.items() if k != "invert-rts"}, "dip", "rts", None, torch.device("cpu"))
    assert alone.facts["primary"] == "dip" and not alone.notices
    assert alone.facts["verdict"]["level"] == "do not use"


def test_an_empty_mask_is_no_crash(tmp_path: Path) -> None:
    done = stages(tmp_path, {"rts": smooth(0)}, oblique())
    empty = torch.zeros(SHAPE, dtype=torch.uint8)
    done["mask"] = Work(tmp_path).write("mask", "key", Made({"mask": empty}), {})
    local = Made({"local_ppm": torch.zeros(SHAPE), "mask": empty})
    done["background"] = Work(tmp_path).write("background", "key", local, {})
    facts = measure(done, "rts", "rts", None, torch.device("cpu")).facts
    json.dumps(facts, allow_nan=False)
    assert facts["verdict"]["level"] == "do not use"
