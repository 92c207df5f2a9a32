"""Affine and mask of a scan -> where it is cut, and any volume cut there as radiologists see it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from PIL import Image
from skimage.measure import find_contours

from pipeline.report.found import Array, number

MARGIN_MM = 8.0  # shown around the mask
OFF_MIDLINE_MM = 12.0  # the sagittal plane lies so far to the left of the centre, where the deep nuclei are
LONGEST_PX = 360

GREY = ("#000000", "#ffffff")
DIVERGING = ("#a6d8ff", "#2f7fc8", "#14191f", "#c4532f", "#ffc79e")  # dark at zero, to be read on a dark ground

PLANES = ("sagittal", "coronal", "axial")  # by the axis that they are cut across
EDGES = (("A", "P", "S"), ("R", "L", "S"), ("R", "L", "A"))  # left, right and top of each picture
TOWARDS = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))


@dataclass(frozen=True)
class Window:
    """What is black and what is white, in which unit, by which colours."""

    low: float
    high: float
    unit: str
    colours: tuple[str, ...] = GREY

    @property
    def text(self) -> str:
        if self.unit == "rad":
            return "±π rad"
        if self.low == -self.high:
            return f"±{self.high:.2f} {self.unit}"
        return f"{number(self.low)} to {number(self.high)} {self.unit}"

    @property
    def ticks(self) -> tuple[str, str, str]:
        if self.unit == "rad":
            return "−π", "0", "+π"
        if self.low == -self.high:
            return f"−{self.high:.2f}", "0", f"+{self.high:.2f}"
        return number(self.low), number((self.low + self.high) / 2), number(self.high)


@dataclass(frozen=True)
class Plane:
    """One cut: a data URI, its size in mm and pixels, where it lies, letters at its edges, outlines as SVG paths."""

    name: str
    where: str
    uri: str
    size_mm: tuple[float, float]
    pixels: tuple[int, int]
    edges: tuple[str, str, str]
    outlines: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class View:
    """The cropped region and the planes through it, in axes turned to the nearest of right, anterior and superior.

    Nothing is interpolated across slices: the planes lean with the scan.
    """

    turning: Array  # orientation transform of nibabel
    to_mm: Array  # turned index -> scanner mm
    shape: tuple[int, ...]
    voxel_mm: tuple[float, ...]
    crop: tuple[slice, ...]
    at: tuple[int, ...]

    @classmethod
    def of(cls, affine: Sequence[Sequence[float]], mask: Array) -> View:
        """The view through the mask's centre of mass, cropped around the mask."""
        matrix = np.asarray(affine, dtype=float)
        turning = nib.io_orientation(matrix)
        to_mm = matrix @ nib.orientations.inv_ornt_aff(turning, mask.shape)
        turned = nib.orientations.apply_orientation(mask, turning)
        voxel_mm = tuple(np.linalg.norm(to_mm[:3, :3], axis=0).tolist())
        profiles = [turned.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
        cuts = [_region(profile.astype(float), size) for profile, size in zip(profiles, voxel_mm, strict=True)]
        crop, inside, centre = zip(*cuts, strict=True)
        shift = OFF_MIDLINE_MM / voxel_mm[0]
        left = max(inside[0][0], centre[0] - shift) if (inside[0][1] - inside[0][0]) > 4 * shift else centre[0]
        at = (round(left), round(centre[1]), round(centre[2]))
        return cls(turning, to_mm, turned.shape, voxel_mm, crop, at)

    def plane(
        self,
        volume: Array,
        axis: int,
        window: Window,
        inside: Array | None = None,
        outlines: dict[str, Array] | None = None,
        index: int | None = None,
    ) -> Plane:
        """The cut across one axis, windowed, black outside `inside`; `outlines` maps a CSS class to a mask."""
        flat = self.cut(volume, axis, index)
        width_mm, height_mm = self.extent_mm(axis)
        pixel_mm = max(min(self.voxel_mm), max(width_mm, height_mm) / LONGEST_PX)
        pixels = max(1, round(width_mm / pixel_mm)), max(1, round(height_mm / pixel_mm))
        paths = tuple((name, _path(self.cut(mask, axis, index), pixels)) for name, mask in (outlines or {}).items())
        painted = _painted(_resized(flat, pixels, smooth=window.unit != "rad"), window)
        if inside is not None:
            painted[_resized(self.cut(inside, axis, index), pixels, smooth=True) < 0.5] = 0
        uri = _uri(painted)
        return Plane(PLANES[axis], self.where(axis, index), uri, (width_mm, height_mm), pixels, EDGES[axis], paths)

    def planes(
        self, volume: Array, window: Window, inside: Array | None = None, outlines: dict[str, Array] | None = None
    ) -> tuple[Plane, ...]:
        """Axial, coronal, sagittal."""
        return tuple(self.plane(volume, axis, window, inside, outlines) for axis in (2, 1, 0))

    def cut(self, volume: Array, axis: int, index: int | None = None) -> Array:
        """The cropped plane, rows from the top, the patient's right (or front) at the viewer's left."""
        where: list[slice | int] = list(self.crop)
        where[axis] = self.at[axis] if index is None else index
        turned = nib.orientations.apply_orientation(volume, self.turning)
        return np.asarray(turned[tuple(where)], dtype=np.float32)[::-1, ::-1].T

    def extent_mm(self, axis: int) -> tuple[float, float]:
        """Width and height of the cropped plane."""
        size = [(s.stop - s.start) * mm for s, mm in zip(self.crop, self.voxel_mm, strict=True)]
        across, up = (a for a in range(3) if a != axis)
        return size[across], size[up]

    def where(self, axis: int, index: int | None = None) -> str:
        """`slice 18 of 36, 12 mm superior` of the isocentre, taken at the middle of the region."""
        point = [(s.start + s.stop - 1) / 2 for s in self.crop]
        point[axis] = self.at[axis] if index is None else index
        mm = float((self.to_mm @ [*point, 1.0])[axis])
        return f"slice {round(point[axis]) + 1} of {self.shape[axis]}, {abs(mm):.0f} mm {TOWARDS[axis][mm >= 0]}"

    def through(self, axis: int, count: int) -> list[int]:
        """Evenly spread slices across an axis, its ends left out."""
        low, high = self.crop[axis].start, self.crop[axis].stop - 1
        margin = (high - low) * 0.18
        return [round(i) for i in np.linspace(high - margin, low + margin, count)]


def paint_css(window: Window) -> str:
    """The window's colours as a CSS gradient."""
    return f"linear-gradient(to right, {', '.join(window.colours)})"


def _region(profile: Array, voxel_mm: float) -> tuple[slice, tuple[int, int], float]:
    """Cropped range, first and last voxel, and centre of mass of a mask's profile along one axis."""
    inside = np.flatnonzero(profile)
    if not inside.size:
        return slice(0, len(profile)), (0, len(profile) - 1), (len(profile) - 1) / 2
    first, last, margin = int(inside[0]), int(inside[-1]), round(MARGIN_MM / voxel_mm)
    centre = float((profile * np.arange(len(profile))).sum() / profile.sum())
    return slice(max(0, first - margin), min(len(profile), last + 1 + margin)), (first, last), centre


def _resized(flat: Array, pixels: tuple[int, int], smooth: bool) -> Array:
    """The plane with square pixels; wrapped phase is never averaged."""
    if flat.shape == pixels[::-1]:
        return flat
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(flat)).resize(pixels, how))


def _painted(flat: Array, window: Window) -> Array:
    """Bytes, grey or RGB, of the values between the window's ends; what is no number is black."""
    span = (window.high - window.low) or 1.0
    share = np.clip((np.nan_to_num(flat, nan=window.low) - window.low) / span, 0, 1)
    if window.colours == GREY:
        return (share * 255 + 0.5).astype(np.uint8)
    stops = np.linspace(0, 1, len(window.colours))
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in window.colours], dtype=float)
    return np.stack([np.interp(share, stops, rgb[:, i]) for i in range(3)], axis=-1).round().astype(np.uint8)


def _uri(pixels: Array) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", quality=92, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def _path(mask: Array, pixels: tuple[int, int]) -> str:
    """The outline of a plane's mask as an SVG path in units of the picture's pixels."""
    scale = np.array([pixels[1] / mask.shape[0], pixels[0] / mask.shape[1]])
    parts = []
    for contour in find_contours(np.pad(mask, 1), 0.5):
        points = (contour - 1 + 0.5) * scale
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in points[:-1]) + "Z")
    return "".join(parts)
