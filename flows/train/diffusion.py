"""Random maps of known chi -> the diffusion prior's weights and their card, on one device or several."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessException, spawn

from flows.train.loop import devices, learn, named, take_up
from flows.train.pictures import save_maps, save_samples
from flows.train.plan import Plan, Say
from flows.train.pool import FIRST, STEPS, Numbered, Pool, Sources, map_sources
from models import weights
from models.diffusion.prior import LIMIT, Denoiser
from models.diffusion.process import SCALE_PPM
from models.diffusion.training import CROP, Held, Lesson, crops
from models.diffusion.unconditional import unconditional
from models.maps import THICKEST_MM, VOXELS_MM
from models.train import Trainer
from pipeline import __version__, child
from pipeline.errors import ChironError
from pipeline.names import meant

KEPT = 0.999  # of the running mean of the weights at each step
HELD = range(10**9, 10**9 + 8)  # numbers of maps that are never learned from
CHECKED, SHOWN = 500, 2500  # steps after which the loss on held maps is told, samples are drawn
CUBES, SAMPLING = 4, 50  # samples drawn, steps of each


@dataclass(frozen=True)
class Config:
    """Features of the network's levels, and crops a step and device."""

    channels: tuple[int, ...]
    batch: int


CONFIGS = {"small": Config((48, 64, 96, 128), 4), "full": Config((96, 128, 192, 256), 32)}


def train_diffusion(folder: Path, plan: Plan, say: Say) -> dict[str, Any]:
    """Write `diffusion.safetensors` and its card into `folder`, with pictures of maps and samples on the way.

    Goes on from `folder`/checkpoint.pt where there is one; `plan.minutes` are those of all runs. Returns the card. X001
    for a configuration or device that is none, X002 for files that are of no use, R001 for a device that is not there.
    """
    config = CONFIGS[meant(plan.config, CONFIGS, "configuration", "X001", "See the command's --help.")]
    where = devices(plan.device)
    for sources in map_sources(plan):
        if count := len(sources.labels) + len(sources.own):
            say(f"reading {count} files")
        sources.check()
    folder.mkdir(parents=True, exist_ok=True)
    if len(where) == 1:
        _work(where, 0, config, folder, plan, say)
    else:
        _together(where, config, folder, plan, say)
    return weights.card("diffusion", folder)


def _together(where: Sequence[torch.device], config: Config, folder: Path, plan: Plan, say: Say) -> None:
    """A process a device; what one of them had to say at its end is raised here."""
    faults = child.context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as meeting:
        try:
            work = (where, config, folder, plan, say)
            spawn(_one_of, (Path(meeting) / "place", faults, *work), len(where))  # type: ignore[no-untyped-call]
        except ProcessException as error:
            if not faults.empty():
                raise faults.get() from None
            raise ChironError("R005", f"a process of the training ended: {error}") from error


def _one_of(
    rank: int,
    meeting: Path,
    faults: Any,
    where: Sequence[torch.device],
    config: Config,
    folder: Path,
    plan: Plan,
    say: Say,
) -> None:
    cuda = where[rank].type == "cuda"
    if cuda:
        torch.cuda.set_device(where[rank])
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", f"file://{meeting}", rank=rank, world_size=len(where)
    )
    try:
        _work(where, rank, config, folder, plan, say)
    except ChironError as error:
        faults.put(error)
        raise
    finally:
        distributed.destroy_process_group()


def _work(where: Sequence[torch.device], rank: int, config: Config, folder: Path, plan: Plan, say: Say) -> None:
    """Train on one device; the first of them makes maps, tells, and writes."""
    device, (sources, held) = where[rank], map_sources(plan)
    torch.manual_seed(plan.seed)
    trainer = Trainer(Denoiser(config.channels), plan.rate, device, kept=KEPT)
    about = {"method": "diffusion", "channels": list(config.channels), "batch": config.batch, "seed": plan.seed}
    checkpoint = folder / "checkpoint.pt"
    take_up(trainer, checkpoint, about, say if rank == 0 else lambda word: None)
    workers = plan.workers or max(1, (os.cpu_count() or 1) - 1)
    pool = Pool(sources, folder / "maps", workers if rank == 0 else 0, device)
    lesson = Lesson(lambda step: [one[:2] for one in pool(step)], config.batch, f"{plan.seed} {rank}", device)
    try:
        if rank > 0:
            learn(trainer, lesson, plan, checkpoint, about, say)
            return
        look = Look(trainer, pool, held, folder, say)
        learn(trainer, lesson, plan, checkpoint, about, say, look)
        look.draw()
        about = _card(plan, config, where, sources, trainer, look.losses())
        weights.store("diffusion", trainer.mean.state_dict(), about, folder)
    finally:
        pool.close()


class Look:
    """How good the mean weights are: their loss on maps that are held out, samples of what they hold for a brain."""

    def __init__(self, trainer: Trainer, pool: Pool[Numbered], held: Sources, folder: Path, say: Say) -> None:
        self.trainer, self.pool, self.folder = trainer, pool, folder
        self.held: Held | None = None
        say("making the first maps")
        pool(trainer.steps)
        if not (folder / "maps.png").exists():
            save_maps([pool.get(number) for number in list(pool.ready)[:FIRST]], folder / "maps.png")
        pool.order(held, HELD)

    def __call__(self, step: int) -> str:
        if step % SHOWN == 0:
            self.draw()
        if step % CHECKED:
            return ""
        return "held out " + ", ".join(f"{value:.4f} at {sigma}" for sigma, value in self.losses().items())

    def losses(self) -> dict[str, float]:
        if self.held is None:
            self.held = Held([self.pool.get(number)[:2] for number in HELD])
        return self.held.losses(self.trainer.mean, self.trainer.device)

    def draw(self) -> None:
        """Samples beside crops of the maps that are learned from."""
        device = self.trainer.device
        made = unconditional(self.trainer.mean, CUBES, CROP, SAMPLING, device, seed=0)
        learned = crops([one[:2] for one in self.pool.ready.values()], CUBES, seed=0)[0]
        rows = {f"samples of the prior, step {self.trainer.steps}": made, "crops of training maps": learned}
        save_samples(rows, self.folder / "samples.png")


def _card(
    plan: Plan,
    config: Config,
    where: Sequence[torch.device],
    sources: Sources,
    trainer: Trainer,
    losses: dict[str, float],
) -> dict[str, Any]:
    return {
        "name": "diffusion",
        "what": "a diffusion prior of susceptibility: from a noisy map, the mean of what it may have been",
        "channels": list(config.channels),
        "steps": trainer.steps,
        "batch": config.batch * len(where),
        "minutes": round(trainer.seconds / 60, 1),
        "device": named(where),
        "seed": plan.seed,
        "data": sources.data(FIRST + trainer.steps // STEPS),
        "voxel_mm": list(VOXELS_MM),
        "thickest_mm": THICKEST_MM,
        "limit_ppm": LIMIT * SCALE_PPM,
        "patch": CROP,
        "validation": {sigma: round(value, 4) for sigma, value in losses.items()},
        "patients": f"{len(sources.own)} maps of a site" if sources.own else "none",
        "licence": "that of the site's maps" if sources.own else "Apache-2.0",
        "made_by": f"chiron train diffusion, version {__version__}",
    }
