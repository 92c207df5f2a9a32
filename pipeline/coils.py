"""Magnitude and phase of every coil -> those of one image, combined in the complex domain, coil by coil."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline import romeo
from pipeline.errors import ChironError
from pipeline.filters import gaussian
from pipeline.unwrap.offset import Coarse
from pipeline.volumes import Grid


class Coils(Protocol):
    """Volumes (C, E, X, Y, Z), of which one coil (E, X, Y, Z) is read at a time: a tensor, or a file behind it."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, coil: int, /) -> Tensor: ...


@dataclass(frozen=True)
class ImageOfCoils:
    """A NIfTI image (x, y, z, echo, coil), read coil by coil: forwards, so that a compressed file is read once a pass.

    P006 where values are not finite.
    """

    image: Any
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        x, y, z, echoes, coils = self.image.shape
        return coils, echoes, x, y, z

    def __getitem__(self, coil: int, /) -> Tensor:
        values = torch.from_numpy(np.array(self.image.dataobj[..., coil], dtype=np.float32))
        if not bool(torch.isfinite(values).all()):
            raise ChironError("P006", f"values of coil {coil + 1} that are not finite", "numbers only")
        return values.permute(3, 0, 1, 2).contiguous().to(self.device)


SMOOTHING_MM = 5.0
_FITS = 3  # of a coil's offset: the first, and those of what it leaves
_SIGNAL = 0.01  # of the mean signal: below it there is only noise


def combine(
    magnitude: Coils, phase: Coils, echo_times_s: Sequence[float], grid: Grid, smoothing_mm: float = SMOOTHING_MM
) -> tuple[Tensor, Tensor]:
    """Magnitude and phase (E, X, Y, Z), radians, of all coils: the root of the sum of |S| S exp(-i offset).

    From two echoes on, each coil's offset is the smooth phase that both extrapolate to at time zero (MCPC-3D-S,
    Eckstein 2018, doi 10.1002/mrm.26963), whatever their spacing. From one echo it is the smooth phase against a
    virtual coil (Parker 2014, doi 10.1002/mrm.25142): the sum of all, brought in phase where all have signal; the
    virtual coil's own phase then stays. E011 where shapes differ.
    """
    shape = (len(echo_times_s), *grid.shape)
    if tuple(magnitude.shape) != tuple(phase.shape) or tuple(magnitude.shape[1:]) != shape:
        found = f"coils with magnitude {tuple(magnitude.shape)} and phase {tuple(phase.shape)}"
        raise ChironError("E011", found, f"(coils, echoes, x, y, z) = (any, {', '.join(map(str, shape))})")
    coarse = Coarse.of(grid.voxel_size_mm, smoothing_mm)
    many = len(echo_times_s) > 1
    shared = _evolution(magnitude, phase, echo_times_s) if many else _virtual_coil(magnitude, phase, coarse)
    total = torch.zeros(shape, dtype=torch.complex64, device=shared.device)
    for coil in range(magnitude.shape[0]):
        m, p = magnitude[coil], phase[coil]
        total += torch.polar(m**2, p - _offset(p[0] - shared, m[0] ** 2, coarse))
    return total.abs().sqrt(), total.angle()


def _evolution(magnitude: Coils, phase: Coils, times: Sequence[float]) -> Tensor:
    """What the field turned the first echo's phase by (X, Y, Z): from the echoes' difference, which all coils share."""
    pairs = ((magnitude[c], phase[c]) for c in range(magnitude.shape[0]))
    turn = sum(torch.polar(m[0] * m[1], p[1] - p[0]) for m, p in pairs)
    assert isinstance(turn, Tensor)
    strong = turn.abs() > _SIGNAL * turn.abs().mean()
    angle, size, known = (t.cpu().numpy() for t in (turn.angle(), turn.abs().sqrt(), strong))
    unwrapped = torch.from_numpy(romeo.unwrap_volume(angle, size, known)).to(turn.device)
    return unwrapped * (times[0] / (times[1] - times[0]))


def _virtual_coil(magnitude: Coils, phase: Coils, coarse: Coarse) -> Tensor:
    """Phase (X, Y, Z) of the first echo's sum over coils, each turned to zero phase in the block that all see best."""
    blocks = [coarse.pooled(phase[c][0], magnitude[c][0]) for c in range(magnitude.shape[0])]
    seen = torch.stack([b.abs() / b.abs().max().clamp_min(1e-30) for b in blocks]).amin(0)
    best = int(seen.argmax())
    total = torch.zeros(phase.shape[-3:], dtype=torch.complex64, device=seen.device)
    for coil, block in enumerate(blocks):
        total += torch.polar(magnitude[coil][0], phase[coil][0] - block.flatten()[best].angle())
    return total.angle()


def _offset(phase: Tensor, weight: Tensor, coarse: Coarse) -> Tensor:
    """Smooth phase (X, Y, Z), wrapped: a coil's may turn around a line, and cannot be unwrapped."""
    blocks = coarse.pooled(phase, weight)
    turn = torch.ones_like(blocks)
    for _ in range(_FITS):
        turn = turn * torch.sgn(gaussian(blocks * turn.conj(), coarse.voxel_size_mm, coarse.sigma_mm))
    return torch.complex(coarse.fine(turn.real, phase.shape), coarse.fine(turn.imag, phase.shape)).angle()
