"""A seed and a grid -> a procedural head: cortex folded by noise, nuclei, ventricles, veins, skull, air cavities.

Every surface is a signed distance in mm, so the same head can be made at any voxel size, and whatever lies outside the
field of view is cropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.head.geometry import Canvas, Points, Stop, Triple, Waves, common, ellipsoid, fold, grid_axes, join, tube
from models.head.lesions import paint_lesions
from models.head.tissues import Head
from models.head.veins import paint_veins

CENTRE_MM = (0.0, -15.0, 6.0)  # of the field of view
CORD_Z = -62.0  # where the brain stem ends and the cord begins


def simulate_head(
    shape: Sequence[int],
    voxel_size_mm: Triple,
    *,
    seed: int = 0,
    lesions: Sequence[str] = (),
    skull: bool = True,
    centre_mm: Triple = CENTRE_MM,
    device: torch.device | str = "cpu",
) -> Head:
    """A random head on a grid of `shape` voxels, the same for one seed at every voxel size; needs no file.

    `lesions` names tissues ("calcification", "haemorrhage"), one lesion each; without `skull` there is CSF around
    the brain and then air. `centre_mm` is the middle of the field of view, from the anterior commissure.
    """
    generator = torch.Generator().manual_seed(seed)
    form = Form.draw(generator)
    axes = grid_axes(shape, voxel_size_mm, centre_mm, device)
    canvas = Canvas(axes, voxel_size_mm, generator)
    p = form.atlas(axes)
    hull, cerebellum = cerebrum_hull(p), cerebellum_hull(p)
    whole = torch.minimum(join(hull, cerebellum, 4.0), stem(p))
    inner = common(whole - 3.0 - 0.4 * form.waves(p), -68 - p[2], 6.0)
    if skull:
        _paint_outside(canvas, p, inner)
    canvas.paint("CSF", inner)
    _paint_cerebrum(canvas, p, hull, form.waves, generator)
    _paint_cerebellum(canvas, p, cerebellum, form.waves)
    brainstem = stem(p) if skull else torch.maximum(stem(p), inner)
    canvas.paint("nerve", brainstem)
    canvas.paint("brain stem", torch.maximum(brainstem, CORD_Z - p[2]))
    _paint_nuclei(canvas, p, form.waves)
    _paint_ventricles(canvas, p, form.ventricles)
    paint_veins(canvas, brain_surface, form.place, generator)
    paint_lesions(canvas, lesions, form.place, generator)
    return canvas.head((whole < 0) & (p[2] > CORD_Z))


@dataclass(frozen=True)
class Form:
    """What differs from head to head: size along each axis, width of the ventricles, a smooth deformation."""

    scale: tuple[float, float, float]
    ventricles: float
    warp: tuple[Waves, Waves, Waves]
    waves: Waves

    @classmethod
    def draw(cls, generator: torch.Generator) -> Form:
        a, b, c, d = (torch.rand(4, generator=generator) * 2 - 1).tolist()
        warp = Waves(90.0, generator), Waves(90.0, generator), Waves(90.0, generator)
        return cls((0.96 + 0.03 * a, 0.95 + 0.03 * b, 0.96 + 0.03 * c), 1 + 0.25 * d, warp, Waves(40.0, generator))

    def atlas(self, p: Points) -> Points:
        """Where a point of this head lies in the atlas."""
        x, y, z = (a / s for a, s in zip(p, self.scale, strict=True))
        wx, wy, wz = (w((x, y, z)) for w in self.warp)
        return x + 1.2 * wx, y + 2.0 * wy, z + 1.5 * wz

    def place(self, p: Points) -> Points:
        """Where a point of the atlas lies in this head: `atlas` inverted by fixed-point steps."""
        x, y, z = (a * s for a, s in zip(p, self.scale, strict=True))
        for _ in range(3):
            back = self.atlas((x, y, z))
            x, y, z = (a + w - b for a, w, b in zip((x, y, z), p, back, strict=True))
        return x, y, z


def cerebrum_hull(p: Points) -> Tensor:
    """Distance to the cerebrum's outer surface, its sulci filled."""
    side = (p[0].abs(), p[1], p[2])
    hull = ellipsoid(p, (0, -15, 24), (68, 89, 54))
    hull = join(hull, ellipsoid(side, (42, -10, -17), (24, 42, 22), -8), 8.0)
    hull = common(hull, -ellipsoid(p, (0, 8, -34), (17, 22, 18)), 6.0)
    return common(hull, 2.5 - cerebellum_hull(p), 4.0)


def cerebellum_hull(p: Points) -> Tensor:
    """Distance to the cerebellum's outer surface."""
    halves = ellipsoid((p[0].abs(), p[1], p[2]), (23, -62, -41), (29, 28, 20), 12)
    return join(halves, ellipsoid(p, (0, -60, -34), (11, 21, 21)), 5.0)


