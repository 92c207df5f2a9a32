"""Background removal: the field of sources inside stays, that of sources outside goes, whatever B0's direction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.classical import TV, tv
from models.dipole import Dipole
from pipeline.background import LBV, PDF, RESHARP, TFI, VSHARP, background_left, remove_background
from pipeline.background.leftover import solid_harmonics
from pipeline.background.suspects import bridge_suspects
from pipeline.errors import ChironError
from pipeline.volumes import Field, Grid

CASES = [
    ((41, 38, 37), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0)),
    ((41, 34, 25), (1.0, 1.2, 1.6), (0.3, -0.5, 0.8)),
    ((33, 39, 36), (1.3, 1.0, 1.1), (0.8, 0.5, -0.2)),
]
SD = 0.001
METHODS: dict[str, Any] = {
    "tfi": TFI(),
    "vsharp": VSHARP(largest_mm=6),
    "pdf": PDF(iterations=100, regularisation=1e-6),
    "resharp": RESHARP(iterations=60),
    "lbv": LBV(),
}


@dataclass(frozen=True)
class Scene:
    """The fields of sources inside and outside a ball, those outside by the textbook's formula."""

    inside: Tensor
    outside: Tensor
    mask: Tensor
    grid: Grid

    def field(self, ppm: Tensor) -> Field:
        return Field(torch.where(self.mask, ppm, 0), torch.full(ppm.shape, SD), self.mask, self.grid)


