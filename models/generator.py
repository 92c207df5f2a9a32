"""A network, what it sees and the map that it corrects: its output as chi, and the slope of a loss by its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor, nn

from models.seen import SCALE_PPM

Box = tuple[slice, slice, slice]
Axes = tuple[int, ...]
Loss = Callable[[Tensor], tuple[Tensor, float]]  # chi -> what a fit brings down, and the misfit
MARGIN = 56  # voxels from which a folded network of three levels hears: beyond, a tile does not know that it is one
STRIDE = 8  # voxels to which its coarsest level is aligned
BYTES_PER_VOXEL = 450  # of one step with all that is kept for the way back; 300 were measured, in float32
WHOLE_BYTES_PER_VOXEL = 250  # of the volume itself: field, maps, their transforms
VIEWS: tuple[Axes, ...] = ((), (-1,), (-2,), (-3,), (-1, -2), (-1, -3), (-2, -3), (-1, -2, -3))  # mirror images
DOUBT_PPM = 0.005  # one unit of the network's second output, the scale of its errors


@dataclass(frozen=True)
class Generator:
    """`network` (1, C, X, Y, Z) -> (1, 1 or 2, X, Y, Z); chi = base + SCALE_PPM output, inside the mask.

    With `tile` > 0 the network works on tiles of that edge and what it hears around them, so that memory is bounded by
    the tile; for `FoldedUNet`, whose output is local, chi and slope are those of the whole volume. `beyond` (C) is what
    such a network sees where the volume ends, up to a multiple of `STRIDE`; `told` gives what it is told of the scan
    (1, N) mirrored along some axes, where it is told something.
    """

    network: nn.Module
    base: Tensor
    mask: Tensor
    half: bool
    tile: int = 0
    beyond: Tensor | None = None
    told: Callable[[Axes], Tensor] | None = None

    def chi(self, z: Tensor, mirrored: Axes = ()) -> Tensor:
        """The map in ppm; of the scan mirrored along these axes, and mirrored back."""
        return self._map(self._outputs(z, mirrored)[0])

    @torch.no_grad()
    def answer(self, z: Tensor, views: Sequence[Axes] = VIEWS[:1]) -> tuple[Tensor, Tensor | None]:
        """The map and the standard deviation that the network gives to it, where it has learned to, both in ppm and
        the mean of these mirror images."""
        chi, doubt = torch.zeros_like(self.base), torch.zeros_like(self.base)
        for view in views:
            outputs = self._outputs(z, view)
            chi += self._map(outputs[0]) / len(views)
            doubt += 2**0.5 * DOUBT_PPM * outputs[-1].clamp(-4, 6).exp() / len(views)
        return chi, torch.where(self.mask, doubt, 0) if len(outputs) > 1 else None

    def descend(self, z: Tensor, loss: Loss, mirrored: Axes = ()) -> tuple[Tensor, float, float]:
        """Chi, loss and misfit; the slope of the loss is left in the weights."""
        if not self.tile:
            chi = self.chi(z, mirrored)
            value, misfit = loss(chi)
            value.backward()  # type: ignore[no-untyped-call]
            return chi.detach(), float(value.detach()), misfit
        with torch.no_grad():
            chi = self.chi(z, mirrored)
        chi.requires_grad_()
        value, misfit = loss(chi)
        value.backward()  # type: ignore[no-untyped-call]
        assert chi.grad is not None
        slope = torch.where(self.mask, SCALE_PPM * chi.grad, 0)
        for outer, inner, place in tiles(self.mask.shape, self.tile):
            self._run(z[(..., *outer)], mirrored)[0][inner].backward(slope[place])  # type: ignore[no-untyped-call]
        return chi.detach(), float(value.detach()), misfit

    def _map(self, output: Tensor) -> Tensor:
        return torch.where(self.mask, self.base + SCALE_PPM * output, 0)

    def _run(self, z: Tensor, mirrored: Axes) -> Tensor:
        size = z.shape[-3:]
        if self.beyond is not None:
            z = self._filled(z)
        told = () if self.told is None else (self.told(mirrored),)
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.half):
            out: Tensor = self.network(z.flip(mirrored).to(memory_format=torch.channels_last_3d), *told)[0]
        return out.float().flip(mirrored)[:, : size[0], : size[1], : size[2]]

    def _filled(self, z: Tensor) -> Tensor:
        """Up to a multiple of `STRIDE` along each axis, so that blocks lie alike in a volume and its mirror image."""
        assert self.beyond is not None
        a, b, c = (-n % STRIDE for n in z.shape[-3:])
        inside = torch.nn.functional.pad(torch.ones_like(z[:, :1]), (0, c, 0, b, 0, a))
        return torch.nn.functional.pad(z, (0, c, 0, b, 0, a)) + (1 - inside) * self.beyond.view(1, -1, 1, 1, 1)

    @property
    def _outputs(self) -> Callable[[Tensor, Axes], Tensor]:
        return self._in_tiles if self.tile else self._run

    def _in_tiles(self, z: Tensor, mirrored: Axes) -> Tensor:
        whole: Tensor | None = None
        for outer, inner, place in tiles(self.mask.shape, self.tile):
            part = self._run(z[(..., *outer)], mirrored)
            if whole is None:
                whole = torch.empty((len(part), *self.mask.shape), device=part.device)
            whole[(..., *place)] = part[(..., *inner)]
        assert whole is not None
        return whole


def needed_bytes(shape: Sequence[int], tile: int, per_voxel: int = BYTES_PER_VOXEL) -> int:
    """An upper estimate of what a network takes, a fit if not told, on the whole volume or in tiles of that edge."""
    at_once = prod(min(n, tile + 2 * MARGIN) if tile else n for n in shape)
    return at_once * per_voxel + prod(shape) * WHOLE_BYTES_PER_VOXEL


def tiles(shape: Sequence[int], edge: int) -> list[tuple[Box, Box, Box]]:
    """For each tile: what the network is given, the part of its output that counts, and where that belongs.

    Tiles begin at multiples of `STRIDE`; `edge` is rounded up to one.
    """
    edge = -(-edge // STRIDE) * STRIDE
    found = []
    for begin in product(*(range(0, n, edge) for n in shape)):
        end = [min(n, b + edge) for b, n in zip(begin, shape, strict=True)]
        low = [max(0, b - MARGIN) for b in begin]
        high = [min(n, e + MARGIN) for e, n in zip(end, shape, strict=True)]
        found.append(
            (
                _box(low, high),
                _box([b - a for b, a in zip(begin, low, strict=True)], [e - a for e, a in zip(end, low, strict=True)]),
                _box(begin, end),
            )
        )
    return found


def _box(low: Sequence[int], high: Sequence[int]) -> Box:
    x, y, z = (slice(a, b) for a, b in zip(low, high, strict=True))
    return x, y, z
