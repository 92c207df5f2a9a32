"""The way of one scan: its stages in order, written once. `reconstruct` runs them; a scheduler runs them one by one.

A stage reads results of earlier stages and its own sections of the settings, and hands over arrays and facts. Its
result is reused only where it is proven the same: inputs, settings, version, and every file with its recorded hash.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pipeline
from pipeline.card import card
from pipeline.device import forget_peak, peak_memory_bytes, pick_device
from pipeline.errors import ChironError
from pipeline.invert import FROM_TOTAL, chosen_methods
from pipeline.learned import LEARNED, card_of
from pipeline.quality import brain_beside
from pipeline.recipe import stages
from pipeline.recipe.job import Inputs, Job, Progress
from pipeline.settings import Settings, finer
from pipeline.work import Made, Result, Work, digest, file_digest

__all__ = ["Inputs", "Job", "Stage", "recipe", "reconstruct", "run_stage"]


@dataclass(frozen=True)
class Stage:
    """One step: its name, the version of its result, the stages and the settings that it reads, and what it does.

    What is `on_card` computes on the GPU, where there is one, and has it alone; the rest is the cores' work, so that
    one scan is read, unwrapped and published while another is on the card.
    """

    name: str
    version: int
    after: tuple[str, ...]
    reads: tuple[str, ...]
    run: Callable[[Inputs], Made]
    title: str
    on_card: bool = False


def recipe(settings: Settings) -> tuple[Stage, ...]:
    """The stages of a scan, in order."""
    methods = chosen_methods(settings)
    return (
        Stage("convert", 2, (), ("acquisition", "phase"), stages.convert, "reading the images"),
        Stage("mask", 3, ("convert",), ("mask",), stages.mask, "finding the brain"),
        Stage("unwrap", 3, ("convert", "mask"), ("unwrap",), stages.unwrap, "unwrapping the phase"),
        Stage("field", 3, ("convert", "unwrap"), ("fit",), stages.field, "fitting the field", on_card=True),
        Stage(
            "background",
            3,
            ("convert", "field"),
            ("background", settings.background.method),
            stages.background,
            "removing the background",
            on_card=True,
        ),
        Stage("r2star", 1, ("convert", "mask", "field"), ("r2star",), stages.r2star, "mapping R2*", on_card=True),
        *(
            Stage(
                f"invert-{m}",
                6,
                _before_inversion(m, settings),
                ("device", "reference", m),
                partial(stages.invert, m),
                f"inverting ({m})",
                on_card=True,
            )
            for m in methods
        ),
        *_finer(settings),
        Stage("swi", 1, ("convert", "mask", "field", "background"), ("swi",), stages.swi, "weighting by chi"),
        Stage("quality", 3, _before_quality(methods), ("method",), stages.quality, "measuring quality"),
    )


def _finer(settings: Settings) -> tuple[Stage, ...]:
    """The map on finer voxels, where one is asked for; it begins with the scan's own by the same prior, where there is
    one, and is referred to fluid as the published one is."""
    if not finer(settings):
        return ()
    methods = chosen_methods(settings)
    own = ["invert-diffusion"] if "diffusion" in methods else []
    published = [f"invert-{methods[0]}"] if settings.reference.region == "csf" else []
    reads = ("device", "reference", "upsample", "diffusion")
    after = ("convert", "background", *dict.fromkeys([*own, *published]))
    return (Stage("upsample", 1, after, reads, stages.upsample, "inverting onto finer voxels", on_card=True),)


def _before_inversion(method: str, settings: Settings) -> tuple[str, ...]:
    """Two passes need the reliable voxels; R2* finds the fluid that the map is to be referred to."""
    background = () if method in FROM_TOTAL else ("background",)
    reliable = ("mask",) if settings.mask.two_pass else ()
    fluid = ("r2star",) if settings.reference.region == "csf" else ()
    return ("convert", *reliable, "field", *background, *fluid)


def _before_quality(methods: tuple[str, ...]) -> tuple[str, ...]:
    return ("convert", "mask", "unwrap", "field", "background", *(f"invert-{m}" for m in methods))


def run_stage(stage: Stage, job: Job, progress: Progress = lambda share, word: None) -> Result:
    """The stage's result: the proven one of an earlier run, or a new one."""
    done = {name: _needed(job.work, name) for name in stage.after}
    key = _key(stage, job, done)
    proven = job.work.proven(stage.name, key)
    if proven:
        return proven
    device = pick_device(job.settings.device) if stage.on_card else torch.device("cpu")
    with card(device) as held:
        forget_peak(device)
        started = time.perf_counter()
        made = stage.run(Inputs(job, done, device, progress))
        made = replace(made, arrays={name: array.cpu() for name, array in made.arrays.items()})
        seconds, peak = time.perf_counter() - started, peak_memory_bytes(device)
    measured = {
        "stage": stage.name,
        "version": stage.version,
        "device": str(device),
        "seconds": round(seconds, 3),
        "card_seconds": round(held.seconds, 3),
        "peak_memory_bytes": peak,
        "software": pipeline.__version__,
    }
    return job.work.write(stage.name, key, made, measured)


def reconstruct(job: Job, progress: Callable[[str, float, str], None] = lambda stage, share, word: None) -> Work:
    """Run all stages of a scan in this process; the work folder then holds every result."""
    for stage in recipe(job.settings):
        run_stage(stage, job, partial(progress, stage.name))
    return job.work


def _needed(work: Work, name: str) -> Result:
    result = work.find(name)
    if result is None:
        raise ChironError("R005", f"the stage {name} has no result", "every earlier stage done")
    return result


def _key(stage: Stage, job: Job, done: Mapping[str, Result]) -> str:
    """Hash of all that the stage's result depends on."""
    settings = {name: _plain(getattr(job.settings, name, None)) for name in stage.reads}
    key: dict[str, Any] = {"stage": stage.name, "version": stage.version, "settings": settings}
    key["inputs"] = {name: result.digest for name, result in done.items()}
    if not stage.after:
        key["files"] = _expected_digest(job)
        key["b0_tesla"] = job.scan.b0_tesla
    if stage.name == "mask" and job.settings.mask.file:
        key["mask"] = _mask_digest(Path(job.settings.mask.file))
    method = "diffusion" if stage.name == "upsample" else stage.name.removeprefix("invert-")
    if method in LEARNED and (card := card_of(method, getattr(job.settings, method))):
        key["weights"] = card["sha256"]
    if stage.name == "quality":
        key["methods"] = chosen_methods(job.settings)
        compared = (job.truth, brain_beside(job.truth)) if job.truth else ()
        key["truth"] = [file_digest(file) for file in compared if file]
    return digest(key)


def _expected_digest(job: Job) -> str:
    """F016 where the files are no longer those of the label: whose they are now, only their headers tell."""
    found = job.scan.content_digest()
    if job.expects and found != job.expects:
        why = "Run the export again: it is then looked through anew."
        raise ChironError("F016", "other files than those the scan was made from", "the same files", why)
    return found


def _mask_digest(file: Path) -> str:
    try:
        return file_digest(file)
    except OSError as error:
        raise ChironError("X002", f"a mask that cannot be read ({error.strerror})", "a NIfTI file") from None


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
