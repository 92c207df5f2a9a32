"""Local field -> susceptibility by one division in k-space: TKD and Tikhonov."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.dipole import Dipole
from models.params import param


@dataclass(frozen=True)
class TKD:
    """Thresholded k-space division (Shmueli 2009, doi 10.1002/mrm.22135)."""

    threshold: float = param(0.15, "smallest |D| that is divided by; more smooths and underestimates", 0.01, 0.5)


@dataclass(frozen=True)
class Tikhonov:
    """L2 regularisation (Bilgic 2014, doi 10.1002/mrm.25029)."""

    strength: float = param(0.01, "weight of |chi|^2 against the unweighted field misfit", 1e-6, 1)


def tkd(field: Tensor, weight: Tensor, dipole: Dipole, params: TKD) -> Tensor:
    """Divide by D where |D| exceeds the threshold, elsewhere by the threshold with the sign of D."""
    D = dipole.kernel
    sign = torch.where(D < 0, -1.0, 1.0)
    inverse = torch.where(D.abs() > params.threshold, 1 / torch.where(D == 0, 1.0, D), sign / params.threshold)
    inverse[0, 0, 0] = 0
    return dipole.ifft(inverse * dipole.fft(field))


def tikhonov(field: Tensor, weight: Tensor, dipole: Dipole, params: Tikhonov) -> Tensor:
    """Closed form of min |D chi - f|^2 + strength |chi|^2."""
    D = dipole.kernel
    return dipole.ifft(D / (D**2 + params.strength) * dipole.fft(field))
