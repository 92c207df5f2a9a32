"""A number -> a random susceptibility map to learn a prior from: a deformed head or plain shapes, of no patient.

Shapes alone generalise (Bollmann 2019, doi 10.1016/j.neuroimage.2019.03.060), heads alone make a prior that sees heads
everywhere: a third are shapes. Everything is drawn by the number, so that a map can be made again anywhere.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate

from models.head import BRAIN, Head, head_from_labels, simulate_head
from models.head.geometry import Triple, Waves, grid_axes
from models.head.labelmap import FREESURFER

VOXELS_MM = (0.6, 2.5)  # isotropic voxels, uniform in their logarithm
THICKEST_MM = 3.5  # of slices, in a third of the maps up to twice as thick as the voxel is wide
FIELD_OF_VIEW_MM = (150.0, 184.0, 150.0)  # the brain with little around it
MOST_VOXELS = 5_000_000  # of the fine grid that a head is painted on; what is more is cut off at random
FINE_MM = 1.1  # larger voxels are means of finer ones
SHAPES_EDGE = 96
LESIONS = ((), (), (), (), (), (), (), (), ("calcification",), ("haemorrhage",))


@dataclass(frozen=True)
class Map:
    """`chi_ppm` (X, Y, Z) with mean 0 where `inside` (bool) is true, 0 elsewhere; `kind` says what it is of."""

    chi_ppm: Tensor
    inside: Tensor
    voxel_size_mm: tuple[float, float, float]
    kind: str


def random_map(number: int, labels: Tensor | None = None, device: torch.device | str = "cpu") -> Map:
    """The map of that number; a head is that of `labels` where given (X, Y, Z; FreeSurfer's codes, 1 mm, RAS)."""
    draw = random.Random(number)
    if draw.random() < 1 / 3:
        chi, inside = _shapes(draw, device)
        return _finished(chi, inside, [1.0, 1.0, 1.0], draw, "shapes")
    voxel = _voxel(draw, labels is not None)
    split = [max(1, math.ceil(v / FINE_MM)) for v in voxel]
    fine = [v / n for v, n in zip(voxel, split, strict=True)]
    shape = [round(mm / v) * n for mm, v, n in zip(FIELD_OF_VIEW_MM, voxel, split, strict=True)]
    lesions = draw.choice(LESIONS)
    if labels is not None:
        codes = deformed(labels.to(device), shape, fine, draw)
        head = head_from_labels(codes, fine, seed=number, lesions=lesions, device=device)
    else:
        head = _block(shape, fine, split, number, lesions, draw, device)
    chi, inside = _averaged(head, split)
    return _finished(chi, inside, voxel, draw, "label map" if labels is not None else "procedural")


def deformed(labels: Tensor, shape: list[int], voxel_size_mm: Triple, draw: random.Random) -> Tensor:
    """Labels (1 mm) turned by up to 20 degrees, scaled by up to a tenth and bent by up to some mm, on another grid."""
    brain = torch.isin(labels, torch.tensor(_brain_codes(), device=labels.device)).nonzero()
    middle = (brain.amin(0) + brain.amax(0)).float() / 2
    p = _points(shape, voxel_size_mm, labels.device)
    generator = torch.Generator().manual_seed(draw.getrandbits(32))
    bent = [a + draw.uniform(0, 3.5) * Waves(draw.uniform(50, 110), generator)((p[0], p[1], p[2])) for a in p]
    turn = _rotation([math.radians(draw.uniform(-20, 20)) for _ in range(3)]).to(labels.device)
    scale = torch.tensor([draw.uniform(0.9, 1.1) for _ in range(3)], device=labels.device)
    at = torch.einsum("ij,jxyz->ixyz", turn / scale[:, None], torch.stack(bent)) + middle.view(3, 1, 1, 1)
    index = at.round().long()
    size = torch.tensor(labels.shape, device=labels.device).view(3, 1, 1, 1)
    within = ((index >= 0) & (index < size)).all(0)
    x, y, z = torch.minimum(index.clamp_min(0), size - 1)
    return torch.where(within, labels[x, y, z], 0)


def _points(shape: Sequence[int], voxel_size_mm: Triple, device: torch.device | str) -> Tensor:
    """Coordinates (3, X, Y, Z) in mm from the middle."""
    x, y, z = grid_axes(shape, voxel_size_mm, (0, 0, 0), device)
    return torch.stack([a.expand(*shape) for a in (x, y, z)])


def _brain_codes() -> list[int]:
    return [code for code, name in FREESURFER.items() if name in BRAIN]


def _rotation(angles: list[float]) -> Tensor:
    """Turns about x, y and z, one after the other."""
    turn = torch.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        one = torch.eye(3)
        one[i, i] = one[j, j] = math.cos(angle)
        one[i, j], one[j, i] = -math.sin(angle), math.sin(angle)
        turn = one @ turn
    return turn


def _voxel(draw: random.Random, whole: bool) -> list[float]:
    """Voxel size in mm; a head that must be whole is not made of the finest."""
    least = 0.8 if whole else VOXELS_MM[0]
    size = math.exp(draw.uniform(math.log(least), math.log(VOXELS_MM[1])))
    voxel = [size] * 3
    if draw.random() < 1 / 3:
        voxel[draw.randrange(3)] = min(THICKEST_MM, size * draw.uniform(1, 2))
    return voxel


def _block(
    shape: list[int],
    fine: list[float],
    split: list[int],
    number: int,
    lesions: tuple[str, ...],
    draw: random.Random,
    device: torch.device | str,
) -> Head:
    """A procedural head, or what of it fits into `MOST_VOXELS`, somewhere."""
    centre = [0.0, -15.0, 12.0]
    excess = (math.prod(shape) / MOST_VOXELS) ** (1 / 3)
    if excess > 1:
        kept = [max(n, round(a / excess / n) * n) for a, n in zip(shape, split, strict=True)]
        free = [(a - b) * v / 2 for a, b, v in zip(shape, kept, fine, strict=True)]
        centre = [c + draw.uniform(-f, f) for c, f in zip(centre, free, strict=True)]
        shape = kept
    return simulate_head(shape, fine, seed=number, lesions=lesions, skull=False, centre_mm=centre, device=device)


def _averaged(head: Head, split: list[int]) -> tuple[Tensor, Tensor]:
    chi, brain = (avg_pool3d(v.float()[None], split)[0] for v in (head.chi_ppm * head.brain, head.brain))
    return chi / brain.clamp_min(0.5), brain >= 0.5


def _finished(chi: Tensor, inside: Tensor, voxel: list[float], draw: random.Random, kind: str) -> Map:
    """Contrast, further texture and blur vary from map to map; cropped to what is inside, of mean 0."""
    generator = torch.Generator().manual_seed(draw.getrandbits(32))
    if draw.random() < 0.5:
        coarse = [max(2, round(n * v / draw.uniform(3, 12))) for n, v in zip(chi.shape, voxel, strict=True)]
        noise = torch.randn(coarse, generator=generator).to(chi.device)[None, None]
        chi = chi + draw.uniform(0, 0.008) * interpolate(noise, size=chi.shape, mode="trilinear")[0, 0]
    if draw.random() < 0.3:
        chi = _blurred(chi, draw.uniform(0.1, 0.25))
    chi = chi * math.exp(draw.gauss(0, 0.2))
    chi = torch.where(inside, chi - chi[inside].mean(), 0)
    where = inside.nonzero()
    low, high = where.amin(0).tolist(), (where.amax(0) + 1).tolist()
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return Map(chi[box].clone(), inside[box].clone(), (voxel[0], voxel[1], voxel[2]), kind)


def _blurred(chi: Tensor, share: float) -> Tensor:
    """`share` of each voxel is taken from each of its neighbours along each axis, half each."""
    for axis in range(3):
        n = chi.shape[axis]
        index = torch.arange(n, device=chi.device)
        before, after = (chi.index_select(axis, (index + d).clamp(0, n - 1)) for d in (-1, 1))
        chi = (1 - share) * chi + share / 2 * (before + after)
    return chi


def _shapes(draw: random.Random, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Boxes, ellipsoids and rods of shrinking size in an ellipsoid or a box; most weak, some strong; both signs."""
    n = SHAPES_EDGE
    p = _points((n, n, n), (1, 1, 1), device)
    chi = torch.zeros((n, n, n), device=device)
    count = draw.randint(15, 90)
    for k in range(count):
        size = max(1.0, 30 * math.exp(-3 * k / count) * draw.uniform(0.4, 1.2))
        value = draw.gauss(0, 0.08) if draw.random() < 0.93 else draw.uniform(-1, 1)
        _add(chi, p, draw, size, value)
    radii = [n * draw.uniform(0.42, 0.5) for _ in range(3)]
    round_one = sum((a / r).square() for a, r in zip(p, radii, strict=True)) < 1
    inside = round_one if draw.random() < 0.7 else torch.ones_like(round_one)
    return chi, inside


def _add(chi: Tensor, p: Tensor, draw: random.Random, size: float, value: float) -> None:
    """One turned shape of about `size` voxels; voxels that its surface crosses are filled in part."""
    centre = [draw.uniform(-0.5, 0.5) * SHAPES_EDGE for _ in range(3)]
    turn = _rotation([draw.uniform(0, 2 * math.pi) for _ in range(3)]).to(chi.device)
    low = [max(0, int(c + SHAPES_EDGE / 2 - 2 * size - 2)) for c in centre]
    high = [int(c + SHAPES_EDGE / 2 + 2 * size + 3) for c in centre]
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    near = p[(slice(None), *box)] - torch.tensor(centre, device=chi.device).view(3, 1, 1, 1)
    q = torch.einsum("ij,jxyz->ixyz", turn, near).abs()
    half = [size * draw.uniform(0.5, 1) for _ in range(3)]
    kind = draw.choice(("box", "ellipsoid", "rod"))
    if kind == "rod":
        half = [min(half[0], draw.uniform(0.6, 3)), 0.0, 2 * size]
        distance = torch.maximum((q[0].square() + q[1].square()).sqrt() - half[0], q[2] - half[2])
    elif kind == "box":
        distance = torch.stack([a - h for a, h in zip(q, half, strict=True)]).amax(0)
    else:
        radius = torch.as_tensor(sum((a / h).square() for a, h in zip(q, half, strict=True))).sqrt()
        distance = (radius - 1) * min(half)
    chi[box] += value * (0.5 - distance).clamp(0, 1)
