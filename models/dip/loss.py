"""Chi -> what a fit brings down: misfit to the field and roughness of the map."""

from __future__ import annotations

import torch
from torch import Tensor

from models.classical.calculus import steps
from models.dip.params import DIP
from models.dipole import Dipole


class Loss:
    """misfit / 2 + gradient term + strength |P grad chi|_1 + laplacian |L chi|_1, each a mean over the mask.

    The misfit is w^2 (D chi - f)^2, or that of the phase, 2 w^2 / k^2 (1 - cos k (D chi - f)) (Liu 2013,
    doi 10.1002/mrm.24272), or |D chi - f| without weights. P relieves the edges of the map that was given last, as in
    `classical.tv`.
    """

    def __init__(self, field: Tensor, weight: Tensor, dipole: Dipole, params: DIP) -> None:
        self.field, self.weight, self.dipole, self.params = field, weight, dipole, params
        self.voxels = float((weight > 0).sum())
        self.relief: list[Tensor] | None = None

    def relieve(self, chi: Tensor) -> None:
        """Let the edges of this map count less."""
        e = self.params.edge_ppm
        if e and self.params.strength:
            self.relief = [e / (e + chi.diff(dim=axis).abs() * h) for axis, h in enumerate(steps(self.dipole))]

    def __call__(self, chi: Tensor) -> tuple[Tensor, float]:
        """The loss, and the mean square misfit in units of the noise."""
        params, off = self.params, self.dipole.forward(chi) - self.field
        scaled = self.weight * off
        misfit = float(scaled.detach().square().sum()) / self.voxels
        if params.data == "absolute":
            loss = off[self.weight > 0].abs().mean()
        elif params.data == "nonlinear":
            k = params.radians_per_ppm
            loss = (self.weight.square() * (1 - torch.cos(k * off))).sum() / (k**2 * self.voxels)
        else:
            loss = scaled.square().sum() / (2 * self.voxels)
        if params.gradient:
            between = sum(scaled.diff(dim=axis).square().sum() for axis in range(3))
            loss = loss + params.gradient * between / (2 * self.voxels)
        if params.strength:
            loss = loss + params.strength * self.variation(chi) / self.voxels
        if params.laplacian:
            loss = loss + params.laplacian * laplacian26(chi).abs().mean()
        return loss, misfit

    def variation(self, chi: Tensor) -> Tensor:
        """Sum of |P grad chi|_1, differences scaled to the mean voxel size as in `classical.tv`."""
        total = torch.zeros((), device=chi.device)
        for axis, h in enumerate(steps(self.dipole)):
            difference = chi.diff(dim=axis).abs()
            total = total + h * (difference if self.relief is None else self.relief[axis] * difference).sum()
        return total


def laplacian26(chi: Tensor) -> Tensor:
    """26 times each inner voxel minus its 26 neighbours."""
    kernel = -torch.ones((1, 1, 3, 3, 3), device=chi.device, dtype=chi.dtype)
    kernel[0, 0, 1, 1, 1] = 26
    return torch.nn.functional.conv3d(chi[None, None], kernel)[0, 0]
