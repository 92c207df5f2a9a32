"""Examples with known maps that are never learned from -> how good the generator is on them, over the classical map."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.cyclegan.crops import Crop, Example, cut
from models.cyclegan.form import Form
from models.cyclegan.training import MARGIN, made

CROPS = 2  # of each example
AT_ONCE = 4


class Held:
    """Crops as they are: the same whenever they are looked at."""

    def __init__(self, examples: Iterable[Example], form: Form, crops: int = CROPS) -> None:
        draw = random.Random(5)
        self.form = form
        all_cut = [cut(one, form, draw, as_it_is=True) for one in examples for _ in range(crops)]
        self.crops = [replace(crop, known=False) for crop in all_cut]  # so that what is left of the field is made

    @torch.no_grad()
    def found(self, network: nn.Module, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Of each crop the network's map in ppm and what it leaves of the field, on the CPU."""
        pairs = []
        for first in range(0, len(self.crops), AT_ONCE):
            some = made(network, [crop.to(device) for crop in self.crops[first : first + AT_ONCE]], self.form)
            pairs += list(zip(some.chi.cpu(), some.left.cpu(), strict=True))
        return pairs

    def measured(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Root mean square error over that of tv, median and worst; slope on the true map, median; mean of the misfit
        over that of tv. Of the middle of the crops, without its mean."""
        rows = [_measured(c, *f) for c, f in zip(self.crops, self.found(network, device), strict=True)]
        errors, slopes, misfits = torch.tensor(rows).T
        return {
            "error_over_tv": float(errors.quantile(0.5)),
            "worst_over_tv": float(errors.max()),
            "slope": float(slopes.quantile(0.5)),
            "misfit_over_tv": float(misfits.mean()),
        }


def _measured(crop: Crop, chi: Tensor, left: Tensor) -> tuple[float, float, float]:
    inner = (slice(MARGIN, -MARGIN),) * 3
    valid = crop.mask[inner]
    found, base, true = (_centred(v[inner][valid]) for v in (chi, crop.base, crop.chi))
    after, before = ((crop.weight * v)[inner][valid] for v in (left, crop.left))
    error = float((found - true).norm() / (base - true).norm())
    return error, float(found @ true / true.square().sum()), float(after.norm() / before.norm())


def _centred(values: Tensor) -> Tensor:
    return values - values.mean()
