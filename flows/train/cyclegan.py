"""Random maps and, beside them, local fields of others -> CycleQSM's weights and their card."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from flows.train.examples import MapExamples, Shelf, own_fields, simulated_fields
from flows.train.files import published_fields
from flows.train.loop import devices, learn, named, take_up
from flows.train.pictures import save_samples
from flows.train.plan import Plan, Say
from flows.train.pool import FIRST, STEPS, Pool, Sources, map_sources
from flows.train.scans import SIZES
from models import weights
from models.cyclegan.crops import CROP, Example
from models.cyclegan.form import Adversary, Form
from models.cyclegan.held import Held
from models.cyclegan.scanned import NOISE_PPM, TILT
from models.cyclegan.training import Lesson
from models.maps import THICKEST_MM, VOXELS_MM
from models.seen import SCALE_PPM
from models.train import Trainer
from pipeline import __version__
from pipeline.errors import ChironError
from pipeline.names import meant

KEPT = 0.998  # of the running mean of the weights at each step
KEPT_MAPS = 40  # in memory
HELD = range(10**9, 10**9 + 8)  # numbers of maps that are never learned from
CHECKED, SHOWN = 500, 2500  # steps after which the held maps are measured, and drawn
DRAWN = 4  # held crops
FORMS = {"full": Form(), "seed": Form(plain=True, consistency=False, adversary="wgan-gp")}


def train_cyclegan(folder: Path, plan: Plan, say: Say) -> dict[str, Any]:
    """Write `cyclegan.safetensors` (`cyclegan-seed` of the plain form) and its card into `folder`, with a table and a
    picture of held-out maps on the way.

    Goes on from `folder`/checkpoint.pt where there is one; `plan.minutes` are those of all runs. Returns the card. X001
    for a preset, critic or device that is none, S003 and X002 for files of no use, R001 for a device that is not there.
    """
    form = _form(plan)
    name = "cyclegan-seed" if form.plain else "cyclegan"
    device, *others = devices(plan.device)
    if others:
        raise ChironError("X001", f"{1 + len(others)} devices", "one: cyclegan trains on one device")
    sources, held = map_sources(plan)
    for some in (sources, held):
        some.check()
    if plan.fields:
        published_fields(plan.fields)  # before the folder is made
    torch.manual_seed(plan.seed)
    network = form.network()
    channels = [layer.weight.shape[0] for layer in (network.unet.first, *network.unet.down)]
    about = {"method": name, "adversary": form.adversary, "channels": channels, "seed": plan.seed}
    checkpoint = folder / "checkpoint.pt"
    folder.mkdir(parents=True, exist_ok=True)
    fields = _fields(plan, sources, folder / "fields", say)
    pool = Pool(MapExamples(sources), folder / "maps", plan.workers or _all_but_one(), kept=KEPT_MAPS)
    try:
        lesson = Lesson(Shelf(fields), pool, form, str(plan.seed), plan.rate, device)
        trainer = Trainer(network, plan.rate, device, kept=KEPT, beside=lesson.beside())
        take_up(trainer, checkpoint, about, say)
        look = Look(trainer, pool, MapExamples(held), form, folder, say)
        learn(trainer, lesson, plan, checkpoint, about, say, look)
        look.draw()
        card = _card(name, form, channels, plan, trainer, sources, len(fields), look.row())
        weights.store(name, trainer.mean.state_dict(), card, folder)
    finally:
        pool.close()
    return weights.card(name, folder)


def _form(plan: Plan) -> Form:
    form = FORMS[meant(plan.preset, FORMS, "preset", "X001", "See the command's --help.")]
    known = get_args(Adversary)
    adversary = meant(plan.adversary or form.adversary, known, "adversary", "X001", "See the command's --help.")
    return replace(form, adversary=next(each for each in known if each == adversary))


def _all_but_one() -> int:
    return max(1, (os.cpu_count() or 1) - 1)


def _fields(plan: Plan, sources: Sources, folder: Path, say: Say) -> list[Path]:
    """A site's own where there are any, else of simulated scans."""
    if plan.fields:
        return own_fields(plan.fields, folder, say)
    return simulated_fields(plan, sources.labels, folder, say)


