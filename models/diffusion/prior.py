"""Noisy chi and how noisy it is -> the mean of what it may have been: the prior that all samplers share."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from models import weights
from models.unet import FoldedUNet

LIMIT, SPREAD = 8.0, 4.0  # values beyond LIMIT + SPREAD sigma are no matter of the prior's
TOLD = 64  # numbers by which the network is told sigma


class Denoiser(nn.Module):
    """x_0 + sigma n (B, X, Y, Z) in units of `SCALE_PPM`, sigma (B), the mask -> the mean of x_0, zero outside.

    The network sees the noisy volume at unit size and finds what a Wiener filter leaves (Karras 2022, arXiv 2206.00364,
    eq. 7, with a signal of unit size). What stands out of noise and brain, as calcifications do, is passed by: the
    prior says nothing of it, only the data do.
    """

    frequencies: Tensor

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = channels
        self.unet = FoldedUNet(2, channels, told=TOLD)
        self.embed = nn.Sequential(nn.Linear(TOLD, TOLD), nn.SiLU(), nn.Linear(TOLD, TOLD), nn.SiLU())
        self.register_buffer("frequencies", torch.logspace(-2, 1, TOLD // 2, 2.0), persistent=False)

    def forward(self, noisy: Tensor, sigma: Tensor, inside: Tensor) -> Tensor:
        core, beyond, size = split(noisy, sigma)
        angles = sigma.log()[:, None] * self.frequencies
        told = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))
        seen = torch.stack([core / size, inside.to(core)], dim=1)
        out = self.unet(seen.to(memory_format=torch.channels_last_3d), told)[:, 0].float()
        mean: Tensor = inside * (beyond + core / size.square() + sigma.view(-1, 1, 1, 1) / size * out)
        return mean


def split(noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The part of a noisy volume that the prior is asked about, the rest, and the size of the former."""
    s = sigma.view(-1, 1, 1, 1)
    limit = LIMIT + SPREAD * s
    core = torch.maximum(torch.minimum(noisy, limit), -limit)
    return core, noisy - core, (1 + s.square()).sqrt()


@cache
def learned() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The shipped weights and their card; ValueError where they are not those of the card."""
    return weights.load("diffusion")
