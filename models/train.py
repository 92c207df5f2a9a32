"""A network and the loss of its batches -> its weights: the training loop that the learned methods share."""

from __future__ import annotations

import copy
import math
import pickle
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

KEPT = 0.995  # of the running mean of the weights at each step
WARM_STEPS = 200  # over which the learning rate rises
CLIP = 0.5  # largest norm of a step's slope
SAVED_S = 30.0  # after which the checkpoint is written again

Say = Callable[[str], None]
Loss = Callable[[nn.Module, torch.device, int], Tensor]


class Lesson(Protocol):
    """What a method learns from: the loss of the batch of a step, always the same one, and how it has gone of late."""

    def loss(self, network: nn.Module, device: torch.device, step: int) -> Tensor: ...

    def said(self) -> str: ...


class Trainer:
    """Network, running mean of its weights, optimiser, steps and seconds so far: what a checkpoint holds.

    In a group of processes (`torch.distributed`) each has its own batches, and all take the step of their mean slope.
    `beside` are what else is learned on the way, as a critic and its optimiser: whatever has a `state_dict`.
    """

    def __init__(
        self,
        network: nn.Module,
        rate: float,
        device: torch.device | str = "cpu",
        *,
        kept: float = KEPT,
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.rate, self.kept = rate, kept
        self.steps, self.seconds = 0, 0.0
        self.network = network.to(self.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.mean = copy.deepcopy(self.network)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=1e-4)
        self.beside = dict(beside or {})

    def step(self, loss: Loss, share: float) -> Tensor:
        """One step, `share` of all done; returns the loss, on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1, (self.steps + 1) / WARM_STEPS) * (0.51 + 0.49 * math.cos(math.pi * share))
        value = loss(self.network, self.device, self.steps)
        value.backward()  # type: ignore[no-untyped-call]
        self._share_slopes()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        keep = min(self.kept, self.steps / (self.steps + 20))
        with torch.no_grad():
            for slow, fast in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)
        return value.detach()

    def state(self) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {"steps": self.steps, "seconds": self.seconds, **parts}

    def resume(self, state: dict[str, Any]) -> None:
        self.steps, self.seconds = state["steps"], state["seconds"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {"network": self.network, "mean": self.mean, "optimiser": self.optimiser, **self.beside}

    def _share_slopes(self) -> None:
        if not together():
            return
        slopes = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
        flat = torch.cat([slope.reshape(-1) for slope in slopes])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for slope, part in zip(slopes, torch.split(flat, [slope.numel() for slope in slopes]), strict=True):
            slope.copy_(part.view(slope.shape))


def together() -> bool:
    """Whether this process trains with others."""
    return distributed.is_available() and distributed.is_initialized()


def leads() -> bool:
    """Whether this process writes and tells: the first of those that train together."""
    return not together() or distributed.get_rank() == 0


def train(
    trainer: Trainer,
    lesson: Lesson,
    seconds: float,
    checkpoint: Path,
    about: dict[str, Any],
    say: Say,
    look: Callable[[int], str] = lambda step: "",
    every: int = 100,
) -> None:
    """Train until so many seconds have passed in all, those before the checkpoint too.

    Every so many steps it is told how it goes, with what `look` returns at that step, and the checkpoint is written, if
    it is half a minute old; `about` says in it what it is of. ArithmeticError where the weights are no longer finite.
    """
    saved = trainer.seconds
    began = time.monotonic() - saved
    while (passed := _agreed(time.monotonic() - began)) < seconds:
        trainer.step(lesson.loss, passed / seconds)
        trainer.seconds = passed
        if trainer.steps % every == 0 and leads():
            if passed - saved > SAVED_S:
                _save(trainer, checkpoint, about)
                saved = passed
            words = (f"step {trainer.steps}", f"{_duration(seconds - passed)} left", lesson.said(), look(trainer.steps))
            say(", ".join(word for word in words if word))
    if leads():
        _save(trainer, checkpoint, about)


def go_on(trainer: Trainer, checkpoint: Path, about: dict[str, Any]) -> bool:
    """Take up a checkpoint where there is one; ValueError where it is of something else than `about`, or none."""
    if not checkpoint.exists():
        return False
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        was = state["about"]
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError):
        raise ValueError("a file that is no checkpoint of this version") from None
    other = [f"{name} {was.get(name)}" for name in about if was.get(name) != about[name]]
    if other:
        raise ValueError("a checkpoint of " + ", ".join(other))
    trainer.resume(state)
    return True


def _agreed(passed: float) -> float:
    """The first process's clock, so that all stop at the same step."""
    if not together():
        return passed
    clock = torch.tensor([passed], dtype=torch.float64)
    distributed.broadcast(clock, 0)
    return float(clock)


def _save(trainer: Trainer, checkpoint: Path, about: dict[str, Any]) -> None:
    """Whole or not at all: training that is stopped here goes on from the one before."""
    if not all(bool(weight.isfinite().all()) for weight in trainer.network.parameters()):
        raise ArithmeticError(f"weights that are not finite at step {trainer.steps}")
    aside = checkpoint.with_suffix(".part")
    torch.save({"about": about, **trainer.state()}, aside)
    aside.replace(checkpoint)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def robust(off: Tensor, inside: Tensor, outlier: float) -> Tensor:
    """Mean over each crop's inside of the square, beyond `outlier` of the modulus; then over the crops."""
    size = off.abs()
    cost = torch.where(size < outlier, off.square(), 2 * outlier * size - outlier**2)
    return (cost.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1000)).mean()


