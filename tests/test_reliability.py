"""Weights without the voxels whose echoes agree on no field."""

from __future__ import annotations

import pytest
import torch

from pipeline.reliability import LARGEST_RESIDUAL, exclude

SHAPE = (5, 7, 3)


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight, residual, share = torch.rand((3, *SHAPE), generator=generator)
    return weight + 0.1, residual, share > 0.3


def test_what_fits_keeps_its_weight_and_the_rest_has_none() -> None:
    weight, residual, mask = drawn()
    found = exclude(weight, residual, mask)
    kept = mask & (residual <= LARGEST_RESIDUAL)
    assert torch.equal(found[kept], weight[kept]) and 0 < int(kept.sum()) < int(mask.sum())
    assert not bool(found[~kept].any())


def test_a_looser_limit_takes_less_and_doing_it_again_nothing() -> None:
    weight, residual, mask = drawn()
    counts = [int((exclude(weight, residual, mask, limit) > 0).sum()) for limit in (0.1, 0.3, 0.6, 1.0)]
    assert counts == sorted(counts) and counts[0] < counts[-1] == int(mask.sum())
    once = exclude(weight, residual, mask)
    assert torch.equal(exclude(once, residual, mask), once)


def test_a_residual_that_is_no_number_counts_as_too_large() -> None:
    weight, residual, mask = drawn()
    found = exclude(weight, torch.full_like(residual, torch.nan), mask)
    assert not bool(found.any())


def test_volumes_of_unlike_shape_are_refused() -> None:
    weight, residual, mask = drawn()
    with pytest.raises(ValueError, match="residual"):
        exclude(weight, residual[1:], mask)
