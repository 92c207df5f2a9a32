"""What was measured of a map, and with what noise -> how far a map is from it, and the map near another that fits it.

Tasks share one prior and differ only here: the local field (DipInv), a coarser map (SR); the coarser field of a finer
map tells how well the two one after the other (SR-DipInv) agree with it. Maps are in units of `SCALE_PPM`,
measurements too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.cg import conjugate_gradients
from models.diffusion.process import SCALE_PPM
from models.dipole import Dipole, frequencies

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measured:
    """`value` and its `weight` (1 / standard deviation, 0 where nothing was measured) on the measured grid; `forward`
    and `adjoint` lead there from the map's grid and back, `power` is the spectrum of both on `grid`, which pads that
    of the map; `inside` (bool) is where the map is sought. `unknown` are parts of the measurement of which nobody
    knows how much there is: a constant, and what a constant inside the mask would make, for the zero of chi is unknown.
    """

    value: Tensor
    weight: Tensor
    forward: Operator
    adjoint: Operator
    inside: Tensor
    power: Tensor
    grid: Dipole
    unknown: tuple[Tensor, ...]

    def residual(self, x: Tensor) -> Tensor:
        """What the map leaves unexplained, in units of noise; on the measured grid."""
        return self.weight * self._known(self.value - self.forward(x))

    def misfit(self, x: Tensor) -> float:
        """Mean square of the residual: 1 where there is nothing but noise."""
        return float(self.residual(x).square().sum() / (self.weight > 0).sum())

    def slope(self, x: Tensor) -> Tensor:
        """Half the descent of the squared residual, on the map's grid."""
        return self.inside * self.adjoint(self.weight * self.residual(x))

    def nearest(self, mean: Tensor, trust: float, iterations: int) -> Tensor:
        """min |W (A x - y)|^2 + trust |x - mean|^2 by conjugate gradients; `trust` is 1 / variance of the mean."""
        typical = float(self.weight.square().sum() / (self.weight > 0).sum())
        filter = 1 / (typical * self.power + trust)

        def normal(u: Tensor) -> Tensor:
            seen = self.weight.square() * self._known(self.forward(u))
            return self.inside * self.adjoint(seen) + trust * u

        step, _ = conjugate_gradients(
            normal,
            self.slope(mean),
            precondition=lambda r: self.inside * self.grid.ifft(filter * self.grid.fft(r)),
            iterations=iterations,
            tolerance=1e-3,
        )
        return mean + step

    def _known(self, value: Tensor) -> Tensor:
        """Less as much of the unknown parts as fits best; these are orthonormal in the weights."""
        w2 = self.weight.square()
        for part in self.unknown:
            value = value - (w2 * part * value).sum() * part
        return value


def _measured(
    value_ppm: Tensor,
    weight: Tensor,
    inside: Tensor,
    forward: Operator,
    adjoint: Operator,
    power: Tensor,
    grid: Dipole,
) -> Measured:
    weight = weight * SCALE_PPM
    unknown: list[Tensor] = []
    for part in (torch.ones_like(value_ppm), forward(inside.to(value_ppm))):
        for other in unknown:
            part = part - (weight.square() * part * other).sum() * other
        size = (weight * part).norm()
        if float(size) > 1e-3 * float(weight.norm()):
            unknown.append(part / size)
    return Measured(value_ppm / SCALE_PPM, weight, forward, adjoint, inside, power, grid, tuple(unknown))


def doubted(field_ppm: Tensor, weight: Tensor, slope: float) -> Tensor:
    """The weight where, beside its noise, a field is uncertain by `slope` times its change from voxel to voxel.

    A voxel shows the mean of a field over its extent, weighted by signal, not the field of the mean of chi: where the
    field is steep the two differ, by 0.15 to 0.2 of the step in simulated scans whose voxels are means of finer ones.
    """
    inside = weight > 0
    steep = torch.zeros_like(field_ppm)
    for axis in range(3):
        step = field_ppm.diff(dim=axis).square()
        n = field_ppm.shape[axis]
        both = inside.narrow(axis, 1, n - 1) & inside.narrow(axis, 0, n - 1)
        step, count = step * both, both.to(step)
        total, known = torch.zeros_like(steep), torch.zeros_like(steep)
        for start in (0, 1):
            total.narrow(axis, start, n - 1).add_(step)
            known.narrow(axis, start, n - 1).add_(count)
        steep += total / known.clamp_min(1)
    variance = 1 / weight.clamp_min(1e-12).square() + slope**2 * steep
    return torch.where(inside, variance.rsqrt(), 0)