class Look:
    """How good the mean weights are on maps that are held out: a line, a row of validation.csv, a picture."""

    def __init__(
        self, trainer: Trainer, pool: Pool[Example], held: MapExamples, form: Form, folder: Path, say: Say
    ) -> None:
        self.trainer, self.folder = trainer, folder
        say("making the first maps")
        pool.order(held, HELD)
        pool(trainer.steps)
        self.held = Held((pool.get(number) for number in HELD), form)
        self.rows = [row for row in _read(folder / "validation.csv") if int(row["step"]) <= trainer.steps]

    def __call__(self, step: int) -> str:
        if step % SHOWN == 0:
            self.draw()
        if step % CHECKED:
            return ""
        return "held out " + ", ".join(f"{name} {value:.3f}" for name, value in self.row().items())

    def row(self) -> dict[str, float]:
        """What is measured at this step, in the table too."""
        steps = self.trainer.steps
        found = {k: round(v, 4) for k, v in self.held.measured(self.trainer.mean, self.trainer.device).items()}
        row = {"step": steps, "minutes": round(self.trainer.seconds / 60, 1), **found}
        self.rows = [*(old for old in self.rows if int(old["step"]) != steps), row]
        _write(self.folder / "validation.csv", self.rows)
        return found

    def draw(self) -> None:
        """Held crops, each of another map: the true map, tv's, the one that is found, and its error."""
        few = slice(None, None, max(1, len(self.held.crops) // DRAWN))
        crops = self.held.crops[few][:DRAWN]
        found = [chi for chi, _ in self.held.found(self.trainer.mean, self.trainer.device)][few][:DRAWN]
        true, tv, chi = (torch.stack(v) / SCALE_PPM for v in ([c.chi for c in crops], [c.base for c in crops], found))
        rows = {
            "truth": true,
            "tv": tv,
            f"found, step {self.trainer.steps}": chi,
            "3 x (found - truth)": 3 * (chi - true),
        }
        save_samples(rows, self.folder / "validation.png")


def _read(table: Path) -> list[dict[str, Any]]:
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(table: Path, rows: Sequence[dict[str, Any]]) -> None:
    aside = table.with_suffix(".part")
    with aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)
    aside.replace(table)


def _card(
    name: str,
    form: Form,
    channels: Sequence[int],
    plan: Plan,
    trainer: Trainer,
    sources: Sources,
    fields: int,
    row: dict[str, float],
) -> dict[str, Any]:
    unet = trainer.mean.unet
    sizes = VOXELS_MM if plan.fields else (*VOXELS_MM, *(v for size in SIZES for v in size[0]))
    own = [f"{len(sources.own)} maps" if sources.own else "", f"{fields} fields" if plan.fields else ""]
    whose = " and ".join(word for word in own if word)
    others = "of a site's own scans" if plan.fields else "of simulated scans"
    return {
        "name": name,
        "what": "the generator of CycleQSM, " + ("from the field alone" if form.plain else "corrects the tv map"),
        "inputs": unet.first.in_channels // 8,
        "channels": list(channels),
        "outputs": unet.outputs,
        "form": {key: getattr(form, key) for key in ("adversary", "adversarial", "consistency")},
        "steps": trainer.steps,
        "minutes": round(trainer.seconds / 60, 1),
        "device": named([trainer.device]),
        "seed": plan.seed,
        "data": f"{sources.data(FIRST + trainer.steps // STEPS)}; {fields} local fields {others}, without their maps",
        "voxel_mm": [min(sizes), max(sizes)],
        "thickest_mm": THICKEST_MM,
        "tilt_deg": TILT,
        "noise_ppm": NOISE_PPM[1],
        "patch": CROP,
        "validation": row,
        "patients": f"{whose} of a site" if whose else "none",
        "licence": "that of the site's data" if whose else "Apache-2.0",
        "made_by": f"chiron train {name.partition('-')[0]}, version {__version__}",
    }
