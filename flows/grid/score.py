"""A simulated scan -> every metric of each method, on the true local field and on the whole way from the echoes."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows.heads import field_noise, noisy, signal_noise
from models.gre import Simulation
from pipeline.device import pick_device
from pipeline.errors import ChironError
from pipeline.find import Scan
from pipeline.invert import FROM_TOTAL, invert
from pipeline.quality import evaluate, nrmse
from pipeline.recipe import Job, Stage, recipe, run_stage
from pipeline.settings import Settings
from pipeline.volumes import GAMMA_MHZ_PER_T, Field, Grid
from pipeline.work import Made, Result, Work

Numbers = dict[str, Any]

SIGNAL = 3.0  # times the noise: what is weaker has a phase of no meaning


def dipole(scan: Simulation, snr: float, methods: Sequence[str], settings: Settings) -> Iterator[Numbers]:
    """The true local field with the noise that the fit of the echoes leaves, inverted within the true brain."""
    field = field_of(scan, snr, pick_device(settings.device))
    combined = scan.signal.abs().norm(dim=0).to(field.ppm.device)
    for method in (m for m in methods if m not in FROM_TOTAL):
        began = time.perf_counter()
        try:
            chi = invert(field, method, getattr(settings, method), magnitude=combined).ppm.cpu()
        except ChironError as error:
            yield {"method": method, "error": f"{error.code}: {error.found}"}
            continue
        seconds = time.perf_counter() - began
        yield {
            "method": method,
            "seconds": seconds,
            **_scores(chi, scan, field.mask.cpu()),
        }


def field_of(scan: Simulation, snr: float, device: torch.device) -> Field:
    """The true local field within the true brain, with the noise that the fit of the echoes leaves."""
    magnitude, brain = scan.signal.abs(), scan.head.brain.bool()
    sd = field_noise(magnitude, scan.echo_times_s, scan.b0_tesla, signal_noise(magnitude, brain, snr))
    ppm = noisy(scan.local_ppm, sd, seed=1)
    return Field(ppm.to(device), sd.to(device), brain.to(device), grid_of(scan))


def whole(scan: Simulation, snr: float, methods: Sequence[str], settings: Settings) -> tuple[Numbers, list[Numbers]]:
    """The recipe of `chiron run` from the echoes on: numbers of its steps, and of each method's map.

    Maps are scored in the mask that is left after background removal, as far as it lies in the true brain.
    """
    asked = settings.model_copy(update={"method": methods[0], "also": tuple(methods[1:])})
    with tempfile.TemporaryDirectory() as folder:
        job = Job(_unnamed(scan), asked, Path(folder))
        failed = _run(job, scan, methods)
        if "background" in failed:
            return {"error": failed["background"]}, []
        inside = _done(job.work, "background").array("mask").bool() & scan.head.brain.bool()
        rows = []
        for method in methods:
            name = f"invert-{method}"
            if name in failed:
                rows.append({"method": method, "error": failed[name]})
                continue
            made = _done(job.work, name)
            scores = _scores(made.array("chi_ppm"), scan, inside)
            rows.append({"method": method, "seconds": made.record["seconds"], **scores})
        return _steps(job.work, scan, snr), rows


def as_far_as(stage: str, scan: Simulation, settings: Settings, folder: Path) -> Result:
    """Run the recipe from the echoes to a stage, in that folder; the stage's result. Raises what stops it."""
    job = Job(_unnamed(scan), settings, folder)
    _begin(job, scan)
    for one in needed(recipe(job.settings), {stage}):
        run_stage(one, job)
    return _done(job.work, stage)


def _begin(job: Job, scan: Simulation) -> None:
    """Put the echoes where the reading of files would have left them."""
    echoes = Made({"magnitude": scan.signal.abs(), "phase_rad": scan.signal.angle()}, facts=_read_facts(scan))
    job.work.write("convert", "simulated", echoes, {"stage": "convert", "version": 0, "seconds": 0.0})


