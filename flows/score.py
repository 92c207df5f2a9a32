"""A susceptibility map, the truth and a mask as NIfTI files -> every metric of accuracy, by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from models.dipole import Dipole
from pipeline.errors import ChironError
from pipeline.noise import noise_level
from pipeline.quality import data_consistency, evaluate, streak_index
from pipeline.volumes import Grid, bounding_box

MEANINGS = {
    "nrmse": "error, %",
    "dnrmse": "error after a linear fit, %",
    "hfen": "error of edges, %",
    "xsim": "structural similarity, Gaussian window of 7^3; 1 is best",
    "xsim_uniform5": "the same, uniform window of 5^3, as QSM-CI has it",
    "psnr": "peak signal-to-noise ratio, dB",
    "psnr_range_ppm": "its R, the range of the truth, ppm",
    "r": "correlation; 1 is best",
    "dnrmse_tissue": "error in thalamus, white and grey matter, %",
    "dnrmse_dgm": "error in the deep grey nuclei, %",
    "dnrmse_blood": "error in and around veins, %",
    "slope_deviation": "of the deep grey nuclei's slope from 1",
    "calc_moment_deviation": "of the calcification's moment, ppm x voxels",
    "calc_streak": "streaks around it over its strength",
    "streak_index": "power inside the cone |D| < 0.1 over that beside it; no truth needed",
    "data_consistency": "misfit to the local field, in units of its noise; about 1 is best",
}


def score(
    chi: Path,
    truth: Path,
    mask: Path,
    labels: Path | None = None,
    local_field: Path | None = None,
    field_sd: Path | None = None,
    b0_dir: Sequence[float] | None = None,
) -> dict[str, float | None]:
    """Compare voxel by voxel, inside the mask, in ppm; None for a metric that has nothing to stand on.

    Voxel size and, unless given, the direction of B0 are those of the map's affine. X002 where a file is unreadable,
    E011 where shapes differ, P007 for an empty mask.
    """
    given = {
        "map": chi,
        "truth": truth,
        "mask": mask,
        "labels": labels,
        "local field": local_field,
        "field sd": field_sd,
    }
    images = {name: _read(path, name) for name, path in given.items() if path}
    volumes = {name: values for name, (values, _) in images.items()}
    for name, volume in volumes.items():
        if volume.shape != volumes["map"].shape:
            raise ChironError("E011", f"{name} of shape {tuple(volume.shape)}", f"{tuple(volumes['map'].shape)}")
    for name, (_, affine) in images.items():
        _check_place(name, affine, images["map"][1], volumes["map"].shape)
    inside = volumes["mask"] > 0.5
    if not bool(inside.any()):
        raise ChironError("P007", "an empty mask", "a mask of where to compare")
    codes = volumes["labels"].round().int() if labels else None
    found = evaluate(volumes["map"], volumes["truth"], inside, codes)
    found |= _without_truth(volumes, inside, images["map"][1], b0_dir)
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _check_place(name: str, affine: Any, of_map: Any, shape: Sequence[int]) -> None:
    """E011 where a voxel of an image lies elsewhere than that of the map, by more than half an edge."""
    corners = np.array(list(product(*((0, n - 1) for n in shape))))
    apart = corners @ (affine - of_map)[:3, :3].T + (affine - of_map)[:3, 3]
    if np.linalg.norm(apart, axis=1).max() > 0.5 * np.linalg.norm(of_map[:3, :3], axis=0).min():
        todo = "Resample it to the voxels of the map, or correct its header."
        raise ChironError("E011", f"{name} in another place than the map, by its affine", "the same voxels", todo)


def _without_truth(
    volumes: dict[str, Tensor], inside: Tensor, affine: Any, b0_dir: Sequence[float] | None
) -> dict[str, float]:
    """What the map says of itself, and how well it explains the local field where that is given."""
    grid = Grid.from_affine(inside.shape, affine)
    box = bounding_box(inside, margin=0)
    chi, mask = volumes["map"][box].float(), inside[box]
    chi = torch.where(mask, chi, 0)
    padded, bare = (Dipole(mask.shape, grid.voxel_size_mm, b0_dir or grid.b0_dir, padding=p) for p in (1, 0))
    found = {"streak_index": streak_index(chi, mask, bare)}
    if "local field" in volumes:
        local = volumes["local field"][box].float()
        sd = (
            volumes["field sd"][box].float()
            if "field sd" in volumes
            else torch.full_like(local, noise_level(local, mask))
        )
        found["data_consistency"] = data_consistency(chi, local, sd, mask, padded)
    return found


def _read(path: Path, name: str) -> tuple[Tensor, Any]:
    """The volume in float64, and its affine."""
    try:
        image: Any = nib.load(path)
        return torch.from_numpy(np.asarray(image.dataobj, dtype=np.float64).squeeze()), image.affine
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
        raise ChironError("X002", f"no readable {name}", "a NIfTI file") from None
