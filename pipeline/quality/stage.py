"""Finished stages and, if there is one, the truth -> the facts of the quality stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation
from torch import Tensor

from models.dipole import Dipole
from pipeline.errors import ChironError, Notice
from pipeline.quality import accuracy, plausibility
from pipeline.quality.verdict import judge
from pipeline.volumes import Grid, ppm_per_rad
from pipeline.work import Made, Result

Numbers = dict[str, float | None]
EMPTY_PPM = 0.001  # spread inside the brain below which a map holds nothing at all
WORST_RESIDUAL = 0.3  # relative, of an echo fit: the consensus' limit, doi 10.1002/mrm.30006

# Labels of the 2019 challenge's head, which simulated heads here share: name -> codes.
REGIONS: dict[str, tuple[int, ...]] = {
    "tissue": (7, 8, 9),  # thalamus, white matter, grey matter
    "dgm": (1, 2, 3, 4, 5, 6),  # caudate, pallidum, putamen, red nucleus, dentate, substantia nigra
    "blood": (11,),
    "calcification": (16,),
}


def evaluate(
    chi: Tensor,
    truth: Tensor,
    mask: Tensor,
    labels: Tensor | None = None,
    calcification: Tensor | None = None,
    regions: Mapping[str, tuple[int, ...]] = REGIONS,
) -> dict[str, float]:
    """Every metric of `chi` against `truth` (both ppm, (X, Y, Z)) in the mask, by name.

    Both maps are set to zero outside the mask first. `labels` hold the codes of `regions`; `calcification` marks the
    calcification where labels do not. Metrics that need a region which is not there are left out.
    """
    mask = mask.bool()
    x, y = (torch.where(mask, volume.double(), 0.0) for volume in (chi, truth))
    peak_to_noise, peak = accuracy.psnr(x, y, mask)
    found = {
        "nrmse": accuracy.nrmse(x, y, mask),
        "dnrmse": accuracy.dnrmse(x, y, mask),
        "hfen": accuracy.hfen(x, y, mask),
        "xsim": accuracy.xsim(x, y, mask),
        "xsim_uniform5": accuracy.xsim(x, y, mask, "uniform5"),
        "psnr": peak_to_noise,
        "psnr_range_ppm": peak,
        "r": accuracy.pearson(x, y, mask),
    }
    regional = {}
    if labels is not None:
        where = {name: torch.isin(labels, torch.tensor(codes, device=labels.device)) for name, codes in regions.items()}
        where["blood"] = accuracy.dilated(where["blood"] & mask)
        regional = {f"dnrmse_{r}": accuracy.dnrmse(x, y, where[r] & mask) for r in ("tissue", "dgm", "blood")}
        regional["slope_deviation"] = accuracy.slope_deviation(x, y, mask, labels, regions["dgm"])
        calcification = where["calcification"] if calcification is None else calcification
    if calcification is not None:
        deviation, streak = accuracy.calcification(x, y, calcification.bool() & mask)
        regional |= {"calc_moment_deviation": deviation, "calc_streak": streak}
    return found | {name: value for name, value in regional.items() if not math.isnan(value)}


def measure(done: Mapping[str, Result], primary: str, classical: str, truth: Path | None, device: torch.device) -> Made:
    """Facts: "methods" (numbers of each map), "acquisition", "verdict", "primary" (the map to publish), "truth" (bool).

    Where the `primary` map is not finite or flat, and the `classical` one is sound, that one takes its place, with the
    notice M001 and a verdict that says so. Accuracy is that in the mask and, where `brain_beside` the truth tells it,
    in the true brain: map and truth are both referenced to their mean there, and the truth is handed on as `truth_ppm`.
    X002 where it does not lie on the scan's voxels.
    """
    grid = Grid.from_json(done["convert"].facts["grid"])
    mask = done["background"].array("mask", device).bool()
    true, scored = None, mask
    if truth:
        true = read_truth(truth, grid).to(device)
        brain = brain_beside(truth)
        scored = mask & (read_truth(brain, grid).to(device) > 0.5) if brain else mask
        true -= true[scored].mean()
    methods = _methods(done, classical, grid, mask, true, scored)
    acquisition = _acquisition(done, grid, mask)
    published = _published(methods, primary, classical)
    verdict = _with_doubts(judge({**acquisition, **methods[published]}), done[f"invert-{published}"])
    notices = []
    if published != primary:
        notices = [
            Notice("M001", f"The map of {primary} is empty or flat; that of {published} was published in its place.")
        ]
        verdict = {"level": "do not use", "reasons": [notices[0].text, *verdict["reasons"]]}
    facts = {
        "methods": methods,
        "acquisition": acquisition,
        "verdict": verdict,
        "primary": published,
        "classical": classical,
        "truth": true is not None,
    }
    return Made({} if true is None else {"truth_ppm": true.float()}, facts=facts, notices=notices)


def _with_doubts(verdict: dict[str, Any], published: Result) -> dict[str, Any]:
    """At best "check" where the scan is unlike what the network has learned from; misfits are judged by the numbers."""
    found = (published.facts.get("unlearned") or {}).items()
    told = [text for what, text in found if what != "misfit"]
    doubts = [f"The network has not learned from the like of this scan: {text}." for text in told]
    level = "check" if doubts and verdict["level"] == "usable" else verdict["level"]
    return {"level": level, "reasons": [*verdict["reasons"], *doubts]}


def brain_beside(truth: Path) -> Path | None:
    """`..._desc-brain_mask` beside a truth `..._Chimap`: where the true brain is; None where there is no such file."""
    file = truth.with_name(truth.name.replace("_Chimap", "_desc-brain_mask"))
    return file if file != truth and file.is_file() else None


def read_truth(path: Path, grid: Grid) -> Tensor:
    """The true susceptibility (ppm) of a NIfTI file on the scan's grid, axes exchanged and flipped by its affine."""
    try:
        image: Any = nib.load(path)
        values = np.asarray(image.dataobj, dtype=np.float64).squeeze()
    except (OSError, ValueError, ImageFileError):
        raise ChironError("X002", "a true map that cannot be read", "a NIfTI file in ppm") from None
    onto = np.linalg.inv(np.asarray(grid.affine)) @ image.affine  # the file's voxel indices -> the scan's
    turn = np.rint(onto[:3, :3])
    if values.ndim != 3 or np.abs(onto[:3, :3] - turn).max() > 0.01 or not np.allclose(turn @ turn.T, np.eye(3)):
        raise ChironError("X002", "a true map with other axes or voxel sizes than the scan", "the scan's own voxels")
    to = np.abs(turn).argmax(axis=0)
    values = apply_orientation(values, np.stack([to, turn[to, range(3)]], axis=1))
    first = np.where(turn.sum(axis=1) < 0, np.array(values.shape) - 1, 0)
    if values.shape != grid.shape or np.abs(onto[:3, 3] - first).max() > 0.1:
        raise ChironError(
            "X002", f"a true map of {values.shape} voxels elsewhere", f"{grid.shape} at the scan's own place"
        )
    return torch.from_numpy(np.ascontiguousarray(values))


