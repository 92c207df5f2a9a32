"""A brain's surface and a map from atlas to head -> sinuses, deep, cortical and medullary veins, painted as tubes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.head.geometry import Canvas, Place, Points, Solid

Path = Tensor  # (N, 4): x, y, z and radius in mm, in atlas coordinates

HUB = (0.0, -20.0, 15.0)  # surface points are found along rays from here
DEEP = (
    [(2.5, 4, 14, 1.0), (2, -15, 15.5, 1.1), (2, -32, 10, 1.2), (0, -40, 6, 1.5)],  # internal cerebral
    [(14, 4, -16, 0.7), (17, -14, -10, 0.9), (13, -28, -4, 1.0), (1, -39, 5, 1.2)],  # basal (Rosenthal)
    [(18, -16, 20, 0.6), (12, 2, 15, 0.8), (3, 4, 13.5, 1.0)],  # thalamostriate
    [(6, 28, 9, 0.5), (3, 12, 12, 0.6), (2.5, 4, 14, 0.8)],  # septal
    [(25, -44, 16, 0.5), (12, -40, 12, 0.7), (1, -40, 6, 1.0)],  # atrial
)
STRAIGHT = [(0, -38, 7, 1.8), (0, -46, 1, 2.2), (0, -62, -10, 2.4)]


def paint_veins(canvas: Canvas, surface: Solid, place: Place, generator: torch.Generator) -> None:
    """Paint all veins; `surface` is the distance to the brain's surface in the atlas, `place` maps atlas to head."""
    device = canvas.labels.device
    sinuses = _sinuses(surface)
    paths = [*sinuses, torch.cat([torch.tensor(STRAIGHT), sinuses[0][-1:]])]
    for path in DEEP:
        paths += [torch.tensor(path), torch.tensor(path) * torch.tensor([-1.0, 1, 1, 1])]
    paths += _cortical(surface, generator) + _medullary(surface, generator)
    tree = torch.cat([_dense(path) for path in paths]).to(device)
    x, y, z = place((tree[:, 0], tree[:, 1], tree[:, 2]))
    canvas.fill("vein", tube_share(canvas, (x, y, z), tree[:, 3]))


def tube_share(canvas: Canvas, points: Points, radii: Tensor) -> Tensor:
    """Share of each voxel that balls of `radii` around `points` fill; the sum stays right for tubes below a voxel."""
    share = torch.zeros(canvas.labels.shape, device=canvas.labels.device)
    edge = canvas.edge_mm
    for low, high in ((0.0, 1.3), (1.3, 2.3), (2.3, math.inf)):
        chosen = (radii > low) & (radii <= high)
        if bool(chosen.any()):
            _splat(share, canvas, [a[chosen] for a in points], radii[chosen], edge)
    return share


def _splat(share: Tensor, canvas: Canvas, points: list[Tensor], radii: Tensor, edge: float) -> None:
    """Write the largest share into every voxel around every point, on a grid so wide that none of them lies outside."""
    wide = radii.clamp_min(0.5 * edge)
    reach = [math.ceil((float(wide.max()) + 0.5 * edge) / v) for v in canvas.voxel_size_mm]
    axes = [a.reshape(-1) for a in canvas.axes]
    base = [((p - a[0]) / v).round().long() for p, a, v in zip(points, axes, canvas.voxel_size_mm, strict=True)]
    sizes = zip(base, reach, share.shape, strict=True)
    near = torch.stack([(b >= -r) & (b < n + r) for b, r, n in sizes]).all(0)
    wide, strength = wide[near], ((radii / wide) ** 2)[near]
    larger = torch.zeros([n + 4 * r for n, r in zip(share.shape, reach, strict=True)], device=share.device)
    at, squares = [], []
    for a, p, b, r, v in zip(axes, points, base, reach, canvas.voxel_size_mm, strict=True):
        beyond = v * torch.arange(1, 2 * r + 1, device=a.device)
        a = torch.cat([a[0] - beyond.flip(0), a, a[-1] + beyond])
        at.append(b[near] + 2 * r)
        squares.append([(a[at[-1] + i] - p[near]).square() for i in range(-r, r + 1)])
    _, ny, nz = larger.shape
    first = (at[0] * ny + at[1]) * nz + at[2]
    for i, x in enumerate(squares[0], -reach[0]):
        for j, y in enumerate(squares[1], -reach[1]):
            for k, z in enumerate(squares[2], -reach[2]):
                part = (0.5 - ((x + y + z).sqrt() - wide) / edge).clamp(0, 1) * strength
                larger.view(-1).scatter_reduce_(0, first + ((i * ny + j) * nz + k), part, "amax")
    inner = tuple(slice(2 * r, 2 * r + n) for r, n in zip(reach, share.shape, strict=True))
    torch.maximum(share, larger[inner], out=share)


