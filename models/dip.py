"""Local field and its noise -> susceptibility by Deep Image Prior: an untrained 3D network fitted to this one scan.

Ulyanov 2018 (arXiv 1711.10925) applied to the dipole inversion: the weights theta of a network G are found so that the
field of G(z) agrees with the measured one, min |W (D G_theta(z) - f)|^2 + strength |grad G|_1, z a fixed input. The
network takes up structure sooner than noise, so the fit is stopped when the misfit has come down to the noise, or when
the output is at its quietest and begins to wander (windowed variance, Wang 2021, arXiv 2112.06074).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from models import classical
from models.classical.calculus import steps
from models.dipole import Dipole
from models.params import param
from models.unet import UNet

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class DIP:
    """Deep Image Prior. The set-up of the method's first description is `input=noise start=zero strength=0`."""

    input: Literal["noise", "field"] = param(
        "noise", "what the network sees: fixed Gaussian noise, or the field and start"
    )
    start: Literal["zero", "tkd", "rts", "tv"] = param("tv", "map that the network's output is added to")
    channels: tuple[int, ...] = param((12, 24, 48), "width of the network's levels, finest first")
    inputs: int = param(8, "channels of the noise input", 1, 64)
    strength: float = param(
        20.0, "weight of the total variation in 1/ppm, against the misfit in units of noise", 0, 1e5
    )
    rate: float = param(0.003, "learning rate of Adam", 1e-6, 1)
    iterations: int = param(200, "steps at most", 1, 100000)
    jitter: float = param(0.03, "standard deviation of the noise added to the input at each step", 0, 1)
    average: float = param(0.9, "share of the running mean of the outputs that is kept at each step", 0, 0.999)
    discrepancy: float = param(1.0, "stop when the mean square misfit, in units of noise, has come down to this", 0, 10)
    window: int = param(20, "steps over which the variance of the output is watched", 2, 1000)
    patience: int = param(60, "stop when that variance has not fallen for so many steps", 1, 100000)
    seconds: float = param(0.0, "stop after so many seconds with the best so far; 0 never", 0, 1e6)
    seed: int = param(0, "of the weights, the input and the jitter", 0, 2**31)
    precision: Literal["auto", "float32", "bfloat16"] = param(
        "auto", "of convolutions; auto is bfloat16 where it is fast"
    )

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels = {self.channels}: one width of at least 1 for each level")


@dataclass(frozen=True)
class Found:
    """Chi (X, Y, Z) in ppm and how it came about: loss curve, misfit, where and why it stopped."""

    chi_ppm: Tensor
    facts: dict[str, Any]
    uncertainty_ppm: Tensor | None = None


SCALE_PPM = 0.05  # one unit of the network's output; about the spread of chi in the brain


