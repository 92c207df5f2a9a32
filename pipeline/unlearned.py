"""What the weights of a network were learned from, by their card, and a scan with its map -> where the scan departs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.volumes import Grid, bounding_box

BEYOND = 0.0005  # share of the mask: 0.0002 in simulated scans without a lesion, 0.0006 and more with a calcification
MISFIT = (0.3, 3.0)  # root mean square in units of the noise
TILT_TOLERANCE = 1.0  # degrees
# of a card that says what its network has seen
FIELDS = ("voxel_mm", "thickest_mm", "tilt_deg", "noise_ppm", "limit_ppm", "patch")


def unlearned(
    card: Mapping[str, Any], grid: Grid, chi_ppm: Tensor, mask: Tensor, misfit: float, noise_ppm: float = 0.0
) -> dict[str, Any]:
    """Facts: `unlearned`, sentences by what departs, and `unlearned_share`, that of voxels with values never learned.

    `grid` gives voxel size and direction of B0; `misfit` is the root mean square of what the map (X, Y, Z) leaves of
    the field, in units of its noise, and `noise_ppm` how large that typically is. A card says what its network has seen
    by any of `FIELDS`; where it has none of them nothing is known, and nothing is said.
    """
    if not any(name in card for name in FIELDS):
        return {}
    share = _share_beyond(card, chi_ppm, mask)
    said = {
        "voxels": _voxels(card, grid),
        "tilt": _tilt(card, grid),
        "noise": _noise(card, noise_ppm),
        "extent": _extent(card, mask),
        "values": _values(card, share),
    }
    if not MISFIT[0] <= misfit <= MISFIT[1]:
        said["misfit"] = f"the misfit to the field is {misfit:.2f} in units of its noise, where about 1 is expected"
    return {"unlearned": {what: text for what, text in said.items() if text}, "unlearned_share": share}


def _voxels(card: Mapping[str, Any], grid: Grid) -> str:
    """Voxels alike along each axis between two sizes; along one axis they may be thicker."""
    low, high = card.get("voxel_mm", (0.0, float("inf")))
    small, middle, large = sorted(grid.voxel_size_mm)
    thickest = card.get("thickest_mm", high)
    if low <= round(small, 2) and round(middle, 2) <= high and round(large, 2) <= thickest:
        return ""
    size = " x ".join(f"{v:.3g}" for v in grid.voxel_size_mm)
    return f"voxels of {size} mm, where {low:g} to {high:g} mm were learned, with slices of up to {thickest:g} mm"


def _tilt(card: Mapping[str, Any], grid: Grid) -> str:
    most = card.get("tilt_deg", 90.0)
    if grid.obliquity_deg <= most + TILT_TOLERANCE:
        return ""
    return f"B0 is {grid.obliquity_deg:.0f} degrees from the nearest axis of the voxels, where {most:g} were learned"


def _noise(card: Mapping[str, Any], noise_ppm: float) -> str:
    most = card.get("noise_ppm", float("inf"))
    if noise_ppm <= most:
        return ""
    return f"the field's noise is {noise_ppm:.2g} ppm, where up to {most:g} ppm were learned"


def _extent(card: Mapping[str, Any], mask: Tensor) -> str:
    sizes, least = [s.stop - s.start for s in bounding_box(mask, margin=0)], int(card.get("patch", 0))
    if min(sizes) >= least:
        return ""
    box = " x ".join(map(str, sizes))
    return f"a mask of {box} voxels, where the network has learned from no less than {least} along each axis"


def _share_beyond(card: Mapping[str, Any], chi_ppm: Tensor, mask: Tensor) -> float:
    inside = chi_ppm[mask]
    return float(((inside - inside.mean()).abs() > card.get("limit_ppm", float("inf"))).double().mean())


def _values(card: Mapping[str, Any], share: float) -> str:
    if share <= BEYOND:
        return ""
    limit = card["limit_ppm"]
    return f"{share:.2%} of the mask are beyond {limit:g} ppm, of which the network knows nothing: the field alone told"
