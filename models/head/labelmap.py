"""A label map of a whole head -> a simulated head: the labels' tissues, and the veins and nuclei that labels lack.

The default names are FreeSurfer's codes for the brain and those of 502 to 530 for the tissue outside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool3d, pad

from models.head.anatomy import NUCLEI, nucleus
from models.head.geometry import Canvas, Points, Solid, Triple, grid_axes, sample
from models.head.lesions import paint_lesions
from models.head.tissues import BRAIN, TISSUES, Head
from models.head.veins import paint_veins

FREESURFER: dict[int, str] = {
    0: "air",
    **dict.fromkeys((2, 7, 25, 28, 30, 41, 46, 57, 60, 62, 77, 85, 251, 252, 253, 254, 255), "white matter"),
    **dict.fromkeys((3, 8, 17, 18, 26, 42, 47, 53, 54, 58), "grey matter"),
    **dict.fromkeys((4, 5, 14, 15, 24, 31, 43, 44, 63, 72, 136, 137, 163, 164), "CSF"),  # 31, 63, 136 ...: choroid
    **dict.fromkeys((10, 49), "thalamus"),
    **dict.fromkeys((11, 50), "caudate"),
    **dict.fromkeys((12, 51), "putamen"),
    **dict.fromkeys((13, 52), "pallidum"),
    16: "brain stem",
    **dict.fromkeys((512, 530), "nerve"),  # spinal cord, optic nerve
    514: "vein",  # dural sinuses and what they drain into
    506: "vitreous",
    **dict.fromkeys((502, 507, 508, 509), "muscle"),  # arteries, soft tissue, eye muscles, lining of nose and sinuses
    511: "fat",  # skin and what lies under it
    **dict.fromkeys((515, 516), "bone"),  # compact, spongy
}
INSIDE = (*BRAIN, "CSF", "nerve", "vein")
OUTSIDE = ("air", "vitreous", "nerve", "muscle", "fat", "bone")
LANDMARKS = {  # centres in the atlas, mm, right side
    "thalamus": (10.5, -18.0, 7.0),
    "caudate": (14.0, 8.0, 11.0),
    "putamen": (26.0, 2.0, 1.0),
    "pallidum": (19.0, -3.0, 0.0),
}
HOSTS = {
    "red nucleus": ("white matter", "brain stem"),
    "substantia nigra": ("white matter", "brain stem"),
    "dentate": ("white matter", "grey matter"),
}


def head_from_labels(
    labels: Tensor,
    voxel_size_mm: Triple,
    *,
    names: Mapping[int, str] = FREESURFER,
    seed: int = 0,
    lesions: Sequence[str] = (),
    veins: bool = True,
    device: torch.device | str = "cpu",
) -> Head:
    """A head of the anatomy of `labels` (X, Y, Z), integer codes in RAS order, each named as a tissue by `names`.

    With `veins`, veins and whichever of red nucleus, substantia nigra and dentate `names` does not give are added,
    placed by thalamus, caudate, putamen and pallidum. ValueError where a code has no name, a name is no tissue, or
    those landmarks are absent. `scan_head` with `oversample` gives partial volume at larger voxels.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = tissue_codes(labels.to(device), names)
    canvas = Canvas(grid_axes(labels.shape, voxel_size_mm, (0, 0, 0), device), voxel_size_mm, generator)
    _paint_labels(canvas, codes)
    brain = _brain(codes, voxel_size_mm)
    if veins or lesions:
        pose = Pose.fit(canvas.axes, codes)
    if veins:
        _paint_missing_nuclei(canvas, codes, pose, set(names.values()))
        paint_veins(canvas, pose.surface(brain, canvas), pose.place, generator)
    if lesions:
        paint_lesions(canvas, lesions, pose.place, generator)
    return canvas.head(brain)


def tissue_codes(labels: Tensor, names: Mapping[int, str]) -> Tensor:
    """Codes of `TISSUES` (int16) for the codes of a label map; ValueError where one cannot be named."""
    found, index = torch.unique(labels.long(), return_inverse=True)
    unnamed = [code for code in found.tolist() if code not in names]
    unknown = sorted(set(names.values()) - set(TISSUES))
    if unnamed or unknown:
        raise ValueError(f"label codes without a name: {unnamed}; names that are no tissue: {unknown}")
    table = torch.tensor([TISSUES[names[code]].code for code in found.tolist()], dtype=torch.int16)
    return table.to(labels.device)[index]


def resample_labels(
    labels: Tensor,
    from_mm: Triple,
    shape: Sequence[int],
    voxel_size_mm: Triple,
    *,
    names: Mapping[int, str] = FREESURFER,
) -> Tensor:
    """The nearest label on another grid, centred on the brain (the middle of what is neither outside nor CSF)."""
    at = torch.isin(tissue_codes(labels, names), _codes(BRAIN, labels.device))
    for axis, (n, size, old) in enumerate(zip(shape, voxel_size_mm, from_mm, strict=True)):
        where = at.any(dim=[a for a in range(3) if a != axis]).nonzero()
        middle = float(where[0] + where[-1]) / 2
        index = ((torch.arange(n, device=labels.device) - (n - 1) / 2) * size / old + middle).round().long()
        outside = (index < 0) | (index >= labels.shape[axis])
        labels = labels.index_select(axis, index.clamp(0, labels.shape[axis] - 1))
        labels = labels.index_fill(axis, outside.nonzero().reshape(-1), 0)
    return labels


