"""Examples of scans with known chi -> the weights that Deep Image Prior begins with."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.dip.features import CHANNELS, OUTSIDE, SCALE_PPM, Given, educated
from models.dip.generator import DOUBT_PPM
from models.unet import FoldedUNet

WIDTHS, OUTPUTS = (32, 64, 96), 2
CROP, BATCH = 48, 4
NOISE = 4  # the feature that is the noise of the field
OUTLIER = 4.0  # errors beyond so many times the classical map's count as their modulus, not their square
DOUBT_SHARE = 0.05  # of the loss that is the likelihood of the errors
KEPT = 0.995  # of the running mean of the weights at each step
HOPELESS = 0.45  # of chi's power: examples whose classical map is worse teach nothing but background

Say = Callable[[str], None]


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
    low = _corner(one.inside, draw)
    cut = [_cube(v, low) for v in (one.features.float(), one.base.float(), one.chi.float(), one.inside)]
    cut[0][NOISE] = torch.where(_cube(torch.ones_like(one.inside), low), cut[0][NOISE], OUTSIDE)
    axes = draw.sample((-3, -2, -1), 3)
    mirrored = [axis for axis in (-3, -2, -1) if draw.random() < 0.5]
    turned = [v.permute(*range(v.dim() - 3), *(v.dim() + axis for axis in axes)).flip(mirrored) for v in cut]
    return turned[0], turned[1], turned[2], turned[3]


class Trainer:
    """Network, running mean of its weights, optimiser, steps done: what a checkpoint holds."""

    def __init__(self, seed: int, rate: float, device: torch.device | str = "cpu") -> None:
        torch.manual_seed(seed)
        self.device = torch.device(device)
        self.draw, self.rate, self.steps = random.Random(seed), rate, 0
        self.network = FoldedUNet(CHANNELS, WIDTHS, OUTPUTS).to(self.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.mean = copy.deepcopy(self.network)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=1e-4)

    def step(self, examples: Sequence[Example], share: float) -> tuple[float, float]:
        """One step, `share` of all done; returns the loss of the network and that of the classical maps."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1, (self.steps + 1) / 200) * (0.51 + 0.49 * math.cos(math.pi * share))
        chosen = [self.draw.choice(examples) for _ in range(BATCH)]
        parts = zip(*(crop(e, self.draw) for e in chosen), strict=True)
        z, base, chi, inside = (torch.stack(part).to(self.device) for part in parts)
        size = torch.tensor([e.error for e in chosen], device=self.device).sqrt().view(-1, 1, 1, 1)
        with torch.autocast(self.device.type, torch.bfloat16):
            out = self.network(z.to(memory_format=torch.channels_last_3d))
        off = (base + SCALE_PPM * out[:, 0].float() - chi) * inside
        doubt = DOUBT_PPM * out[:, 1].float().clamp(-4, 6).exp()
        likelihood = ((doubt.log() + off.detach().abs() / doubt) * inside).sum() / inside.sum()
        loss = _robust(off / size, inside)
        (loss + DOUBT_SHARE * likelihood).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 0.5)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        keep = min(KEPT, self.steps / (self.steps + 20))
        with torch.no_grad():
            for slow, fast in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)
        return float(loss.detach()), float(_robust((base - chi) * inside / size, inside))

    def state(self) -> dict[str, Any]:
        parts = {"network": self.network, "mean": self.mean, "optimiser": self.optimiser}
        return {"steps": self.steps, **{name: part.state_dict() for name, part in parts.items()}}

    def resume(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for name in ("network", "mean", "optimiser"):
            getattr(self, name).load_state_dict(state[name])


def train(folder: Path, trainer: Trainer, seconds: float, checkpoint: Path, say: Say, every: int = 100) -> None:
    """Train on the examples of a folder for so long; the checkpoint is written every so many steps. ValueError where
    there are none."""
    began, total, known = time.monotonic(), [0.0, 0.0], load_examples(folder, {})
    if not known:
        raise ValueError(f"no examples in {folder}")
    while (passed := time.monotonic() - began) < seconds:
        losses = trainer.step(list(known.values()), passed / seconds)
        total = [a + b for a, b in zip(total, losses, strict=True)]
        if trainer.steps % every == 0:
            ratio = math.sqrt(total[0] / total[1])
            say(f"step {trainer.steps}, {passed:.0f} of {seconds:.0f} s, error {ratio:.3f} of the classical map's")
            torch.save(trainer.state(), checkpoint)
            total, known = [0.0, 0.0], load_examples(folder, known)
    torch.save(trainer.state(), checkpoint)


def _robust(off: Tensor, inside: Tensor) -> Tensor:
    """Mean over each crop's inside of the square, beyond `OUTLIER` of the modulus; then over the crops."""
    size = off.abs()
    cost = torch.where(size < OUTLIER, off.square(), 2 * OUTLIER * size - OUTLIER**2)
    return (cost.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1000)).mean()


def _corner(inside: Tensor, draw: random.Random) -> list[int]:
    """The first voxel of a cube, which may reach beyond the volume, of which a quarter at least is inside if it can."""
    low: list[int] = []
    for _ in range(20):
        low = [draw.randint(-CROP // 4, max(-CROP // 4, n - CROP + CROP // 4)) for n in inside.shape]
        if float(_cube(inside, low).float().mean()) > 0.25:
            break
    return low


def _cube(volume: Tensor, low: Sequence[int]) -> Tensor:
    """(..., X, Y, Z) -> (..., CROP, CROP, CROP) from `low` on, zero beyond the volume."""
    out = torch.zeros((*volume.shape[:-3], CROP, CROP, CROP), dtype=volume.dtype)
    begin = [max(0, a) for a in low]
    end = [max(b, min(n, a + CROP)) for a, b, n in zip(low, begin, volume.shape[-3:], strict=True)]
    here: tuple[Any, ...] = (..., *(slice(b - a, e - a) for a, b, e in zip(low, begin, end, strict=True)))
    there: tuple[Any, ...] = (..., *(slice(b, e) for b, e in zip(begin, end, strict=True)))
    out[here] = volume[there]
    return out
