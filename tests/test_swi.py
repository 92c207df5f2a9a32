"""SWI and minIP: dark where the field rises, free of shading, echo times and voxel size; a slab in millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.errors import ChironError
from pipeline.swi import SWI, combined, darkening, projected, unshaded, weight_susceptibility
from pipeline.volumes import Echoes, Field, Grid

TIMES = (0.005, 0.013, 0.021)


def points(grid: Grid) -> tuple[Tensor, ...]:
    """Millimetres from the middle of the grid along each axis."""
    axes = [(torch.arange(n) - (n - 1) / 2) * s for n, s in zip(grid.shape, grid.voxel_size_mm, strict=True)]
    return torch.meshgrid(*axes, indexing="ij")


def head(
    size_mm: Sequence[float] = (2.0, 2.0, 2.0), reach_mm: float = 44.0, b0_dir: Sequence[float] = (0, 0, 1)
) -> Grid:
    return Grid.simple([int(2 * reach_mm / s) + 1 for s in size_mm], size_mm, b0_dir)


def ball(grid: Grid, radius_mm: float = 36.0) -> Tensor:
    return sum(p**2 for p in points(grid)) < radius_mm**2  # type: ignore[return-value]


def vein(grid: Grid) -> Tensor:
    """A thin tube along the third axis, off the middle."""
    x, y, _ = points(grid)
    return ((x - 10).abs() < grid.voxel_size_mm[0]) & (y.abs() < grid.voxel_size_mm[1]) & ball(grid, 26)


def echoes(grid: Grid, times: Sequence[float] = TIMES, shading: Tensor | float = 1.0, scale: float = 500.0) -> Echoes:
    decay = torch.exp(-20 * torch.tensor(times)).view(-1, 1, 1, 1)
    magnitude = scale * decay * (torch.where(ball(grid), 1.0, 0.02) * shading)
    return Echoes(magnitude, torch.zeros_like(magnitude), tuple(times), 3.0, grid)


def local_field(grid: Grid, rise_ppm: float = 0.08, sd_ppm: float = 0.001) -> Field:
    mask = ball(grid, 32)
    return Field(torch.where(vein(grid), rise_ppm, 0.0), torch.full(grid.shape, sd_ppm), mask, grid)


@pytest.mark.parametrize("size_mm", [(2.0, 2.0, 2.0), (1.5, 2.0, 3.5)])
def test_a_vein_is_dark_where_the_field_rises_and_as_bright_as_tissue_where_it_falls(size_mm: Sequence[float]) -> None:
    grid = head(size_mm)
    inside, tube = ball(grid, 24), vein(grid) & ball(grid, 22)
    dark, bright = (weight_susceptibility(echoes(grid), ball(grid), local_field(grid, r)).swi for r in (0.08, -0.08))
    assert float(dark[tube].max()) < 0.4 and float(dark[inside & ~vein(grid)].min()) > 0.85
    assert float(bright[inside].min()) > 0.85 and float(bright[inside].max()) < 1.1


def test_more_paramagnetic_is_never_brighter() -> None:
    grid = head()
    where = vein(grid) & ball(grid, 22)
    found = [float(darkening(local_field(grid, r), SWI())[where].mean()) for r in (-0.1, -0.02, 0.0, 0.02, 0.05, 0.2)]
    assert found == sorted(found, reverse=True) and found[0] <= 1 and 0 <= found[-1] < 0.01


def test_the_magnitude_is_halved_at_the_stated_rise() -> None:
    grid = head((1.0, 1.0, 1.0), 20)
    mask = ball(grid, 18)
    spot = torch.zeros(grid.shape)
    spot[20, 20, 20] = 0.05
    field = Field(spot, torch.zeros(grid.shape), mask, grid)
    assert float(darkening(field, SWI(field_ppm=0.05))[20, 20, 20]) == pytest.approx(0.5, abs=0.05)


def test_noise_of_the_field_does_not_darken() -> None:
    grid = head()
    noise = 0.05 * torch.randn(grid.shape, generator=torch.Generator().manual_seed(2))
    field = Field(noise, torch.full(grid.shape, 0.05), ball(grid, 32), grid)
    trusted = replace(field, sd_ppm=torch.full(grid.shape, 1e-4))
    assert float((darkening(field, SWI())[field.mask] < 0.5).float().mean()) < 0.005
    assert float((darkening(trusted, SWI())[field.mask] < 0.5).float().mean()) > 0.1


def test_a_slow_field_does_not_darken() -> None:
    grid = head()
    field = replace(local_field(grid), ppm=0.002 * points(grid)[0])
    assert float(darkening(field, SWI())[ball(grid, 24)].min()) > 0.9


def test_the_magnitude_is_untouched_outside_the_field() -> None:
    grid = head()
    field = local_field(grid)
    assert bool((darkening(field, SWI())[~field.mask] == 1).all())


def test_shading_is_divided_out_and_the_unit_does_not_matter() -> None:
    grid = head()
    x, y, _ = points(grid)
    shading = 1 + 0.006 * x - 0.004 * y
    plain, shaded = (combined(echoes(grid, shading=s), ball(grid)) for s in (1.0, shading))
    inner = ball(grid, 28)
    before, after = (float(v[inner].std() / v[inner].mean()) for v in (shaded, unshaded(shaded, ball(grid), grid, 15)))
    assert before > 0.08 and after < 0.35 * before
    assert float(unshaded(plain, ball(grid), grid, 20)[inner].std()) < 0.01
    torch.testing.assert_close(unshaded(1e4 * shaded, ball(grid), grid, 20), unshaded(shaded, ball(grid), grid, 20))


def test_a_dark_or_bright_structure_keeps_its_contrast() -> None:
    grid = head()
    lesion = sum((p - c) ** 2 for p, c in zip(points(grid), (12, 0, 0), strict=True)) < 81
    magnitude = torch.where(ball(grid), torch.where(lesion, 0.4, 1.0), 0.0)
    flat = unshaded(magnitude, ball(grid), grid, 20)
    assert float(flat[lesion].mean() / flat[ball(grid, 30) & ~lesion].mean()) == pytest.approx(0.4, abs=0.03)


def test_echoes_are_weighted_for_contrast() -> None:
    """Of all weights those have the most contrast of R2* for their noise; equal weights have less."""
    grid = head((4.0, 4.0, 4.0))
    signal = 500 * torch.exp(-20 * torch.tensor(TIMES))
    lift = torch.zeros(3, *grid.shape)
    found = []
    for e in range(3):
        lift[:], lift[e] = 0, 1
        one = echoes(grid)
        found.append(
            float(combined(replace(one, magnitude=one.magnitude + lift), ball(grid))[tuple(n // 2 for n in grid.shape)])
        )
    weights = torch.tensor(found) - float(combined(echoes(grid), ball(grid))[tuple(n // 2 for n in grid.shape)])

    def contrast(w: Tensor) -> float:
        return float((w * torch.tensor(TIMES) * signal).sum() / w.norm())

    assert contrast(weights) > 1.02 * contrast(torch.ones(3))
    assert contrast(weights) == pytest.approx(contrast(torch.tensor(TIMES) * signal), rel=0.01)


def test_one_echo_is_enough() -> None:
    grid = head()
    found = weight_susceptibility(echoes(grid, (0.02,)), ball(grid), local_field(grid))
    assert float(found.swi[vein(grid) & ball(grid, 22)].max()) < 0.4 and found.facts["echoes"] == 1


@pytest.mark.parametrize("size_mm", [(2.0, 2.0, 2.0), (1.0, 3.0, 2.5)])
@pytest.mark.parametrize("slab_mm", [1.0, 8.0, 13.0, 60.0])
def test_a_constant_projects_to_itself(size_mm: Sequence[float], slab_mm: float) -> None:
    grid = head(size_mm, 20)
    mask = ball(grid, 16)
    minip, _, _ = projected(torch.full(grid.shape, 0.7), mask, grid, slab_mm)
    assert bool(((minip == 0) | (minip == 0.7)).all())
    assert bool((minip[ball(grid, 9)] == 0.7).all())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slab_lies_across_the_axis_nearest_to_b0_and_has_its_thickness(axis: int) -> None:
    b0_dir = [0.2, -0.3, 0.1]
    b0_dir[axis] = -0.9
    grid = Grid.simple((31, 33, 35), (1.0, 2.0, 1.5), b0_dir)
    volume = torch.ones(grid.shape)
    centre = (15, 16, 17)
    volume[centre] = 0.2
    minip, across, slices = projected(volume, torch.ones(grid.shape, dtype=torch.bool), grid, 12.0)
    dark = (minip == torch.tensor(0.2)).nonzero()
    assert across == axis and slices == round(12.0 / grid.voxel_size_mm[axis])
    assert len(dark) == slices and set(dark[:, axis].tolist()) >= {centre[axis]}
    assert all(set(dark[:, other].tolist()) == {centre[other]} for other in range(3) if other != axis)


def test_the_projection_is_never_brighter_and_does_not_see_what_is_outside() -> None:
    grid = head()
    found = weight_susceptibility(echoes(grid), ball(grid), local_field(grid))
    inner = ball(grid, 32)
    assert bool((found.minip[inner] <= found.swi[inner]).all()) and not found.minip[~ball(grid)].all()
    rim = ball(grid, 31) & ~ball(grid, 24) & ~vein(grid)
    assert float(found.minip[rim & (points(grid)[0] < 0)].min()) > 0.8  # the dark outside is next to these


def test_axes_may_be_exchanged() -> None:
    grid, turned = head((1.5, 2.0, 3.5), b0_dir=(0.1, 0, 1)), head((3.5, 1.5, 2.0), b0_dir=(1, 0.1, 0))
    one, field = echoes(grid), local_field(grid)
    moved = Echoes(*(v.permute(0, 3, 1, 2) for v in (one.magnitude, one.phase_rad)), TIMES, 3.0, turned)
    parts = (v.permute(2, 0, 1) for v in (field.ppm, field.sd_ppm, field.mask))
    a = weight_susceptibility(one, ball(grid), field)
    b = weight_susceptibility(moved, ball(grid).permute(2, 0, 1), Field(*parts, turned))
    torch.testing.assert_close(b.swi.permute(1, 2, 0), a.swi, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(b.minip.permute(1, 2, 0), a.minip, rtol=1e-3, atol=1e-4)


def test_no_brain_and_no_signal_are_faults() -> None:
    grid = head()
    with pytest.raises(ChironError, match="P007"):
        weight_susceptibility(echoes(grid), torch.zeros(grid.shape, dtype=torch.bool), local_field(grid))
    with pytest.raises(ChironError, match="P005"):
        weight_susceptibility(echoes(grid, scale=0.0), ball(grid), local_field(grid))
