"""A trainer, its lesson and a plan -> devices that are there, a checkpoint taken up, training with its faults named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from flows.train.plan import Plan, Say
from models.train import Lesson, Trainer, go_on, train
from pipeline.device import pick_device
from pipeline.errors import ChironError


def devices(names: str) -> list[torch.device]:
    """One device or several of a kind; R001 for one that is not there, X001 for several that do not go together."""
    found = [pick_device(name) for name in names.split(",")]
    mixed = len({device.type for device in found}) > 1
    if mixed or (found[0].type == "cuda" and len(set(found)) < len(found)):
        raise ChironError("X001", f"the devices {names!r}", "devices of one kind, no GPU twice")
    return found


def named(where: Sequence[torch.device]) -> str:
    """The devices, for a card."""
    if where[0].type == "cuda":
        return f"{len(where)} x {torch.cuda.get_device_name(where[0])}"
    return f"CPU, {len(where) * torch.get_num_threads()} threads"


def take_up(trainer: Trainer, checkpoint: Path, about: dict[str, Any], say: Say) -> None:
    """Go on from a checkpoint where there is one; X002 where it is of something else."""
    try:
        if go_on(trainer, checkpoint, about):
            say(f"going on from step {trainer.steps}, after {trainer.seconds / 60:.1f} min")
    except ValueError as error:
        wanted = ", ".join(f"{name} {value}" for name, value in about.items())
        todo = "Use a folder of another name to begin anew."
        raise ChironError("X002", str(error), f"one of {wanted}", todo) from None


def learn(
    trainer: Trainer,
    lesson: Lesson,
    plan: Plan,
    checkpoint: Path,
    about: dict[str, Any],
    say: Say,
    look: Callable[[int], str] = lambda step: "",
) -> None:
    """Train until the plan's time is over; X001 where the rate was too high."""
    try:
        train(trainer, lesson, 60 * plan.minutes, checkpoint, about, say, look)
    except ArithmeticError as error:
        todo = "Go on from the checkpoint before with a lower --rate."
        raise ChironError("X001", str(error), "", todo) from None
