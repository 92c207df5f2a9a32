"""Weights and the residual of the field's fit -> weights without the voxels whose echoes agree on no field."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_RESIDUAL = 0.3  # of the consensus on QSM in the brain (2024, doi 10.1002/mrm.30006)


def exclude(weight: Tensor, residual: Tensor, mask: Tensor, limit: float = LARGEST_RESIDUAL) -> Tensor:
    """`weight` (X, Y, Z) inside the mask where the relative residual (0 to 1) is at most `limit`, zero elsewhere.

    A residual that is no number counts as too large. ValueError where shapes differ.
    """
    if not weight.shape == residual.shape == mask.shape:
        raise ValueError(f"weight {tuple(weight.shape)}, residual {tuple(residual.shape)}, mask {tuple(mask.shape)}")
    return torch.where(mask & (residual <= limit), weight, torch.zeros_like(weight))
