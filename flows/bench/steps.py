"""The steps that are timed: those of the pipeline, and every method of its tables, with what each is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flows.bench.case import SNR, Case
from flows.heads import signal_noise
from models.cyclegan import CycleGAN, Scan
from models.diffusion import Diffusion, Walk, of_field
from models.diffusion.process import SCALE_PPM
from models.dip import DIP
from models.dip.fitting import Fitting
from models.dipole import Dipole
from models.seen import Given, educated
from pipeline.background import PARAMS as BACKGROUNDS
from pipeline.background import remove_background
from pipeline.field import total_field
from pipeline.invert import CLASSICAL, FROM_TOTAL, PADDING, classical_default, invert
from pipeline.mask import make_mask
from pipeline.r2star import map_r2star
from pipeline.settings import load
from pipeline.swi import weight_susceptibility
from pipeline.unwrap import unwrap
from pipeline.volumes import bounding_box


@dataclass(frozen=True)
class Ready:
    """A step with its inputs in memory: the work alone is timed."""

    inputs: Any
    run: Callable[[], Any]


@dataclass(frozen=True)
class Step:
    """One step: how it is made ready, and whether its cost depends on the number of echoes."""

    prepare: Callable[[Case], Ready]
    by_echoes: bool


def steps() -> dict[str, Step]:
    """Name -> step, in the order of a scan."""
    return {
        "mask": Step(_mask, True),
        "unwrap": Step(_unwrap, True),
        "field": Step(_field, True),
        "total-field": Step(_total_field, True),
        **{f"background-{name}": Step(partial(_background, name), False) for name in BACKGROUNDS},
        **{f"invert-{name}": Step(partial(_invert, name), False) for name in CLASSICAL},
        "invert-dip": Step(partial(_invert, "dip"), False),
        "dip-step": Step(_dip_step, False),
        "invert-diffusion": Step(partial(_invert, "diffusion"), False),
        "diffusion-step": Step(_diffusion_step, False),
        "invert-cyclegan": Step(partial(_invert, "cyclegan"), False),
        "cyclegan-pass": Step(_cyclegan_pass, False),
        "r2star": Step(_r2star, True),
        "swi": Step(_swi, True),
        "default-path": Step(_default_path, True),
    }


def _mask(case: Case) -> Ready:
    scan = case.scan()
    return Ready(scan, lambda: make_mask(scan))


def _unwrap(case: Case) -> Ready:
    scan, mask = case.scan(), case.mask()
    return Ready((scan, mask), lambda: unwrap(scan, mask))


def _field(case: Case) -> Ready:
    scan, mask = case.scan("unwrapped"), case.mask()
    return Ready((scan, mask), lambda: total_field(scan, mask))


def _total_field(case: Case) -> Ready:
    scan, mask = case.scan(), case.mask()
    return Ready((scan, mask), lambda: total_field(unwrap(scan, mask).echoes, mask))


def _background(method: str, case: Case) -> Ready:
    total = case.field("total")
    return Ready(total, lambda: remove_background(total, method))


def _invert(method: str, case: Case) -> Ready:
    field = case.field("total" if method in FROM_TOTAL else "local")
    magnitude = case.scan().magnitude.norm(dim=0)
    return Ready((field, magnitude), lambda: invert(field, method, magnitude=magnitude))


def _dip_step(case: Case) -> Ready:
    """One step of the network's fit, forth and back; the classical maps that it sees are there."""
    given = _given(case)
    start = given.classical("tv")
    fitting = Fitting(given, start, educated(given, start), DIP())
    return Ready(fitting.z, lambda: fitting.step(start))


def _diffusion_step(case: Case) -> Ready:
    """One evaluation of the prior, by all patches, and the proximal step to the field that follows it."""
    given, params = _given(case), Diffusion()
    measured = of_field(given.field, given.weight, given.dipole)
    walk, start, sigma = Walk(params, measured.inside), given.classical("tv") / SCALE_PPM, params.first_ppm / SCALE_PPM

    def run() -> torch.Tensor:
        with torch.no_grad():
            return measured.nearest(walk(start, sigma), 1 + 1 / sigma**2, params.iterations)

    return Ready(start, run)


def _cyclegan_pass(case: Case) -> Ready:
    """One pass of the generator; the classical maps that it sees are there."""
    scan = Scan(_given(case), CycleGAN())
    return Ready(scan.seen, scan.answer)


def _given(case: Case) -> Given:
    local = case.field("local")
    box = bounding_box(local.mask)
    inside = local.mask[box]
    dipole = Dipole(inside.shape, local.grid.voxel_size_mm, local.grid.b0_dir, padding=PADDING, device=local.ppm.device)
    weight = torch.where(inside, 1 / local.sd_ppm[box].clamp_min(1e-6), 0)
    return Given(torch.where(inside, local.ppm[box], 0), weight, dipole)


def _r2star(case: Case) -> Ready:
    scan, mask = case.scan(), case.mask()
    noise = signal_noise(scan.magnitude, mask, SNR)
    return Ready((scan.magnitude, mask), lambda: map_r2star(scan.magnitude, scan.echo_times_s, mask, noise))


def _swi(case: Case) -> Ready:
    scan, local = case.scan(), case.field("local")
    return Ready((scan, local), lambda: weight_susceptibility(scan, local.mask, local))


def _default_path(case: Case) -> Ready:
    """Total field, background removal and inversion as `chiron run` does them with a mask, by the default methods."""
    scan, mask = case.scan(), case.mask()
    background = load().background.method

    def run() -> Any:
        total = total_field(unwrap(scan, mask).echoes, mask).field
        return invert(remove_background(total, background)[0], classical_default())

    return Ready((scan, mask), run)
