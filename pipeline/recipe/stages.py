"""What each stage of a scan does: results of earlier stages -> its own arrays and facts."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from pipeline import convert as reading
from pipeline import invert as inversion
from pipeline import unwrap as unwrapping
from pipeline.background import remove_background
from pipeline.convert.b0 import B0, with_field_strength
from pipeline.errors import ChironError, Decision, Notice
from pipeline.field import total_field
from pipeline.invert import FROM_MAGNITUDE, FROM_TOTAL, chosen_methods, classical_default
from pipeline.mask import make_mask
from pipeline.phase import to_radians
from pipeline.quality import measure
from pipeline.r2star import map_r2star
from pipeline.recipe.job import Inputs
from pipeline.superres import invert_finer
from pipeline.swi import weight_susceptibility
from pipeline.volumes import Susceptibility
from pipeline.water import csf_mask, refer_to_csf
from pipeline.work import Made


def convert(inputs: Inputs) -> Made:
    """-> magnitude, phase_rad (E, X, Y, Z); facts: grid, echo_times_s, b0_tesla and its source, vendor, acquisition."""
    acquisition = inputs.settings.acquisition
    scan = with_field_strength(inputs.job.scan, acquisition)
    stored = reading.convert(scan, acquisition, inputs.job.folder / "dcm2niix")
    echoes, decisions, notices = to_radians(stored, inputs.settings.phase)
    facts = {
        "grid": echoes.grid.json(),
        "voxel_size_mm": echoes.grid.voxel_size_mm,
        "obliquity_deg": echoes.grid.obliquity_deg,
        "echo_times_s": list(echoes.echo_times_s),
        **B0.of(scan, acquisition).facts(),
        "vendor": stored.vendor,
        "acquisition": stored.facts,
        "content_digest": inputs.job.scan.content_digest(),
    }
    arrays = {"magnitude": echoes.magnitude, "phase_rad": echoes.phase_rad}
    return Made(
        arrays,
        facts=facts,
        decisions=[*stored.decisions, *decisions],
        notices=[*scan.notices, *stored.notices, *notices],
    )


def mask(inputs: Inputs) -> Made:
    """-> mask, reliable (uint8), quality (0 to 1); facts: voxels, volume_ml, components, reliable_share."""
    found = make_mask(inputs.echoes(), inputs.settings.mask, inputs.settings.acquisition.orientation)
    masks = {"mask": found.mask, "reliable": found.reliable}
    arrays = {**{name: mask.to(torch.uint8) for name, mask in masks.items()}, "quality": found.quality}
    return Made(arrays, facts=found.facts, notices=found.notices)


def unwrap(inputs: Inputs) -> Made:
    """-> unwrapped_rad (E, X, Y, Z) without offset, offset_rad (X, Y, Z), mask (less what is not reliable, uint8)."""
    found = unwrapping.unwrap(inputs.echoes(), inputs.array("mask", "mask").bool(), inputs.settings.unwrap)
    arrays = {
        "unwrapped_rad": found.echoes.phase_rad,
        "offset_rad": found.offset_rad,
        "mask": found.mask.to(torch.uint8),
    }
    return Made(arrays, facts=found.facts, decisions=found.decisions, notices=found.notices)


def field(inputs: Inputs) -> Made:
    """-> total_ppm, sd_ppm, residual (relative fit residual); facts: signal_noise, median_sd_ppm."""
    echoes, mask = inputs.echoes(("unwrap", "unwrapped_rad")), inputs.array("unwrap", "mask").bool()
    found = total_field(echoes, mask, inputs.settings.fit)
    arrays = {"total_ppm": found.field.ppm, "sd_ppm": found.field.sd_ppm, "mask": found.field.mask.to(torch.uint8)}
    return Made({**arrays, "residual": found.residual}, facts=found.facts)


def background(inputs: Inputs) -> Made:
    """-> local_ppm, sd_ppm, mask (what is left, uint8); facts: method, eroded_share."""
    settings = inputs.settings
    method = settings.background.method
    local, facts = remove_background(inputs.total_field(), method, getattr(settings, method))
    arrays = {"local_ppm": local.ppm, "sd_ppm": local.sd_ppm, "mask": local.mask.to(torch.uint8)}
    return Made(arrays, facts=facts)


def r2star(inputs: Inputs) -> Made:
    """-> r2star (1/s), t2star_s, residual; facts: method, clipped_negative, clipped_high, median_r2star_sd."""

    def make() -> Made:
        magnitude, mask = inputs.array("convert", "magnitude"), inputs.array("mask", "mask").bool()
        times, noise = inputs.done["convert"].facts["echo_times_s"], inputs.done["field"].facts["signal_noise"]
        found = map_r2star(magnitude, times, mask, noise, inputs.settings.r2star)
        arrays = {"r2star": found.r2star, "t2star_s": found.t2star_s, "residual": found.residual}
        return Made(arrays, facts=found.facts, decisions=found.decisions)

    return _beside("R2* map", make)


def swi(inputs: Inputs) -> Made:
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


def invert(method: str, inputs: Inputs) -> Made:
    """-> chi_ppm, referenced as the settings say, and uncertainty_ppm where the method tells it; facts: method,
    reference, and what the method says.

    A method that diverges leaves zeros and a notice: the quality stage then puts the classical map in its place.
    """
    field = inputs.total_field() if method in FROM_TOTAL else inputs.local_field()
    magnitude = inputs.array("convert", "magnitude").norm(dim=0) if method in FROM_MAGNITUDE else None
    given = {"params": getattr(inputs.settings, method), "progress": inputs.progress, "magnitude": magnitude}
    try:
        if inputs.settings.mask.two_pass:
            reliable = inputs.array("mask", "reliable").bool()
            found = inversion.invert_twice(field, reliable, method, **given)
        else:
            found = inversion.invert(field, method, **given)
    except ChironError as error:
        if error.code != "M001" or method == classical_default():
            raise
        facts = {"method": method, "diverged": error.found}
        return Made({"chi_ppm": torch.zeros_like(field.ppm)}, facts=facts, notices=[Notice("M001", error.found)])
    facts = {"method": method, **found.facts}
    made = Made({"chi_ppm": found.ppm}, facts=facts)
    if inputs.settings.reference.region == "csf":
        made = _referred_to_csf(found, facts, inputs)
    return _with_uncertainty(_with_doubts(made, method), found)


def _with_doubts(made: Made, method: str) -> Made:
    """A notice for each way in which the scan is unlike what the method's network has learned from."""
    found = (made.facts.get("unlearned") or {}).values()
    doubts = [Notice("M004", f"{method} has not learned from the like of this scan: {text}") for text in found]
    return replace(made, notices=[*made.notices, *doubts])


