"""Echoes -> the brain by deepbet, a network that is installed only where it is wanted."""

from __future__ import annotations

import warnings
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ChironError
from pipeline.volumes import Echoes


def deepbet(echoes: Echoes) -> Tensor:
    """The mask (bool, X, Y, Z) that deepbet (Fisch 2024, doi 10.1016/j.compbiomed.2024.108845) finds in the first echo.

    It is trained on T1-weighted images and takes the fluid around the brain in. X003 where it is not installed, P007
    where it finds no brain.
    """
    image = nib.Nifti1Image(echoes.magnitude[0].cpu().numpy(), np.asarray(echoes.grid.affine))
    network = _load()(no_gpu=echoes.magnitude.device.type != "cuda")
    try:
        _, found, _ = network.run(image)
    except (AssertionError, ValueError):  # its bounding box of nothing
        raise ChironError("P007", "no brain that deepbet knows", "a head with signal") from None
    return torch.from_numpy(np.asarray(found.dataobj) > 0).to(echoes.magnitude.device)


def _load() -> Any:
    """deepbet's class, whose weights come with it; it reads them by a call that torch is giving up."""
    try:
        from deepbet import BrainExtraction
    except ImportError as error:
        raise ChironError("X003", f"mask.method = deepbet without its package ({error.name})", "it installed") from None

    def quiet(**options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return BrainExtraction(**options)

    return quiet