def _methods(
    done: Mapping[str, Result], classical: str, grid: Grid, mask: Tensor, truth: Tensor | None, scored: Tensor
) -> dict[str, Numbers]:
    """The numbers of each map: alone, beside the classical one and, where there is a truth, beside that in `scored`."""
    box = _bounding_box(mask)
    local = done["background"].array("local_ppm", mask.device)[box].float()
    sd = done["field"].array("sd_ppm", mask.device)[box].float()
    padded, bare = (Dipole(local.shape, grid.voxel_size_mm, grid.b0_dir, padding=p, device=mask.device) for p in (1, 0))
    maps = {
        name.removeprefix("invert-"): r.array("chi_ppm", mask.device) for name, r in done.items() if "invert-" in name
    }
    core, low = plausibility.core(mask, grid.voxel_size_mm), plausibility.base(mask, grid.affine)
    methods = {}
    for name, chi in maps.items():
        inner, values = chi[box].float(), chi[mask].double()
        found = {
            "finite_share": float(torch.isfinite(values).double().mean()),
            "mean_ppm": float(values.mean()),
            "spread_ppm": float((values - values.mean()).square().mean().sqrt()),
            "core_spread_ppm": plausibility.robust_spread(chi[core]),
            "asymmetry": plausibility.asymmetry(chi[core]),
            "neighbour_correlation": plausibility.neighbour_correlation(chi, core),
            "unexplained_share": plausibility.unexplained_share(inner, local, sd, mask[box], padded),
            "data_consistency": plausibility.data_consistency(inner, local, sd, mask[box], padded),
            "streak_index": plausibility.streak_index(inner, mask[box], bare),
            "rim_energy": plausibility.rim_energy(inner, mask[box]),
            "beyond_share": plausibility.beyond_share(inner, mask[box]),
            "base_beyond_share": plausibility.beyond_share(chi, low, 0.1),
        }
        if (inversion := done[f"invert-{name}"]).has("uncertainty_ppm"):
            found["uncertainty_ppm"] = float(inversion.array("uncertainty_ppm", mask.device)[mask].median())
        found |= {key: inversion.facts[key] for key in ("unlearned_share",) if key in inversion.facts}
        if classical in maps and name != classical:
            found["classical_correlation"] = accuracy.pearson(chi, maps[classical], mask)
            found["classical_difference_ppm"] = float((chi - maps[classical])[mask].double().square().mean().sqrt())
        if truth is not None:
            found |= evaluate(chi - chi[scored].mean(), truth, scored)
        methods[name] = _plain(found)
    return methods


