"""Total field -> susceptibility and background in one step: sources in the mask, a harmonic field of all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from models.ball import sphere_response
from models.classical.admm import Harmonic, Minimum, minimise
from models.classical.calculus import crop, pad
from models.dipole import Dipole
from models.params import param

DOUBTFUL_PPM = 0.3  # standard deviation from which on neighbours tell more of a voxel than its own value does


@dataclass(frozen=True)
class TFI:
    """Total field inversion: total variation and a harmonic background together (Liu 2017, doi 10.1002/mrm.26331;
    Milovic 2019, doi 10.1002/mrm.27483)."""

    strength: float = param(
        60.0, "weight of the total variation in 1/ppm, against the misfit in units of noise", 0, 1e5
    )
    edge_ppm: float = param(
        0.03, "a step of chi that counts half; larger ones count less, smaller more; 0: all alike", 0, 10
    )
    trusted: float = param(10.0, "misfit in units of noise from which on a voxel loses weight; 0: never", 0, 1e4)
    ball_mm: float = param(9.0, "radius of the ball whose mean is taken off for the first map", 1, 40)
    iterations: int = param(30, "ADMM iterations at most", 1, 5000)
    tolerance: float = param(0.003, "relative change of chi from one iteration to the next at which it stops", 0, 1)


def tfi(field: Tensor, weight: Tensor, dipole: Dipole, params: TFI) -> Tensor:
    """Chi of the total `field` in the whole mask: nothing is eroded. See `separate`."""
    return separate(field, weight, dipole, params).chi_ppm


def separate(field: Tensor, weight: Tensor, dipole: Dipole, params: TFI) -> Minimum:
    """min |W (D chi + h - f)|^2 / 2 + strength |P grad chi|_1 with h harmonic in the mask: chi and the background h.

    Background removal alone has to guess which part of the field the tissue makes; here what is sparse in the gradient
    of chi goes to chi, and what is harmonic goes to h, however close to the rim. The grid needs next to no padding: the
    field of a periodic image of the head is harmonic in the mask, and so part of h. Voxels of next to no weight are
    bridged: the weight keeps them out of the misfit, but the iterations would never forget them in their start.
    """
    field = bridged(field, weight)
    return minimise(
        field,
        weight,
        dipole,
        strength=params.strength,
        iterations=params.iterations,
        tolerance=params.tolerance,
        edge_ppm=params.edge_ppm,
        trusted=params.trusted,
        harmonic=Harmonic(dipole, whole=True),
        chi_ppm=first_map(field, weight > 0, dipole, params.ball_mm),
    )


def bridged(field: Tensor, weight: Tensor) -> Tensor:
    """The field with doubtful voxels filled by the mean of the believed ones around, from their surface inwards."""
    inside = weight > 0
    known = weight > min(1 / DOUBTFUL_PPM, 0.1 * float(weight[inside].median()))
    field = torch.where(known, field, 0)
    while bool((inside & ~known).any()):
        share, sums = (avg_pool3d(v[None, None], 3, stride=1, padding=1)[0, 0] for v in (known.to(field.dtype), field))
        reached = inside & ~known & (share > 0.01)
        if not bool(reached.any()):
            break
        field = torch.where(reached, sums / share.clamp_min(0.01), field)
        known = known | reached
    return field


def first_map(field: Tensor, inside: Tensor, dipole: Dipole, ball_mm: float) -> Tensor:
    """Chi (X, Y, Z) by Tikhonov's division of the field less its mean over a ball, where the ball lies in the mask.

    Harmonic fields equal their mean over a ball, so no background is left (Schweser 2011,
    doi 10.1016/j.neuroimage.2010.10.070); long waves are lost, and come back with the iterations.
    """
    mean = sphere_response(dipole.padded, dipole.voxel_size_mm, ball_mm, field)
    share = torch.fft.irfftn(mean * torch.fft.rfftn(pad(inside.to(field.dtype), dipole)), s=dipole.padded)
    spectrum = (1 - mean) * torch.fft.rfftn(pad(torch.where(inside, field, 0), dipole))
    sharp = torch.where(share > 0.999, torch.fft.irfftn(spectrum, s=dipole.padded), 0)
    filtered = (1 - mean) * dipole.kernel
    chi = crop(torch.fft.irfftn(filtered / (filtered**2 + 0.01) * torch.fft.rfftn(sharp), s=dipole.padded), dipole)
    return torch.where(inside, chi - chi[inside].mean(), 0)