@dataclass(frozen=True)
class Pose:
    """Where the atlas lies in a head: head = scale * turn @ atlas + shift."""

    scale: float
    turn: Tensor
    shift: Tensor

    @classmethod
    def fit(cls, axes: Points, codes: Tensor) -> Pose:
        """Least squares over the centres of the landmarks on both sides (Umeyama 1991, doi 10.1109/34.88573)."""
        here, there = [], []
        middle = _centre(axes, codes == TISSUES["thalamus"].code)[0]
        for name in LANDMARKS:
            for side in (-1, 1):
                region = (codes == TISSUES[name].code) & ((axes[0] - middle) * side > 0)
                here.append(_centre(axes, region))
                there.append(torch.tensor(LANDMARKS[name]) * torch.tensor([side, 1.0, 1.0]))
        a, b = torch.stack(there).double(), torch.stack(here).double()
        a0, b0 = a - a.mean(0), b - b.mean(0)
        u, s, vt = torch.linalg.svd(b0.T @ a0)
        sign = torch.ones(3, dtype=torch.float64)
        sign[2] = torch.linalg.det(u @ vt).sign()
        turn = (u * sign) @ vt
        scale = float((s * sign).sum() / a0.square().sum())
        return cls(scale, turn, b.mean(0) - scale * turn @ a.mean(0))

    def place(self, p: Points) -> Points:
        """Where a point of the atlas lies in the head."""
        t, s = self.turn.tolist(), self.shift.tolist()
        x, y, z = ((t[i][0] * p[0] + t[i][1] * p[1] + t[i][2] * p[2]) * self.scale + s[i] for i in range(3))
        return x, y, z

    def atlas(self, p: Points) -> Points:
        """Where a point of the head lies in the atlas."""
        t, s = self.turn.tolist(), self.shift.tolist()
        q = [a - b for a, b in zip(p, s, strict=True)]
        x, y, z = ((t[0][i] * q[0] + t[1][i] * q[1] + t[2][i] * q[2]) / self.scale for i in range(3))
        return x, y, z

    def surface(self, brain: Tensor, canvas: Canvas) -> Solid:
        """A function of points of the atlas that is negative inside `brain`."""
        low = [float(a.reshape(-1)[0]) for a in canvas.axes]
        inside = brain.float().cpu()[None]
        return lambda p: 0.5 - sample(inside, self.place(p), low, canvas.voxel_size_mm)[0]


def _centre(axes: Points, region: Tensor) -> Tensor:
    if not bool(region.any()):
        raise ValueError(f"veins and lesions are placed by {', '.join(LANDMARKS)} of both sides; the labels lack one")
    index = region.nonzero().T
    return torch.stack([a.reshape(-1)[i].mean() for a, i in zip(axes, index, strict=True)]).cpu()


def _paint_labels(canvas: Canvas, codes: Tensor) -> None:
    """Mix the tissues by their shares in a voxel: the labels smoothed by less than a voxel, but not across the dura."""
    inside = torch.isin(codes, _codes(INSIDE, codes.device))
    so_far = torch.zeros(codes.shape, device=codes.device)
    for name, tissue in TISSUES.items():
        region = codes == tissue.code
        if bool(region.any()):
            share = _smooth(region.float()) * (inside if name in INSIDE else ~inside)
            so_far += share
            canvas.fill(name, share / so_far.clamp_min(1e-6))
    canvas.labels.copy_(codes)


def _smooth(volume: Tensor) -> Tensor:
    """Weights 1 4 1 along each axis: about the blur of a scanner's point spread."""
    for axis in range(3):
        n = volume.shape[axis]
        index = torch.arange(n, device=volume.device)
        before, after = (index - 1).clamp_min(0), (index + 1).clamp_max(n - 1)
        volume = (4 * volume + volume.index_select(axis, before) + volume.index_select(axis, after)) / 6
    return volume


def _brain(codes: Tensor, voxel_size_mm: Triple, close_mm: float = 8.0) -> Tensor:
    """Brain tissue with sulci and ventricles: closed by `close_mm`, less what belongs outside."""
    tissue = torch.isin(codes, _codes(BRAIN, codes.device)).float()
    outside = torch.isin(codes, _codes(OUTSIDE, codes.device))
    reach = [round(close_mm / v) for v in voxel_size_mm]
    ends = [r for r in reversed(reach) for _ in range(2)]
    wide = _grow(pad(tissue, ends), reach)
    closed = 1 - _grow(1 - wide, reach)
    x, y, z = reach
    closed = closed[x : x + codes.shape[0], y : y + codes.shape[1], z : z + codes.shape[2]]
    return (closed > 0.5) & ~outside


def _grow(volume: Tensor, reach: Sequence[int]) -> Tensor:
    """Largest value within `reach` voxels along each axis in turn."""
    for axis, r in enumerate(reach):
        size, margin = [1, 1, 1], [0, 0, 0]
        size[axis], margin[axis] = 2 * r + 1, r
        volume = max_pool3d(volume[None, None], size, stride=1, padding=margin)[0, 0]
    return volume


def _paint_missing_nuclei(canvas: Canvas, codes: Tensor, pose: Pose, present: set[str]) -> None:
    """Nuclei that the labels do not have, within the tissue that hosts them."""
    p = pose.atlas(canvas.axes)
    side = (p[0].abs(), p[1], p[2])
    for tissue, centre, radii, turn in NUCLEI:
        if tissue in HOSTS and tissue not in present:
            host = torch.isin(codes, _codes(HOSTS[tissue], codes.device))
            share = (0.5 - nucleus(side, tissue, centre, radii, turn) / canvas.edge_mm).clamp(0, 1)
            canvas.fill(tissue, share * host)


def _codes(tissues: Sequence[str], device: torch.device) -> Tensor:
    return torch.tensor([TISSUES[name].code for name in tissues], dtype=torch.int16, device=device)
