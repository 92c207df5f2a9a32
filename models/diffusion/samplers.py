"""A prior and a measurement -> a sample of the maps that both allow: three samplers of one signature.

All walk down the levels sigma. `z` is x_t / alpha_t of the variance-preserving process, so that z = x_0 + sigma n: the
same walk without its scale. `prior(z, sigma)` is the mean of x_0; volumes are (X, Y, Z) in units of `SCALE_PPM`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.diffusion.measured import Measured
from models.diffusion.params import Diffusion

Prior = Callable[[Tensor, float], Tensor]
Draw = Callable[[], Tensor]
Tell = Callable[[int, Tensor], None]


def diffpir(
    prior: Prior, measured: Measured, z: Tensor, levels: Sequence[float], params: Diffusion, draw: Draw, tell: Tell
) -> Tensor:
    """Mean of the prior, then the map nearest to it that fits (Zhu 2023, arXiv 2305.08995, algorithm 1)."""
    x = z
    for step, (sigma, after) in enumerate(_pairs(levels)):
        mean = prior(z, sigma)
        trust = params.strength * (1 + sigma**2) / sigma**2  # of a signal of unit size
        x = measured.nearest(mean, trust, params.iterations)
        z = x + after * params.temperature * _mixed((z - x) / sigma, params.churn, draw)
        tell(step, x)
    return x


def dds(
    prior: Prior, measured: Measured, z: Tensor, levels: Sequence[float], params: Diffusion, draw: Draw, tell: Tell
) -> Tensor:
    """Mean of the prior, then some steps of CG from it, the noise left as the prior found it (Chung 2024,
    arXiv 2303.05754, algorithm 2)."""
    x = z
    for step, (sigma, after) in enumerate(_pairs(levels)):
        mean = prior(z, sigma)
        x = measured.nearest(mean, params.gamma, params.iterations)
        z = x + after * params.temperature * _mixed((z - mean) / sigma, params.churn, draw)
        tell(step, x)
    return x


def dps(
    prior: Prior, measured: Measured, z: Tensor, levels: Sequence[float], params: Diffusion, draw: Draw, tell: Tell
) -> Tensor:
    """A step of the free process, then one down the slope of the misfit through the network (Chung 2023,
    arXiv 2209.14687, algorithm 1; the seed's way).

    There the step is xi times the slope of the *norm* of the residual, whose size depends on the number of voxels and
    the units. Here the step down that slope is as long (root mean square) as `xi` times what the residual has above
    the noise: of a map that is measured directly, xi = 1 would make up for all of it.
    """
    mean = z
    for step, (sigma, after) in enumerate(_pairs(levels)):
        given = z.detach().requires_grad_()
        mean = prior(given, sigma)
        residual = measured.residual(mean)
        (slope,) = torch.autograd.grad(residual.norm(), given)
        mean, slope = mean.detach(), slope * measured.inside
        excess = (residual.detach().square().sum() / (measured.weight > 0).sum() - 1).clamp_min(0).sqrt()
        typical = measured.weight.square().sum() / (measured.weight > 0).sum()
        length = params.xi * excess / typical.sqrt()
        variance = after**2 * (1 - after**2 / sigma**2)  # of the ancestral step
        z = mean + (after**2 / sigma**2) * (z - mean) + variance**0.5 * draw() * measured.inside
        z = z - length * slope / slope[measured.inside].square().mean().sqrt().clamp_min(1e-12)
        tell(step, mean)
    return mean


SAMPLERS: dict[str, Callable[..., Tensor]] = {"diffpir": diffpir, "dds": dds, "dps": dps}


def _pairs(levels: Sequence[float]) -> list[tuple[float, float]]:
    """Each level with the one after it, the last with 0."""
    return list(zip(levels, [*levels[1:], 0.0], strict=True))


def _mixed(noise: Tensor, churn: float, draw: Draw) -> Tensor:
    """The noise with `churn` of its variance drawn anew."""
    if not churn:
        return noise
    mixed: Tensor = (1 - churn) ** 0.5 * noise + churn**0.5 * draw()
    return mixed
