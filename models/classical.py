"""Local field -> susceptibility by methods without a network: TKD, Tikhonov, RTS, TV."""

from __future__ import annotations

from dataclasses import dataclass

from models.params import param


@dataclass(frozen=True)
class TKD:
    threshold: float = param(0.15, "smallest |D| that is divided by", 0.01, 0.5)


@dataclass(frozen=True)
class Tikhonov:
    strength: float = param(0.01, "weight of |chi|^2", 1e-5, 1)


@dataclass(frozen=True)
class RTS:
    delta: float = param(0.15, "|D| below which the field says nothing", 0.01, 0.5)


@dataclass(frozen=True)
class TV:
    strength: float = param(2e-4, "weight of the total variation", 0, 1)