def _with_uncertainty(made: Made, found: Susceptibility) -> Made:
    """The map with its standard deviation beside it, where the method gives one that holds numbers."""
    spread = found.uncertainty_ppm
    if spread is None:
        return made
    if bool(spread.isfinite().all()):
        return replace(made, arrays={**made.arrays, "uncertainty_ppm": spread})
    notice = Notice("M002", f"no uncertainty of {found.method} was kept: values that are not finite")
    return replace(made, notices=[*made.notices, notice])


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


def upsample(inputs: Inputs) -> Made:
    """-> chi_ppm, mask (uint8) and uncertainty_ppm on finer voxels; facts: grid, method, reference, data_misfit."""

    def make() -> Made:
        field, settings = inputs.local_field(), inputs.settings
        own = inputs.done.get("invert-diffusion")
        first = None
        if own and "diverged" not in own.facts:
            chi = own.array("chi_ppm", inputs.device)
            first = Susceptibility(chi, field.mask, field.grid, "diffusion", own.facts)
        found = invert_finer(field, settings.upsample, settings.diffusion, inputs.progress, first)
        chi, facts = found.ppm, {"method": found.method, **found.facts}
        if settings.reference.region == "csf":
            beside = inputs.done[f"invert-{chosen_methods(settings)[0]}"]
            mean = float(beside.array("chi_ppm", inputs.device)[field.mask].mean())
            chi = torch.where(found.mask, chi + mean, 0)
            facts["reference"] = {**facts["reference"], "region": "that of the published map", "given_mean_ppm": mean}
        made = Made({"chi_ppm": chi, "mask": found.mask.to(torch.uint8)}, facts=facts)
        return _with_uncertainty(_with_doubts(made, "the prior of the finer map"), found)

    return _beside("map on finer voxels", make)


def quality(inputs: Inputs) -> Made:
    """-> facts: every number of the report, for the published map and for each method beside it."""
    primary = chosen_methods(inputs.settings)[0]
    return measure(inputs.done, primary, classical_default(), inputs.job.truth, inputs.device)