def reconstruct(
    field: Tensor, weight: Tensor, dipole: Dipole, params: DIP, progress: Progress = lambda share, word: None
) -> Found:
    """Fit the network; arguments as for the methods in `classical`. The same seed and device give the same map.

    Where the loss ceases to be finite the result is not finite either: the caller decides what to put in its place.
    """
    began = time.monotonic()
    device, inside = field.device, weight > 0
    random = torch.Generator().manual_seed(params.seed)
    start = _start(field, weight, dipole, params)
    z = _input(field, weight, start, params, random).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        network = UNet(z.shape[1], params.channels, zero_last=params.start != "zero")
    network.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    z = z.to(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.Adam(network.parameters(), lr=params.rate, betas=(0.9, 0.99))
    stop = Stopping(params, began)
    mean = start.clone()
    chi = start
    voxels = float(inside.sum())
    for step in range(params.iterations):
        noise = params.jitter * torch.randn(z.shape, generator=random).to(z)
        with torch.autocast(device.type, torch.bfloat16, enabled=_half(params, device)):
            output = network(z + noise)[0, 0]
        chi = start + SCALE_PPM * output.float()
        misfit = (weight * (dipole.forward(chi) - field)).square().sum() / voxels
        loss = misfit / 2
        if params.strength:
            loss = loss + params.strength * variation(chi, dipole) / voxels
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        keep = min(params.average, step / (step + 10))
        mean = keep * mean + (1 - keep) * chi.detach()
        reason = stop.after(float(loss.detach()), float(misfit.detach()), mean, inside)
        progress((step + 1) / params.iterations, f"step {step + 1}, misfit {stop.misfit[-1]:.2f}")
        if reason:
            break
    return Found(stop.best(mean), stop.facts())


def variation(chi: Tensor, dipole: Dipole) -> Tensor:
    """Sum of |grad chi|_1 over all voxels, differences scaled to the mean voxel size as in `classical.tv`."""
    total = torch.zeros((), device=chi.device)
    for axis, size in enumerate(steps(dipole)):
        total = total + size * chi.diff(dim=axis).abs().sum()
    return total


class Stopping:
    """Watches misfit and output of each step; says when to stop and why, and keeps the output of the quietest step."""

    def __init__(self, params: DIP, began: float) -> None:
        self.params, self.began = params, began
        self.loss: list[float] = []
        self.misfit: list[float] = []
        self.variance: list[float | None] = []
        self.window: deque[Tensor] = deque(maxlen=params.window)
        self.quietest: tuple[float, int, Tensor] | None = None
        self.reason = f"all {params.iterations} steps done"

    def after(self, loss: float, misfit: float, output: Tensor, inside: Tensor) -> str | None:
        """The reason to stop after this step, or None."""
        self.loss.append(loss)
        self.misfit.append(misfit)
        self._watch(output, inside)
        step, params = len(self.loss), self.params
        if not torch.isfinite(torch.tensor(loss)):
            self.reason = "diverged: the loss is not finite"
        elif misfit <= params.discrepancy < self.misfit[0]:
            self.reason = f"the misfit has come down to the noise ({misfit:.2f})"
            self.quietest = None
        elif self.quietest and step - self.quietest[1] >= params.patience:
            self.reason = f"the output was quietest at step {self.quietest[1]} and wanders since"
        elif params.seconds and time.monotonic() - self.began > params.seconds:
            self.reason = f"the time limit of {params.seconds:g} s"
        else:
            return None
        return self.reason

    def best(self, last: Tensor) -> Tensor:
        """The output at the step that was chosen."""
        return self.quietest[2] if self.reason.startswith("the output was quietest") and self.quietest else last

    def facts(self) -> dict[str, Any]:
        at = self.quietest[1] if self.reason.startswith("the output was quietest") and self.quietest else len(self.loss)
        return {
            "loss": self.loss,
            "misfit": self.misfit,
            "variance": self.variance,
            "stopped_at": at,
            "stop_reason": self.reason,
            "seed": self.params.seed,
        }

    def _watch(self, output: Tensor, inside: Tensor) -> None:
        """Variance over the window of a sample of the output's voxels; the output where it is smallest is kept."""
        values = output[inside]
        self.window.append(values[:: max(1, values.numel() // 50_000)].clone())
        if len(self.window) < self.params.window:
            self.variance.append(None)
            return
        variance = float(torch.stack(list(self.window)).var(0).mean())
        self.variance.append(variance)
        if self.quietest is None or variance < self.quietest[0]:
            self.quietest = (variance, len(self.loss), output.clone())


def _start(field: Tensor, weight: Tensor, dipole: Dipole, params: DIP) -> Tensor:
    if params.start == "zero":
        return torch.zeros_like(field)
    method, defaults = {
        "tkd": (classical.tkd, classical.TKD()),
        "rts": (classical.rts, classical.RTS()),
        "tv": (classical.tv, classical.TV()),
    }[params.start]
    return method(field, weight, dipole, defaults)  # type: ignore[operator,no-any-return]


def _input(field: Tensor, weight: Tensor, start: Tensor, params: DIP, random: torch.Generator) -> Tensor:
    """What the network sees (1, C, X, Y, Z), of unit scale."""
    if params.input == "noise":
        return torch.randn((1, params.inputs, *field.shape), generator=random)
    parts = [field / field[weight > 0].std().clamp_min(1e-9), start / SCALE_PPM, weight / weight.max()]
    return torch.stack(parts)[None]


def _half(params: DIP, device: torch.device) -> bool:
    if params.precision != "auto":
        return params.precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    supported: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return supported()
