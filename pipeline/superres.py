"""A susceptibility map, or a local field -> the map on finer voxels of the same field of view, by the diffusion prior.

Beyond what was measured the finer map holds what the prior thinks likely: a guess, not a measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import gcd, prod
from typing import Any

import numpy as np
import torch
from scipy.ndimage import zoom
from torch import Tensor

from models import diffusion
from models.diffusion.measured import Lowpass
from models.diffusion.process import SCALE_PPM
from models.dipole import Dipole
from models.found import Found
from pipeline.errors import ChironError
from pipeline.invert import PADDING, invert, reference
from pipeline.learned import as_memory_allows, card_of
from pipeline.noise import noise_level
from pipeline.unlearned import unlearned
from pipeline.volumes import Field, Grid, Susceptibility, bounding_box

MARGIN = 4  # coarse voxels around the mask: beyond, its field is weak
SMALLEST_MAP_NOISE_PPM = 1e-3  # of a map that was smoothed until none is seen

Box = tuple[slice, slice, slice]
Progress = Callable[[float, str], None]


def refine(
    given: Susceptibility,
    upsample: Sequence[float],
    params: diffusion.Diffusion | None = None,
    progress: Progress = lambda share, word: None,
    sd_ppm: Tensor | None = None,
) -> Susceptibility:
    """Super-resolution (SR): the map on voxels `upsample` times finer along each axis; its mean in the mask stays.

    `sd_ppm` (X, Y, Z) is the noise of the given map; without it, its finest detail tells. Any factors from 1 on, one of
    them above it: X001. P007 for an empty mask, M001 where the map is not finite, R002 where memory does not suffice
    even in the smallest patches on the CPU, M003 where the weights are not there.
    """
    params = params or diffusion.Diffusion()
    place = _place(given.mask, given.grid, upsample)
    inside = given.mask[place.coarse]
    chi = torch.where(inside, given.ppm[place.coarse], 0)
    if sd_ppm is None:
        sd_ppm = torch.full_like(given.ppm, noise_level(given.ppm, given.mask, SMALLEST_MAP_NOISE_PPM))
    start = None if params.start == "noise" else cubic(chi, place.shape)
    found = _sampled(chi, _weight(sd_ppm[place.coarse], inside), start, place, params, progress)
    before = float(given.ppm[given.mask].mean())
    made, centre = reference(found.ppm, found.mask)
    facts = {**found.facts, "reference": {**centre, "region": "that of the coarser map", "given_mean_ppm": before}}
    return replace(found, ppm=torch.where(found.mask, made + before, 0), facts=facts)


def invert_finer(
    given: Field,
    upsample: Sequence[float],
    params: diffusion.Diffusion | None = None,
    progress: Progress = lambda share, word: None,
    first: Susceptibility | None = None,
) -> Susceptibility:
    """Dipole inversion onto a finer grid (SR-DipInv), referenced to its mean in the mask. Arguments and errors as for
    `refine`; the field brings its noise.

    The field is inverted at its own size first, unless that map is given as `first`, and the map refined: sampling from
    all the frequencies that are missing under the guidance of the field alone was further from the truth.
    """
    params = params or diffusion.Diffusion()
    if first is None:
        first = invert(given, "diffusion", params, lambda share, word: progress(share / 3, word))
    found = refine(first, upsample, params, lambda share, word: progress((1 + 2 * share) / 3, word))
    misfit = _misfit(given, found, _place(given.mask, given.grid, upsample), params)
    made, centre = reference(found.ppm, found.mask)
    facts = found.facts | {"task": "SR-DipInv", "data_misfit": misfit, "reference": centre}
    seen = unlearned(_card(params), found.grid, made, found.mask, misfit**0.5)
    return replace(found, ppm=made, facts=facts | seen)


def _misfit(given: Field, found: Susceptibility, place: _Place, params: diffusion.Diffusion) -> float:
    """Mean square of what the finer map leaves of the coarser field, in units of its noise."""
    mask, field = given.mask[place.coarse], given.ppm[place.coarse]
    weight = diffusion.doubted(field, _weight(given.sd_ppm[place.coarse], mask), params.slope)
    inside = place.mask[place.fine]
    measured = diffusion.of_coarse_field(torch.where(mask, field, 0), weight, inside, _dipole(place.grid, inside))
    return measured.misfit(found.ppm[place.fine] / SCALE_PPM)


def _card(params: diffusion.Diffusion) -> dict[str, Any]:
    return card_of("diffusion", params) or {}


def cubic(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """The volume at `shape` over the same field of view, by cubic splines; its edges go on as they are."""
    factors = [m / n for m, n in zip(shape, volume.shape, strict=True)]
    made = zoom(volume.cpu().numpy(), factors, order=3, mode="nearest", grid_mode=True)
    return torch.from_numpy(made).to(volume)


def zero_filled(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """The volume at `shape` over the same field of view, the frequencies that were not measured set to zero."""
    share = prod(shape) / volume.numel()
    return Lowpass(shape, volume.shape, volume.device).adjoint(volume) * share


def finer_shape(shape: Sequence[int], upsample: Sequence[float]) -> tuple[int, int, int]:
    """So many times the voxels along each axis, to whole ones; X001 where none are gained."""
    x, y, z = (int(n * factor + 0.5) for n, factor in zip(shape, upsample, strict=True))
    if (x, y, z) == tuple(shape) or any(m < n for m, n in zip((x, y, z), shape, strict=True)):
        factors = " x ".join(f"{f:g}" for f in upsample)
        raise ChironError("X001", f"a grid {factors} times finer", "a factor above 1, as in --set upsample=2")
    return x, y, z


def finer_affine(affine: Any, shape: Sequence[int], finer: Sequence[int]) -> np.ndarray:
    """The affine of `finer` voxels over the field of view of `shape` ones: the edges stay, the first centre moves."""
    made = np.array(affine, dtype=float)
    scale = np.asarray(shape) / np.asarray(finer)
    made[:3, :3] *= scale
    made[:3, 3] += np.asarray(affine, dtype=float)[:3, :3] @ ((scale - 1) / 2)
    return made


def finer_grid(grid: Grid, upsample: Sequence[float]) -> Grid:
    """The grid of finer voxels over the same field of view; the direction of B0 stays. X001 as `finer_shape`."""
    shape = finer_shape(grid.shape, upsample)
    affine = finer_affine(grid.affine, grid.shape, shape)
    return Grid(shape, tuple(map(tuple, affine.tolist())), grid.b0_dir)


def finer_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask (bool) at `shape`: what is more in than out between the centres of voxels."""
    made = torch.nn.functional.interpolate(mask[None, None].float(), size=tuple(shape), mode="trilinear")
    return made[0, 0] > 0.5


