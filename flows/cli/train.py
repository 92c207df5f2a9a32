"""`train`: weights for the learned methods, from simulated heads alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.show import say
from flows.train.plan import Plan
from pipeline.names import meant


def train(
    method: Annotated[
        str,
        typer.Argument(
            help="dip: the weights that Deep Image Prior begins with; diffusion: the diffusion prior; "
            "cyclegan: the generator of CycleQSM."
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for checkpoint, weights, card, pictures.")],
    minutes: Annotated[
        float, typer.Option(help="Time to train in all, that of runs before in this folder included.", min=0.01)
    ] = Plan.minutes,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of label maps (NIfTI, FreeSurfer's codes) for half of the heads."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and data.", min=0)] = Plan.seed,
    rate: Annotated[float, typer.Option(help="Learning rate at its highest.", min=1e-7, max=1)] = Plan.rate,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda:N; for diffusion also several: cuda:0,cuda:1.")
    ] = Plan.device,
    scans: Annotated[
        int | None,
        typer.Option(help=f"dip, cyclegan: simulated scans to learn from ({Plan.scans}).", min=1, max=100000),
    ] = None,
    first: Annotated[
        int | None,
        typer.Option(help=f"dip, cyclegan: number of the first scan; others make others ({Plan.first}).", min=0),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help=f"diffusion: small, or full for GPUs ({Plan.config}).", metavar="small|full")
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="diffusion, cyclegan: a site's own maps (NIfTI, ppm, 0 outside the brain)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="diffusion, cyclegan: processes that make maps (all cores but one).", min=1, max=1024),
    ] = None,
    fields: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="cyclegan: a site's derivatives, whose local fields are then learned from."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"cyclegan: full, or seed for the plain form ({Plan.preset}).", metavar="full|seed"),
    ] = None,
    adversary: Annotated[
        str | None,
        typer.Option(help="cyclegan: its critic (hinge; wgan-gp of seed).", metavar="hinge|wgan-gp|none"),
    ] = None,
) -> None:
    """Train a network on simulated heads of known susceptibility; no patient's data is needed.

    What is in the folder is kept, and training goes on from its checkpoint; a folder of another name begins anew.

    Example: chiron train dip weights --labels maps --scans 60 --minutes 60

    Example: chiron train diffusion prior --labels maps --config full --device cuda:0,cuda:1 --minutes 720

    Example: chiron train cyclegan cycle --labels maps --fields derivatives --device cuda:0 --minutes 240
    """
    from flows.train.methods import METHODS
    from pipeline.work import disk_error

    method = meant(method, METHODS, "method to train")
    own = {"scans": scans, "first": first, "config": config, "maps": maps, "workers": workers}
    own |= {"fields": fields, "preset": preset, "adversary": adversary}
    given = {name: value for name, value in own.items() if value is not None}
    for name in given:
        if name not in METHODS[method].options:
            raise typer.BadParameter(f"--{name} is not for {method}")
    plan = Plan(minutes, seed, rate, labels, device, **given)  # type: ignore[arg-type]
    try:
        card = METHODS[method].train(folder, plan, say)
    except OSError as error:
        raise disk_error(error) from error
    print(f"{folder / (card['name'] + '.safetensors')}: {card['steps']} steps")
