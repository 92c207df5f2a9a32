"""What a person knows better than the headers -> overrides for finding and converting a scan."""

from __future__ import annotations

from dataclasses import dataclass

from models.params import param
from pipeline.axes import is_codes


@dataclass(frozen=True)
class Acquisition:
    """What to believe instead of the headers."""

    echo_times_s: tuple[float, ...] = param((), "true echo times in seconds, where the headers have them wrong")
    b0_tesla: float = param(
        0.0, "true field strength in tesla, to four digits; 0 takes the header's imaging frequency", 0, 20
    )
    orientation: str = param(
        "",
        "for NIfTI images that state none: where the first, second and third voxel axis run, as LAS or RAS: "
        "L left or R right, A front or P back, S head or I feet",
    )

    def __post_init__(self) -> None:
        if self.orientation and not is_codes(self.orientation):
            text = "one of L and R, one of A and P, one of S and I, in the order of the voxel axes, for example LAS"
            raise ValueError(f"orientation = {self.orientation!r} is no orientation: {text}")
