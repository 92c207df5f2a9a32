"""What a scan shows -> a correction of its map, and a map and what it leaves of the field -> one that leaves less."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.dipole import Dipole
from models.seen import NOISE_PPM
from models.unet import FoldedUNet

NORMAL = 0.6745  # median of the modulus of a normal number
TOLD = 9  # numbers by which the network is told voxels and B0


class CycleNet(nn.Module):
    """The generator: a U-Net on what is seen of a scan (B, C, X, Y, Z), told voxel size and direction of B0 (B, 9).

    `trust` is the logarithm of what its map counts in the data consistency where the noise is `NOISE_PPM`; it is
    learned with the rest, by tenths, for a step changes all parameters by as much. Without `telling`, as in the plain
    form, the network is not told anything.
    """

    def __init__(self, inputs: int, channels: Sequence[int], outputs: int, telling: bool) -> None:
        super().__init__()
        self.unet = FoldedUNet(inputs, channels, outputs, told=TOLD if telling else 0)
        self.tenths = nn.Parameter(torch.zeros(()))

    @property
    def trust(self) -> Tensor:
        return 10 * self.tenths

    def forward(self, seen: Tensor, told: Tensor | None = None) -> Tensor:
        out: Tensor = self.unet(seen, told)
        return out


def told(voxel_size_mm: Sequence[float], b0_dir: Sequence[float]) -> Tensor:
    """Logarithms of the voxel size in mm, and b b' of the direction b of B0, whose sign does not matter: (9)."""
    b = torch.tensor(list(b0_dir), dtype=torch.float32)
    b = b / b.norm()
    products = [b[0] * b[0], b[1] * b[1], b[2] * b[2], b[0] * b[1], b[0] * b[2], b[1] * b[2]]
    return torch.cat([torch.tensor(list(voxel_size_mm), dtype=torch.float32).log(), torch.stack(products)])


def consistent(chi: Tensor, left: Tensor, weight: Tensor, dipole: Dipole, trust: Tensor) -> Tensor:
    """chi + u with |D u - r left|^2 + mu |u|^2 the least, in closed form: `left` is what chi leaves of the field.

    mu = exp(`trust`) times the square of the typical error in `NOISE_PPM`: that of the noise, or of what is left where
    that is more, for then the field holds what no map explains. `weight` is 1 / noise, 0 outside the mask. The closed
    form counts all voxels alike, so what a noisier one leaves is scaled down before, by r <= 1; beyond the mask
    the map's own field is taken for the true one.
    """
    inside = weight > 0
    if not bool(inside.any()):
        return chi
    typical = weight[inside].median()
    error = torch.maximum(1 / typical, left[inside].abs().median().detach() / NORMAL)
    mu = trust.exp() * (error / NOISE_PPM).square()
    reliable = (weight / typical).clamp(max=1)
    return chi + dipole.ifft(dipole.kernel / (dipole.kernel.square() + mu) * dipole.fft(reliable * left))
