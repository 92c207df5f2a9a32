"""A learned method and a field -> its map, on as much memory as there is: whole, in tiles, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models import cyclegan, diffusion, dip
from models.dipole import Dipole
from models.found import Found
from pipeline.errors import ChironError
from pipeline.memory import first_that_fits, rungs

TILES = (0, 160, 80)  # edges tried where the network's output is local, in voxels; 0 is the whole volume at once
PATCHES = (96, 48)  # edges tried for the diffusion prior below the one that was asked for

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Learned:
    """What the pipeline asks of a learned method beside its reconstruction.

    `weights` gives the card of the weights that its parameters need, or None (ValueError where they are not there);
    `tiles` the edges that are worth trying, `in_tiles` its parameters with one, `needed_bytes` what these take.
    """

    reconstruct: Callable[..., Found]
    weights: Callable[[Any], dict[str, Any] | None]
    tiles: Callable[[Any], tuple[int, ...]]
    in_tiles: Callable[[Any, int], Any]
    needed_bytes: Callable[[Sequence[int], Any], int]


def _dip_tiles(params: dip.DIP) -> tuple[int, ...]:
    return _local_tiles(params) if params.network == "educated" else (params.tile,)


def _local_tiles(params: dip.DIP | cyclegan.CycleGAN) -> tuple[int, ...]:
    """The tile that was asked for, else those that give the same map."""
    return (params.tile,) if params.tile else TILES


def _diffusion_tiles(params: diffusion.Diffusion) -> tuple[int, ...]:
    """The patches that were asked for, then smaller ones."""
    smaller = (edge for edge in PATCHES if not params.patch or edge < params.patch)
    return (params.patch, *smaller)


def _in_patches(params: diffusion.Diffusion, edge: int) -> diffusion.Diffusion:
    """An overlap is at most half of a patch."""
    return replace(params, patch=edge, overlap=min(params.overlap, edge // 2) if edge else params.overlap)


LEARNED: dict[str, Learned] = {
    "dip": Learned(
        lambda *given: dip.reconstruct(*given),
        lambda params: dip.learned()[1] if params.network == "educated" else None,
        _dip_tiles,
        lambda params, edge: replace(params, tile=edge),
        lambda shape, params: dip.needed_bytes(shape, params.tile),
    ),
    "diffusion": Learned(
        lambda *given: diffusion.reconstruct(*given),
        lambda params: diffusion.learned()[1],
        _diffusion_tiles,
        _in_patches,
        diffusion.needed_bytes,
    ),
    "cyclegan": Learned(
        lambda *given: cyclegan.reconstruct(*given),
        lambda params: cyclegan.learned(params.preset)[1],
        _local_tiles,
        lambda params, edge: replace(params, tile=edge),
        cyclegan.needed_bytes,
    ),
}


def card_of(method: str, params: Any) -> dict[str, Any] | None:
    """The card of the weights that the method needs, None where it needs none; M003 where they are not there."""
    try:
        return LEARNED[method].weights(params) if method in LEARNED else None
    except ValueError as error:
        raise ChironError("M003", str(error), "the weights that the card describes") from None


def by_network(
    method: str, field: Tensor, weight: Tensor, dipole: Dipole, params: Any, progress: Progress
) -> tuple[Found, list[str]]:
    """The method's map, on less memory where it has to be; and what was too large. Errors as for `invert`."""

    def work(device: torch.device, own: Any) -> Found:
        return LEARNED[method].reconstruct(field.to(device), weight.to(device), dipole.to(device), own, progress)

    return as_memory_allows(method, work, field.shape, field.device, params)


def as_memory_allows(
    method: str,
    work: Callable[[torch.device, Any], Found],
    shape: Sequence[int],
    device: torch.device,
    params: Any,
) -> tuple[Found, list[str]]:
    """What `work` finds on a device with the method's parameters, in tiles where memory asks for it; and what was too
    large. The maps come back to `device`. M003 where the weights are not there, R002 where nothing fits."""
    learned = LEARNED[method]
    card_of(method, params)

    def moved(where: torch.device, tile: int) -> Found:
        found = work(where, learned.in_tiles(params, tile))
        doubt = found.uncertainty_ppm
        return replace(
            found,
            chi_ppm=found.chi_ppm.to(device),
            uncertainty_ppm=None if doubt is None else doubt.to(device),
        )

    tiles = {e: learned.needed_bytes(shape, learned.in_tiles(params, e)) for e in learned.tiles(params)}
    return first_that_fits(moved, rungs(tiles, device))
