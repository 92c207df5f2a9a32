"""Simulated scans -> weights with their card: what `chiron train` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flows.grid.cells import label_maps
from flows.train.scans import random_scan, scan_examples
from models.dip.features import CHANNELS
from models.train import OUTPUTS, WIDTHS, Trainer, save_example, train
from models.weights import store
from pipeline import __version__
from pipeline.device import pick_device
from pipeline.errors import ChironError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How many scans (their numbers begin at `first`), for how long, how fast, and from which label maps."""

    scans: int
    minutes: float
    first: int = 1000
    seed: int = 1
    rate: float = 0.001
    labels: Path | None = None
    device: str = "auto"


def train_dip(folder: Path, plan: Plan, say: Say) -> dict[str, Any]:
    """Make the examples that are missing in `folder`/examples, train, write `dip.safetensors` and its card `dip.json`.

    Goes on from `folder`/checkpoint.pt where there is one. Returns the card. X002 where no example could be made, R001
    for a device that is not there.
    """
    device = pick_device(plan.device)
    examples, checkpoint = folder / "examples", folder / "checkpoint.pt"
    examples.mkdir(parents=True, exist_ok=True)
    maps = label_maps(plan.labels) if plan.labels else []
    for number in range(plan.first, plan.first + plan.scans):
        _make(number, maps, examples, say)
    trainer = Trainer(plan.seed, plan.rate, device)
    if checkpoint.exists():
        trainer.resume(torch.load(checkpoint, weights_only=True, map_location=device))
        say(f"going on from step {trainer.steps}")
    try:
        train(examples, trainer, 60 * plan.minutes, checkpoint, say)
    except ValueError as error:
        raise ChironError("X002", str(error), "at least one simulated scan") from None
    made = len(list(examples.glob("*.pt")))
    card = {
        "name": "dip",
        "what": "weights that Deep Image Prior begins with; corrects the tv map",
        "inputs": CHANNELS,
        "channels": list(WIDTHS),
        "outputs": OUTPUTS,
        "steps": trainer.steps,
        "data": f"{made} examples of simulated heads, half of them of label maps"
        if maps
        else f"{made} simulated heads",
        "patients": "none",
        "licence": "Apache-2.0",
        "made_by": f"chiron train dip, version {__version__}",
    }
    store("dip", trainer.mean.state_dict(), card, folder)
    return card


def _make(number: int, maps: list[Path], folder: Path, say: Say) -> None:
    """The examples of one scan, unless they are there; a mark says that it was done, whatever came of it."""
    done = folder / f"{number}.done"
    if done.exists():
        return
    scan, cell = random_scan(number, maps)
    for name, one in scan_examples(scan, cell):
        save_example(one, folder / f"{number}-{name}.pt")
    done.touch()
    say(f"scan {number}: {' x '.join(f'{v:g}' for v in cell.voxel_mm)} mm, SNR {cell.snr:.0f}, {cell.b0_tesla:g} T")
