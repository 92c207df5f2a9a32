"""`train`: weights for the learned methods, from simulated heads alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Device


def train(
    method: Annotated[str, typer.Argument(help="dip: the weights that Deep Image Prior begins with.")],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for examples, checkpoint, weights, card.")],
    scans: Annotated[int, typer.Option(help="Simulated scans to learn from.", min=1, max=100000)] = 60,
    minutes: Annotated[float, typer.Option(help="Time to train, after the scans are made.", min=0.01)] = 60,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of label maps (NIfTI, FreeSurfer's codes) for half of them."),
    ] = None,
    first: Annotated[int, typer.Option(help="Number of the first scan; others make other scans.", min=0)] = 1000,
    seed: Annotated[int, typer.Option(help="Of weights and crops.", min=0)] = 1,
    rate: Annotated[float, typer.Option(help="Learning rate at its highest.", min=1e-7, max=1)] = 0.001,
    device: Device = None,
) -> None:
    """Train a network on simulated heads of known susceptibility; no patient's data is used or needed.

    Examples that are there already are kept, and training goes on from the checkpoint; a folder of another name begins
    anew. A scan takes half a minute to two, a thousand steps four minutes, on two cores.

    Example: chiron train dip weights --labels maps --scans 60 --minutes 60
    """
    from flows.train import Plan, train_dip
    from pipeline.work import disk_error

    if method != "dip":
        raise typer.BadParameter(f"no training for {method!r}; there is dip")
    plan = Plan(scans, minutes, first, seed, rate, labels, device or "auto")
    try:
        card = train_dip(folder, plan, lambda word: print(word, file=sys.stderr, flush=True))
    except OSError as error:
        raise disk_error(error) from error
    print(f"{folder / 'dip.safetensors'}: {card['steps']} steps")
