"""Points in mm -> signed distances (mm, negative inside) of solids, smooth noise, and the canvas that they paint on.

Points are triples of tensors (x, y, z) that broadcast, so that the same shape serves a whole grid or a list of points.
Coordinates are those of the usual brain atlases: x to the right, y to the front, z up, 0 at the anterior commissure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.head.tissues import TISSUES, Head

Points = tuple[Tensor, Tensor, Tensor]
Triple = Sequence[float]
Stop = tuple[float, float, float, float]  # x, y, z and radius in mm
Solid = Callable[[Points], Tensor]
Place = Callable[[Points], Points]
EVERYWHERE = (slice(None), slice(None), slice(None))


def ellipsoid(p: Points, centre: Triple, radii: Triple, turn_deg: float = 0.0) -> Tensor:
    """Approximate distance to an ellipsoid, exact to first order at its surface; `turn_deg` turns it about z."""
    c, s = math.cos(math.radians(turn_deg)), math.sin(math.radians(turn_deg))
    x, y, z = (a - b for a, b in zip(p, centre, strict=True))
    q = (c * x + s * y, c * y - s * x, z)
    near = sum((a / r) ** 2 for a, r in zip(q, radii, strict=True))
    far = sum((a / r**2) ** 2 for a, r in zip(q, radii, strict=True))
    k0 = torch.as_tensor(near).sqrt()
    return k0 * (k0 - 1) / torch.as_tensor(far).sqrt().clamp_min(1e-6)


def tube(p: Points, path: Sequence[Stop]) -> Tensor:
    """Distance to a chain of (x, y, z, radius) joined by cones."""
    distances = []
    for a, b in itertools.pairwise(path):
        d = [b[i] - a[i] for i in range(3)]
        along = sum((p[i] - a[i]) * d[i] for i in range(3)) / sum(c * c for c in d)
        t = torch.as_tensor(along).clamp(0, 1)
        gap = sum((p[i] - a[i] - t * d[i]) ** 2 for i in range(3))
        distances.append(torch.as_tensor(gap).sqrt() - (a[3] + t * (b[3] - a[3])))
    nearest = distances[0]
    for other in distances[1:]:
        nearest = torch.minimum(nearest, other)
    return nearest


def join(a: Tensor, b: Tensor, blend_mm: float) -> Tensor:
    """Union of two solids with the crease filled over `blend_mm`."""
    h = (blend_mm - (a - b).abs()).clamp_min(0) / blend_mm
    return torch.minimum(a, b) - h * h * (blend_mm / 4)


def common(a: Tensor, b: Tensor, blend_mm: float) -> Tensor:
    """Intersection of two solids with the edge rounded over `blend_mm`."""
    return -join(-a, -b, blend_mm)


class Waves:
    """A smooth random function of position: a sum of plane waves of about `wavelength_mm`, standard deviation 1."""

    def __init__(self, wavelength_mm: float, generator: torch.Generator, count: int = 6) -> None:
        k = torch.randn((count, 3), generator=generator)
        self.k = (k * (2 * math.pi / wavelength_mm) / k.norm(dim=1, keepdim=True)).tolist()
        self.phase = (torch.rand(count, generator=generator) * 2 * math.pi).tolist()

    def __call__(self, p: Points) -> Tensor:
        total = torch.zeros((), device=p[0].device)
        for k, phase in zip(self.k, self.phase, strict=True):
            total = total + torch.sin(p[0] * k[0] + p[1] * k[1] + p[2] * k[2] + phase)
        return total * math.sqrt(2 / len(self.k))


class Lattice:
    """White noise on a lattice fixed in space, interpolated: the same values at the same place for every voxel size."""

    low, high = (-130.0, -160.0, -170.0), (130.0, 140.0, 130.0)

    def __init__(self, spacing_mm: float, generator: torch.Generator) -> None:
        self.spacing = spacing_mm
        size = [round((h - lo) / spacing_mm) + 4 for lo, h in zip(self.low, self.high, strict=True)]
        self.values = torch.randn(size, generator=generator)

    def on_grid(self, axes: Points) -> Tensor:
        """Cubic B-spline interpolation, separable, at x (X, 1, 1), y (1, Y, 1), z (1, 1, Z)."""
        out = self.values.to(axes[0].device)
        for i, axis in enumerate(axes):
            weights = self._weights(axis.reshape(-1), i, out.shape[i])
            out = torch.tensordot(weights, out.movedim(i, 0), dims=1).movedim(0, i)
        smooth: Tensor = out / 0.479**1.5  # the mean square sum of a cubic B-spline's weights along an axis
        return smooth

    def _weights(self, axis: Tensor, i: int, size: int) -> Tensor:
        u = ((axis - self.low[i]) / self.spacing + 1).clamp(1, size - 2.001)
        d = (u[:, None] - torch.arange(size, device=axis.device)).abs()
        return torch.where(d < 1, 2 / 3 - d**2 + d**3 / 2, (2 - d).clamp_min(0) ** 3 / 6)


class Canvas:
    """The volumes of a head while tissues are painted over each other, with the share of a voxel that each fills."""

    def __init__(self, axes: Points, voxel_size_mm: Triple, generator: torch.Generator) -> None:
        device = axes[0].device
        shape = tuple(int(a.numel()) for a in axes)
        self.voxel_size_mm = (float(voxel_size_mm[0]), float(voxel_size_mm[1]), float(voxel_size_mm[2]))
        self.edge_mm = math.prod(self.voxel_size_mm) ** (1 / 3)
        self.axes, self.generator = axes, generator
        self.labels = torch.zeros(shape, dtype=torch.int16, device=device)
        air = TISSUES["air"]
        self.chi, self.m0, self.t1, self.r2 = (
            torch.full(shape, value, device=device) for value in (air.chi_ppm, air.m0, air.t1_s, air.r2star_3t)
        )
        self.noise = 0.8 * Lattice(7.0, generator).on_grid(axes) + 0.6 * Lattice(2.5, generator).on_grid(axes)

    def paint(self, tissue: str, distance_mm: Tensor, where: tuple[slice, slice, slice] = EVERYWHERE) -> None:
        """Fill what lies inside (distance < 0); a voxel that the surface crosses is filled in part."""
        self.fill(tissue, (0.5 - distance_mm / self.edge_mm).clamp_(0, 1), where)

    def fill(self, tissue: str, share: Tensor, where: tuple[slice, slice, slice] = EVERYWHERE) -> None:
        """Mix `tissue` in by its share of each voxel; the label goes to it from a share of one half."""
        t = TISSUES[tissue]
        jitter = 1 + 0.05 * float(torch.randn((), generator=self.generator).clamp(-2, 2))
        noise = self.noise[where]
        self.chi[where].lerp_(noise * t.texture_ppm + t.chi_ppm * jitter, share)
        self.m0[where].lerp_(t.m0 * (1 + 0.02 * noise), share)
        self.t1[where].lerp_(t.t1_s * (1 + 0.02 * noise), share)
        self.r2[where].lerp_(t.r2star_3t * (1 + 0.10 * noise).clamp_min(0.2), share)
        self.labels[where].masked_fill_(share >= 0.5, t.code)

    def near(self, low: Triple, high: Triple) -> tuple[slice, slice, slice]:
        """The part of the grid from `low` to `high` (mm), so that small things are painted fast."""
        found = []
        for axis, a, b in zip(self.axes, low, high, strict=True):
            index = ((axis.reshape(-1) >= a) & (axis.reshape(-1) <= b)).nonzero()
            found.append(slice(int(index[0]), int(index[-1]) + 1) if len(index) else slice(0, 0))
        return found[0], found[1], found[2]

    def head(self, brain: Tensor) -> Head:
        return Head(self.labels, self.chi, self.m0, self.t1, self.r2, brain, self.voxel_size_mm)


def grid_axes(shape: Sequence[int], voxel_size_mm: Triple, centre_mm: Triple, device: torch.device | str) -> Points:
    """Voxel centres in mm along each axis, shaped to broadcast, of a grid centred on `centre_mm`."""
    x, y, z = (
        (torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2) * v + c
        for n, v, c in zip(shape, voxel_size_mm, centre_mm, strict=True)
    )
    return x[:, None, None], y[None, :, None], z[None, None, :]


def sample(volume: Tensor, p: Points, low: Triple, spacing_mm: Triple) -> Tensor:
    """Trilinear values of `volume` (C, X, Y, Z), whose first voxel lies at `low`, at points of any shape: (C, ...)."""
    unit = [(a - lo) / (d * (n - 1)) * 2 - 1 for a, lo, d, n in zip(p, low, spacing_mm, volume.shape[1:], strict=True)]
    shape = (unit[0] + unit[1] + unit[2]).shape
    grid = torch.stack([u.expand(shape).reshape(-1) for u in unit[::-1]], -1)[None, None, None]
    out = torch.nn.functional.grid_sample(
        volume[None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return out.reshape(volume.shape[0], *shape)


def fold(p: Points, surface: Tensor, generator: torch.Generator, voxel_size_mm: Triple) -> Tensor:
    """Distance to sheets that cut a solid at right angles to its `surface` in a labyrinth, as sulci cut cortex.

    The sheets are the zero set of band-passed noise, read not at the point but further out towards the surface; the
    two sides of the head read different noise.
    """
    spacing = 3.0
    noise = _band(22.5, spacing, generator)
    lattice = torch.stack([noise, *torch.gradient(noise, spacing=spacing)]).to(surface.device)
    normal = torch.stack(torch.gradient(surface, spacing=[float(v) for v in voxel_size_mm]))
    length = normal.norm(dim=0)
    normal /= length.clamp_min(0.1)
    lift = 0.75 * surface.clamp(-40, 10)
    q = (p[0] - lift * normal[0], p[1] - lift * normal[1] + 30.0 * (p[0] < 0), p[2] - lift * normal[2])
    found = sample(lattice, q, Lattice.low, (spacing,) * 3)
    value, gradient = found[0], found[1:]
    steepness = (gradient**2).sum(0) - (1 - 0.25**2) * (gradient * normal).sum(
        0
    ) ** 2  # the lift slows it along the normal
    between = 20 * (0.85 - length).clamp_min(0)  # where two walls meet the normal jumps: no sheet there
    distance: Tensor = value.abs() / (steepness + 0.06**2).sqrt() + between
    return distance


def _band(wavelength_mm: float, spacing_mm: float, generator: torch.Generator) -> Tensor:
    """Noise of about one wavelength and standard deviation 1 on a lattice."""
    size = [round((h - lo) / spacing_mm) for lo, h in zip(Lattice.low, Lattice.high, strict=True)]
    kx, ky, kz = torch.meshgrid(*(torch.fft.fftfreq(n, spacing_mm) for n in size), indexing="ij")
    ring = torch.exp(-(((kx**2 + ky**2 + kz**2).sqrt() * wavelength_mm - 1) ** 2) / (2 * 0.3**2))
    noise = torch.fft.ifftn(torch.fft.fftn(torch.randn(size, generator=generator)) * ring).real
    scaled: Tensor = noise / noise.std()
    return scaled
