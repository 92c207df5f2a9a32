"""Chi and background from the total field in one step: the harmonic goes, and what is wrong does little harm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_background import CASES, SD, Scene, rms, scene
from torch import Tensor
from torch.nn.functional import avg_pool3d

from models.classical import TFI, TV, tfi, tv
from models.classical.admm import Minimum
from models.classical.tfi import bridged, first_map, separate
from models.dipole import Dipole

OBLIQUE = CASES[1:]
DEFAULTS = TFI()


def dipole(s: Scene, padding: float = 0.04) -> Dipole:
    return Dipole(s.mask.shape, s.grid.voxel_size_mm, s.grid.b0_dir, padding=padding)


def noise(s: Scene, sd: float) -> Tensor:
    return sd * torch.randn(s.mask.shape, generator=torch.Generator().manual_seed(0))


def separated(s: Scene, field: Tensor, sd: float = SD, params: TFI = DEFAULTS, padding: float = 0.04) -> Minimum:
    field = torch.where(s.mask, field + noise(s, sd), 0)
    return separate(field, s.mask / sd, dipole(s, padding), params)


@pytest.mark.parametrize("case", OBLIQUE)
def test_the_field_of_sources_outside_goes_to_the_background(case: Any) -> None:
    s = scene(*case)
    assert rms(s.outside, s.mask) > 1.9 * rms(s.inside, s.mask)
    inner, both = separated(s, s.inside), separated(s, s.inside + s.outside)
    taken = both.harmonic_ppm - inner.harmonic_ppm
    assert rms(taken - s.outside, s.mask) < 0.02 * rms(s.outside, s.mask)
    assert rms(both.chi_ppm - inner.chi_ppm, s.mask) < 0.04 * rms(inner.chi_ppm, s.mask)
    alone = separated(s, s.outside)
    assert rms(alone.chi_ppm, s.mask) < 0.1 * rms(both.chi_ppm, s.mask)


@pytest.mark.parametrize("case", OBLIQUE)
def test_next_to_no_padding_is_enough(case: Any) -> None:
    s = scene(*case)
    near, far = (separated(s, s.inside + s.outside, padding=p) for p in (0.04, 1.0))
    assert rms(near.chi_ppm - far.chi_ppm, s.mask) < 0.01 * rms(far.chi_ppm, s.mask)
    assert rms(near.harmonic_ppm - far.harmonic_ppm, s.mask) < 0.01 * rms(far.harmonic_ppm, s.mask)


@pytest.mark.parametrize("case", OBLIQUE)
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(("at_rim", "share"), [(False, 0.1), (True, 0.5)])
def test_ringing_stays_out_of_the_map(
    case: Any,
    axis: int,
    at_rim: bool,
    share: float,
) -> None:
    s = scene(*case)
    places = torch.meshgrid(*[torch.arange(n) for n in s.mask.shape], indexing="ij")
    r = sum(((i - i.shape[a] // 2) * s.grid.voxel_size_mm[a]) ** 2 for a, i in enumerate(places)).sqrt()  # type: ignore[union-attr]
    ringing = 0.03 * (1 - 2 * (places[axis] % 2)) * (torch.exp((r - 13) / 3) if at_rim else 1)
    change = separated(s, s.inside + s.outside + ringing).chi_ppm - separated(s, s.inside + s.outside).chi_ppm
    with_it, without = (
        tv(torch.where(s.mask, s.inside + noise(s, SD) + part, 0), s.mask / SD, dipole(s, 0.2), TV())
        for part in (ringing, 0 * ringing)
    )
    assert rms(change, s.mask) < share * rms(with_it - without, s.mask)


@pytest.mark.parametrize("case", OBLIQUE)
def test_a_voxel_that_is_wrong_by_2_ppm_does_little_harm(case: Any) -> None:
    s = scene(*case)
    wrong = torch.zeros(s.mask.shape)
    x, y, z = (n // 2 for n in s.mask.shape)
    wrong[x - 3, y + 2, z + 1] = 2.0
    far = s.mask.clone()
    far[x - 5 : x, y : y + 5, z - 1 : z + 4] = False
    total = s.inside + s.outside
    harm = [
        rms(separated(s, total + wrong, 0.005, p).chi_ppm - separated(s, total, 0.005, p).chi_ppm, far)
        for p in (TFI(), TFI(trusted=0))
    ]
    found = separated(s, total + wrong, 0.005)
    assert harm[0] < 0.15 * harm[1] and harm[0] < 0.15 * rms(found.chi_ppm, far)
    assert float(found.weight[x - 3, y + 2, z + 1]) < 0.1 / 0.005


@pytest.mark.parametrize("case", OBLIQUE)
def test_voxels_of_next_to_no_weight_have_no_say(case: Any) -> None:
    s = scene(*case)
    x, y, z = (n // 2 for n in s.mask.shape)
    spoilt = torch.zeros_like(s.mask)
    spoilt[x - 1 : x + 2, y - 3 : y, z : z + 3] = spoilt[x + 2 : x + 4, y - 10 : y - 7, z : z + 2] = True
    spoilt &= s.mask
    field = torch.where(s.mask, s.inside + s.outside + noise(s, SD), 0)
    weight = torch.where(spoilt, 0.01, s.mask / SD)
    good, bad = (separate(f, weight, dipole(s), TFI()) for f in (field, field + 5 * spoilt))
    torch.testing.assert_close(bad.chi_ppm, good.chi_ppm, rtol=0, atol=1e-5)
    whole = separate(field, s.mask / SD, dipole(s), TFI()).chi_ppm
    assert rms(bad.chi_ppm - whole, s.mask & ~spoilt) < 0.05 * rms(whole, s.mask)


def test_a_bridge_leaves_the_believed_as_they_are_and_lies_between_them() -> None:
    field = torch.arange(9.0)[:, None, None].expand(9, 8, 7).contiguous()
    weight = torch.ones(9, 8, 7)
    weight[3:6, 2:6, 2:5] = 0.01
    weight[0] = 0
    found = bridged(torch.where(weight < 1, 1e3, field), weight)
    torch.testing.assert_close(found[weight == 1], field[weight == 1])
    assert float((found - field)[3:6, 2:6, 2:5].abs().max()) <= 1 and not bool(found[0].any())
    alone = torch.zeros(9, 8, 7)
    alone[1, 1, 1], alone[6:, 5:, 4:] = 0.01, 1.0
    assert bool(torch.isfinite(bridged(field, alone)).all())


def test_the_first_map_holds_no_background() -> None:
    s = scene(*CASES[1])
    field = first_map(torch.where(s.mask, s.outside, 0), s.mask, dipole(s), 5.0)
    local = first_map(torch.where(s.mask, s.inside, 0), s.mask, dipole(s), 5.0)
    assert rms(field, s.mask) < 0.05 * rms(local, s.mask) and not bool(local[~s.mask].any())
    assert abs(float(local[s.mask].mean())) < 1e-6


def test_a_field_of_zeros_leaves_nothing() -> None:
    s = scene(*CASES[1])
    found = separate(torch.zeros(s.mask.shape), s.mask / SD, dipole(s), TFI())
    assert not bool(found.chi_ppm.any()) and not bool(found.harmonic_ppm.any())
    torch.testing.assert_close(found.weight, s.mask / SD)


def test_chi_of_the_total_field_is_that_part_of_it() -> None:
    s = scene(*CASES[1])
    field = torch.where(s.mask, s.inside + s.outside + noise(s, SD), 0)
    found = separated(s, s.inside + s.outside)
    torch.testing.assert_close(tfi(field, s.mask / SD, dipole(s), TFI()), found.chi_ppm)
    left = dipole(s, 1.0).forward(torch.where(s.mask, found.chi_ppm, 0)) - s.inside
    assert rms(left, s.mask) < 0.3 * rms(s.inside, s.mask)


@pytest.mark.parametrize("case", OBLIQUE)
def test_what_the_rim_gets_wrong_stays_there_where_voxels_are_large(case: Any) -> None:
    s = scene(*case)
    rim, deep = s.mask & ~eroded(s.mask, 3), eroded(s.mask, 7)
    field = torch.where(s.mask, s.inside + s.outside + noise(s, SD), 0)
    spread = []
    for factor in (1.0, 4.0):
        x, y, z = (factor * size for size in s.grid.voxel_size_mm)
        enlarged = Dipole(s.mask.shape, (x, y, z), s.grid.b0_dir, padding=0.04)
        right, wrong = (separate(f, s.mask / SD, enlarged, TFI()) for f in (field, field + 0.05 * rim))
        spread.append(rms(wrong.harmonic_ppm - right.harmonic_ppm, deep))
    assert spread[1] < 0.6 * spread[0]


def eroded(mask: Tensor, width: int) -> Tensor:
    """The voxels whose cube of `width` voxels lies in the mask."""
    return avg_pool3d(mask[None].float(), width, 1, width // 2)[0] > 0.999
