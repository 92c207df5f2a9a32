"""A measurement and its noise -> susceptibility by a diffusion prior: DM-QSM, one prior for three tasks.

A score-based generative model of susceptibility (Song 2021, arXiv 2011.13456), learned from simulated heads and shapes
without any field, is sampled under the guidance of what was measured: the local field (DipInv), a coarser map (SR), or
the one after the other (SR-DipInv). Orientation, voxel size and task enter by the operator alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models import classical
from models.diffusion.measured import Measured, doubted, of_coarse, of_coarse_field, of_field
from models.diffusion.params import Diffusion
from models.diffusion.patches import Patches
from models.diffusion.prior import Denoiser, learned
from models.diffusion.process import LARGEST, SCALE_PPM, levels
from models.diffusion.samplers import SAMPLERS
from models.dipole import Dipole
from models.found import Found
from models.half import half

__all__ = [
    "Diffusion",
    "Found",
    "doubted",
    "learned",
    "needed_bytes",
    "of_coarse",
    "of_coarse_field",
    "of_field",
    "reconstruct",
    "sample",
]

Progress = Callable[[float, str], None]
AT_ONCE = 250_000  # voxels that the network is given at once, if these are several patches
# Measured of evaluations of 48^3 to 120^3 voxels on a CPU: 140 to 350 bytes a voxel, with the way back 230 to 940.
BYTES_PER_VOXEL, BYTES_PER_VOXEL_BACK = 350, 900
WHOLE_BYTES_PER_VOXEL = 250  # of the volume itself: field, maps, samples, their transforms; 100 to 200 were measured


def reconstruct(
    field: Tensor,
    weight: Tensor,
    dipole: Dipole,
    params: Diffusion,
    progress: Progress = lambda share, word: None,
) -> Found:
    """Dipole inversion; arguments as for the methods in `classical`. The same seed and device give the same map."""
    start = None if params.start == "noise" else STARTS[params.start](field, weight, dipole)
    return sample(of_field(field, doubted(field, weight, params.slope), dipole), start, params, progress)


STARTS: dict[str, Callable[[Tensor, Tensor, Dipole], Tensor]] = {
    "tkd": lambda f, w, d: classical.tkd(f, w, d, classical.TKD()),
    "rts": lambda f, w, d: classical.rts(f, w, d, classical.RTS()),
    "tv": lambda f, w, d: classical.tv(f, w, d, classical.TV()),
}


def sample(
    measured: Measured,
    start_ppm: Tensor | None,
    params: Diffusion,
    progress: Progress = lambda share, word: None,
) -> Found:
    """The mean of some samples of what prior and measurement allow, from a map (X, Y, Z) that is noised, or noise."""
    began = time.monotonic()
    first = LARGEST if start_ppm is None else params.first_ppm / SCALE_PPM
    sigmas = levels(params.steps, first, params.last_ppm / SCALE_PPM)
    inside = measured.inside
    centre = _centred(start_ppm, inside) / SCALE_PPM if start_ppm is not None else torch.zeros(inside.shape)
    walk = Walk(params, inside)
    maps: list[Tensor] = []
    runs: list[dict[str, Any]] = []
    for number in range(params.samples):
        one = replace(params, seed=params.seed + number)
        said = lambda share, word, n=number: progress(  # noqa: E731
            (n + share) / params.samples, f"sample {n + 1} of {params.samples}, {word}"
        )
        found, run = _sample(walk, measured, centre, sigmas, one, said, began)
        if maps and len(run["misfit"]) < params.steps:
            break  # cut short, unlike those before it
        maps.append(found * SCALE_PPM)
        runs.append(run)
        if _over(params, began):
            break
    stack = torch.stack(maps)
    facts = {
        "sampler": params.sampler,
        "samples": len(maps),
        "network_evaluations": walk.done,
        "first_sigma_ppm": first * SCALE_PPM,
        "runs": runs,
        "last_misfit": sum(run["misfit"][-1] for run in runs) / len(runs),
        "out_of_time": sum(len(run["misfit"]) for run in runs) < params.samples * params.steps,
        "weights": walk.card["sha256"],
        "seconds": round(time.monotonic() - began, 2),
    }
    return Found(stack.mean(0), facts, stack.std(0) if len(maps) > 1 else None)


def _sample(
    walk: Walk,
    measured: Measured,
    centre: Tensor,
    sigmas: list[float],
    params: Diffusion,
    progress: Progress,
    began: float,
) -> tuple[Tensor, dict[str, Any]]:
    """One sample in units, or what it has come to when the time is over; its seed and its misfit at each step."""
    random, inside, walk.step = torch.Generator().manual_seed(params.seed), measured.inside, 0
    curve: list[float] = []

    def draw() -> Tensor:
        return inside * torch.randn(inside.shape, generator=random).to(inside.device)

    def tell(step: int, x: Tensor) -> None:
        curve.append(measured.misfit(x))
        progress((step + 1) / len(sigmas), f"step {step + 1}, misfit {curve[-1]:.2f}")
        if step + 1 < len(sigmas) and _over(params, began):
            raise _OutOfTimeError(x)

    z = centre.to(inside.device) + sigmas[0] * draw()
    try:
        found = SAMPLERS[params.sampler](walk, measured, z, sigmas, params, draw, tell)
    except _OutOfTimeError as stopped:
        found = stopped.x
    return _centred(found, inside), {"seed": params.seed, "misfit": curve}


class _OutOfTimeError(Exception):
    """Sampling has to end; `x` is the map that it has come to."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


