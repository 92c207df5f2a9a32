"""A volume -> overlapping patches of one size that cover it, and their outputs blended into one volume again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import pad

Box = tuple[slice, slice, slice]
LEAST = 48  # the edge of what the prior has learned from


@dataclass(frozen=True)
class Patches:
    """How a volume is cut: patches of at most `edge` voxels (0: the whole at once) that share at least `overlap`.

    All have one size and cover every voxel, the far edges too; neighbours fade into each other over their overlap.
    """

    edge: int
    overlap: int

    def boxes(self, shape: Sequence[int]) -> list[Box]:
        """As few as can be, at equal distances, each as small as that allows."""
        starts = [self._starts(n) for n in shape]
        sizes = [self._size(n) for n in shape]
        return [
            (slice(a, a + sizes[0]), slice(b, b + sizes[1]), slice(c, c + sizes[2])) for a, b, c in product(*starts)
        ]

    def blend(
        self, volumes: Sequence[Tensor], work: Callable[..., Tensor], at_once: int, shift: Sequence[int]
    ) -> Tensor:
        """`work` of patches (B, X, Y, Z) of each volume (X, Y, Z), `at_once` patches a batch, blended into one.

        `shift` moves the cuts by so many voxels, from step to step others, so that no seam stays where it is.
        """
        shape = volumes[0].shape
        if not any(shift) and len(self.boxes(shape)) == 1:
            return work(*(v[None] for v in volumes))[0]
        ends = [n for s in reversed(shift) for n in (s, self.room - s)]
        wide = [pad(v, ends) for v in volumes]
        boxes = self.boxes(wide[0].shape)
        window = self._window([len(range(*s.indices(10**9))) for s in boxes[0]]).to(volumes[0])
        total = torch.zeros(wide[0].shape, device=window.device)
        share = torch.zeros_like(total)
        for first in range(0, len(boxes), at_once):
            some = boxes[first : first + at_once]
            out = work(*(torch.stack([v[box] for box in some]) for v in wide))
            for box, patch in zip(some, out, strict=True):
                total[box] += window * patch
                share[box] += window
        inner = tuple(slice(s, s + n) for s, n in zip(shift, shape, strict=True))
        return (total / share)[inner]

    @property
    def room(self) -> int:
        """How far the cuts can be moved."""
        return self.overlap // 2

    def whole(self, shape: Sequence[int]) -> bool:
        """Whether one patch is all."""
        return not self.edge or max(shape) <= self.edge

    def _count(self, n: int) -> int:
        if not self.edge or n <= self.edge:
            return 1
        return math.ceil((n - self.overlap) / (self.edge - self.overlap))

    def _size(self, n: int) -> int:
        count = self._count(n)
        return max(math.ceil((n + (count - 1) * self.overlap) / count), min(n, LEAST, self.edge or n))

    def _starts(self, n: int) -> list[int]:
        count, size = self._count(n), self._size(n)
        return [round(i * (n - size) / max(1, count - 1)) for i in range(count)]

    def _window(self, sizes: Sequence[int]) -> Tensor:
        """1 inside, falling to nearly 0 over the overlap as a cosine; without overlap 1 everywhere."""
        axes = []
        for n in sizes:
            depth = torch.minimum(torch.arange(n) + 0.5, n - 0.5 - torch.arange(n))
            ramp = (depth / max(1, self.overlap)).clamp(max=1)
            axes.append((1 - (math.pi * ramp).cos()) / 2 if self.overlap else torch.ones(n))
        return axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
