"""Examples of scans with known chi -> the loss by which Deep Image Prior's first weights are learned."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.generator import DOUBT_PPM
from models.seen import CHANNELS, NOISE, OUTSIDE, SCALE_PPM, Given, educated
from models.train import corner, cube, robust, turned
from models.unet import FoldedUNet

WIDTHS, OUTPUTS = (32, 64, 96), 2
CROP, BATCH = 48, 4
OUTLIER = 4.0  # errors beyond so many times the classical map's count as their modulus, not their square
DOUBT_SHARE = 0.05  # of the loss that is the likelihood of the errors
HOPELESS = 0.45  # of chi's power: examples whose classical map is worse teach nothing but background


@dataclass(frozen=True)
class Example:
    """Features (7, X, Y, Z), the classical map that is corrected, the truth (both ppm), `inside`: where that is known;
    `error` is the mean square error of the classical map there."""

    features: Tensor
    base: Tensor
    chi: Tensor
    inside: Tensor
    error: float


def example(given: Given, chi_ppm: Tensor, inside: Tensor) -> Example | None:
    """A scan as the network will meet it, all volumes cropped alike; None where its classical map is hopeless."""
    tv = given.classical("tv")
    inside = inside & given.mask
    centred = [torch.where(given.mask, v - v[inside].mean(), 0) for v in (tv, chi_ppm)]
    error, power = (float(v[inside].square().mean()) for v in (centred[0] - centred[1], centred[1]))
    if not error < HOPELESS * power:
        return None
    features = educated(given, centred[0])[0].bfloat16()
    return Example(features, centred[0].half(), centred[1].half(), inside, error)


def load_examples(folder: Path, known: dict[Path, Example]) -> dict[Path, Example]:
    """The examples of a folder, those already read kept."""
    return {p: known.get(p) or Example(**torch.load(p, weights_only=True)) for p in sorted(folder.glob("*.pt"))}


def save_example(one: Example, path: Path) -> None:
    """Write it so that a reader never meets half a file."""
    aside = path.with_suffix(".part")
    torch.save(vars(one), aside)
    aside.rename(path)


def crop(one: Example, draw: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, base, chi, inside of a random cube, turned and mirrored at random."""
    low = corner(one.inside, CROP, draw)
    cut = [cube(v, low, CROP) for v in (one.features.float(), one.base.float(), one.chi.float(), one.inside)]
    cut[0][NOISE] = torch.where(cube(torch.ones_like(one.inside), low, CROP), cut[0][NOISE], OUTSIDE)
    z, base, chi, inside = turned(cut, draw)
    return z, base, chi, inside


def network() -> FoldedUNet:
    """As it begins: it leaves the classical map as it is."""
    return FoldedUNet(CHANNELS, WIDTHS, OUTPUTS)


class Lesson:
    """The loss of a batch drawn from examples; keeps the sums of squared errors since they were asked for."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.known: dict[Path, Example] = {}
        self.squares = [0.0, 0.0]

    def refresh(self) -> None:
        """Read what has come into the folder; ValueError where there is nothing."""
        self.known = load_examples(self.folder, self.known)
        if not self.known:
            raise ValueError(f"no examples in {self.folder}")

    def loss(self, network: nn.Module, device: torch.device, step: int) -> Tensor:
        draw = random.Random(f"{self.seed} {step}")
        chosen = [draw.choice(list(self.known.values())) for _ in range(BATCH)]
        parts = zip(*(crop(e, draw) for e in chosen), strict=True)
        z, base, chi, inside = (torch.stack(part).to(device) for part in parts)
        size = torch.tensor([e.error for e in chosen], device=device).sqrt().view(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            out = network(z.to(memory_format=torch.channels_last_3d))
        off = (base + SCALE_PPM * out[:, 0].float() - chi) * inside
        doubt = DOUBT_PPM * out[:, 1].float().clamp(-4, 6).exp()
        likelihood = ((doubt.log() + off.detach().abs() / doubt) * inside).sum() / inside.sum()
        error = robust(off / size, inside, OUTLIER)
        self.squares[0] += float(error.detach())
        self.squares[1] += float(robust((base - chi) * inside / size, inside, OUTLIER))
        total: Tensor = error + DOUBT_SHARE * likelihood
        return total

    def said(self) -> str:
        """How good it has been since the last time, over the classical map; and read what has come."""
        ratio = (self.squares[0] / self.squares[1]) ** 0.5
        self.squares = [0.0, 0.0]
        self.refresh()
        return f"error {ratio:.3f} of the classical map's"
