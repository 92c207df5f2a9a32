"""A field (ppm) and its noise -> susceptibility (ppm), by the methods without a network.

All share one signature: `method(field, weight, dipole, params)` with `field` (X, Y, Z) in ppm, `weight` = 1 / standard
deviation of the field in 1/ppm and zero outside the mask, `dipole` the operator on that grid. They return chi (X, Y, Z)
in ppm, up to a constant. Data terms are in units of the noise, so that one strength serves every noise level. The field
is the local one, for `tfi` the total one; `medi` also takes the magnitude.
"""

from models.classical.direct import TKD, Tikhonov, tikhonov, tkd
from models.classical.medi import MEDI, medi
from models.classical.nltv import NLTV, nltv
from models.classical.rts import RTS, rts
from models.classical.tfi import TFI, tfi
from models.classical.tv import TV, tv

__all__ = [
    "MEDI",
    "NLTV",
    "RTS",
    "TFI",
    "TKD",
    "TV",
    "Tikhonov",
    "medi",
    "nltv",
    "rts",
    "tfi",
    "tikhonov",
    "tkd",
    "tv",
]
