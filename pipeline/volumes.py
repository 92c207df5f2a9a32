"""The values that steps hand each other: a grid in space, echoes, fields, chi. Frozen, checked where they are built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.dipole import GAMMA_MHZ_PER_T as GAMMA_MHZ_PER_T
from pipeline.errors import ChironError


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: shape (X, Y, Z), affine (4x4, voxel index -> scanner mm, RAS+), B0 direction in voxel axes."""

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]
    b0_dir: tuple[float, float, float]

    @classmethod
    def from_affine(cls, shape: Sequence[int], affine: Any, b0_scanner: Sequence[float] = (0, 0, 1)) -> Grid:
        """Grid of an affine; `b0_scanner` is the field's direction in scanner axes, z on every whole-body magnet."""
        matrix = np.asarray(affine, dtype=float)
        axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
        if not np.allclose(axes.T @ axes, np.eye(3), atol=2e-3):
            raise ChironError("E008", "image axes that are not at right angles", "an orthonormal orientation")
        b = axes.T @ np.asarray(b0_scanner, dtype=float)
        return cls._of(shape, matrix, b)

    @classmethod
    def simple(cls, shape: Sequence[int], voxel_size_mm: Sequence[float], b0_dir: Sequence[float] = (0, 0, 1)) -> Grid:
        """A grid with axes along the scanner's, centred on the isocentre, and any B0 direction in voxel axes."""
        size = np.asarray(voxel_size_mm, dtype=float)
        affine = np.diag([*size, 1.0])
        affine[:3, 3] = -size * (np.asarray(shape) - 1) / 2
        b = np.asarray(b0_dir, dtype=float)
        return cls._of(shape, affine, b)

    @classmethod
    def _of(cls, shape: Sequence[int], affine: np.ndarray, b: np.ndarray) -> Grid:
        x, y, z = (int(n) for n in shape[:3])
        bx, by, bz = (b / np.linalg.norm(b)).tolist()
        return cls((x, y, z), tuple(map(tuple, affine.tolist())), (bx, by, bz))

    @property
    def voxel_size_mm(self) -> tuple[float, float, float]:
        """To 10 nm: digits beyond differ from export to export, and no count of voxels in a length may follow them."""
        x, y, z = np.linalg.norm(np.asarray(self.affine)[:3, :3], axis=0).round(5).tolist()
        return x, y, z

    @property
    def obliquity_deg(self) -> float:
        """Angle in degrees between B0 and the nearest voxel axis."""
        return float(np.degrees(np.arccos(min(1.0, max(abs(c) for c in self.b0_dir)))))

    def json(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "affine": [list(r) for r in self.affine], "b0_dir": list(self.b0_dir)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Grid:
        return cls(tuple(value["shape"]), tuple(map(tuple, value["affine"])), tuple(value["b0_dir"]))


@dataclass(frozen=True)
class Echoes:
    """A multi-echo gradient-echo scan: magnitude (any unit) and phase (radians), each (E, X, Y, Z) float32."""

    magnitude: Tensor
    phase_rad: Tensor
    echo_times_s: tuple[float, ...]
    b0_tesla: float
    grid: Grid

    def __post_init__(self) -> None:
        shape = (len(self.echo_times_s), *self.grid.shape)
        for name, found in (("magnitude", self.magnitude.shape), ("phase", self.phase_rad.shape)):
            if tuple(found) != shape:
                raise ChironError("E011", f"{name} of shape {tuple(found)}", f"(echoes, x, y, z) = {shape}")
        if list(self.echo_times_s) != sorted(set(self.echo_times_s)) or not self.echo_times_s[0] > 0:
            raise ChironError("E005", f"echo times {self.echo_times_s} s", "positive, rising, no two equal")
        for name, values in (("magnitude", self.magnitude), ("phase", self.phase_rad)):
            if not bool(torch.isfinite(values).all()):
                bad = int((~torch.isfinite(values)).sum())
                raise ChironError("P006", f"{bad} values of the {name} that are not finite", "numbers only")


@dataclass(frozen=True)
class Field:
    """A field map (X, Y, Z) in ppm of B0, positive where the field is higher; its noise `sd_ppm` and mask alike."""

    ppm: Tensor
    sd_ppm: Tensor
    mask: Tensor
    grid: Grid


@dataclass(frozen=True)
class Susceptibility:
    """A susceptibility map (X, Y, Z) in ppm, zero outside its mask, and what the method says of how it was found.

    `uncertainty_ppm` (X, Y, Z) is the standard deviation that a method gives to its own map, where it gives one.
    """

    ppm: Tensor
    mask: Tensor
    grid: Grid
    method: str
    facts: dict[str, Any]
    uncertainty_ppm: Tensor | None = None


def ppm_per_rad(echo_time_s: float, b0_tesla: float) -> float:
    """Field in ppm that turns the phase by one radian in `echo_time_s` at `b0_tesla`."""
    return 1 / (2 * np.pi * GAMMA_MHZ_PER_T * b0_tesla * echo_time_s)


def bounding_box(mask: Tensor, margin: int = 2) -> tuple[slice, slice, slice]:
    """Slices of the smallest box around the mask, `margin` voxels wider where there is room; P007 if it is empty."""
    if not bool(mask.any()):
        raise ChironError("P007", "an empty mask", "a mask of the brain")
    slices = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        inside = torch.nonzero(mask.amax(dim=others).flatten()).flatten()
        slices.append(slice(max(0, int(inside[0]) - margin), min(mask.shape[axis], int(inside[-1]) + 1 + margin)))
    return slices[0], slices[1], slices[2]
