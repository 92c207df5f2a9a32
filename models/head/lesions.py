"""A list of lesion names -> calcifications and haemorrhages painted into the white matter of a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.head.geometry import Canvas, Place, Waves, ellipsoid

RADII_MM = {"calcification": (2.5, 4.5), "haemorrhage": (4.0, 8.0)}


def paint_lesions(canvas: Canvas, lesions: Sequence[str], place: Place, generator: torch.Generator) -> None:
    """One irregular blob a name; ValueError where a name is not a lesion."""
    for name in lesions:
        if name not in RADII_MM:
            raise ValueError(f"no lesion is called {name}; there are {', '.join(RADII_MM)}")
        u = torch.rand(7, generator=generator)
        low, high = RADII_MM[name]
        radii = [low + (high - low) * float(v) for v in u[:3]]
        atlas = ((20 + 20 * u[3]) * (1 if u[4] > 0.5 else -1), -45 + 75 * u[5], 22 + 16 * u[6])
        centre = [float(a) for a in place(atlas)]
        where = canvas.near([c - 2 * high for c in centre], [c + 2 * high for c in centre])
        x, y, z = canvas.axes
        p = (x[where[0]], y[:, where[1]], z[:, :, where[2]])
        canvas.paint(name, ellipsoid(p, centre, radii) + 0.6 * Waves(8.0, generator)(p), where)
