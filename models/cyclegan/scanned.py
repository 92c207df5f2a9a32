"""A susceptibility map -> a local field as a scan would leave it: the half of the cycle that is known."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool3d

from models.dipole import Dipole

NOISE_PPM = (0.0002, 0.003)  # standard deviation of the field, uniform in its logarithm
STEEP = 0.2  # at most so much of the field's change from voxel to voxel is error: a voxel shows a mean
BACKGROUND = 0.3  # at most so much of the field's size comes from sources beyond the mask
ERODED = 2  # voxels at most that the mask of a field leaves out at the rim of the brain
PADDING = 0.5  # of the dipole
TILT = 45.0  # degrees from the last axis at most


@dataclass(frozen=True)
class Scanned:
    """`field_ppm` and `weight` = 1 / its standard deviation, 0 outside the mask, both (X, Y, Z); B0's direction."""

    field_ppm: Tensor
    weight: Tensor
    b0_dir: tuple[float, float, float]


def scanned(chi_ppm: Tensor, inside: Tensor, voxel_size_mm: Sequence[float], number: int) -> Scanned:
    """The field of the whole map, with B0, noise and what is left of a background drawn by the number."""
    draw = random.Random(number)
    generator = torch.Generator().manual_seed(draw.getrandbits(63))
    b0_dir = _direction(draw)
    field_of = Dipole(chi_ppm.shape, voxel_size_mm, b0_dir, padding=PADDING, device=chi_ppm.device).forward
    mask = _eroded(inside, draw.choice((0, 0, 0, 1, ERODED)))
    field = field_of(chi_ppm)
    sd = math.exp(draw.uniform(*map(math.log, NOISE_PPM))) * (0.4 * _smooth(chi_ppm, 12, generator)).exp()
    error = (sd.square() + (draw.uniform(0, STEEP) * _steepness(field)).square()).sqrt()
    ring = ~inside & (max_pool3d(inside[None].float(), 9, 1, 4)[0] > 0)
    beyond = field_of(torch.where(ring, _smooth(chi_ppm, 6, generator), 0))
    size = field[mask].std() / beyond[mask].std().clamp_min(1e-12)
    beyond = beyond * size * BACKGROUND * draw.random() ** 2
    noise = torch.randn(chi_ppm.shape, generator=generator).to(chi_ppm)
    found = field + beyond + error * noise
    return Scanned(torch.where(mask, found - found[mask].mean(), 0), torch.where(mask, 1 / sd, 0), b0_dir)


def _direction(draw: random.Random) -> tuple[float, float, float]:
    tilt, turn = math.radians(draw.uniform(0, TILT)), draw.uniform(0, 2 * math.pi)
    return math.sin(tilt) * math.cos(turn), math.sin(tilt) * math.sin(turn), math.cos(tilt)


def _eroded(inside: Tensor, voxels: int) -> Tensor:
    if not voxels:
        return inside
    return max_pool3d((~inside)[None].float(), 2 * voxels + 1, 1, voxels)[0] == 0


def _smooth(like: Tensor, voxels: int, generator: torch.Generator) -> Tensor:
    """Random numbers of unit size that change over so many voxels."""
    coarse = torch.randn([max(2, n // voxels) for n in like.shape], generator=generator).to(like)
    return interpolate(coarse[None, None], size=like.shape, mode="trilinear")[0, 0]


def _steepness(field: Tensor) -> Tensor:
    total = torch.zeros_like(field)
    for axis in range(3):
        total += torch.gradient(field, dim=axis)[0].square()
    return total.sqrt()
