"""Facts of a scan's stages -> the JSON sidecar of each published image, from an allow-list.

What is not on the list is not written: no tag of the source, no date, no path can slip in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pipeline
from pipeline.volumes import GAMMA_MHZ_PER_T

RESEARCH_USE = "Research use only - not for diagnostic use"

ALLOWED = frozenset(
    {
        "Description",
        "Units",
        "HzPerPpm",
        "Sources",
        "SkullStripped",
        "Type",
        "MagnitudeCombination",
        "Method",
        "MethodParameters",
        "Seed",
        "ReferenceRegion",
        "Resolution",
        "SpatialReference",
        "BackgroundRemoval",
        "SlabThickness",
        "SlabAxis",
        "B0Direction",
        "EchoTimes",
        "MagneticFieldStrength",
        "ImagingFrequency",
        "GeneratedBy",
        "IntendedUse",
    }
)


def sidecar(convert: Mapping[str, Any], **own: Any) -> bytes:
    """The sidecar of one image: what all images of the scan share (from `convert`'s facts), and its `own` entries.

    `B0Direction` is in voxel axes, `EchoTimes` in seconds, `MagneticFieldStrength` is the nominal one in tesla,
    `ImagingFrequency` that of the B0 that was computed with, in MHz. Raises KeyError for an entry that is not on the
    allow-list.
    """
    entries = {
        **own,
        "B0Direction": convert["grid"]["b0_dir"],
        "EchoTimes": convert["echo_times_s"],
        "MagneticFieldStrength": convert.get("b0_nominal_tesla") or convert["b0_tesla"],
        "ImagingFrequency": hz_per_ppm(convert["b0_tesla"]),
        "GeneratedBy": [{"Name": "Chiron", "Version": pipeline.__version__}],
        "IntendedUse": RESEARCH_USE,
    }
    if not entries.keys() <= ALLOWED:
        raise KeyError(f"not on the sidecars' allow-list: {sorted(entries.keys() - ALLOWED)}")
    return as_json({name: value for name, value in entries.items() if value is not None})


def bids_uris(folder: str, names: Iterable[str]) -> list[str]:
    """BIDS URIs of files of this dataset, named relative to a session's folder."""
    return [f"bids::{folder}/{name}" for name in names]


def hz_per_ppm(b0_tesla: float) -> float:
    """Hz that one ppm of the field is at `b0_tesla`, which is the frequency of protons there in MHz."""
    return round(GAMMA_MHZ_PER_T * b0_tesla, 6)


def as_json(value: Any) -> bytes:
    """Strict JSON: a number that is not finite becomes null."""
    return (json.dumps(_finite(value), indent=2, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
