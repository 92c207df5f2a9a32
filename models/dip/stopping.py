"""The course of a fit: when it is to stop, why, and which output is the one to take."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import torch
from torch import Tensor

from models.dip.params import DIP

SAMPLE = 50_000  # voxels that the variance is taken of


class Stopping:
    """Watches misfit and output of each step; says when to stop and why, and keeps the output of the quietest step.

    A network takes up structure sooner than noise: the fit ends when the misfit has come down to the noise
    (discrepancy principle), or when the output has been at its quietest and begins to wander (Wang 2021,
    arXiv 2112.06074), or at the limits of time and steps.
    """

    def __init__(self, params: DIP, began: float) -> None:
        self.params, self.began = params, began
        self.loss: list[float] = []
        self.misfit: list[float] = []
        self.variance: list[float | None] = []
        self.window: deque[Tensor] = deque(maxlen=params.window)
        self.quietest: tuple[float, int, Tensor] | None = None
        self.reason = f"all {params.iterations} steps done"
        self.chosen: int | None = None

    def after(self, loss: float, misfit: float, output: Tensor, inside: Tensor) -> bool:
        """Whether to stop after this step, whose output that is."""
        self.loss.append(loss)
        self.misfit.append(misfit)
        self._watch(output, inside)
        step, params = len(self.loss), self.params
        if not math.isfinite(loss):
            self.reason = "diverged: the loss is not finite"
        elif misfit <= params.discrepancy < self.misfit[0]:
            self.reason = f"the misfit has come down to the noise ({misfit:.2f})"
        elif self.quietest and step - self.quietest[1] >= params.patience:
            self.chosen = self.quietest[1]
            self.reason = f"the output was quietest at step {self.chosen} and wanders since"
        elif params.seconds and time.monotonic() - self.began > params.seconds:
            self.reason = f"the time limit of {params.seconds:g} s"
        else:
            return False
        return True

    @property
    def finite(self) -> bool:
        return not self.loss or math.isfinite(self.loss[-1])

    def best(self, last: Tensor) -> Tensor:
        """The output at the step that was chosen."""
        return self.quietest[2] if self.chosen is not None and self.quietest else last

    def facts(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "misfit": self.misfit,
            "variance": self.variance,
            "stopped_at": self.chosen if self.chosen is not None else len(self.loss),
            "stop_reason": self.reason,
        }

    def _watch(self, output: Tensor, inside: Tensor) -> None:
        """Variance over the window of a sample of the output's voxels; the output where it is smallest is kept."""
        values = output[inside]
        self.window.append(values[:: max(1, values.numel() // SAMPLE)].clone())
        if len(self.window) < self.params.window:
            self.variance.append(None)
            return
        variance = float(torch.stack(list(self.window)).var(0).mean())
        self.variance.append(variance)
        if self.quietest is None or variance < self.quietest[0]:
            self.quietest = (variance, len(self.loss), output.clone())
