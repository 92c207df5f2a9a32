"""Local field and its noise -> susceptibility by a network that learned without pairs: CycleQSM, in one pass.

Oh 2020 (arXiv 2012.03842): a generator from field to susceptibility and a discriminator of susceptibility maps are
learned from fields and maps that do not belong together, for the way back is the known dipole. Here the generator
corrects the classical map, knows voxel size, B0 and noise, and ends in closed-form data consistency. `preset="seed"`
is the plain form.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from models import generator, weights
from models.cyclegan.network import CycleNet, consistent, told
from models.cyclegan.params import CycleGAN
from models.dipole import Dipole
from models.found import Found
from models.generator import VIEWS, Axes, Generator
from models.half import half
from models.seen import BEYOND, Given, educated, field_alone

__all__ = ["CycleGAN", "Found", "Scan", "learned", "needed_bytes", "reconstruct"]

Progress = Callable[[float, str], None]

PASS_BYTES_PER_VOXEL = 150  # of a pass, of which nothing is kept; 84 to 149 were measured at 80 to 96 voxels an edge


def reconstruct(
    field: Tensor,
    weight: Tensor,
    dipole: Dipole,
    params: CycleGAN,
    progress: Progress = lambda share, word: None,
) -> Found:
    """One pass of the generator, and as many steps of fitting as asked; arguments as for the methods in `classical`.

    The uncertainty is the error that the network expects, None of the plain form. Facts: misfits before and after the
    data consistency and after the fit (mean squares in units of the noise), the fit's curve, weights and seconds.
    """
    began = time.monotonic()
    scan = Scan(Given(field, weight, dipole), params)
    progress(0.3, "the network")
    chi, doubt = scan.answer()
    facts: dict[str, Any] = {"first_misfit": scan.misfit(chi)}
    curve: list[float] = []
    if params.refine:
        curve = scan.refine(progress)
        chi, doubt = scan.answer()
        facts["refined_misfit"] = scan.misfit(chi)
    chi = scan.consistent(chi)
    facts |= {"last_misfit": scan.misfit(chi), "weights": scan.card["sha256"]}
    if curve:
        facts["misfit"] = curve
    return Found(chi, {**facts, "seconds": round(time.monotonic() - began, 2)}, doubt)


@cache
def learned(preset: str = "default") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The shipped weights of a preset and their card; ValueError where they are not those of the card."""
    return weights.load("cyclegan" if preset == "default" else f"cyclegan-{preset}")


def needed_bytes(shape: Sequence[int], params: CycleGAN) -> int:
    """An upper estimate of what it takes, whole or in its tiles: as much as a fit of `dip` where it refines."""
    per_voxel = generator.BYTES_PER_VOXEL if params.refine else PASS_BYTES_PER_VOXEL
    return generator.needed_bytes(shape, params.tile, per_voxel)


class Scan:
    """A scan before the generator: what it sees of it, what it makes of that, and how far that is from the field."""

    def __init__(self, given: Given, params: CycleGAN) -> None:
        tensors, card = learned(params.preset)
        self.given, self.params, self.card = given, params, card
        plain, device = params.preset == "seed", given.field.device
        self.network = CycleNet(card["inputs"], card["channels"], card["outputs"], not plain).to(device)
        self.network.load_state_dict(tensors)
        base = given.classical("zero" if plain else "tv")
        seen = field_alone(given) if plain else educated(given, base)
        self.seen = seen.to(memory_format=torch.channels_last_3d)
        beyond = torch.tensor([0.0] if plain else BEYOND, device=device)
        self.generator = Generator(
            self.network.to(memory_format=torch.channels_last_3d),  # type: ignore[call-overload]
            base,
            given.mask,
            half(params.precision, device),
            params.tile,
            beyond,
            None if plain else self._told,
        )

    def answer(self) -> tuple[Tensor, Tensor | None]:
        """The generator's map (X, Y, Z) in ppm and how sure it is, the mean of as many mirror images as asked."""
        return self.generator.answer(self.seen, VIEWS[: self.params.views])

    @torch.no_grad()
    def consistent(self, chi: Tensor) -> Tensor:
        """Nearer to the field, if that is asked."""
        given = self.given
        if not self.params.consistency or self.params.preset == "seed":
            return chi
        left = torch.where(given.mask, given.field - given.dipole.forward(chi), 0)
        left = given.centred(left)
        return torch.where(given.mask, consistent(chi, left, given.weight, given.dipole, self.network.trust), 0)

    def misfit(self, chi: Tensor) -> float:
        """Mean square of what the map leaves of the field, in units of its noise."""
        return self._loss(chi)[1]

    def refine(self, progress: Progress) -> list[float]:
        """Fit the network to this scan by Adam; the misfit before each step."""
        optimiser = torch.optim.Adam(self.network.unet.parameters(), lr=self.params.rate, betas=(0.9, 0.99))
        curve = []
        for step in range(self.params.refine):
            optimiser.zero_grad(set_to_none=True)
            misfit = self.generator.descend(self.seen, self._loss, VIEWS[step % len(VIEWS)])[2]
            optimiser.step()
            curve.append(misfit)
            progress(0.3 + 0.7 * (step + 1) / self.params.refine, f"step {step + 1}, misfit {misfit:.2f}")
        return curve

    def _loss(self, chi: Tensor) -> tuple[Tensor, float]:
        given = self.given
        off = given.weight * (given.dipole.forward(chi) - given.field)
        loss = off.square().sum() / (2 * given.mask.sum())
        return loss, 2 * float(loss.detach())

    def _told(self, mirrored: Axes) -> Tensor:
        dipole = self.given.dipole
        b0 = [-b if axis - 3 in mirrored else b for axis, b in enumerate(dipole.b0_dir)]
        return told(dipole.voxel_size_mm, b0).to(self.given.field.device)[None]
