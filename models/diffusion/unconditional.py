"""The prior alone -> samples of what it holds for susceptibility, from pure noise and without any measurement."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.diffusion.process import LARGEST, levels

SMALLEST = 0.02  # noise over signal of the last evaluation


def unconditional(denoiser: nn.Module, count: int, edge: int, steps: int, device: torch.device, seed: int) -> Tensor:
    """Cubes (count, edge, edge, edge) in units of `SCALE_PPM`, wholly inside the brain: the ancestral sampler of
    Song 2021 (arXiv 2011.13456, appendix F) on z = x_0 + sigma n."""
    random = torch.Generator().manual_seed(seed)
    shape = (count, edge, edge, edge)

    def draw() -> Tensor:
        return torch.randn(shape, generator=random).to(device)

    inside = torch.ones(shape, dtype=torch.bool, device=device)
    z = LARGEST * draw()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for sigma, after in pairwise([*levels(steps, LARGEST, SMALLEST), 0.0]):
            mean: Tensor = denoiser(z, torch.full((count,), sigma, device=device), inside)
            kept = (after / sigma) ** 2
            z = mean + kept * (z - mean) + after * (1 - kept) ** 0.5 * draw()
    return z
