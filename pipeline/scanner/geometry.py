"""A grid (RAS+ affine) -> slices as scanners write them: orientation, positions (LPS+), pixels in rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.volumes import Grid

# Where rows and columns of pixels run to in sagittal, coronal and axial slices: left, back (posterior) or feet.
_LEFT, _BACK, _FEET = np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, -1.0])
_TOWARDS = ((_BACK, _FEET), (_LEFT, _FEET), (_LEFT, _BACK))


@dataclass(frozen=True)
class Slices:
    """The third voxel axis counts the slices; `transposed` and `flipped` say how the others became rows and columns."""

    orientation: tuple[float, ...]  # direction along a row, then along a column, in LPS+
    positions_mm: tuple[tuple[float, ...], ...]  # of each slice's first pixel, in LPS+
    pixel_spacing_mm: tuple[float, float]  # between rows, between columns
    spacing_mm: float
    normal: int  # 0 sagittal, 1 coronal, 2 axial
    flipped: tuple[int, ...]
    transposed: bool

    def cut(self, volume: NDArray[Any], k: int) -> NDArray[Any]:
        """Slice `k` of a volume (X, Y, Z) as (rows, columns)."""
        turned = np.flip(volume, self.flipped)[:, :, k]
        return np.ascontiguousarray(turned if self.transposed else turned.T)

    def location_mm(self, k: int) -> float:
        """Position of slice `k` along the slices' normal, which is row direction x column direction."""
        along, down = np.reshape(self.orientation, (2, 3))
        return float(np.cross(along, down) @ np.asarray(self.positions_mm[k]))


def slices(grid: Grid) -> Slices:
    """Slices in the way radiologists look at them: rows to the left or back, columns to the back or feet."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(grid.affine)
    size = np.asarray(grid.voxel_size_mm)
    axes = lps[:3, :3] / size
    normal = int(np.abs(axes[:, 2]).argmax())
    row_to, column_to = _TOWARDS[normal]
    row = int(abs(row_to @ axes[:, 1]) > abs(row_to @ axes[:, 0]))
    column = 1 - row
    along, down = row_to @ axes[:, row], column_to @ axes[:, column]
    flipped = tuple(axis for axis, towards in ((row, along), (column, down)) if towards < 0)
    first = np.array([grid.shape[a] - 1 if a in flipped else 0 for a in range(3)])
    positions = [lps[:3, :3] @ (first + np.array([0, 0, k])) + lps[:3, 3] for k in range(grid.shape[2])]
    return Slices(
        orientation=tuple(np.concatenate([axes[:, row] * np.sign(along), axes[:, column] * np.sign(down)]).tolist()),
        positions_mm=tuple(tuple(p.tolist()) for p in positions),
        pixel_spacing_mm=(float(size[column]), float(size[row])),
        spacing_mm=float(size[2]),
        normal=normal,
        flipped=flipped,
        transposed=row == 1,
    )