def of_field(field_ppm: Tensor, weight: Tensor, dipole: Dipole) -> Measured:
    """A local field (X, Y, Z) with `weight` = 1 / its standard deviation in 1/ppm, zero outside the mask."""
    return _measured(field_ppm, weight, weight > 0, dipole.forward, dipole.forward, dipole.kernel.square(), dipole)


def of_coarse(chi_ppm: Tensor, weight: Tensor, inside: Tensor, fine: Dipole) -> Measured:
    """A map on a coarser grid over the same field of view; `inside` is the mask on the grid of `fine`."""
    lowpass = Lowpass(inside.shape, chi_ppm.shape, inside.device)
    return _measured(chi_ppm, weight, inside, lowpass.forward, lowpass.adjoint, lowpass.power(fine), fine)


def of_coarse_field(field_ppm: Tensor, weight: Tensor, inside: Tensor, fine: Dipole) -> Measured:
    """The local field on a coarser grid of a map on the grid of `fine`, whose dipole it is."""
    lowpass = Lowpass(inside.shape, field_ppm.shape, inside.device)
    return _measured(
        field_ppm,
        weight,
        inside,
        lambda x: lowpass.forward(fine.forward(x)),
        lambda y: fine.forward(lowpass.adjoint(y)),
        lowpass.power(fine) * fine.kernel.square(),
        fine,
    )


class Lowpass:
    """A fine volume -> what a scan with fewer k-space samples over the same field of view would show, axis by axis.

    Any two sizes; both grids share the edges of the field of view, so that centres of voxels lie apart. The Nyquist
    frequency of an even coarse size counts half on either side.
    """

    def __init__(self, fine: Sequence[int], coarse: Sequence[int], device: torch.device) -> None:
        if any(n > m for n, m in zip(coarse, fine, strict=True)):
            raise ValueError(f"{tuple(coarse)} voxels are no coarser than {tuple(fine)}")
        self.axes = [_dirichlet(m, n).to(device) for m, n in zip(fine, coarse, strict=True)]

    def forward(self, fine: Tensor) -> Tensor:
        for axis, matrix in enumerate(self.axes):
            fine = torch.tensordot(matrix, fine.movedim(axis, 0), dims=1).movedim(0, axis)
        return fine

    def adjoint(self, coarse: Tensor) -> Tensor:
        for axis, matrix in enumerate(self.axes):
            coarse = torch.tensordot(matrix.T, coarse.movedim(axis, 0), dims=1).movedim(0, axis)
        return coarse

    def power(self, grid: Dipole) -> Tensor:
        """Its spectrum, squared, on the padded grid of a dipole of the fine size."""
        k = frequencies(grid.padded, (1.0, 1.0, 1.0), grid.kernel.device)
        shares = [len(matrix) / matrix.shape[1] for matrix in self.axes]
        kept = [share * (a.abs() < share / 2) for a, share in zip(k, shares, strict=True)]
        return (kept[0] * kept[1] * kept[2]).to(grid.kernel)


def _dirichlet(fine: int, coarse: int) -> Tensor:
    """The matrix (coarse, fine) that keeps the lowest frequencies of `fine` samples and reads them at `coarse` ones."""
    if fine == coarse:
        return torch.eye(fine)
    at, of = (torch.arange(coarse) + 0.5) / coarse, (torch.arange(fine) + 0.5) / fine
    k = torch.arange(1, coarse // 2 + 1, dtype=torch.float64)
    share = torch.where(k * 2 == coarse, 0.5, 1.0)
    angle = 2 * math.pi * (at[:, None] - of[None]).double()[..., None] * k
    return ((1 + 2 * (share * angle.cos()).sum(-1)) / fine).float()
