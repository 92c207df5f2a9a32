"""Local field -> susceptibility by total variation with a weighted data term."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.classical.admm import minimise
from models.dipole import Dipole
from models.params import param


@dataclass(frozen=True)
class TV:
    """Total variation by ADMM with a weighted data term (Bilgic 2014; Milovic 2018, doi 10.1002/mrm.27073)."""

    strength: float = param(
        60.0, "weight of the total variation in 1/ppm, against the misfit in units of noise", 0, 1e5
    )
    edge_ppm: float = param(
        0.03, "a step of chi that counts half; larger ones count less, smaller more; 0: all alike", 0, 10
    )
    iterations: int = param(40, "ADMM iterations at most", 1, 5000)
    tolerance: float = param(0.01, "relative change of chi from one iteration to the next at which it stops", 0, 1)


def tv(field: Tensor, weight: Tensor, dipole: Dipole, params: TV) -> Tensor:
    """min |W (D chi - f)|^2 / 2 + strength |P grad chi|_1, where P relieves the edges that were found."""
    return minimise(
        field,
        weight,
        dipole,
        strength=params.strength,
        iterations=params.iterations,
        tolerance=params.tolerance,
        edge_ppm=params.edge_ppm,
    ).chi_ppm