def _bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """The box that holds the mask; the whole volume where the mask is empty."""
    found = mask.nonzero() if bool(mask.any()) else torch.ones_like(mask).nonzero()
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(found.amin(0), found.amax(0), strict=True))


def _acquisition(done: Mapping[str, Result], grid: Grid, final: Tensor) -> Numbers:
    """What came before the inversion, from the stages' own arrays."""
    mask = done["mask"].array("mask", final.device).bool()
    voxels = int(mask.sum())
    magnitude = done["convert"].array("magnitude", final.device)
    residual = done["field"].array("residual", final.device)[mask]
    inner = plausibility.core(final, grid.voxel_size_mm)
    found = {
        **_protocol(done["convert"].facts, grid),
        "volume_ml": voxels * math.prod(grid.voxel_size_mm) / 1000,
        "components": plausibility.components(mask),
        "cut_share": plausibility.cut_share(mask),
        "base_dark_share": plausibility.dark_share(magnitude[0], plausibility.base(mask, grid.affine)),
        "eroded_share": 1 - int((mask & final).sum()) / voxels if voxels else math.nan,
        "wraps_left": plausibility.wraps_left(_fastest_turn(done, final.device), mask),
        "fit_residual": float(residual.median()) if voxels else math.nan,
        "excluded_share": float((residual > WORST_RESIDUAL).double().mean()) if voxels else math.nan,
        "field_noise_ppm": float(done["field"].array("sd_ppm", final.device)[inner].median()),
        "snr": plausibility.snr(magnitude[0], mask),
    }
    return _plain(found)


def _protocol(facts: Mapping[str, Any], grid: Grid) -> dict[str, float]:
    """What the scanner was asked for; echo times as they would be at 3 T, for phase grows, and T2* falls, with B0."""
    times, as_at_3t = facts["echo_times_s"], 1000 * float(facts["b0_tesla"]) / 3
    return {
        "echoes": len(times),
        "first_echo_ms": times[0] * as_at_3t,
        "last_echo_ms": times[-1] * as_at_3t,
        "longest_edge_mm": max(grid.voxel_size_mm),
    }


def _fastest_turn(done: Mapping[str, Result], device: torch.device) -> Tensor:
    """The phases (2, X, Y, Z) in which a wrong turn is a jump: the first echo's, and the field's from echo to echo.

    Later echoes are steep near air, and neighbours there differ by more than half a turn with no turn being wrong.
    """
    facts = done["convert"].facts
    times, b0 = [0.0, *facts["echo_times_s"]], float(facts["b0_tesla"])
    shortest = min(after - before for before, after in pairwise(times))
    turned = done["field"].array("total_ppm", device) / ppm_per_rad(shortest, b0)
    return torch.stack([done["unwrap"].array("unwrapped_rad", device)[0], turned])


def _published(methods: Mapping[str, Mapping[str, Any]], primary: str, classical: str) -> str:
    """The primary method, or the classical one where the primary's map is empty or flat and that is not."""

    def sound(name: str) -> bool:
        spread = methods[name]["core_spread_ppm"]
        return methods[name]["finite_share"] == 1 and spread is not None and bool(spread >= EMPTY_PPM)

    return classical if not sound(primary) and classical in methods and sound(classical) else primary


def _plain(numbers: Mapping[str, float]) -> Numbers:
    """Numbers as JSON has them: None for what is not finite."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
