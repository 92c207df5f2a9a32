"""The way of one scan: its stages in order, written once. `reconstruct` runs them; a scheduler runs them one by one.

A stage reads results of earlier stages and its own sections of the settings, and hands over arrays and facts. Its
result is reused only where it is proven the same: inputs, settings, version, and every file with its recorded hash.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pipeline
from pipeline.background import remove_background
from pipeline.convert import convert
from pipeline.device import peak_memory_bytes, pick_device
from pipeline.errors import ChironError, Decision, Notice
from pipeline.field import total_field
from pipeline.find import Scan
from pipeline.invert import FROM_MAGNITUDE, FROM_TOTAL, chosen_methods, classical_default, invert
from pipeline.mask import make_mask
from pipeline.phase import to_radians
from pipeline.quality import measure
from pipeline.r2star import map_r2star
from pipeline.settings import Settings
from pipeline.swi import weight_susceptibility
from pipeline.unwrap import unwrap
from pipeline.volumes import Echoes, Field, Grid, Susceptibility
from pipeline.water import csf_mask, refer_to_csf
from pipeline.work import Made, Result, Work, digest, file_digest

Progress = Callable[[float, str], None]  # share of the stage that is done (0 to 1), and a short word on it


@dataclass(frozen=True)
class Job:
    """One scan to reconstruct, with its settings and the folder that its stages are kept in."""

    scan: Scan
    settings: Settings
    folder: Path
    truth: Path | None = None  # the true susceptibility (NIfTI, ppm) of a simulated scan, to be compared with

    @property
    def work(self) -> Work:
        return Work(self.folder)

    def save(self) -> None:
        """Write the job into its folder, where `Job.load` finds it; the folder is private to its owner."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        job = {
            "scan": self.scan.json(),
            "settings": self.settings.model_dump(mode="json"),
            "truth": str(self.truth) if self.truth else None,
        }
        aside = self.folder / ".job.json"
        aside.write_text(json.dumps(job, indent=1))
        aside.rename(self.folder / "job.json")

    @classmethod
    def load(cls, folder: Path) -> Job:
        job = json.loads((folder / "job.json").read_text())
        truth = Path(job["truth"]) if job["truth"] else None
        return cls(Scan.from_json(job["scan"]), Settings.model_validate(job["settings"]), folder, truth)


@dataclass(frozen=True)
class Inputs:
    """What a stage may read: the job, the stages before it, the device, and where to say how far it is."""

    job: Job
    done: Mapping[str, Result]
    device: torch.device
    progress: Progress

    @property
    def settings(self) -> Settings:
        return self.job.settings

    def array(self, stage: str, name: str) -> Tensor:
        return self.done[stage].array(name, self.device)

    @property
    def grid(self) -> Grid:
        return Grid.from_json(self.done["convert"].facts["grid"])

    def echoes(self, phase: tuple[str, str] = ("convert", "phase_rad")) -> Echoes:
        facts = self.done["convert"].facts
        return Echoes(
            self.array("convert", "magnitude"),
            self.array(*phase),
            tuple(facts["echo_times_s"]),
            facts["b0_tesla"],
            self.grid,
        )

    def total_field(self) -> Field:
        ppm, sd, mask = (self.array("field", name) for name in ("total_ppm", "sd_ppm", "mask"))
        return Field(ppm, sd, mask.bool(), self.grid)

    def local_field(self) -> Field:
        ppm, mask = self.array("background", "local_ppm"), self.array("background", "mask").bool()
        return Field(ppm, self.array("field", "sd_ppm"), mask, self.grid)


@dataclass(frozen=True)
class Stage:
    """One step: its name, the version of its result, the stages and the settings that it reads, and what it does."""

    name: str
    version: int
    after: tuple[str, ...]
    reads: tuple[str, ...]
    run: Callable[[Inputs], Made]
    title: str


def recipe(settings: Settings) -> tuple[Stage, ...]:
    """The stages of a scan, in order."""
    methods = chosen_methods(settings)
    return (
        Stage("convert", 1, (), ("acquisition", "phase"), _convert, "reading the images"),
        Stage("mask", 2, ("convert",), ("mask",), _mask, "finding the brain"),
        Stage("unwrap", 2, ("convert", "mask"), ("unwrap",), _unwrap, "unwrapping the phase"),
        Stage("field", 2, ("convert", "unwrap"), ("fit",), _field, "fitting the field"),
        Stage(
            "background",
            1,
            ("convert", "field"),
            ("background", settings.background.method),
            _background,
            "removing the background",
        ),
        Stage("r2star", 1, ("convert", "mask", "field"), ("r2star",), _r2star, "mapping R2*"),
        *(
            Stage(
                f"invert-{m}",
                3,
                _before_inversion(m, settings),
                ("device", "reference", m),
                partial(_invert, m),
                f"inverting ({m})",
            )
            for m in methods
        ),
        Stage("swi", 1, ("convert", "mask", "field", "background"), ("swi",), _swi, "weighting by susceptibility"),
        Stage("quality", 1, _before_quality(methods), ("method",), _quality, "measuring quality"),
    )


