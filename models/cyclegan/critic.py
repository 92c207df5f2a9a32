"""Susceptibility of a crop -> how much each part of it looks like a map: the discriminator."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from models.unet import fold

WIDTHS = (24, 48, 96)
PENALTY = 5.0  # of a critic whose slope is held by it
DRIFT = 0.001  # keeps its scores near zero (Karras 2017, arXiv 1710.10196)
SIZES = 3  # numbers that it is told: the voxel size


class Critic(nn.Module):
    """A PatchGAN (Isola 2017, arXiv 1611.07004) in 3D: (B, X, Y, Z) in units, where it is known, and voxel sizes (B, 3)
    -> (B, 1, X/8, Y/8, Z/8), high for maps.

    Spectrally normalised (Miyato 2018, arXiv 1802.05957) unless its slope is held in another way. Large values are
    compressed, so that a lesion is not all that counts.
    """

    def __init__(self, normalised: bool = True) -> None:
        super().__init__()
        held = spectral_norm if normalised else _as_it_is
        self.first = held(nn.Conv3d(16, WIDTHS[0], 3, padding=1))
        self.down = nn.ModuleList(held(nn.Conv3d(a, b, 3, stride=2, padding=1)) for a, b in pairwise(WIDTHS))
        self.last = held(nn.Conv3d(WIDTHS[-1], 1, 3, padding=1))
        self.sizes = nn.Linear(SIZES, WIDTHS[0])

    def forward(self, chi: Tensor, inside: Tensor, sizes: Tensor) -> Tensor:
        x = self.first(fold(torch.stack([torch.asinh(chi) * inside, inside.to(chi)], dim=1)))
        x = x + self.sizes(sizes)[:, :, None, None, None]
        for down in self.down:
            x = down(nn.functional.leaky_relu(x, 0.2))
        out: Tensor = self.last(nn.functional.leaky_relu(x, 0.2))
        return out


def _as_it_is(layer: nn.Module) -> nn.Module:
    return layer


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """What the critic brings down: maps above 1, what was made below -1 (Lim 2017, arXiv 1705.02894)."""
    return (1 - real).relu().mean() + (1 + made).relu().mean()


Shown = tuple[Tensor, Tensor, Tensor]  # what a critic is shown


def wasserstein(critic: nn.Module, real: Shown, made: Shown, between: Tensor) -> Tensor:
    """The critic's loss, its slope between maps and what was made held near 1 (Gulrajani 2017, arXiv 1704.00028).

    The slope is against the root mean square of a volume, not its norm, which grows with the voxels. `between`
    (B, 1, 1, 1) says where: 0 is what was made, of which the last are of the fields of these maps.
    """
    own = made[0][-len(between) :]
    at = (own + between * (real[0] - own)).requires_grad_()
    found = critic(at, *real[1:]).mean(dim=(1, 2, 3, 4)).sum()
    slope = torch.autograd.grad(found, at, create_graph=True)[0]
    of_maps = critic(*real)
    gap: Tensor = critic(*made).mean() - of_maps.mean() + DRIFT * of_maps.square().mean()
    steepness = slope.flatten(1).norm(dim=1) * slope[0].numel() ** 0.5
    penalty: Tensor = (steepness - 1).square().mean()
    return gap + PENALTY * penalty
