"""The results of a scan's stages -> its published images with their sidecars, as bytes by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from pipeline.entities import image_name
from pipeline.publish.nifti import image_bytes
from pipeline.publish.sidecars import bids_uris, hz_per_ppm, sidecar
from pipeline.report.pictures import CHI, LOCAL, R2STAR_PER_TESLA, SPREAD, TOTAL, WEIGHTED, brightness
from pipeline.report.view import Window
from pipeline.settings import Settings
from pipeline.volumes import Grid
from pipeline.work import Result

MASKED = ("part-mag_T2starw", "desc-brain_mask")
TOTAL_MASKED = ("desc-total_fieldmap", "desc-brain_mask")
LOCAL_MASKED = ("desc-local_fieldmap", "desc-brain_mask")
FROM_MAGNITUDE = ("T2starw", "R2starmap", "T2starmap")  # all other images are made from the phase as well
WINDOWS = {  # at which viewers open an image: those of the report
    "Chimap": CHI,
    "Chiuncertainty": SPREAD,
    "desc-total_fieldmap": TOTAL,
    "desc-local_fieldmap": LOCAL,
    "swi": WEIGHTED,
    "minIP": WEIGHTED,
    "mask": Window(0.0, 1.0, ""),
}
T2STAR_S_TESLA = 0.3  # the upper end of T2*'s window in s times tesla, with which T2* shortens
TOTAL_FIELD = "Total field relative to B0, positive where the field is higher"
LOCAL_FIELD = "Local field relative to B0, of sources inside the mask; zero outside the eroded mask"
RESOLUTION = "{} mm, {} times finer than the scan's; what is finer than the scan's is the prior's guess"
UNCERTAINTY = "Standard deviation that {} gives to its own susceptibility map; zero outside the eroded mask"
R2STAR = "Rate of the magnitude's decay over the echoes (R2*); zero outside the mask"
T2STAR = "Time of the magnitude's decay over the echoes (T2*), the inverse of R2*; zero outside the mask"
SUSCEPTIBILITY_WEIGHTED = (
    "Susceptibility-weighted image: the magnitude of all echoes without shading, dark where the local field rises"
)
LOWEST = "Minimum of the susceptibility-weighted image over a slab around each slice; zero outside the mask"
MAGNITUDE: dict[str, Any] = {
    "Description": "Magnitude of all echoes",
    "MagnitudeCombination": "root sum of squares over the echoes",
    "Units": "arbitrary",
    "SkullStripped": False,
}


def images(
    label: str,
    folder: str,
    settings: Settings,
    methods: Sequence[str],
    stages: Mapping[str, Result],
    inputs: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, bytes]:
    """Name relative to the session's `folder` -> content: maps, fields, mask, magnitude, and a sidecar of each.

    `methods` are the inversions to publish; the first is the primary map, without `desc-`. The uncertainty that a
    method gives is named like its map, with a suffix of its own: `Chiuncertainty`, `desc-<method>_Chiuncertainty`.
    Maps on finer voxels are `res-fine_...`. `inputs` are the BIDS URIs of the scan's images by part.
    """
    convert = stages["convert"].facts
    grid = Grid.from_json(convert["grid"])
    mask = stages["mask"].array("mask")
    files: dict[str, bytes] = {}

    def uris(*suffixes: str) -> list[str]:
        return bids_uris(folder, (f"anat/{image_name(label, suffix)}.nii.gz" for suffix in suffixes))

    def add(suffix: str, volume: Tensor, sources: tuple[str, ...] = (), on: Grid = grid, **own: Any) -> None:
        stem = f"anat/{image_name(label, suffix)}"
        files[f"{stem}.nii.gz"] = image_bytes(volume, on, _window(suffix, volume, mask, convert["b0_tesla"]))
        every = [*uris(*sources), *_inputs(suffix, inputs or {})]
        files[f"{stem}.json"] = sidecar(convert, Sources=every or None, **own)

    add("part-mag_T2starw", _root_sum_of_squares(stages["convert"]), **MAGNITUDE)
    aligned: dict[str, Any] = {"Type": "Brain", "SkullStripped": False, "SpatialReference": uris("part-mag_T2starw")[0]}
    add("desc-brain_mask", mask, ("part-mag_T2starw",), Description="Brain mask", **aligned)
    field: dict[str, Any] = {"Units": "ppm", "HzPerPpm": hz_per_ppm(convert["b0_tesla"]), "SkullStripped": True}
    add("desc-total_fieldmap", stages["field"].array("total_ppm"), MASKED, Description=TOTAL_FIELD, **field)
    local: dict[str, Any] = {"Description": LOCAL_FIELD, "BackgroundRemoval": _background(settings), **field}
    add("desc-local_fieldmap", stages["background"].array("local_ppm"), TOTAL_MASKED, **local)
    for method in methods:
        suffix, result = "" if method == methods[0] else f"desc-{method}_", stages[f"invert-{method}"]
        add(f"{suffix}Chimap", result.array("chi_ppm"), LOCAL_MASKED, **_map(settings, method, result.facts))
        if result.has("uncertainty_ppm"):
            spread = _spread(settings, method, result.facts)
            add(f"{suffix}Chiuncertainty", result.array("uncertainty_ppm"), LOCAL_MASKED, **spread)
    for suffix, volume, sources, own in _beside(settings, stages):
        add(suffix, volume, sources, **own)
    if "upsample" in stages and stages["upsample"].has("chi_ppm"):
        finer = stages["upsample"]
        for suffix, volume, own in _finer(settings, grid, finer, aligned):
            add(suffix, volume, LOCAL_MASKED, Grid.from_json(finer.facts["grid"]), **own)
    return files


def _inputs(suffix: str, inputs: Mapping[str, Sequence[str]]) -> list[str]:
    """The scan's images that an image was made from, directly or by the images that it names."""
    magnitude = suffix.split("_")[-1] in FROM_MAGNITUDE and "magnitude" in inputs
    return [uri for part, uris in inputs.items() if part == "magnitude" or not magnitude for uri in uris]


