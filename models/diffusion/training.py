"""Maps of known chi -> the loss by which the diffusion prior is learned: denoising at a random level."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.diffusion.prior import split
from models.diffusion.process import EARLIEST, sigma_at
from models.train import corner, cube, robust, turned

Known = tuple[Tensor, Tensor]  # chi (X, Y, Z) in units of the prior, and where it is known

CROP = 48
HELD_SIGMAS = (0.1, 0.3, 1.0, 5.0)  # noise over signal at which what was learned is measured
OUTLIER = 6.0  # errors beyond so many units of what the network makes count as their modulus, not their square
USUAL_SHARE, USUAL_LOG_SIGMA, USUAL_SPREAD = 0.85, -1.2, 1.2  # levels that guided sampling meets; the rest are uniform


def levels(count: int, draw: random.Random) -> Tensor:
    """Sigmas (count) to learn at: mostly those that sampling from a classical map meets, some of all times."""

    def one() -> float:
        if draw.random() < USUAL_SHARE:
            return math.exp(draw.gauss(USUAL_LOG_SIGMA, USUAL_SPREAD))
        return float(sigma_at(draw.uniform(EARLIEST, 1)))

    return torch.tensor([one() for _ in range(count)])


def loss(denoiser: nn.Module, chi: Tensor, inside: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Of crops `chi` (B, X, Y, Z) in units, at levels `sigma` (B): the error of the mean in units of what is asked of
    the network, so that every level weighs alike."""
    noisy = (chi + sigma.view(-1, 1, 1, 1) * noise) * inside
    with torch.autocast(chi.device.type, torch.bfloat16):
        mean = denoiser(noisy, sigma, inside)
    size = split(noisy, sigma)[2]
    return robust((mean - chi) * inside * size / sigma.view(-1, 1, 1, 1), inside, OUTLIER)


class Lesson:
    """Batches of random crops of the maps that there are at a step; sums up the loss.

    Maps lie on the CPU, or their chi on `device`. Crops and noise of a step follow from seed and step alone.
    """

    def __init__(
        self, maps: Callable[[int], Sequence[Known]], batch: int, seed: str, device: torch.device | str = "cpu"
    ) -> None:
        self.maps, self.batch, self.seed = maps, batch, seed
        self.noise = torch.Generator(device)
        self.total: Tensor | float = 0.0
        self.count = 0

    def loss(self, network: nn.Module, device: torch.device, step: int) -> Tensor:
        draw, maps = random.Random(f"{self.seed} {step}"), self.maps(step)
        chi, inside = (part.to(device) for part in _some(maps, self.batch, draw))
        self.noise.manual_seed(draw.getrandbits(63))
        noise = torch.randn(chi.shape, generator=self.noise, device=self.noise.device).to(device)
        value = loss(network, chi, inside, levels(self.batch, draw).to(device), noise)
        self.total, self.count = self.total + value.detach(), self.count + 1
        return value

    def said(self) -> str:
        """The mean loss since the last time."""
        mean = float(self.total) / max(1, self.count)
        self.total, self.count = 0.0, 0
        return f"loss {mean:.4f}"


class Held:
    """Crops that are never learned from, with their noise: the same whenever they are looked at."""

    def __init__(self, maps: Sequence[Known], crops: int = 16) -> None:
        draw, generator = random.Random(5), torch.Generator().manual_seed(5)
        self.chi, self.inside = _stacked([_cut(maps[k % len(maps)], draw) for k in range(crops)])
        self.noise = torch.randn(self.chi.shape, generator=generator)

    def losses(self, denoiser: nn.Module, device: torch.device, at_once: int = 4) -> dict[str, float]:
        """The loss at each of `HELD_SIGMAS`, by its name."""
        found = {}
        for sigma in HELD_SIGMAS:
            values = []
            for parts in zip(*(torch.split(v, at_once) for v in (self.chi, self.inside, self.noise)), strict=True):
                chi, inside, noise = (v.to(device) for v in parts)
                with torch.no_grad():
                    values.append(float(loss(denoiser, chi, inside, torch.full((len(chi),), sigma).to(device), noise)))
            found[f"{sigma:g}"] = sum(values) / len(values)
        return found


def crops(maps: Sequence[Known], count: int, seed: int) -> Known:
    """Cubes (count, X, Y, Z) of maps, chosen, cut, turned and mirrored at random."""
    return _some(maps, count, random.Random(seed))


def _some(maps: Sequence[Known], count: int, draw: random.Random) -> Known:
    return _stacked([turned(_cut(draw.choice(maps), draw), draw) for _ in range(count)])


def _stacked(cut: Sequence[Sequence[Tensor]]) -> Known:
    chi, inside = (torch.stack(part) for part in zip(*cut, strict=True))
    return chi.float(), inside


def _cut(one: Known, draw: random.Random) -> Known:
    low = corner(one[1], CROP, draw)
    return cube(one[0], low, CROP), cube(one[1], low, CROP)
