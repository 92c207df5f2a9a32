"""R2* and mask -> the fluid of the ventricles; a susceptibility map -> the same map referenced to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from models.params import param
from pipeline.errors import ChironError
from pipeline.volumes import Grid


@dataclass(frozen=True)
class Reference:
    """What a susceptibility of zero means."""

    region: Literal["mean", "csf"] = param("mean", "mean of the final mask, or csf: the fluid of the ventricles")
    csf_r2star: float = param(5.0, "R2* in 1/s, without its noise, below which a voxel is fluid", 1, 20)
    csf_radius_mm: float = param(30.0, "distance from the middle of the mask within which fluid is sought", 10, 60)


CLEAR = 2  # standard deviations that lie between the limit of fluid and the middle of tissue
SMALLEST_ML = 0.5  # the ventricles of a young adult hold 7 to 20 ml
MAIN_SHARE = 0.2  # pieces this large beside the largest one belong to the ventricles too


def csf_mask(r2star: Tensor, mask: Tensor, grid: Grid, noise: float = 0.0, params: Reference = Reference()) -> Tensor:
    """The ventricles (bool): connected fluid of slow decay near the middle of `mask`, in the manner of MEDI+0.

    Liu 2018, doi 10.1002/mrm.26946. `r2star` and its standard deviation `noise` are in 1/s. Raises P009 where R2* is
    too noisy to tell fluid from tissue, or where there is too little fluid.
    """
    if not bool(mask.any()):
        raise ChironError("P009", "an empty mask", "a brain")
    limit, tissue = params.csf_r2star + noise, float(r2star[mask].median())
    if not limit + CLEAR * noise < tissue:
        raise ChironError("P009", f"R2* of {tissue:.0f} +- {noise:.0f} 1/s in tissue", f"well above {limit:.0f} 1/s")
    where = mask.cpu().numpy()
    size = np.asarray(grid.voxel_size_mm)
    middle = np.argwhere(where).mean(0)
    axes = [(np.arange(n) - c) * s for n, c, s in zip(where.shape, middle, size, strict=True)]
    near = sum(a**2 for a in np.ix_(*axes)) < params.csf_radius_mm**2
    fluid = where & near & (r2star.cpu().numpy() < limit)
    pieces, count = ndimage.label(fluid)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    volume_ml = float(sizes.max()) * float(size.prod()) / 1000
    if volume_ml < SMALLEST_ML:
        raise ChironError("P009", f"{volume_ml:.1f} ml of fluid in the middle of the brain", f"over {SMALLEST_ML} ml")
    return torch.from_numpy(np.isin(pieces, np.flatnonzero(sizes >= MAIN_SHARE * sizes.max()))).to(mask.device)


def refer_to_csf(chi: Tensor, mask: Tensor, csf: Tensor, mean_ppm: float) -> tuple[Tensor, dict[str, Any]]:
    """Chi minus its mean in `csf`, zero outside `mask`; and the mean and SD there before any mean was taken off.

    `mean_ppm` is what was taken off already.
    """
    inside = chi[csf & mask]
    if not inside.numel():
        raise ChironError("P009", "fluid that background removal cut away", "ventricles in the final mask")
    facts = {
        "region": "cerebrospinal fluid of the ventricles",
        "mean_ppm": float(inside.mean()) + mean_ppm,
        "sd_ppm": float(inside.std()) if inside.numel() > 1 else 0.0,
        "voxels": int(inside.numel()),
    }
    return torch.where(mask, chi - inside.mean(), 0), facts
