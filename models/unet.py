"""A volume of features (B, C, X, Y, Z) -> one volume or more: the 3D U-Nets that the learned methods share."""

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
            _zero(self.last)

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


class FoldedUNet(nn.Module):
    """3D U-Net without normalisation that works on blocks of 2^3 voxels: the same map of a crop as of the whole.

    Each block becomes one voxel of eight times the features (Shi 2016, arXiv 1609.05158), so that the finest level
    costs an eighth and no voxel is lost; residual blocks start as the identity (Zhang 2019, arXiv 1901.09321) and the
    output as zero. Takes any size; what is missing of a last block is zero. With `told` > 0 each volume comes with so
    many numbers, which scale and shift the features of every residual block (Perez 2018, arXiv 1709.07871).
    """

    def __init__(self, inputs: int, channels: Sequence[int] = (32, 64, 96), outputs: int = 1, told: int = 0) -> None:
        super().__init__()
        widths, self.outputs = list(channels), outputs
        self.first = nn.Conv3d(8 * inputs, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv3d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.below = nn.ModuleList(_Residual(b, told) for b in widths[1:])
        self.narrow = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_Residual(a, told) for a in widths[:-1])
        self.last = nn.Conv3d(widths[0], 8 * outputs, 3, padding=1)
        _zero(self.last)

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        size = x.shape[-3:]
        x = self.first(fold(x))
        skips = []
        for down, below in zip(self.down, self.below, strict=True):
            skips.append(x)
            x = below(down(_active(x)), told)
        for narrow, up, skip in zip(reversed(self.narrow), reversed(self.up), reversed(skips), strict=True):
            x = nn.functional.interpolate(narrow(x), size=skip.shape[-3:], mode="nearest") + skip
            x = up(x, told)
        return unfold(self.last(_active(x)), self.outputs)[..., : size[0], : size[1], : size[2]]


def fold(x: Tensor) -> Tensor:
    """(B, C, X, Y, Z) -> (B, 8 C, X/2, Y/2, Z/2): the voxels of each block of 2^3 as features; odd sizes are padded."""
    a, b, c = (n % 2 for n in x.shape[-3:])
    x = nn.functional.pad(x, (0, c, 0, b, 0, a))
    n, f, i, j, k = x.shape
    x = x.view(n, f, i // 2, 2, j // 2, 2, k // 2, 2).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(n, i // 2, j // 2, k // 2, 8 * f).permute(0, 4, 1, 2, 3)  # channels last in memory


def unfold(x: Tensor, features: int) -> Tensor:
    """The inverse of `fold`."""
    n, _, i, j, k = x.shape
    x = x.permute(0, 2, 3, 4, 1).reshape(n, i, j, k, features, 2, 2, 2).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(n, features, 2 * i, 2 * j, 2 * k)


class _Residual(nn.Module):
    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.a = nn.Conv3d(width, width, 3, padding=1)
        self.b = nn.Conv3d(width, width, 3, padding=1)
        _zero(self.b)
        if told:
            self.change = nn.Linear(told, 2 * width)
            _zero(self.change)

    def forward(self, x: Tensor, told: Tensor | None) -> Tensor:
        y = self.a(_active(x))
        if told is not None:
            scale, shift = self.change(told)[:, :, None, None, None].chunk(2, dim=1)
            y = y * (1 + scale) + shift
        out: Tensor = x + self.b(_active(y))
        return out


def _active(x: Tensor) -> Tensor:
    return nn.functional.leaky_relu(x, 0.1)


def _zero(layer: nn.Conv3d | nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


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
