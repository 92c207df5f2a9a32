"""Training maps, samples of a prior -> pictures (PNG) that a person can judge them by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from models.diffusion.process import SCALE_PPM

WINDOW_PPM = 0.12  # black to white is from minus to plus this
TALLEST_MM, PX_PER_MM = 190, 1.0
ACROSS = 6  # maps in a row
CUBE_PX = 96


def save_maps(maps: Sequence[tuple[Any, ...]], file: Path) -> None:
    """The middle axial slice of each map (chi in units, inside, voxel size, kind), all at one scale."""
    edge = round(TALLEST_MM * PX_PER_MM)
    rows = -(-len(maps) // ACROSS)
    page = Image.new("L", (ACROSS * edge, rows * (edge + 14)))
    for index, (chi, inside, voxel, kind) in enumerate(maps):
        x, y, _ = (round(n * v * PX_PER_MM) for n, v in zip(chi.shape, voxel, strict=True))
        black = torch.where(inside, chi.float(), -torch.inf)
        tile = _grey(black[..., chi.shape[2] // 2]).resize((x, y), Image.Resampling.NEAREST)
        left, top = index % ACROSS * edge, index // ACROSS * (edge + 14)
        page.paste(tile, (left + (edge - x) // 2, top + 14 + (edge - y) // 2))
        label = f"{kind}, {' x '.join(f'{v:.1f}' for v in voxel)} mm"
        ImageDraw.Draw(page).text((left + 4, top + 1), label, fill=255)
    page.save(file)


def save_samples(rows: dict[str, Tensor], file: Path) -> None:
    """Rows of cubes (B, X, Y, Z) in units, each by its name, three slices a cube."""
    most = max(len(cubes) for cubes in rows.values())
    page = Image.new("L", (3 * most * CUBE_PX, len(rows) * (CUBE_PX + 14)))
    for row, (name, cubes) in enumerate(rows.items()):
        top = row * (CUBE_PX + 14)
        ImageDraw.Draw(page).text((4, top + 1), name, fill=255)
        for index, cube in enumerate(cubes.float().cpu()):
            for axis in range(3):
                tile = _grey(cube.select(axis, cube.shape[axis] // 2)).resize((CUBE_PX - 2, CUBE_PX - 2))
                page.paste(tile, ((3 * index + axis) * CUBE_PX, top + 14))
    page.save(file)


def _grey(chi: Tensor) -> Image.Image:
    """A slice (X, Y) in units, its second axis upwards."""
    share = (chi.float() * SCALE_PPM / WINDOW_PPM + 1).clamp(0, 2) * 127.5
    return Image.fromarray(share.T.flip(0).round().to(torch.uint8).contiguous().numpy())