def _over(params: Diffusion, began: float) -> bool:
    return bool(params.seconds) and time.monotonic() - began > params.seconds


def needed_bytes(shape: Sequence[int], params: Diffusion) -> int:
    """An upper estimate of what sampling takes."""
    at_once = max(AT_ONCE, params.patch**3) if params.patch else prod(shape)
    per_voxel = BYTES_PER_VOXEL_BACK if params.sampler == "dps" else BYTES_PER_VOXEL
    return min(prod(shape), at_once) * per_voxel + prod(shape) * WHOLE_BYTES_PER_VOXEL


class Walk:
    """The prior as the samplers call it: the mean of x_0 given z and sigma, patch by patch, mirrored from step to step.

    The mean of chi over the mask is 0, for the measurement does not tell it.
    """

    def __init__(self, params: Diffusion, inside: Tensor) -> None:
        tensors, self.card = learned()
        self.params, self.inside = params, inside
        self.step = self.done = 0  # of the sample, of all
        self.half = half(params.precision, inside.device)
        self.network = Denoiser(tuple(self.card["channels"])).to(inside.device)
        self.network.load_state_dict(tensors)
        self.network.eval().requires_grad_(False)
        self.patches = Patches(params.patch, params.overlap)

    def __call__(self, z: Tensor, sigma: float) -> Tensor:
        mirrored = [axis for axis in range(3) if self.step >> axis & 1]
        shift = [0, 0, 0]
        if self.params.shifting and self.patches.room and not self.patches.whole(z.shape):
            shift = [(self.step * pace) % self.patches.room for pace in (3, 5, 7)]
        self.step += 1
        self.done += 1
        at = torch.tensor([sigma], device=z.device)

        def work(some: Tensor, within: Tensor) -> Tensor:
            with torch.autocast(some.device.type, torch.bfloat16, enabled=self.half):
                out: Tensor = self.network(some, at.expand(len(some)), within)
            return out

        def again(*given: Tensor) -> Tensor:
            """The same, kept in mind for the way back by its inputs alone: else all patches would be there at once."""
            out: Tensor = checkpoint(work, *given, use_reentrant=False)
            return out

        edge = self.params.patch or max(z.shape)
        at_once = max(1, AT_ONCE // edge**3)
        parts = [v.flip(mirrored) for v in (z * self.inside, self.inside)]
        mean = self.patches.blend(parts, again if z.requires_grad else work, at_once, shift).flip(mirrored)
        return _centred(mean, self.inside)


def _centred(chi: Tensor, inside: Tensor) -> Tensor:
    return torch.where(inside, chi - chi[inside].mean(), 0)
