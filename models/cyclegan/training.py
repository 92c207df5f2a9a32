"""Fields and maps that do not belong together -> the loss by which CycleQSM's generator is learned: both cycles.

Field -> map -> field must come back, as far as noise allows, and so must map -> field -> map (Oh 2020,
arXiv 2012.03842); the way from map to field is the dipole and what a scan adds, and a critic holds the maps of fields
to look like maps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.cyclegan.critic import Critic, hinge, wasserstein
from models.cyclegan.crops import Crop, Example, cut
from models.cyclegan.form import Form
from models.cyclegan.network import consistent
from models.generator import DOUBT_PPM
from models.seen import SCALE_PPM
from models.train import robust

MARGIN = 6  # voxels at a crop's rim where the field is not to be had
FIELDS, MAPS = 1, 3  # crops a step
OUTLIER = 4.0  # errors beyond so many times the classical map's count as their modulus, not their square
CYCLE, GRADIENT, VARIATION, DOUBT = 0.03, 0.05, 0.01, 0.05  # of the loss, beside the error of the map


@dataclass(frozen=True)
class Made:
    """What the generator makes of crops, each (B, X, Y, Z): the map in ppm, what it leaves of the field (where that is
    asked), and the logarithm of the error that it expects (None in the plain form)."""

    chi: Tensor
    left: Tensor
    doubt: Tensor | None


def made(network: nn.Module, crops: Sequence[Crop], form: Form) -> Made:
    seen = torch.stack([c.seen for c in crops]).to(memory_format=torch.channels_last_3d)
    telling = None if form.plain else torch.stack([c.told for c in crops])
    with torch.autocast(seen.device.type, torch.bfloat16):
        outputs = network(seen, telling).float()
    maps, lefts, doubts = [], [], []
    for crop, turned in zip(crops, outputs, strict=True):
        out = crop.turn.undo(turned)
        chi = crop.mask * (SCALE_PPM * out[0] + (0 if form.plain else crop.base))
        left = crop.left
        if form.consistency or not crop.known:
            left = left - crop.mask * crop.dipole.forward(chi - crop.base)
        if form.consistency:
            moved = crop.mask * consistent(chi, left, crop.weight, crop.dipole, network.trust)  # type: ignore[arg-type]
            left = left - crop.mask * crop.dipole.forward(moved - chi)
            chi = moved
        maps.append(chi)
        lefts.append(left)
        doubts.append(out[-1])
    return Made(torch.stack(maps), torch.stack(lefts), None if form.plain else torch.stack(doubts))


class Lesson:
    """The loss of a batch of crops of fields and of maps; the critic learns beside it, once a step."""

    def __init__(
        self,
        fields: Callable[[int], Sequence[Example]],
        maps: Callable[[int], Sequence[Example]],
        form: Form,
        seed: str,
        rate: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.fields, self.maps, self.form, self.seed = fields, maps, form, seed
        self.critic = Critic(form.adversary != "wgan-gp").to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        betas = (0.0, 0.9) if form.adversary == "wgan-gp" else (0.5, 0.9)
        self.optimiser = torch.optim.Adam(self.critic.parameters(), lr=rate / 2, betas=betas)
        self.sums: dict[str, float] = {}
        self.count = 0

    def beside(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"critic": self.critic, "critic_optimiser": self.optimiser}

    def loss(self, network: nn.Module, device: torch.device, step: int) -> Tensor:
        draw = random.Random(f"{self.seed} {step}")
        chosen = [draw.choice(self.fields(step)) for _ in range(FIELDS)]
        chosen += [draw.choice(self.maps(step)) for _ in range(MAPS)]
        crops = [cut(one, self.form, draw).to(device) for one in chosen]
        found = made(network, crops, self.form)
        chi, inside = (torch.stack([getattr(c, name) for c in crops]) for name in ("chi", "mask"))
        size = torch.tensor([c.size for c in crops], device=device).view(-1, 1, 1, 1)
        fields, maps = slice(0, FIELDS), slice(FIELDS, None)
        terms = {
            "map": self._map(found.chi[maps], chi[maps], inside[maps], size[maps]),
            "field": CYCLE * _field(found.left[fields], inside[fields], size[fields]),
            "variation": VARIATION * _variation(found.chi[fields] / SCALE_PPM, inside[fields]),
        }
        if found.doubt is not None:
            terms["doubt"] = DOUBT * _likelihood(found.doubt[maps], (found.chi - chi)[maps].detach(), inside[maps])
        weight = self._weight(step)
        if weight:
            sizes = torch.stack([c.sizes for c in crops])
            terms["critic"] = weight * self._judged(found.chi / SCALE_PPM, chi[maps] / SCALE_PPM, inside, sizes, draw)
        base = torch.stack([c.base for c in crops])
        off = [(volume - chi)[maps].detach() * inside[maps] / size[maps] for volume in (found.chi, base)]
        self._note(terms, *(float(robust(o, inside[maps], OUTLIER)) for o in off))
        return torch.stack(list(terms.values())).sum()

    def said(self) -> str:
        """The error of maps over that of the classical one, and the terms, since the last time."""
        means = {name: value / max(1, self.count) for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        error = (means.pop("error") / means.pop("classical")) ** 0.5
        return f"error {error:.3f} of the classical map's, " + ", ".join(f"{n} {v:.3f}" for n, v in means.items())

    def _map(self, found: Tensor, chi: Tensor, inside: Tensor, size: Tensor) -> Tensor:
        off = (found - chi) * inside / size
        return robust(off, inside, OUTLIER) + GRADIENT * _variation(off, inside)

    def _weight(self, step: int) -> float:
        form = self.form
        if form.adversary == "none" or step < form.begins:
            return 0.0
        return form.adversarial * min(1.0, (step - form.begins + 1) / form.ramp)

    def _judged(self, found: Tensor, real: Tensor, inside: Tensor, sizes: Tensor, draw: random.Random) -> Tensor:
        """Teach the critic maps and what was made of all fields; how little like maps it then finds the latter."""
        maps = (real, inside[FIELDS:], sizes[FIELDS:])
        made = (found.detach(), inside, sizes)
        for _ in range(self.form.critic_steps):
            if self.form.adversary == "wgan-gp":
                between = torch.tensor([draw.random() for _ in range(MAPS)], device=found.device)
                value = wasserstein(self.critic, maps, made, between.view(-1, 1, 1, 1))
            else:
                value = hinge(self._scored(*maps), self._scored(*made))
            self.optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
        return -self._scored(found, inside, sizes).mean()

    def _scored(self, *shown: Tensor) -> Tensor:
        with torch.autocast(shown[0].device.type, torch.bfloat16):
            scores: Tensor = self.critic(*shown)
        return scores.float()

    def _note(self, terms: dict[str, Tensor], error: float, classical: float) -> None:
        values = {name: float(value.detach()) for name, value in terms.items()}
        for name, value in {"error": error, "classical": classical, **values}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1


def _field(left: Tensor, inside: Tensor, size: Tensor) -> Tensor:
    """What comes not back of fields and of their differences, over what the classical map leaves."""
    inner = torch.zeros_like(inside)
    inner[:, MARGIN:-MARGIN, MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    valid = inside & inner
    share = (left / size) * valid
    per_crop = share.abs().flatten(1).sum(1) / valid.flatten(1).sum(1).clamp_min(1000)
    return per_crop.mean() + GRADIENT * _variation(share, valid)


def _variation(volume: Tensor, inside: Tensor) -> Tensor:
    """Mean modulus of the differences between neighbours inside."""
    total = torch.zeros((), device=volume.device)
    for axis in (1, 2, 3):
        n = volume.shape[axis]
        both = inside.narrow(axis, 1, n - 1) & inside.narrow(axis, 0, n - 1)
        total = total + (volume.diff(dim=axis).abs() * both).sum()
    return total / inside.sum().clamp_min(1000)


def _likelihood(doubt: Tensor, off: Tensor, inside: Tensor) -> Tensor:
    """Of the errors, if they are as large as it says."""
    scale = DOUBT_PPM * doubt.clamp(-4, 6).exp()
    return ((scale.log() + off.abs() / scale) * inside).sum() / inside.sum().clamp_min(1000)