def scene(shape: tuple[int, int, int], size: tuple[float, float, float], b0: tuple[float, float, float]) -> Scene:
    axes = [(torch.arange(n) - n // 2) * v for n, v in zip(shape, size, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")

    def ball(cx: float, cy: float, cz: float, radius: float) -> Tensor:
        return (radius - length(x - cx, y - cy, z - cz) + 0.5).clamp(0, 1)

    chi = 0.2 * ball(2, 3, -1, 2.5) - 0.15 * ball(-4, -2, 3, 2.0)
    grid = Grid.simple(shape, size, b0)
    b, outside = grid.b0_dir, torch.zeros(shape)
    for cx, cy, cz, radius, air in ((0, -17.5, -3, 2.0, 10.0), (17, 4, 5, 1.5, -6.0)):
        r = length(x - cx, y - cy, z - cz).clamp_min(radius)
        cosine = (b[0] * (x - cx) + b[1] * (y - cy) + b[2] * (z - cz)) / r
        outside += air / 3 * (radius / r) ** 3 * (3 * cosine**2 - 1)
    return Scene(Dipole(shape, size, b0).forward(chi), outside, ball(0, 0, 0, 13) > 0.5, grid)


def length(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x**2 + y**2 + z**2).sqrt()


def remove(method: str, total: Field, **changes: Any) -> Field:
    return remove_background(total, method, replace(METHODS[method], **changes))[0]


def rms(values: Tensor, mask: Tensor) -> float:
    inside = values[mask]
    return float((inside - inside.mean()).square().mean().sqrt())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("shape", "size", "b0"), CASES)
def test_the_local_field_stays_and_the_harmonic_one_goes(
    method: str, shape: tuple[int, int, int], size: tuple[float, float, float], b0: tuple[float, float, float]
) -> None:
    s = scene(shape, size, b0)
    total = s.field(s.inside + s.outside)
    local = remove(method, total)
    assert rms(s.outside, s.mask) > rms(s.inside, s.mask)
    assert rms(local.ppm - s.inside, local.mask) < 0.35 * rms(s.inside, local.mask)
    assert rms(remove(method, s.field(s.outside)).ppm, local.mask) < 0.03 * rms(s.outside, local.mask)
    assert rms(remove(method, s.field(s.inside)).ppm - s.inside, local.mask) < 0.35 * rms(s.inside, local.mask)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_left_lies_in_the_mask_and_nothing_beside_it(method: str) -> None:
    s = scene(*CASES[1])
    total = s.field(s.inside + s.outside)
    local, facts = remove_background(total, method, METHODS[method])
    assert not bool((local.mask & ~s.mask).any()) and not bool(local.ppm[~local.mask].any())
    assert local.ppm.shape == s.mask.shape and local.grid == s.grid
    lost = 1 - float(local.mask.sum()) / float(s.mask.sum())
    assert facts["eroded_share"] == pytest.approx(lost, abs=1e-6) and facts["method"] == method
    assert facts["volume_share"] == pytest.approx(1 - lost, abs=1e-6)
    assert lost < 0.6 and (lost > 0) == (method != "tfi")
    assert facts["background_left"].keys() == {"harmonic_share", "rim_excess"}


@pytest.mark.parametrize("method", METHODS)
def test_values_outside_the_mask_and_a_constant_have_no_say(method: str) -> None:
    s = scene(*CASES[1])
    total = s.field(s.inside + s.outside)
    spoilt = replace(total, ppm=torch.where(s.mask, total.ppm + 3, float("nan")))
    torch.testing.assert_close(remove(method, spoilt).ppm, remove(method, total).ppm, rtol=0, atol=1e-3)


@pytest.mark.parametrize("iterations", [5, 10])
def test_pdf_heeds_the_direction_of_b0(iterations: int) -> None:
    s = scene(*CASES[1])
    b = s.grid.b0_dir
    wrong_grid = Grid.simple(s.mask.shape, s.grid.voxel_size_mm, (b[2], b[0], b[1]))
    right = remove("pdf", s.field(s.outside), iterations=iterations)
    wrong = remove("pdf", replace(s.field(s.outside), grid=wrong_grid), iterations=iterations)
    assert rms(right.ppm, s.mask) < 0.8 * rms(wrong.ppm, s.mask)


def test_pdf_believes_a_noisy_voxel_less() -> None:
    s = scene(*CASES[0])
    total = s.field(s.outside)
    total.ppm[20:23, 18:21, 27:30] += 2
    sd = total.sd_ppm.clone()
    sd[20:23, 18:21, 27:30] = 10
    rest = s.mask.clone()
    rest[20:23, 18:21, 27:30] = False
    assert rms(remove("pdf", replace(total, sd_ppm=sd)).ppm, rest) < rms(remove("pdf", total).ppm, rest)


def test_a_larger_smallest_sphere_loses_a_wider_rim() -> None:
    s = scene(*CASES[1])
    kept = [int(remove("vsharp", s.field(s.inside), smallest_mm=mm).mask.sum()) for mm in (2.0, 3.0, 5.0)]
    assert kept[0] > kept[1] > kept[2] > 0


def test_a_mask_that_vanishes_is_a_fault() -> None:
    s = scene(*CASES[0])
    thin = torch.zeros_like(s.mask)
    thin[10:30, 10:30, 18] = True
    with pytest.raises(ChironError, match="P007"):
        remove("vsharp", replace(s.field(s.inside), mask=thin))
    for method in METHODS:
        with pytest.raises(ChironError, match="P007"):
            remove(method, replace(s.field(s.inside), mask=torch.zeros_like(thin)))


def test_a_sphere_is_never_a_single_voxel() -> None:
    s = scene(*CASES[0])
    local, _ = remove_background(s.field(s.inside), "vsharp", VSHARP(largest_mm=1, smallest_mm=0.5))
    assert float(local.ppm.abs().max()) > 0


def test_pdf_of_nothing_is_nothing() -> None:
    s = scene(*CASES[0])
    local, _ = remove_background(s.field(torch.zeros_like(s.inside)), "pdf")
    assert not bool(local.ppm.any()) and bool(local.mask.any())


def test_a_field_that_cannot_be_believed_does_not_spread() -> None:
    s = scene(*CASES[0])
    total = s.field(s.inside + s.outside)
    spoilt = torch.zeros_like(s.mask)
    spoilt[22:24, 9:11, 18:20] = s.mask[22:24, 9:11, 18:20]
    bad = replace(total, ppm=total.ppm + 5.0 * spoilt, sd_ppm=torch.where(spoilt, 5 * SD, SD))
    unaware = replace(bad, sd_ppm=total.sd_ppm)
    for method in METHODS.keys() - {"tfi"}:
        good = remove(method, total)
        inside = good.mask & ~spoilt
        change = rms(remove(method, bad).ppm - good.ppm, inside)
        assert bool(spoilt.any()) and change < 0.1 * rms(remove(method, unaware).ppm - good.ppm, inside)


def test_a_strong_source_deep_inside_keeps_its_field_though_its_sd_is_large() -> None:
    s = scene(*CASES[0])
    strong = torch.zeros_like(s.inside)
    strong[20, 19, 18] = 0.5
    total = s.field(s.inside + s.outside + strong)
    noisy = replace(total, sd_ppm=torch.where(strong > 0, 10 * SD, SD))
    bridged, for_good = bridge_suspects(noisy)
    assert abs(float(bridged[20, 19, 18])) < 0.1 and not bool(for_good.any())
    for method in METHODS:
        assert float(remove(method, noisy).ppm[20, 19, 18]) > 0.4


def test_suspects_without_believed_neighbours_stay_as_they_are() -> None:
    s = scene(*CASES[0])
    total = s.field(s.inside)
    total.mask[:] = False
    total.mask[5:8, 5:8, 5:8] = total.mask[20:30, 10:20, 10:20] = True
    sd = torch.full_like(total.sd_ppm, SD)
    sd[5:8, 5:8, 5:8] = 1
    bridged, for_good = bridge_suspects(replace(total, sd_ppm=sd))
    torch.testing.assert_close(bridged[total.mask], total.ppm[total.mask])
    assert not bool(for_good.any())


@pytest.mark.parametrize(("shape", "size", "b0"), CASES)
def test_what_is_left_of_the_background_shows(
    shape: tuple[int, int, int], size: tuple[float, float, float], b0: tuple[float, float, float]
) -> None:
    s = scene(shape, size, b0)
    grades = [background_left(s.field(s.inside + part * s.outside)) for part in (0.0, 0.1, 0.3, 1.0)]
    shares = [grade["harmonic_share"] for grade in grades]
    assert shares == sorted(shares) and shares[0] < 0.2 and shares[-1] > 0.6
    assert grades[-1]["rim_excess"] > grades[0]["rim_excess"]


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (0.7, 1.3, 1.1)])
def test_solid_harmonics_are_harmonic_and_independent(size: tuple[float, float, float]) -> None:
    h = 0.05
    shift = torch.cat([torch.zeros(1, 3), torch.eye(3), -torch.eye(3)]).to(torch.float64) * h
    points = (torch.rand(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5) * torch.tensor(
        size
    )
    values = solid_harmonics((points[:, None] + shift).reshape(-1, 3), 4).view(25, 40, 7)
    laplacian = (values[:, :, 1:].sum(2) - 6 * values[:, :, 0]) / h**2
    assert float(laplacian.abs().max()) < 0.05 * float(values.abs().max() / 0.5**2)
    assert int(torch.linalg.matrix_rank(values[:, :, 0])) == 25


def test_lbv_is_the_field_itself_at_the_rim_and_harmonic_within() -> None:
    s = scene(*CASES[1])
    x = torch.arange(41.0)[:, None, None].expand(41, 34, 25) * 1.0
    y = torch.arange(34.0)[None, :, None].expand(41, 34, 25) * 1.2
    left = remove("lbv", s.field(0.01 * (x**2 - y**2) + 0.3 * x), tolerance=1e-6)
    assert rms(left.ppm, left.mask) < 1e-3 * rms(0.01 * (x**2 - y**2) + 0.3 * x, left.mask)


@pytest.mark.parametrize(("method", "name"), [("pdf", "erode_mm"), ("lbv", "peel_mm"), ("resharp", "radius_mm")])
def test_more_rim_is_given_away_where_it_is_asked_for(method: str, name: str) -> None:
    s = scene(*CASES[1])
    kept = [int(remove(method, s.field(s.inside + s.outside), **{name: mm}).mask.sum()) for mm in (2.0, 3.0, 5.0)]
    assert kept[0] > kept[1] > kept[2] > 0


def test_resharp_trades_size_for_misfit() -> None:
    s = scene(*CASES[0])
    sizes = [
        rms(local.ppm, local.mask)
        for strength in (1e-5, 1e-3, 0.1)
        for local in [remove("resharp", s.field(s.inside), regularisation=strength)]
    ]
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_pdf_reaches_its_end_where_more_steps_change_nothing() -> None:
    s = scene(*CASES[2])
    total = s.field(s.inside + s.outside)
    short, long = (remove("pdf", total, iterations=n, regularisation=1e-3, tolerance=1e-8) for n in (40, 100))
    assert rms(short.ppm - long.ppm, long.mask) < 0.05 * rms(long.ppm, long.mask)


def source(s: Scene, value: float, place: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """A block of chi `value` at so many voxels from the middle: where it is, and its field."""
    where = torch.zeros_like(s.mask)
    x, y, z = (n // 2 + k for n, k in zip(s.mask.shape, place, strict=True))
    where[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 1] = True
    return where, Dipole(s.mask.shape, s.grid.voxel_size_mm, s.grid.b0_dir).forward(value * where)


def map_of(local: Field) -> Tensor:
    """Chi by total variation, in the mask that is left."""
    dipole = Dipole(local.mask.shape, local.grid.voxel_size_mm, local.grid.b0_dir, padding=0.2)
    return tv(local.ppm, torch.where(local.mask, 1 / local.sd_ppm, 0), dipole, TV())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("value", "place"), [(-3.0, (0, 0, 0)), (1.0, (3, -4, 2))])
def test_calcification_and_haemorrhage_keep_sign_and_moment_through_tfi(case: Any, value: float, place: Any) -> None:
    s = scene(*case)
    where, field = source(s, value, place)
    noise = SD * torch.randn(s.mask.shape, generator=torch.Generator().manual_seed(0))
    total = s.field(s.inside + s.outside + noise)
    local, facts = remove_background(replace(total, ppm=torch.where(s.mask, total.ppm + field, 0)), "tfi")
    near = torch.nn.functional.max_pool3d(where[None].float(), 3, 1, 1)[0] > 0
    change = map_of(local) - map_of(remove("tfi", total))
    change -= change[local.mask & ~near].median()
    assert facts["odd_voxels"] == 0 and bool((change[where] / value > 0).all())
    assert 0.85 < float(change[near].sum() / (value * where).sum()) < 1.15
    assert float(change[local.mask & ~near].std()) < 0.005 * abs(value)


@pytest.mark.parametrize("case", CASES)
def test_tfi_keeps_the_mask_and_its_noise_where_nothing_is_odd(case: Any) -> None:
    s = scene(*case)
    noise = SD * torch.randn(s.mask.shape, generator=torch.Generator().manual_seed(0))
    local, facts = remove_background(s.field(s.inside + s.outside + noise), "tfi")
    assert torch.equal(local.mask, s.mask) and facts["odd_voxels"] == 0 and facts["eroded_share"] == 0
    torch.testing.assert_close(local.sd_ppm, torch.full_like(local.sd_ppm, SD))


@pytest.mark.parametrize("deep", [True, False])
def test_tfi_doubts_what_fits_no_susceptibility_and_drops_it_near_the_rim(deep: bool) -> None:
    s = scene(*CASES[1])
    x, y, z = (n // 2 for n in s.mask.shape)
    wrong = (x, y, z) if deep else (x + 11, y, z)
    total = replace(s.field(s.inside + s.outside), sd_ppm=torch.full(s.mask.shape, 5 * SD))
    total.ppm[wrong] += 2
    local, facts = remove_background(total, "tfi")
    lost = s.mask & ~local.mask
    assert float(local.sd_ppm[wrong]) > 10 * 5 * SD and bool(lost[wrong]) != deep
    assert int(lost.sum()) == facts["odd_voxels"] and int(lost.sum()) <= (0 if deep else 27)
    assert float((local.sd_ppm > 5 * SD).sum()) <= 8


@pytest.mark.parametrize(("size", "lost"), [((3.2, 3.2, 3.2), False), ((3.0, 3.6, 3.5), True)])
def test_of_large_voxels_tfi_takes_off_the_outermost(size: tuple[float, float, float], lost: bool) -> None:
    s = scene(*CASES[0])
    total = replace(s.field(s.inside + s.outside), grid=Grid.simple(s.mask.shape, size, s.grid.b0_dir))
    neighbours = [s.mask.roll(step, axis) for axis in range(3) for step in (1, -1)]
    inner = torch.stack([s.mask, *neighbours]).all(0)
    assert torch.equal(remove("tfi", total).mask, inner if lost else s.mask)