def stem(p: Points) -> Tensor:
    """Distance to mid-brain, pons, medulla and cord."""
    peduncle = tube((p[0].abs(), p[1], p[2]), [(8, -14, -4, 6), (6.5, -20, -16, 7), (6, -24, -28, 8)])
    core = tube(p, [(0, -24, -6, 9), (0, -30, -30, 10), (0, -38, -50, 8), (0, -44, -66, 6.5), (0, -52, -170, 5.5)])
    return join(join(core, ellipsoid(p, (0, -23, -32), (17, 12, 13)), 5.0), peduncle, 4.0)


def brain_surface(p: Points) -> Tensor:
    """Distance to the surface that the veins lie on."""
    return torch.minimum(cerebrum_hull(p), cerebellum_hull(p))


def _paint_outside(canvas: Canvas, p: Points, inner: Tensor) -> None:
    """Skin and fat, muscle, bone, eyes and air cavities."""
    side = (p[0].abs(), p[1], p[2])
    neck = tube(p, [(0, -30, -40, 58), (0, -40, -260, 56)])
    face = join(ellipsoid(p, (0, 38, -52), (62, 54, 62)), ellipsoid(p, (0, 92, -38), (12, 16, 22)), 14.0)
    skin = join(join(inner - 13.0, face, 20.0), neck, 24.0)
    shell = torch.maximum(join(inner - 6.5, ellipsoid(p, (0, -8, -40), (50, 54, 8)), 8.0), skin + 4.0)
    jaw = torch.maximum(ellipsoid(side, (0, 40, -92), (46, 40, 12)).abs() - 4.0, skin + 5.0)
    cavities = _cavities(p)
    canvas.paint("fat", skin)
    canvas.paint("muscle", skin + 5.0)
    canvas.paint("bone", torch.minimum(shell, jaw))
    canvas.paint("bone", tube(p, [(0, -40, -78, 15), (0, -50, -170, 15)]))
    canvas.paint("CSF", tube(p, [(0, -40, -58, 9), (0, -52, -170, 8)]))
    canvas.paint("fat", ellipsoid(side, (30, 55, -24), (17, 24, 15)))
    canvas.paint("vitreous", ellipsoid(side, (32, 68, -24), (12, 12, 12)))
    canvas.paint("bone", torch.maximum(cavities - 1.5, skin + 4.0))
    canvas.paint("air", cavities)


def _cavities(p: Points) -> Tensor:
    """Distance to frontal, sphenoid, ethmoid and maxillary sinuses, mastoid cells, nose, throat and ear canals."""
    side = (p[0].abs(), p[1], p[2])
    found = tube(side, [(95, -22, -42, 4), (52, -20, -40, 3)])
    for centre, radii in (
        ((11, 78, 2), (10, 5, 9)),
        ((6, 27, -35), (9, 10, 8)),
        ((8, 52, -32), (5, 17, 9)),
        ((30, 48, -52), (13, 15, 14)),
        ((60, -36, -46), (6, 8, 9)),
    ):
        found = torch.minimum(found, ellipsoid(side, centre, radii))
    passages = 1.5 - (side[0].remainder(6) - 3).abs()
    nose = torch.maximum(ellipsoid(p, (0, 60, -54), (12, 34, 14)), passages)
    throat = tube(p, [(0, 22, -56, 8), (0, 6, -72, 8), (0, -6, -100, 9), (0, -8, -170, 9)])
    return torch.minimum(found, torch.minimum(nose, throat))


def _paint_cerebrum(canvas: Canvas, p: Points, hull: Tensor, waves: Waves, generator: torch.Generator) -> None:
    """White matter under a cortical ribbon that follows the hull, both great fissures and the sulci."""
    flat = (p[0] * 0, p[1], p[2])
    callosum = ellipsoid(flat, (0, -6, 3), (1e3, 42, 25))
    surface = common(hull, -common(p[0].abs() - 0.8, -callosum, 2.0), 2.0)
    depth = -surface
    sulcus = fold(p, surface, generator, canvas.voxel_size_mm) - 0.45 - 0.6 * torch.exp(-depth.clamp_min(0) / 5)
    sulcus = torch.maximum(sulcus, depth - 17 - 4 * waves(p))
    pial = common(common(surface, -sulcus, 2.0), -_sylvian(p, waves), 1.5)
    canvas.paint("grey matter", pial)
    canvas.paint("white matter", pial + 2.9)
    bridge = torch.maximum(callosum, -ellipsoid(flat, (0, -6, 2), (1e3, 36, 19)))
    canvas.paint("white matter", torch.maximum(bridge, p[0].abs() - 12))


def _sylvian(p: Points, waves: Waves) -> Tensor:
    """Distance to the Sylvian fissure: a sheet from the side of the head inwards, and the insula's cleft across it."""
    bend = waves(p)
    x, y = p[0].abs() + 1.5 * bend, p[1]
    above = (p[2] - 2 + 0.58 * (y + 12)) / math.hypot(1, 0.58) + 2.5 * bend
    sheet = torch.maximum(torch.maximum(above.abs() - 0.8, 36 - x), (y + 8).abs() - 38)
    cleft = common((x - 37).abs() - 0.8, ((above / 10) ** 2 + ((y - 2) / 20) ** 2).sqrt() * 12 - 12, 2.0)
    return torch.minimum(sheet, cleft)