def corner(inside: Tensor, edge: int, draw: random.Random) -> list[int]:
    """The first voxel of a cube, which may reach beyond the volume, of which a quarter at least is inside if it can."""
    low: list[int] = []
    for _ in range(20):
        low = [draw.randint(-edge // 4, max(-edge // 4, n - edge + edge // 4)) for n in inside.shape]
        here = tuple(slice(max(0, a), a + edge) for a in low)
        if int(inside[here].count_nonzero()) > 0.25 * edge**3:
            break
    return low


def cube(volume: Tensor, low: Sequence[int], edge: int) -> Tensor:
    """(..., X, Y, Z) -> (..., edge, edge, edge) from `low` on, zero beyond the volume."""
    out = torch.zeros((*volume.shape[:-3], edge, edge, edge), dtype=volume.dtype, device=volume.device)
    begin = [max(0, a) for a in low]
    end = [max(b, min(n, a + edge)) for a, b, n in zip(low, begin, volume.shape[-3:], strict=True)]
    here: tuple[Any, ...] = (..., *(slice(b - a, e - a) for a, b, e in zip(low, begin, end, strict=True)))
    there: tuple[Any, ...] = (..., *(slice(b, e) for b, e in zip(begin, end, strict=True)))
    out[here] = volume[there]
    return out


@dataclass(frozen=True)
class Turn:
    """Axes exchanged, then some mirrored: output axis i is input axis `axes[i]`; all counted from the last, < 0."""

    axes: tuple[int, ...]
    mirrored: tuple[int, ...]

    @classmethod
    def random(cls, draw: random.Random, exchanging: bool = True) -> Turn:
        axes = tuple(draw.sample((-3, -2, -1), 3)) if exchanging else (-3, -2, -1)
        return cls(axes, tuple(axis for axis in (-3, -2, -1) if draw.random() < 0.5))

    def apply(self, volume: Tensor) -> Tensor:
        """(..., X, Y, Z) turned."""
        lead = volume.dim() - 3
        return volume.permute(*range(lead), *(lead + 3 + axis for axis in self.axes)).flip(self.mirrored)

    def undo(self, volume: Tensor) -> Tensor:
        lead = volume.dim() - 3
        back = [lead + self.axes.index(axis) for axis in (-3, -2, -1)]
        return volume.flip(self.mirrored).permute(*range(lead), *back)

    def sizes(self, along: Sequence[float]) -> list[float]:
        """Voxel sizes as they are after it."""
        return [along[axis] for axis in self.axes]

    def direction(self, vector: Sequence[float]) -> list[float]:
        """A vector's components after it."""
        return [-v if i - 3 in self.mirrored else v for i, v in enumerate(self.sizes(vector))]


def turned(volumes: Sequence[Tensor], draw: random.Random) -> list[Tensor]:
    """All volumes (..., X, Y, Z) with their axes exchanged and mirrored alike, at random."""
    turn = Turn.random(draw)
    return [turn.apply(volume) for volume in volumes]
