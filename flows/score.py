"""A susceptibility map, the truth and a mask as NIfTI files -> every metric of accuracy, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ChironError
from pipeline.quality import evaluate


def score(chi: Path, truth: Path, mask: Path, labels: Path | None = None) -> dict[str, float]:
    """Compare voxel by voxel, inside the mask, in ppm; X002 where a file is unreadable, E011 where shapes differ."""
    given = {"map": chi, "truth": truth, "mask": mask} | ({"labels": labels} if labels else {})
    volumes = {name: _read(path, name) for name, path in given.items()}
    for name, volume in volumes.items():
        if volume.shape != volumes["map"].shape:
            raise ChironError("E011", f"{name} of shape {tuple(volume.shape)}", f"{tuple(volumes['map'].shape)}")
    if not bool((volumes["mask"] > 0.5).any()):
        raise ChironError("P007", "an empty mask", "a mask of where to compare")
    codes = volumes["labels"].round().int() if labels else None
    return evaluate(volumes["map"], volumes["truth"], volumes["mask"] > 0.5, codes)


def _read(path: Path, name: str) -> Tensor:
    try:
        image: Any = nib.load(path)
        return torch.from_numpy(np.asarray(image.dataobj, dtype=np.float64).squeeze())
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
        raise ChironError("X002", f"no readable {name}", "a NIfTI file") from None