def _paint_cerebellum(canvas: Canvas, p: Points, hull: Tensor, waves: Waves) -> None:
    """Folia: leaves of white matter, cortex and CSF that fan out from the white core."""
    y, z = p[1] + 46, p[2] + 34
    radius = (y**2 + z**2).sqrt().clamp_min(4)
    leaf = (torch.atan2(z, y) * 24 + 2.0 * waves(p)).cos()
    depth = -hull
    cleft = torch.maximum((leaf + 0.85) * radius / 24, depth - 9)
    pial = common(hull, -cleft, 1.0)
    canvas.paint("grey matter", pial)
    canvas.paint("white matter", torch.maximum(pial + 2.0, torch.minimum(11 - depth, (0.55 - leaf) * radius / 24)))


NUCLEI: tuple[tuple[str, Triple, Triple, float], ...] = (
    #  tissue            centre (mm, right)   radii (mm)     turn about z (degrees)
    ("thalamus", (10.5, -18.0, 7.0), (7.5, 14.0, 9.0), 25.0),
    ("caudate", (12.5, 14.0, 7.0), (4.5, 9.0, 8.5), 12.0),
    ("putamen", (26.0, 2.0, 1.0), (5.2, 15.0, 10.0), 10.0),
    ("pallidum", (19.0, -3.0, 0.0), (4.2, 9.5, 6.5), 24.0),
    ("red nucleus", (4.8, -20.0, -9.0), (3.1, 3.4, 4.2), 0.0),
    ("substantia nigra", (9.5, -16.5, -12.0), (2.4, 7.0, 4.5), 40.0),
    ("dentate", (15.0, -57.0, -34.0), (7.5, 10.0, 6.0), 25.0),
)
CAUDATE_TAIL: list[Stop] = [
    (13, 8, 15, 4.0),
    (15, -4, 19, 3.2),
    (19, -20, 20, 2.2),
    (25, -34, 14, 1.6),
    (30, -34, 2, 1.2),
]
HIPPOCAMPUS: list[Stop] = [(24, -10, -20, 6.0), (27, -22, -16, 5.0), (26, -36, -4, 3.5)]


def _paint_nuclei(canvas: Canvas, p: Points, waves: Waves) -> None:
    """Deep grey nuclei, hippocampus and amygdala, each within its own box."""
    where = canvas.near((-60, -100, -60), (60, 60, 40))
    inside = (p[0][where], p[1][where], p[2][where])
    side = (inside[0].abs(), inside[1], inside[2])
    canvas.paint("grey matter", tube(side, HIPPOCAMPUS), where)
    canvas.paint("grey matter", ellipsoid(side, (23, -3, -20), (8, 8, 8)), where)
    canvas.paint("caudate", tube(side, CAUDATE_TAIL), where)
    for tissue, centre, radii, turn in NUCLEI:
        canvas.paint(tissue, nucleus(side, tissue, centre, radii, turn) + 0.3 * waves(inside), where)


def nucleus(p: Points, tissue: str, centre: Triple, radii: Triple, turn_deg: float) -> Tensor:
    """Distance to a deep nucleus; the dentate is a crumpled sheet, open to the front and middle."""
    solid = ellipsoid(p, centre, radii, turn_deg)
    if tissue != "dentate":
        return solid
    x, y, z = (a - c for a, c in zip(p, centre, strict=True))
    crumpled = solid + 0.9 * torch.sin(1.3 * y + 0.8 * x) * torch.cos(1.2 * z)
    return torch.maximum(crumpled.abs() - 1.2, 0.6 * y - 0.6 * x - 4)


HORNS: list[list[Stop]] = [
    [(6, 33, 4, 3.0), (6.5, 20, 13, 5.0), (7, 4, 20, 5.2), (11, -18, 22, 5.2), (21, -38, 15, 6.5), (23, -68, 6, 2.5)],
    [(22, -40, 12, 5.0), (34, -32, -8, 2.5), (33, -12, -19, 2.0)],
]


def _paint_ventricles(canvas: Canvas, p: Points, width: float) -> None:
    """Lateral ventricles with their three horns, third ventricle, aqueduct and fourth ventricle."""
    where = canvas.near((-60, -100, -60), (60, 60, 50))
    x, y, z = (a[where] for a in p)
    side = (x.abs(), y, z)
    for path in HORNS:
        wide = [(a, b, c, r * width) for a, b, c, r in path]
        canvas.paint("CSF", torch.maximum(tube(side, wide), 0.6 - side[0]), where)
    canvas.paint("CSF", ellipsoid((x, y, z), (0, -10, 2), (1.8 * width, 14, 11)), where)
    canvas.paint("CSF", tube((x, y, z), [(0, -26, -4, 1.2), (0, -38, -20, 1.2)]), where)
    canvas.paint("CSF", ellipsoid((x, y, z), (0, -44, -33), (6, 6, 10)), where)
