"""One fit of a network to one scan: the weights it begins with, and what a step does to them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from models import weights
from models.dip.features import untrained
from models.dip.loss import Loss
from models.dip.params import DIP
from models.generator import VIEWS, Generator
from models.half import half
from models.seen import BEYOND, Given
from models.unet import FoldedUNet, UNet

RELIEF_STEPS = 25  # from one look for the map's edges to the next
WARM_STEPS = 10  # over which the learning rate rises, while Adam knows the size of the slopes only by a few


class Fitting:
    """A network with all that its fit needs. `seen` are the features of an educated network, None for another.

    An educated one sees another mirror image of the scan at each step, for it learned from all of them.
    `doubt` (X, Y, Z) is the standard deviation in ppm that an educated network gives to its map, or None.
    """

    def __init__(self, given: Given, start: Tensor, seen: Tensor | None, params: DIP) -> None:
        self.params, self.start, self.done = params, start, 0
        self.random = torch.Generator().manual_seed(params.seed)
        z = untrained(given, start, params, self.random) if seen is None else seen
        self.z = z.to(memory_format=torch.channels_last_3d)
        device = given.field.device
        network = _network(z.shape[1], params).to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        in_half = half(params.precision, device)
        if seen is None:
            self.views, self.doubt = VIEWS[:1], None
            self.generator = Generator(network, start, given.mask, in_half)
        else:
            beyond = torch.tensor(BEYOND, device=device)
            self.views = VIEWS
            self.generator = Generator(network, start, given.mask, in_half, params.tile, beyond)
            self.doubt = self.generator.answer(self.z)[1]
        self.loss = Loss(given.field, given.weight, given.dipole, params)
        betas = (0.5, 0.999) if params.preset == "seed" else (0.9, 0.99)
        self.optimiser = torch.optim.Adam(network.parameters(), lr=params.rate, betas=betas)

    def output(self) -> Tensor:
        """The map (X, Y, Z) in ppm as it is now, the mean of all views of an educated network."""
        return self.generator.answer(self.z, self.views)[0]

    def step(self, mean: Tensor) -> tuple[Tensor, float, float]:
        """Chi (X, Y, Z) before the step, its loss and misfit; edges are relieved where the `mean` so far has them."""
        if self.done % RELIEF_STEPS == 0:
            self.loss.relieve(mean)
        if self.params.preset != "seed":
            for group in self.optimiser.param_groups:
                group["lr"] = self.params.rate * min(1.0, (self.done + 1) / WARM_STEPS)
        z = self.z
        if self.params.jitter:
            z = z + self.params.jitter * torch.randn(z.shape, generator=self.random).to(z)
        self.optimiser.zero_grad(set_to_none=True)
        view = self.views[(self.params.seed + self.done) % len(self.views)]
        found = self.generator.descend(z, self.loss, view)
        self.optimiser.step()
        self.done += 1
        return found


def _network(inputs: int, params: DIP) -> nn.Module:
    """The network with the weights that a fit begins with."""
    if params.network == "educated":
        tensors, card = learned()
        network = FoldedUNet(card["inputs"], card["channels"], card["outputs"])
        network.load_state_dict(tensors)
        return network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        return UNet(inputs, params.channels, zero_last=params.start != "zero")


@cache
def learned() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The shipped weights and their card."""
    return weights.load("dip")