def _before_inversion(method: str, settings: Settings) -> tuple[str, ...]:
    """R2* is needed only to find the fluid that the map is to be referred to."""
    background = () if method in FROM_TOTAL else ("background",)
    return ("convert", "field", *background, *(("r2star",) if settings.reference.region == "csf" else ()))


def _before_quality(methods: tuple[str, ...]) -> tuple[str, ...]:
    return ("convert", "mask", "unwrap", "field", "background", *(f"invert-{m}" for m in methods))


def run_stage(stage: Stage, job: Job, progress: Progress = lambda share, word: None) -> Result:
    """The stage's result: the proven one of an earlier run, or a new one."""
    done = {name: _needed(job.work, name) for name in stage.after}
    key = _key(stage, job, done)
    proven = job.work.proven(stage.name, key)
    if proven:
        return proven
    device = pick_device(job.settings.device)
    started = time.perf_counter()
    made = stage.run(Inputs(job, done, device, progress))
    measured = {
        "stage": stage.name,
        "version": stage.version,
        "device": str(device),
        "seconds": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": peak_memory_bytes(device),
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
        key["files"] = job.scan.content_digest()
    if stage.name == "mask" and job.settings.mask.file:
        key["mask"] = _mask_digest(Path(job.settings.mask.file))
    if stage.name == "quality":
        key["methods"] = chosen_methods(job.settings)
        key["truth"] = file_digest(job.truth) if job.truth else None
    return digest(key)


def _mask_digest(file: Path) -> str:
    try:
        return file_digest(file)
    except OSError as error:
        raise ChironError("X002", f"a mask that cannot be read ({error.strerror})", "a NIfTI file") from None


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _convert(inputs: Inputs) -> Made:
    """-> magnitude, phase_rad (E, X, Y, Z); facts: grid, echo_times_s, b0_tesla, vendor, acquisition."""
    stored = convert(inputs.job.scan, inputs.settings.acquisition, inputs.job.folder / "dcm2niix")
    echoes, decisions, notices = to_radians(stored, inputs.settings.phase)
    facts = {
        "grid": echoes.grid.json(),
        "voxel_size_mm": echoes.grid.voxel_size_mm,
        "obliquity_deg": echoes.grid.obliquity_deg,
        "echo_times_s": list(echoes.echo_times_s),
        "b0_tesla": echoes.b0_tesla,
        "vendor": stored.vendor,
        "acquisition": stored.facts,
        "content_digest": inputs.job.scan.content_digest(),
    }
    arrays = {"magnitude": echoes.magnitude, "phase_rad": echoes.phase_rad}
    return Made(
        arrays,
        facts=facts,
        decisions=[*stored.decisions, *decisions],
        notices=[*inputs.job.scan.notices, *stored.notices, *notices],
    )


def _mask(inputs: Inputs) -> Made:
    """-> mask, reliable (uint8), quality (0 to 1); facts: voxels, volume_ml, components, reliable_share."""
    found = make_mask(inputs.echoes(), inputs.settings.mask)
    masks = {"mask": found.mask, "reliable": found.reliable}
    arrays = {**{name: mask.to(torch.uint8) for name, mask in masks.items()}, "quality": found.quality}
    return Made(arrays, facts=found.facts, notices=found.notices)


def _unwrap(inputs: Inputs) -> Made:
    """-> unwrapped_rad (E, X, Y, Z) without offset, offset_rad (X, Y, Z), mask (less what is not reliable, uint8)."""
    found = unwrap(inputs.echoes(), inputs.array("mask", "mask").bool(), inputs.settings.unwrap)
    arrays = {
        "unwrapped_rad": found.echoes.phase_rad,
        "offset_rad": found.offset_rad,
        "mask": found.mask.to(torch.uint8),
    }
    return Made(arrays, facts=found.facts, decisions=found.decisions, notices=found.notices)


def _field(inputs: Inputs) -> Made:
    """-> total_ppm, sd_ppm, residual (relative fit residual); facts: noise_rad, median_sd_ppm."""
    echoes, mask = inputs.echoes(("unwrap", "unwrapped_rad")), inputs.array("unwrap", "mask").bool()
    found = total_field(echoes, mask, inputs.settings.fit)
    arrays = {"total_ppm": found.field.ppm, "sd_ppm": found.field.sd_ppm, "mask": found.field.mask.to(torch.uint8)}
    return Made({**arrays, "residual": found.residual}, facts=found.facts)


def _background(inputs: Inputs) -> Made:
    """-> local_ppm, mask (eroded, uint8); facts: method, eroded_share."""
    total = Field(
        inputs.array("field", "total_ppm"),
        inputs.array("field", "sd_ppm"),
        inputs.array("field", "mask").bool(),
        inputs.grid,
    )
    settings = inputs.settings
    method = settings.background.method
    local, facts = remove_background(total, method, getattr(settings, method))
    return Made({"local_ppm": local.ppm, "mask": local.mask.to(torch.uint8)}, facts=facts)


def _r2star(inputs: Inputs) -> Made:
    """-> r2star (1/s), t2star_s, residual; facts: method, clipped_negative, clipped_high, median_r2star_sd."""

    def make() -> Made:
        magnitude, mask = inputs.array("convert", "magnitude"), inputs.array("mask", "mask").bool()
        times, noise = inputs.done["convert"].facts["echo_times_s"], inputs.done["field"].facts["signal_noise"]
        found = map_r2star(magnitude, times, mask, noise, inputs.settings.r2star)
        arrays = {"r2star": found.r2star, "t2star_s": found.t2star_s, "residual": found.residual}
        return Made(arrays, facts=found.facts, decisions=found.decisions)

    return _beside("R2* map", make)


def _swi(inputs: Inputs) -> Made:
    """-> swi, minip (1 is the brain's usual brightness); facts: slab_axis, slab_slices, slab_mm."""

    def make() -> Made:
        mask = inputs.array("mask", "mask").bool()
        found = weight_susceptibility(inputs.echoes(), mask, inputs.local_field(), inputs.settings.swi)
        return Made({"swi": found.swi, "minip": found.minip}, facts=found.facts)

    return _beside("SWI", make)


def _beside(what: str, make: Callable[[], Made]) -> Made:
    """What `make` makes; where it fails, a notice and no image, for the susceptibility map does not hang on it."""
    try:
        made = make()
        if not all(bool(array.isfinite().all()) for array in made.arrays.values()):
            raise ChironError("M002", "values that are not finite")
        return made
    except ChironError as error:
        code, why, trace = error.code, error.found, ""
    except Exception as error:
        code, why, trace = "M002", f"an unexpected {type(error).__name__}", traceback.format_exc()
    files = {"trace.txt": trace.encode()} if trace else {}
    return Made(files=files, facts={"missing": why}, notices=[Notice(code, f"no {what} was made: {why}")])


def _invert(method: str, inputs: Inputs) -> Made:
    """-> chi_ppm, referenced as the settings say; facts: method, reference, and what the method says.

    A method that diverges leaves zeros and a notice: the quality stage then puts the classical map in its place.
    """
    field = inputs.total_field() if method in FROM_TOTAL else inputs.local_field()
    magnitude = inputs.array("convert", "magnitude").norm(dim=0) if method in FROM_MAGNITUDE else None
    try:
        params = getattr(inputs.settings, method)
        found: Susceptibility = invert(field, method, params, inputs.progress, magnitude=magnitude)
    except ChironError as error:
        if error.code != "M001" or method == classical_default():
            raise
        facts = {"method": method, "diverged": error.found}
        return Made({"chi_ppm": torch.zeros_like(field.ppm)}, facts=facts, notices=[Notice("M001", error.found)])
    facts = {"method": method, **found.facts}
    if inputs.settings.reference.region == "mean":
        return Made({"chi_ppm": found.ppm}, facts=facts)
    return _referred_to_csf(found, facts, inputs)


def _referred_to_csf(found: Susceptibility, facts: dict[str, Any], inputs: Inputs) -> Made:
    """The map relative to the ventricles; where they are not found, relative to its mean, and a notice that says so."""
    what, override = "reference of the map", "--set reference.region=mean|csf"
    relaxation, taken_off = inputs.done["r2star"], facts["reference"]["mean_ppm"]
    try:
        if not relaxation.has("r2star"):
            raise ChironError("P009", "no R2* to find fluid by", "two or more echoes")
        r2star, noise = relaxation.array("r2star", inputs.device), relaxation.facts["median_r2star_sd"]
        csf = csf_mask(r2star, found.mask, found.grid, noise, inputs.settings.reference)
        chi, reference = refer_to_csf(found.ppm, found.mask, csf, taken_off)
    except ChironError as error:
        decision = Decision(what, facts["reference"]["region"], f"no fluid was found: {error.found}", override)
        notice = Notice(error.code, f"the map is relative to its mean, not to fluid as asked: {error.found}")
        return Made({"chi_ppm": found.ppm}, {}, facts, [decision], [notice])
    decision = Decision(what, reference["region"], f"asked for; {reference['voxels']} voxels of slow decay", override)
    return Made({"chi_ppm": chi}, {}, {**facts, "reference": reference}, [decision])


def _quality(inputs: Inputs) -> Made:
    """-> facts: every number of the report, for the published map and for each method beside it."""
    primary = chosen_methods(inputs.settings)[0]
    return measure(inputs.done, primary, classical_default(), inputs.job.truth, inputs.device)
