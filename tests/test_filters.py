"""Means over Gaussians and spheres: what is constant, harmonic or massive stays so; radii are in millimetres."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from models.ball import sphere_octant, sphere_response
from pipeline.filters import depth_mm, dilate, erode, gaussian, spherical_share

SHAPE, SIZE = (23, 20, 17), (0.8, 1.0, 1.5)


def axes(shape: tuple[int, ...] = SHAPE, size: tuple[float, ...] = SIZE) -> tuple[Tensor, ...]:
    return torch.meshgrid(*[(torch.arange(n) - n // 2) * v for n, v in zip(shape, size, strict=True)], indexing="ij")


def test_a_gaussian_keeps_a_constant_away_from_the_edge() -> None:
    smooth = gaussian(torch.full(SHAPE, 3.0), SIZE, 1.6)
    torch.testing.assert_close(smooth[8:-8, 7:-7, 6:-6], torch.full((7, 6, 5), 3.0), rtol=3e-4, atol=0)


@pytest.mark.parametrize("sigma", [1.4, 1.9])
def test_a_gaussian_keeps_the_mass_and_has_its_width(sigma: float) -> None:
    point = torch.zeros(SHAPE)
    point[11, 10, 8] = 2
    smooth = gaussian(point, SIZE, sigma)
    assert float(smooth.sum()) == pytest.approx(2, rel=1e-3)
    for axis in axes():
        assert float((smooth * axis**2).sum() / smooth.sum()) == pytest.approx(sigma**2, rel=0.02)


def test_a_gaussian_does_not_reach_round_the_edge() -> None:
    point = torch.zeros(SHAPE)
    point[0, 0, 0] = 1
    smooth = gaussian(point, SIZE, 1.5)
    assert float(smooth[-4:].abs().max()) < 1e-3 * float(smooth.max())
    assert float(smooth[:, -4:].abs().max()) < 1e-3 * float(smooth.max())


def test_a_complex_volume_is_its_real_and_imaginary_part() -> None:
    parts = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0))
    both = gaussian(torch.complex(parts[0], parts[1]), SIZE, 1.3)
    torch.testing.assert_close(both.real, gaussian(parts[0], SIZE, 1.3))
    torch.testing.assert_close(both.imag, gaussian(parts[1], SIZE, 1.3))
    torch.testing.assert_close(gaussian(parts, SIZE, 1.3)[1], both.imag)


@pytest.mark.parametrize("radius", [3.0, 4.5])
def test_the_mean_over_a_sphere_of_a_harmonic_function_is_its_value(radius: float) -> None:
    x, y, z = axes((31, 27, 21), SIZE)
    for harmonic in (x + 2 * y - z, x * y + 3 * z, 2 * x**2 - y**2 - z**2 + 0 * x):
        mean = spherical_share(harmonic, SIZE, radius)
        middle = (slice(9, -9), slice(8, -8), slice(6, -6))
        spread = float(harmonic.std())
        assert float((mean - harmonic)[middle].abs().max()) < 0.01 * spread


def test_the_share_of_a_full_volume_is_one_and_of_none_zero() -> None:
    inside = spherical_share(torch.ones(SHAPE, dtype=torch.bool), SIZE, 3.0)[6:-6, 5:-5, 4:-4]
    torch.testing.assert_close(inside, torch.ones_like(inside))
    assert not bool(spherical_share(torch.zeros(SHAPE, dtype=torch.bool), SIZE, 3.0).any())


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), SIZE, (2.0, 0.7, 1.1)])
@pytest.mark.parametrize("radius", [2.0, 4.0])
def test_a_radius_is_in_millimetres(size: tuple[float, float, float], radius: float) -> None:
    shape = tuple(2 * int(14 / v) + 1 for v in size)
    r = sum(a**2 for a in axes(shape, size)).sqrt()  # type: ignore[union-attr]
    edge = min(size)
    less = erode(r < 9, size, radius)
    assert bool(less[r < 9 - radius - edge].all())
    assert not bool(less[r > 9 - radius + max(size)].any())
    more = dilate(r < 6, size, radius)
    assert bool(more[r < 6 + radius - max(size)].all())
    assert not bool(more[r > 6 + radius + edge].any())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 0.9), st.floats(1.0, 3.0))
def test_eroding_the_mask_dilates_the_rest(seed: int, share: float, radius: float) -> None:
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) < share
    mask[:5] = mask[-5:] = mask[:, :5] = mask[:, -5:] = mask[:, :, :4] = mask[:, :, -4:] = False
    assert not bool((erode(mask, SIZE, radius) & ~mask).any())
    assert not bool((mask & ~dilate(mask, SIZE, radius)).any())
    middle = (slice(5, -5), slice(5, -5), slice(4, -4))
    assert torch.equal(erode(mask, SIZE, radius)[middle], ~dilate(~mask, SIZE, radius)[middle])


def test_nothing_lies_in_the_mask_beyond_the_volume() -> None:
    left = erode(torch.ones(SHAPE, dtype=torch.bool), SIZE, 2.0)
    assert not bool(left[0].any()) and not bool(left[:, -1].any()) and bool(left[11, 10, 8])


def test_one_voxel_counts_in_a_sphere_of_thousands() -> None:
    point = torch.zeros(41, 41, 41, dtype=torch.bool)
    point[20, 20, 20] = True
    grown = dilate(point, (1, 1, 1), 12.0)
    assert int(grown.sum()) == pytest.approx(4 / 3 * torch.pi * 12**3, rel=0.1)
    assert not bool((erode(~point, (1, 1, 1), 12.0) & grown).any())


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), SIZE, (2.0, 0.7, 1.1)])
def test_depth_is_the_distance_to_the_nearest_voxel_outside(size: tuple[float, float, float]) -> None:
    mask = torch.rand((13, 12, 11), generator=torch.Generator().manual_seed(1)) < 0.93
    wide = torch.nn.functional.pad(mask, (1,) * 6)
    exact = torch.from_numpy(distance_transform_edt(wide.numpy(), sampling=size))[1:-1, 1:-1, 1:-1]
    for reach in (1.5, 3.0, 50.0):
        torch.testing.assert_close(depth_mm(mask, size, reach), exact.clamp_max(reach).float())


@pytest.mark.parametrize("padded", [(24, 20, 18), (9, 15, 8)])
@pytest.mark.parametrize("radius", [0.5, 1.9, 4.3])
def test_the_response_of_a_sphere_is_that_of_its_voxels(padded: tuple[int, int, int], radius: float) -> None:
    octant = sphere_octant(SIZE, radius)
    sphere = torch.zeros(padded, dtype=torch.float64)
    reach = [n - 1 for n in octant.shape]
    for i, j, k in itertools.product(*(range(-n, n + 1) for n in reach)):
        sphere[i % padded[0], j % padded[1], k % padded[2]] += octant[abs(i), abs(j), abs(k)]
    assert float(sphere.sum()) == pytest.approx(1)
    expected = torch.fft.rfftn(sphere).real.float()
    torch.testing.assert_close(sphere_response(padded, SIZE, radius, torch.zeros(1)), expected, rtol=0, atol=1e-5)
