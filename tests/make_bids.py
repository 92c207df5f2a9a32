"""A folder and a name -> a small BIDS dataset of three echoes in it, magnitude and phase in radians."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from make_dicom import TIMES, signal


def bids(
    root: Path,
    names: str,
    strength: float | None = 3.0,
    *,
    scale: float = 1.0,
    suffix: str = "MEGRE",
    extension: str = ".nii.gz",
    described: bool = True,
    echoes: tuple[int, ...] = (1, 2, 3),
    parts: tuple[str, ...] = ("mag", "phase"),
    folder: str = "",
) -> None:
    """Images and sidecars of `names` (`sub-01_acq-x`): a magnitude `scale` times the usual, a phase that much less."""
    folder_of_images = root / (folder or f"{names.split('_')[0]}/anat")
    folder_of_images.mkdir(parents=True, exist_ok=True)
    if described:
        (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for e, (echo, time) in enumerate(zip(signal(), TIMES, strict=True), 1):
        for part, values in (("mag", scale * np.abs(echo)), ("phase", np.angle(echo) / scale)):
            if e not in echoes or part not in parts:
                continue
            stem = folder_of_images / f"{names}_echo-{e}_part-{part}_{suffix}"
            nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([1, 1.1, 2, 1])), f"{stem}{extension}")
            facts = {"EchoTime": time, **({"MagneticFieldStrength": strength} if strength else {})}
            Path(f"{stem}.json").write_text(json.dumps(facts | ({"Units": "rad"} if part == "phase" else {})))
