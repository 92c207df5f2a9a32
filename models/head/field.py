"""A head and the direction of B0 -> the field (ppm) of all its matter, and that of its brain alone."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from models.dipole import Dipole, Triple
from models.head.tissues import TISSUES, Head


def fields(head: Head, b0_dir: Triple) -> tuple[Tensor, Tensor]:
    """Total and local field (X, Y, Z) in ppm of B0; `b0_dir` in voxel axes.

    The total field is that of everything against the air around, shifted to a mean of 0 in the brain, as a scanner's
    centre frequency does. Tissue that the field of view cuts off goes on beyond it for a quarter of its size, then
    there is air. The local field is that of chi in the brain against water.
    """
    against_air = head.chi_ppm - TISSUES["air"].chi_ppm
    ends = _ends(against_air)
    wide = pad(against_air[None, None], ends, mode="replicate")[0, 0]
    dipole = Dipole(wide.shape, head.voxel_size_mm, b0_dir, device=wide.device)
    inside = tuple(slice(ends[i], n - ends[i + 1]) for i, n in zip((4, 2, 0), wide.shape, strict=True))
    total = dipole.forward(wide)[inside].clone()
    local = dipole.forward(pad(head.chi_ppm * head.brain, ends))[inside].clone()
    return total - total[head.brain].mean() if bool(head.brain.any()) else total, local


def _ends(chi: Tensor) -> list[int]:
    """Voxels to add at both ends of z, y, x: a quarter of the size where matter reaches the edge, else none."""
    ends = []
    for axis in (2, 1, 0):
        n = chi.shape[axis]
        for face in (0, n - 1):
            cut = bool((chi.select(axis, face).abs() > 0.5).any())
            ends.append(n // 4 if cut else 0)
    return ends