def _window(suffix: str, volume: Tensor, mask: Tensor, b0_tesla: float) -> tuple[float, float]:
    """From black to white, in the image's unit."""
    kind = suffix.split("_")[-1]
    if kind == "T2starw":
        window = brightness(volume.numpy(), mask.numpy() > 0)
        return window.low, window.high
    if kind in ("R2starmap", "T2starmap"):
        return 0.0, R2STAR_PER_TESLA * b0_tesla if kind == "R2starmap" else T2STAR_S_TESLA / b0_tesla
    window = WINDOWS.get(suffix) or WINDOWS[kind]
    return window.low, window.high


def _beside(
    settings: Settings, stages: Mapping[str, Result]
) -> Iterator[tuple[str, Tensor, tuple[str, ...], dict[str, Any]]]:
    """Suffix, volume, sources and sidecar entries of the images beside the map that could be made."""
    decay, weighted = stages["r2star"], stages["swi"]
    if decay.has("r2star"):
        own: dict[str, Any] = {"SkullStripped": True, **_method(decay.facts["method"], settings.r2star)}
        yield "R2starmap", decay.array("r2star"), MASKED, {"Description": R2STAR, "Units": "1/s", **own}
        yield "T2starmap", decay.array("t2star_s"), MASKED, {"Description": T2STAR, "Units": "s", **own}
    if weighted.has("swi"):
        own = {"Units": "arbitrary", **_method("clear-swi", settings.swi)}
        swi = {"Description": SUSCEPTIBILITY_WEIGHTED, "SkullStripped": False, **own}
        yield "swi", weighted.array("swi"), (*MASKED, "desc-local_fieldmap"), swi
        slab = {"SlabThickness": weighted.facts["slab_mm"], "SlabAxis": "ijk"[weighted.facts["slab_axis"]]}
        minip = {"Description": LOWEST, "SkullStripped": True, **slab, **own}
        yield "minIP", weighted.array("minip"), ("swi", "desc-brain_mask"), minip


def _finer(
    settings: Settings, scan: Grid, finer: Result, aligned: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """Suffix, volume and sidecar entries of the map on finer voxels, its mask and its uncertainty."""
    grid, method = Grid.from_json(finer.facts["grid"]), finer.facts["method"]
    size = " x ".join(f"{v:.3g}" for v in grid.voxel_size_mm)
    times = " x ".join(f"{m / n:.3g}" for m, n in zip(grid.shape, scan.shape, strict=True))
    how = {"Resolution": RESOLUTION.format(size, times)}
    mask = {"Description": "Mask of the map on finer voxels", **aligned}
    yield "res-fine_desc-brain_mask", finer.array("mask"), how | mask
    yield f"res-fine_desc-{method}_Chimap", finer.array("chi_ppm"), how | _map(settings, method, finer.facts)
    if finer.has("uncertainty_ppm"):
        spread = how | _spread(settings, method, finer.facts)
        yield f"res-fine_desc-{method}_Chiuncertainty", finer.array("uncertainty_ppm"), spread


def _method(name: str, params: Any) -> dict[str, Any]:
    return {"Method": name, "MethodParameters": asdict(params)}


def _root_sum_of_squares(convert: Result) -> Tensor:
    return convert.array("magnitude").square().sum(0).sqrt()


def _background(settings: Settings) -> dict[str, Any]:
    method = settings.background.method
    return {"Method": method, "Parameters": {**asdict(settings.background), **asdict(getattr(settings, method))}}


def _map(settings: Settings, method: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The sidecar entries of a susceptibility map; `ReferenceRegion` in ppm, before the mean was taken off."""
    what = "Magnetic susceptibility, positive where paramagnetic; zero outside the eroded mask"
    return {"Description": what, **_inverted(settings, method, facts), "ReferenceRegion": facts["reference"]}


def _spread(settings: Settings, method: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The sidecar entries of a map's uncertainty."""
    return {"Description": UNCERTAINTY.format(method), **_inverted(settings, method, facts)}


def _inverted(settings: Settings, method: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    params: dict[str, Any] = asdict(getattr(settings, method))
    own = {"Method": facts["method"], "MethodParameters": params, "Seed": params.get("seed")}
    return {"Units": "ppm", "SkullStripped": True, **own}
