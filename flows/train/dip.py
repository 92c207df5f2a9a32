"""Simulated scans -> the weights that Deep Image Prior begins with, and their card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flows.train.files import files
from flows.train.loop import devices, learn, take_up
from flows.train.plan import Plan, Say
from flows.train.scans import Shown, each_scan
from models import weights
from models.dip.training import OUTPUTS, WIDTHS, Lesson, example, network, save_example
from models.seen import CHANNELS
from models.train import Trainer
from pipeline import __version__
from pipeline.errors import ChironError


def train_dip(folder: Path, plan: Plan, say: Say) -> dict[str, Any]:
    """Make the examples that are missing in `folder`/examples, train, write `dip.safetensors` and its card `dip.json`.

    Goes on from `folder`/checkpoint.pt where there is one; `plan.minutes` are those of all runs. Returns the card. X002
    where no example could be made, R001 for a device that is not there.
    """
    device, *others = devices(plan.device)
    if others:
        raise ChironError("X001", f"{1 + len(others)} devices", "one: dip trains on one device")
    examples, checkpoint = folder / "examples", folder / "checkpoint.pt"
    maps = files(plan.labels, "label map")
    each_scan(plan, maps, examples, say, _keep)
    torch.manual_seed(plan.seed)
    trainer, lesson = Trainer(network(), plan.rate, device), Lesson(examples, plan.seed)
    about = {"method": "dip", "channels": list(WIDTHS), "seed": plan.seed}
    take_up(trainer, checkpoint, about, say)
    try:
        lesson.refresh()
    except ValueError as error:
        raise ChironError("X002", str(error), "at least one simulated scan") from None
    learn(trainer, lesson, plan, checkpoint, about, say)
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
    weights.store("dip", trainer.mean.state_dict(), card, folder)
    return weights.card("dip", folder)


def _keep(file: Path, shown: Shown) -> None:
    one = example(shown.given, shown.chi_ppm, shown.brain)
    if one:
        save_example(one, file)
