"""The network: any size comes out as it went in, and a last layer of zeros makes it a correction of nothing."""

from __future__ import annotations

import pytest
import torch

from models.unet import UNet


@pytest.mark.parametrize("channels", [(3,), (4, 6), (2, 4, 8)])
@pytest.mark.parametrize("shape", [(7, 9, 11), (8, 8, 8), (13, 6, 5)])
def test_any_size_comes_out_as_it_went_in(shape: tuple[int, int, int], channels: tuple[int, ...]) -> None:
    network = UNet(2, channels)
    out = network(torch.randn((2, 2, *shape), generator=torch.Generator().manual_seed(0))).detach()
    assert out.shape == (2, 1, *shape)
    assert bool(torch.isfinite(out).all()) and float(out.abs().max()) > 0


def test_a_last_layer_of_zeros_gives_zero_and_still_learns() -> None:
    network = UNet(3, (4, 8), zero_last=True)
    out = network(torch.randn((1, 3, 9, 7, 5)))
    assert not bool(out.any())
    (out - 1).square().sum().backward()
    slope = network.last.weight.grad
    assert slope is not None and bool(slope.any())


def test_a_seed_makes_one_network() -> None:
    def output(seed: int) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            out: torch.Tensor = UNet(1, (2, 4))(torch.ones((1, 1, 6, 7, 5)) * torch.arange(5.0))
            return out

    assert torch.equal(output(1), output(1)) and not torch.equal(output(1), output(2))