@dataclass(frozen=True)
class _Place:
    """Where the work is done: the finer grid and mask, and one box in whole voxels of both grids around the mask."""

    grid: Grid
    mask: Tensor
    coarse: Box
    fine: Box

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(s.stop - s.start for s in self.fine)


def _place(mask: Tensor, grid: Grid, upsample: Sequence[float]) -> _Place:
    finer = finer_grid(grid, upsample)
    coarse, fine = [], []
    for around, n, m in zip(bounding_box(mask, MARGIN), grid.shape, finer.shape, strict=True):
        whole = n // gcd(n, m)  # so many coarse voxels are a whole number of fine ones
        first, last = around.start // whole * whole, -(-around.stop // whole) * whole
        coarse.append(slice(first, last))
        fine.append(slice(first * m // n, last * m // n))
    inside = finer_mask(mask, finer.shape)
    if not bool(inside.any()):
        raise ChironError("P007", "a mask that is empty on finer voxels", "a mask of the brain")
    return _Place(finer, inside, (coarse[0], coarse[1], coarse[2]), (fine[0], fine[1], fine[2]))


def _weight(sd_ppm: Tensor, inside: Tensor) -> Tensor:
    return torch.where(inside, 1 / sd_ppm.clamp_min(1e-6), 0)


def _dipole(grid: Grid, inside: Tensor) -> Dipole:
    return Dipole(inside.shape, grid.voxel_size_mm, grid.b0_dir, padding=PADDING, device=inside.device)


def _sampled(
    chi: Tensor,
    weight: Tensor,
    start: Tensor | None,
    place: _Place,
    params: diffusion.Diffusion,
    progress: Progress,
) -> Susceptibility:
    """The mean of the samples that the coarser map allows, on the whole of the finer grid; and what is unlike what the
    network has learned from."""
    inside = place.mask[place.fine]
    dipole = _dipole(place.grid, inside)
    params = replace(params, first_ppm=params.finer_first_ppm, strength=params.finer_strength)

    def work(device: torch.device, own: diffusion.Diffusion) -> Found:
        measured = diffusion.of_coarse(chi.to(device), weight.to(device), inside.to(device), dipole.to(device))
        found = diffusion.sample(measured, None if start is None else start.to(device), own, progress)
        return replace(found, facts=found.facts | {"data_misfit": measured.misfit(found.chi_ppm / SCALE_PPM)})

    found, too_large = as_memory_allows("diffusion", work, inside.shape, chi.device, params)
    if not bool(torch.isfinite(found.chi_ppm).all()):
        raise ChironError("M001", "diffusion left values that are not finite", "a finite map")
    facts: dict[str, Any] = {
        "task": "SR",
        "parameters": asdict(params),
        "grid": place.grid.json(),
        "voxel_size_mm": place.grid.voxel_size_mm,
        **found.facts,
        **unlearned(_card(params), place.grid, found.chi_ppm, inside, found.facts["data_misfit"] ** 0.5),
        **({"too_large": too_large} if too_large else {}),
    }
    doubt = None if found.uncertainty_ppm is None else _whole(found.uncertainty_ppm, place)
    return Susceptibility(_whole(found.chi_ppm, place), place.mask, place.grid, "diffusion", facts, doubt)


def _whole(cropped: Tensor, place: _Place) -> Tensor:
    """The volume of the whole finer grid, zero outside the mask."""
    whole = torch.zeros(place.grid.shape, device=cropped.device, dtype=cropped.dtype)
    whole[place.fine] = torch.where(place.mask[place.fine], cropped, 0)
    return whole