def _dense(path: Path, step_mm: float = 0.5) -> Path:
    """The path with its points `step_mm` apart or closer."""
    length = (path[1:, :3] - path[:-1, :3]).norm(dim=1)
    parts = []
    for a, b, d in zip(path[:-1], path[1:], length.tolist(), strict=True):
        t = torch.linspace(0, 1, max(2, math.ceil(d / step_mm) + 1))[:, None]
        parts.append(a + t * (b - a))
    return torch.cat(parts)


def _on_surface(surface: Solid, direction: Tensor, outwards_mm: Tensor | float) -> Tensor:
    """Points (N, 3) where rays from the hub leave the brain, moved outwards; `direction` (N, 3)."""
    direction = direction / direction.norm(dim=1, keepdim=True)
    steps = torch.arange(30.0, 130.0, 0.5)
    p = torch.tensor(HUB) + direction[:, None] * steps[:, None]
    inside = surface((p[..., 0], p[..., 1], p[..., 2])) < 0
    last = (inside * torch.arange(1, len(steps) + 1)).amax(dim=1).clamp_min(1) - 1
    return torch.tensor(HUB) + direction * (steps[last] + outwards_mm)[:, None]


def _sinuses(surface: Solid) -> list[Path]:
    """Superior sagittal, transverse and sigmoid sinuses, lying on the brain."""
    turn = torch.linspace(math.radians(35), math.radians(198), 40)
    middle = _on_surface(surface, torch.stack([turn * 0, turn.cos(), turn.sin()], 1), 1.5)
    sagittal = torch.cat([middle, torch.linspace(1.2, 3.4, 40)[:, None]], 1)
    paths = [sagittal]
    end = middle[-1]
    for side in (-1.0, 1.0):
        s = torch.linspace(0, 1, 24)
        way = torch.stack([side * 62 * torch.sin(s * 1.9) / 0.95, -85 + 75 * s**1.6, -27 - 24 * s**2], 1)
        lateral = torch.cat([end[None], _on_surface(surface, way, 1.0)[1:]])
        paths.append(torch.cat([lateral, torch.full((24, 1), 2.8)], 1))
    return paths


def _cortical(surface: Solid, generator: torch.Generator) -> list[Path]:
    """Veins that wander down the convexity from the sagittal sinus, and twigs from them into the sulci."""
    paths: list[Path] = []
    for side in (-1.0, 1.0):
        for start in torch.linspace(50, 170, 13).tolist():
            u = torch.rand(4, generator=generator)
            n = 40 + int(20 * u[0])
            fall = torch.linspace(2, 75 + 35 * float(u[1]), n).deg2rad()
            wander = torch.randn(n, generator=generator).cumsum(0) * 1.6 + (u[2] - 0.5) * torch.linspace(0, 40, n)
            turn = (start + 8 * (u[3] - 0.5) + wander).deg2rad()
            direction = torch.stack([side * fall.sin(), fall.cos() * turn.cos(), fall.cos() * turn.sin()], 1)
            dip = torch.randn(n, generator=generator).cumsum(0) * 0.5
            on = _on_surface(surface, direction, 0.8 - dip.abs().clamp_max(4))
            paths.append(torch.cat([on, torch.linspace(1.5, 0.6, n)[:, None]], 1))
            for point in on[4:-1:4]:
                paths.append(
                    _twig(
                        point,
                        torch.tensor(HUB) - point,
                        8 + 14 * float(torch.rand(1, generator=generator)),
                        0.5,
                        generator,
                    )
                )
    return paths


def _medullary(surface: Solid, generator: torch.Generator) -> list[Path]:
    """Thin veins that fan out from the walls of the lateral ventricles through the white matter."""
    paths = []
    for side in (-1.0, 1.0):
        for y in torch.linspace(-60, 40, 26).tolist():
            u = torch.randn(6, generator=generator)
            start = torch.tensor([side * (14 + 8 * math.exp(-(((y + 40) / 25) ** 2))), y, 20 - 0.1 * abs(y)])
            for swing in u[:3].tolist():
                angle = math.radians(50 + 32 * swing)
                way = torch.tensor([side * math.sin(angle), 0.15 * float(u[3]) + y / 150, math.cos(angle)])
                paths.append(_twig(start, way, 18 + 8 * float(u[4].abs()), 0.45, generator))
    return paths


def _twig(start: Tensor, way: Tensor, length_mm: float, radius_mm: float, generator: torch.Generator) -> Path:
    """A thin vein of `length_mm` from `start` roughly towards `way`, tapering."""
    n = max(4, int(length_mm / 2))
    wobble = torch.randn((n, 3), generator=generator).cumsum(0) * 0.35
    along = torch.linspace(0, length_mm, n)[:, None] * (way / way.norm())
    return torch.cat([start + along + wobble, torch.linspace(radius_mm, 0.5 * radius_mm, n)[:, None]], 1)