def _run(job: Job, scan: Simulation, methods: Sequence[str]) -> dict[str, str]:
    """Run what the methods need of the recipe, the reading of files left out; returns what failed, and why."""
    _begin(job, scan)
    failed: dict[str, str] = {}
    for stage in needed(recipe(job.settings), {f"invert-{method}" for method in methods}):
        error = next((failed[name] for name in stage.after if name in failed), "")
        try:
            if not error:
                run_stage(stage, job)
        except ChironError as fault:
            error = f"{fault.code}: {fault.found}"
        if error:
            failed[stage.name] = error
    return failed


def needed(stages: Sequence[Stage], goals: set[str]) -> list[Stage]:
    """The stages that lead to the goals, in order, but the first, which reads the files."""
    wanted = set(goals)
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted |= set(stage.after)
    return [stage for stage in stages if stage.name in wanted and stage.after]


def _steps(work: Work, scan: Simulation, snr: float) -> Numbers:
    """How good each step's result is: mask, wraps, fields, and how much of the brain is left."""
    mask, unwrap, field, background = (_done(work, name) for name in ("mask", "unwrap", "field", "background"))
    brain = scan.head.brain.bool()
    found, fitted, left = (result.array("mask").bool() for result in (mask, field, background))
    inside = left & brain
    return finite(
        {
            "mask_dice": 2 * float((found & brain).sum()) / float(found.sum() + brain.sum()),
            "wrong_wraps_percent": wrong_wraps(unwrap.array("unwrapped_rad"), scan, found & brain, snr),
            "total_nrmse": nrmse(field.array("total_ppm"), scan.total_ppm, fitted & brain),
            "local_nrmse": nrmse(background.array("local_ppm"), scan.local_ppm, inside),
            "brain_kept_percent": 100 * float(inside.sum()) / float(brain.sum()),
            "seconds": sum(result.record["seconds"] for result in (mask, unwrap, field, background)),
        }
    )


def _scores(chi: Tensor, scan: Simulation, inside: Tensor) -> Numbers:
    """Every metric, map and truth both referenced to their mean inside: no scan tells the zero of susceptibility."""
    x, y = (volume - volume[inside].mean() for volume in (chi, scan.head.chi_ppm))
    return finite(evaluate(x, y, inside, scan.head.labels))


def _done(work: Work, stage: str) -> Result:
    result = work.find(stage)
    if result is None:
        raise ChironError("R005", f"the stage {stage} has no result", "every stage done")
    return result


def wrong_wraps(unwrapped_rad: Tensor, scan: Simulation, inside: Tensor, snr: float) -> float:
    """Per cent of the voxels inside of which an echo's phase is more than pi from the true field's.

    Only echoes with a signal above the noise count; of the others no phase is right.
    """
    magnitude = scan.signal.abs()
    signal = magnitude > SIGNAL * signal_noise(magnitude, scan.head.brain.bool(), snr)
    wrong = torch.zeros_like(inside)
    for e, time_s in enumerate(scan.echo_times_s):
        true = 2 * math.pi * GAMMA_MHZ_PER_T * scan.b0_tesla * time_s * scan.total_ppm
        wrong |= signal[e] & ((unwrapped_rad[e] - true).abs() > math.pi)
    return 100 * float((wrong & inside).sum()) / max(1.0, float(inside.sum()))


def grid_of(scan: Simulation) -> Grid:
    return Grid.simple(scan.head.brain.shape, scan.voxel_size_mm, scan.b0_dir)


def _unnamed(scan: Simulation) -> Scan:
    """What the recipe asks of a scan once its files are read."""
    parts = ("magnitude", "phase")
    return Scan("0" * 12, "simulated", "", "", "bids", "other", (), scan.echo_times_s, parts, ())


def _read_facts(scan: Simulation) -> Numbers:
    grid = grid_of(scan)
    return {
        "grid": grid.json(),
        "voxel_size_mm": grid.voxel_size_mm,
        "obliquity_deg": grid.obliquity_deg,
        "echo_times_s": list(scan.echo_times_s),
        "b0_tesla": scan.b0_tesla,
        "vendor": "other",
        "acquisition": {},
        "content_digest": "",
    }


def finite(numbers: Numbers) -> Numbers:
    """None for what is not finite, as JSON has it."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
