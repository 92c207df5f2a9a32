"""A volume of features (B, C, X, Y, Z) -> a volume of one channel: the 3D U-Net that the learned methods share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """3D U-Net: convolutions of 3^3 with instance normalisation and leaky ReLU, stride 2 down, nearest neighbour up.

    `channels` gives the width of each level, finest first. Takes any size: the levels below are padded to fit and
    cropped on the way up. With `zero_last`, the output starts as zero, so that it can be a correction to something.
    """

    def __init__(self, inputs: int, channels: Sequence[int] = (16, 32, 64, 128), *, zero_last: bool = False) -> None:
        super().__init__()
        widths = list(channels)
        self.first = _block(inputs, widths[0])
        self.down = nn.ModuleList(nn.Sequential(_block(a, b, stride=2), _block(b, b)) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_block(a + b, a) for a, b in pairwise(widths))
        self.last = nn.Conv3d(widths[0], 1, 1)
        self.apply(_initialise)
        if zero_last:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = nn.functional.interpolate(x, size=skip.shape[-3:], mode="nearest")
            x = up(torch.cat([skip, x], dim=1))
        out: Tensor = self.last(x)
        return out


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.LeakyReLU(0.2, inplace=True),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
