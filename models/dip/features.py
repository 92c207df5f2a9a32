"""A scan -> what a network of random weights sees of it."""

from __future__ import annotations

import torch
from torch import Tensor

from models.dip.params import DIP
from models.seen import SCALE_PPM, Given


def untrained(given: Given, start: Tensor, params: DIP, random: torch.Generator) -> Tensor:
    """What a network of random weights sees (1, C, X, Y, Z): fixed noise, or the field, its start and its weight."""
    if params.input == "noise":
        return torch.randn((1, params.inputs, *given.field.shape), generator=random).to(given.field)
    parts = [given.field / given.field[given.mask].std().clamp_min(1e-9)]
    if params.start != "zero":
        parts += [start / SCALE_PPM, given.weight / given.weight.max()]
    return torch.stack(parts)[None]
