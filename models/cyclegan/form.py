"""What is learned of CycleQSM: in full or in its plain form, with which critic; and the network that learns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from models.cyclegan.network import CycleNet
from models.seen import CHANNELS, FIELD

Adversary = Literal["hinge", "wgan-gp", "none"]

WIDTHS = (32, 64, 96)


@dataclass(frozen=True)
class Form:
    """What is learned: `plain` sees the field alone and is told nothing, else the classical map is corrected.

    The adversarial term rises to `adversarial` from step `begins` on, over `ramp` steps.
    """

    plain: bool = False
    consistency: bool = True
    adversary: Adversary = "hinge"
    adversarial: float = 1.0
    begins: int = 1000
    ramp: int = 1000
    critic_steps: int = 1

    def network(self) -> CycleNet:
        """As it begins: the classical map is left as it is; the plain form's map is zero."""
        return CycleNet(1, WIDTHS, 1, False) if self.plain else CycleNet(CHANNELS, WIDTHS, 2, True)

    def seen(self, features: Tensor) -> Tensor:
        return features[FIELD : FIELD + 1] if self.plain else features
