"""A scan, with the map that made its field or without -> cubes to learn from, turned, mirrored, stronger or weaker.

Cubes are parts of whole volumes: what lies around one makes a field in it, by the classical map.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.cyclegan.form import Form
from models.cyclegan.network import told
from models.dipole import Dipole
from models.seen import NOISE, NOISE_PPM, OUTSIDE, SCALE_PPM, Given, educated
from models.train import Turn, corner, cube

CROP, AROUND = 48, 1 / 3  # voxels, and the share of them that is added for the dipole
SCALES = 0.3  # spread of the logarithm of what a crop is multiplied by
FLIPPED = 0.15  # share of crops whose sign is turned


@dataclass(frozen=True)
class Example:
    """A scan as the generator meets it: features (C, X, Y, Z), classical map and what that leaves of the field, both in
    ppm, and the mask. `chi` is the map that the field was made from, None for a field whose map nobody knows. `size` is
    the root mean square error of the classical map where chi is known, or the mean of what it leaves of the field."""

    features: Tensor
    base: Tensor
    left: Tensor
    mask: Tensor
    voxel_size_mm: tuple[float, float, float]
    b0_dir: tuple[float, float, float]
    size: float
    chi: Tensor | None = None


def example(given: Given, chi_ppm: Tensor | None = None) -> Example:
    """What can be learned from a field, with the map that made it or without."""
    base = given.classical("tv")
    features = educated(given, base)[0].bfloat16()
    left = torch.where(given.mask, given.field - given.dipole.forward(base), 0)
    left = torch.where(given.mask, left - left[given.mask].mean(), 0)
    voxel, b0_dir = given.dipole.voxel_size_mm, given.dipole.b0_dir
    chi = None if chi_ppm is None else given.centred(chi_ppm)
    size = left[given.mask].abs().mean() if chi is None else (base - chi)[given.mask].square().mean().sqrt()
    return Example(
        features,
        base.half(),
        (left / SCALE_PPM).half(),
        given.mask,
        (voxel[0], voxel[1], voxel[2]),
        (b0_dir[0], b0_dir[1], b0_dir[2]),
        float(size),
        None if chi is None else chi.half(),
    )


def save_example(one: Example, path: Path) -> None:
    """Write it so that a reader never meets half a file."""
    aside = path.with_suffix(".part")
    torch.save(vars(one), aside)
    aside.rename(path)


def load_example(path: Path) -> Example:
    return Example(**torch.load(path, weights_only=True))


@dataclass(frozen=True)
class Crop:
    """A cube of an example, multiplied by a number; volumes (X, Y, Z) in ppm, of which `chi` counts only if it is
    `known`. `seen` (C, X, Y, Z) is turned."""

    seen: Tensor
    told: Tensor
    base: Tensor
    left: Tensor
    weight: Tensor
    mask: Tensor
    chi: Tensor
    known: bool
    size: float  # as the example's; in the plain form that of chi, where it is known
    sizes: Tensor
    turn: Turn
    dipole: Dipole

    def to(self, device: torch.device) -> Crop:
        parts = ("seen", "told", "base", "left", "weight", "mask", "chi", "sizes", "dipole")
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in parts}
        return replace(self, **moved)


def cut(one: Example, form: Form, draw: random.Random, as_it_is: bool = False) -> Crop:
    """A random cube, turned and mirrored; unless `as_it_is`, made stronger or weaker, at times of the other sign."""
    low = corner(one.mask, CROP, draw)
    turn = Turn.random(draw, exchanging=not form.plain)  # what is not told B0 can only learn one
    factor = 1.0 if as_it_is else torch.tensor(draw.gauss(0, SCALES)).clamp(-0.7, 0.7).exp().item()
    sign = -1 if not as_it_is and draw.random() < FLIPPED else 1
    features = cube(one.features, low, CROP).float()
    mask = cube(one.mask, low, CROP)
    noise = features[NOISE]
    scaled = torch.asinh(sign * factor * torch.sinh(features))
    beyond = ~cube(torch.ones_like(one.mask), low, CROP) | ~mask
    scaled[NOISE] = torch.where(beyond, OUTSIDE, noise + torch.tensor(factor).log() / 2)
    chi = one.base if one.chi is None else one.chi
    base, left, chi = (cube(volume, low, CROP).float() * sign * factor for volume in (one.base, one.left, chi))
    return Crop(
        turn.apply(form.seen(scaled)),
        told(turn.sizes(one.voxel_size_mm), turn.direction(one.b0_dir)),
        base,
        left * SCALE_PPM,
        torch.where(mask, (-2 * scaled[NOISE]).exp() / NOISE_PPM, 0),
        mask,
        chi,
        one.chi is not None,
        _size(chi, mask) if form.plain and one.chi is not None else one.size * factor,
        torch.tensor(one.voxel_size_mm).log(),
        turn,
        _dipole(one.voxel_size_mm, one.b0_dir),
    )


@lru_cache(256)
def _dipole(voxel_size_mm: tuple[float, float, float], b0_dir: tuple[float, float, float]) -> Dipole:
    return Dipole((CROP,) * 3, voxel_size_mm, b0_dir, padding=AROUND)


def _size(volume: Tensor, mask: Tensor) -> float:
    return max(SCALE_PPM / 5, float(((volume * mask).square().sum() / mask.sum().clamp_min(1)).sqrt()))
