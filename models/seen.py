"""A scan's field and its noise -> the classical maps that a network corrects, and what it sees of the scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models import classical
from models.classical.admm import minimise
from models.dipole import Dipole

SCALE_PPM = 0.05  # one unit of a network's output; about the spread of chi in the brain
NOISE_PPM = 0.001  # noise of the field that counts as usual
LARGEST_SD_PPM = 0.05
OUTSIDE = 3.0  # noise, as the network sees it, of what is not measured
CHANNELS, FIELD, NOISE = 7, 3, 4  # of `educated`; which are the field and its noise
BEYOND = (0.0, 0.0, 0.0, 0.0, OUTSIDE, 0.0, 0.0)  # what it sees beyond the volume
LOOSE, TIGHT, AGAIN = 20.0, 150.0, 15  # further strengths of the total variation, and iterations from tv to each


@dataclass(frozen=True)
class Given:
    """A scan: `field` (X, Y, Z) in ppm, `weight` = 1 / its standard deviation (zero outside the mask), the dipole."""

    field: Tensor
    weight: Tensor
    dipole: Dipole

    @property
    def mask(self) -> Tensor:
        return self.weight > 0

    def classical(self, name: str) -> Tensor:
        """The map of a classical method with its defaults, in ppm, its mean in the mask zero; or zeros for `zero`."""
        return torch.zeros_like(self.field) if name == "zero" else self.centred(METHODS[name](self))

    def varied(self, chi: Tensor, strength: float) -> Tensor:
        """The map of total variation of another strength, a few iterations from `chi`."""
        found = minimise(
            self.field,
            self.weight,
            self.dipole,
            strength=strength,
            iterations=AGAIN,
            tolerance=0.003,
            edge_ppm=classical.TV().edge_ppm,
            chi_ppm=chi,
        )
        return self.centred(found.chi_ppm)

    def centred(self, chi: Tensor) -> Tensor:
        return torch.where(self.mask, chi - chi[self.mask].mean(), 0)


METHODS: dict[str, Callable[[Given], Tensor]] = {
    "tkd": lambda g: classical.tkd(g.field, g.weight, g.dipole, classical.TKD()),
    "tikhonov": lambda g: classical.tikhonov(g.field, g.weight, g.dipole, classical.Tikhonov()),
    "rts": lambda g: classical.rts(g.field, g.weight, g.dipole, classical.RTS()),
    "tv": lambda g: classical.tv(g.field, g.weight, g.dipole, classical.TV()),
}


def educated(given: Given, tv: Tensor) -> Tensor:
    """Features (1, 7, X, Y, Z) of about unit size: classical maps of several strengths, the field and its noise.

    Large susceptibilities are compressed (asinh), so that a haemorrhage does not drown what is beside it.
    """
    sd = torch.where(given.mask, 1 / given.weight.clamp_min(1e-6), 0).clamp_max(LARGEST_SD_PPM)
    noise = torch.where(given.mask, (sd.clamp_min(1e-5) / NOISE_PPM).log() / 2, OUTSIDE)
    first = [tv, given.classical("rts"), given.classical("tikhonov"), 2 * given.field]
    last = [given.varied(tv, strength) for strength in (LOOSE, TIGHT)]
    shown = [[_compressed(volume) for volume in volumes] for volumes in (first, last)]
    return torch.stack([*shown[0], noise, *shown[1]])[None]


def field_alone(given: Given) -> Tensor:
    """The one of these features (1, 1, X, Y, Z) that needs no map."""
    return _compressed(2 * given.field)[None, None]


def _compressed(volume: Tensor) -> Tensor:
    return torch.asinh(volume / SCALE_PPM)
