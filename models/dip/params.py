"""The parameters of Deep Image Prior, and the set-up of its first description for QSM as a preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from models.params import param, with_presets

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "untrained": {
        "network": "untrained",
        "input": "noise",
        "channels": (12, 24, 48),
        "strength": 40.0,
        "rate": 0.003,
        "iterations": 200,
        "discrepancy": 1.0,
        "window": 20,
        "patience": 60,
    },
    "seed": {  # github.com/9B8DY6/QSM-reconstruction: its code, which differs from its text
        "network": "untrained",
        "input": "field",
        "start": "zero",
        "channels": (16, 32, 64, 128),
        "data": "absolute",
        "gradient": 0.0,
        "strength": 0.0,
        "laplacian": 0.001,
        "rate": 0.001,
        "iterations": 500,
        "jitter": 0.0,
        "average": 0.0,
        "discrepancy": 0.0,
        "patience": 100000,
    },
}


@with_presets(PRESETS)
@dataclass(frozen=True)
class DIP:
    """Deep Image Prior: a network fitted to one scan, from weights learned on simulated heads or from random ones."""

    preset: Literal["default", "untrained", "seed"] = param(
        "default",
        "untrained: from random weights; seed: as the method's first code for QSM; it gives what is not set otherwise",
    )
    network: Literal["educated", "untrained"] = param(
        "educated", "weights to begin with: learned on simulated heads, or random"
    )
    input: Literal["noise", "field"] = param(
        "field", "what an untrained network sees: fixed Gaussian noise, or the field, its weight and the start"
    )
    start: Literal["zero", "tkd", "rts", "tv"] = param(
        "tv", "map that an untrained network's output is added to; an educated one corrects tv"
    )
    channels: tuple[int, ...] = param((32, 64, 96), "width of an untrained network's levels, finest first")
    inputs: int = param(8, "channels of the noise input", 1, 64)
    data: Literal["linear", "nonlinear", "absolute"] = param(
        "linear", "misfit: squared, of the phase (wraps and outliers count less), or its unweighted modulus in ppm"
    )
    radians_per_ppm: float = param(16.0, "phase of 1 ppm, for the nonlinear misfit; 16 is 20 ms at 3 T", 0.1, 200)
    gradient: float = param(0.0, "weight of the misfit of the field's differences against that of the field", 0, 100)
    strength: float = param(0.0, "weight of the total variation in 1/ppm, against the misfit in units of noise", 0, 1e5)
    edge_ppm: float = param(0.03, "a step of chi that counts half in the total variation; 0: all alike", 0, 10)
    laplacian: float = param(0.0, "weight of the modulus of chi's Laplacian over 26 neighbours", 0, 1e5)
    rate: float = param(0.00005, "learning rate of Adam", 1e-7, 1)
    iterations: int = param(30, "steps at most", 0, 100000)
    jitter: float = param(0.03, "standard deviation of the noise added to the input at each step", 0, 1)
    average: float = param(0.9, "share of the running mean of the outputs that is kept at each step", 0, 0.999)
    discrepancy: float = param(
        50.0, "misfit in units of noise, by its median, below which an educated map is left; ends a fit", 0, 1e6
    )
    window: int = param(10, "steps over which the variance of the output is watched", 2, 1000)
    patience: int = param(20, "stop when that variance has not fallen for so many steps", 1, 100000)
    seconds: float = param(0.0, "stop after so many seconds with the best so far; 0 never", 0, 1e6)
    trust: float = param(
        0.5, "how far the field may move an educated map, over the error that the network expects", 1e-3, 10
    )
    seeds: int = param(1, "fits whose mean is the map; their spread is part of its uncertainty", 1, 100)
    seed: int = param(0, "of the first fit's weights, input and jitter; the others count on", 0, 2**31)
    tile: int = param(0, "edge of the tiles that the network works on, in voxels; 0: as memory admits", 0, 4096)
    precision: Literal["auto", "float32", "bfloat16"] = param(
        "auto", "of convolutions; auto is bfloat16 where it is fast"
    )

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels = {self.channels}: one width of at least 1 for each level")
