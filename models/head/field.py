"""A head and the direction of B0 -> the field (ppm) of all its matter, and that of its brain alone."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from models.dipole import Dipole, Triple
from models.head.tissues import TISSUES, Head


def fields(head: Head, b0_dir: Triple) -> tuple[Tensor, Tensor]:
    """Total and local field (X, Y, Z) in ppm of B0; `b0_dir` in voxel axes.

    The total field is that of everything against the air around, shifted to a mean of 0 in the brain, as a scanner's
    centre frequency does. Below the field of view the neck goes on as its last slice for a quarter of the height,
    since a neck that ended there would bend the field of the whole head. The local field is that of chi in the brain
    against water.
    """
    below = [head.labels.shape[2] // 4, 0]
    against_air = head.chi_ppm - TISSUES["air"].chi_ppm
    longer = pad(against_air[None, None], [*below, 0, 0, 0, 0], mode="replicate")[0, 0]
    dipole = Dipole(longer.shape, head.voxel_size_mm, b0_dir, device=longer.device)
    total = dipole.forward(longer)[..., below[0] :].clone()
    local = dipole.forward(pad(head.chi_ppm * head.brain, below))[..., below[0] :].clone()
    if bool(head.brain.any()):
        total -= total[head.brain].mean()
    return total, local
