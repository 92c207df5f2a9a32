"""What a person knows better than the headers -> overrides for finding and converting a scan."""

from __future__ import annotations

from dataclasses import dataclass

from models.params import param


@dataclass(frozen=True)
class Acquisition:
    """What to believe instead of the headers."""

    echo_times_s: tuple[float, ...] = param((), "true echo times in seconds, where the headers have them wrong")
    b0_tesla: float = param(0.0, "true field strength in tesla; 0 takes the header's", 0, 20)
