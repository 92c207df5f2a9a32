"""A simulated scan -> what CycleQSM is like: without its parts, with steps of fitting, tilted, in strange scans.

Numbers for the page on CycleQSM, beyond its accuracy on the grid.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from scipy import ndimage
from torch import Tensor

from flows.grid.cells import Anatomy, Cell, scan, simulate
from flows.grid.score import Numbers, field_of, finite
from models.dipole import Dipole
from models.gre import Simulation
from models.head import Head
from pipeline.device import pick_device
from pipeline.invert import PADDING, invert
from pipeline.quality.accuracy import dilated, nrmse, slope, xsim
from pipeline.quality.plausibility import data_consistency
from pipeline.quality.stage import REGIONS
from pipeline.settings import Settings
from pipeline.volumes import Field

VARIANTS: dict[str, dict[str, Any]] = {
    "seed": {"preset": "seed"},
    "full": {},
    "without data consistency": {"consistency": False},
    "eight mirror images": {"views": 8},
    "refined by 10 steps": {"refine": 10},
    "refined by 30 steps": {"refine": 30},
}
TILTS = (0, 20, 40)  # degrees
FACTORS = (-1.0, 0.5, 2.0)
LARGE = {"voxel_mm": (2.0, 2.0, 2.0), "oversample": (2, 2, 2)}
STRANGE: dict[str, dict[str, Any]] = {  # scans unlike those that were learned from
    "4 mm": {"voxel_mm": (4.0, 4.0, 4.0), "oversample": (4, 4, 4)},
    "2 x 2 x 6 mm": {"voxel_mm": (2.0, 2.0, 6.0), "oversample": (2, 2, 6)},
    "SNR 6": {**LARGE, "snr": 6.0},
    "B0 between all axes": {**LARGE, "b0_dir": (1.0, 1.0, 1.0)},
    "haemorrhage": {**LARGE, "lesions": ("haemorrhage",)},
    "haemorrhage and calcification, 7 T": {**LARGE, "b0_tesla": 7.0, "lesions": ("haemorrhage", "calcification")},
}
VEIN, VEINS = 11, 5  # the label of veins, and how many of the largest are looked at


def looks(
    scanned: Simulation, cell: Cell, anatomy: Anatomy, head: Head, settings: Settings
) -> Iterator[tuple[str, Numbers]]:
    """Rows of the tables `variants` and, where the cell's B0 is along its voxels, `tilts`, `scaled` and `strange`
    (other scans of the same anatomy): each with its table's name. `head` is on the finer voxels of the cell.
    """
    field = _field(scanned, cell, settings)
    for name, how in VARIANTS.items():
        yield "variants", {"variant": name, **_row(scanned, field, "cyclegan", replace(settings.cyclegan, **how))}
    if cell.b0_dir[:2] != (0.0, 0.0):
        return
    for degrees in TILTS:
        tilt = math.radians(degrees)
        turned = replace(cell, b0_dir=(math.sin(tilt), 0.0, math.cos(tilt)))
        tilted = scan(turned, anatomy, head)
        for method in ("tv", "cyclegan"):
            row = _row(tilted, _field(tilted, turned, settings), method, getattr(settings, method))
            yield "tilts", {"method": method, "tilt_deg": degrees, **row}
    yield from (("scaled", row) for row in scaled(field, settings))
    yield from (("strange", row) for row in strange(anatomy, settings))


def scaled(field: Field, settings: Settings) -> Iterator[Numbers]:
    """How far the map of a field times a number, noise and all, is from the map times that number, over its size."""
    alone = invert(field, "cyclegan", settings.cyclegan).ppm
    for factor in FACTORS:
        other = replace(field, ppm=factor * field.ppm, sd_ppm=abs(factor) * field.sd_ppm)
        made = invert(other, "cyclegan", settings.cyclegan).ppm / factor
        yield {"factor": factor, "departs_percent": 100 * float((made - alone).norm() / alone.norm())}


def strange(anatomy: Anatomy, settings: Settings) -> Iterator[Numbers]:
    """What CycleQSM makes of scans that training never saw, beside TV, and whether it says so."""
    for name, how in STRANGE.items():
        cell = Cell(**how)
        other = simulate(cell, anatomy)
        field = _field(other, cell, settings)
        scores, said = {}, {}
        for method in ("tv", "cyclegan"):
            found = invert(field, method, getattr(settings, method))
            scores[method] = nrmse(found.ppm.cpu(), other.head.chi_ppm, field.mask.cpu())
            said = found.facts.get("unlearned", {})
        yield {"case": name, **finite(scores), "flagged": ", ".join(said) or "no"}


def _field(scanned: Simulation, cell: Cell, settings: Settings) -> Field:
    return field_of(scanned, cell.snr, pick_device(settings.device))


def _row(scanned: Simulation, field: Field, method: str, params: Any) -> Numbers:
    began = time.perf_counter()
    chi = invert(field, method, params).ppm
    seconds = time.perf_counter() - began
    dipole = Dipole(chi.shape, scanned.voxel_size_mm, scanned.b0_dir, padding=PADDING, device=chi.device)
    misfit = data_consistency(chi, field.ppm, field.sd_ppm, field.mask, dipole)
    inside, labels = field.mask.cpu(), scanned.head.labels
    x, y = (torch.where(inside, v - v[inside].mean(), 0) for v in (chi.cpu(), scanned.head.chi_ppm))
    return finite(
        {
            "nrmse": nrmse(x, y, inside),
            "xsim": xsim(x, y, inside),
            "dgm_slope": slope(x, y, inside, labels, REGIONS["dgm"]),
            "vein_slope": vein_slope(x, y, inside, labels),
            "misfit": misfit,
            "seconds": seconds,
        }
    )


def vein_slope(chi: Tensor, truth: Tensor, mask: Tensor, labels: Tensor) -> float:
    """The contrast of the largest veins to what is around them, over the true one, all veins together."""
    parts, count = ndimage.label(((labels == VEIN) & mask).numpy(), torch.ones(3, 3, 3).numpy())
    if not count:
        return math.nan
    sizes = torch.bincount(torch.from_numpy(parts).flatten().long())
    sizes[0] = 0
    found = true = 0.0
    for part in sizes.argsort(descending=True)[:VEINS].tolist():
        vein = torch.from_numpy(parts == part)
        around = dilated(dilated(vein)) & mask & (labels != VEIN)
        if not part or not bool(vein.any()) or not bool(around.any()):
            continue
        found += float(vein.sum() * (chi[vein].mean() - chi[around].mean()))
        true += float(vein.sum() * (truth[vein].mean() - truth[around].mean()))
    return found / true if true else math.nan
