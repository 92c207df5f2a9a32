"""NIfTI files and, where these lack it, the user's axis codes -> how voxels lie in the scanner, or why nobody can tell.

A file states its orientation by an sform or qform whose code is not zero and whose matrix spans space. Without one the
direction of B0 and the side of the head are unknown, and a map from it could be wrong and mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener
from numpy.typing import NDArray

from pipeline.axes import directions, in_words
from pipeline.errors import ChironError, Decision, Notice

Matrix = NDArray[np.float64]

_UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's codes of metre, millimetre, micrometre; files without one mean mm
_SIZE_MM = (0.01, 50.0)
_FLAT = 0.01  # volume that the unit vectors of three voxel axes span at least
_FURTHEST_DEG = 60.0  # of B0 from the foot-head axis


@dataclass(frozen=True)
class Orientation:
    """The affine of each file (voxel index -> mm, RAS+), and what was decided about it."""

    affines: dict[Path, Matrix]
    notices: tuple[Notice, ...] = ()
    decisions: tuple[Decision, ...] = ()


def orientation(paths: Sequence[Path], axes: str = "", b0_dir: Sequence[float] = ()) -> Orientation:
    """How the voxels of a scan's files lie. `axes` are the user's codes, such as LAS, for files that state none.

    `b0_dir` is the direction of B0 in voxel axes that a sidecar states: it does not tell left from right. E022 where a
    file states no orientation and there are no `axes`, or these contradict `b0_dir`; E023 where a voxel has no possible
    size. A file that cannot be read is left to its conversion.
    """
    headers = {path: header for path in paths if (header := read_header(path)) is not None}
    stated = {path: stated_affine(header) for path, header in headers.items()}
    lacking = sum(affine is None for affine in stated.values())
    if not lacking:
        affines = {path: affine for path, affine in stated.items() if affine is not None}
        return Orientation(affines, notices=_unused(affines, axes))
    if not axes:
        raise _missing(lacking, len(headers), list(headers.values()), b0_dir)
    _check_direction(axes, b0_dir)
    codes = {"".join(nib.aff2axcodes(affine)) for affine in stated.values() if affine is not None}
    if codes - {axes.upper()}:
        found = f"{' and '.join(sorted(codes))}, which {len(headers) - lacking} of {len(headers)} images state"
        todo = "Give that with --orientation, or take the images apart that do not belong together."
        raise ChironError("E022", f"the orientation {axes.upper()} for images of {found}", "one for all", todo)
    why = f"{lacking} of {len(headers)} images state none; {in_words(axes)}"
    which = "The images have" if lacking == len(headers) else f"{lacking} of {len(headers)} images have"
    notice = Notice("E022", f"{which} no orientation of their own; {axes.upper()} of --orientation is used.")
    affines = {path: affine for path, affine in stated.items() if affine is not None}
    for path in headers.keys() - affines.keys():
        twins = (other for other in stated if other in affines and _shape(headers[other]) == _shape(headers[path]))
        affines[path] = next((affines[twin] for twin in twins), affine_of(headers[path], axes))
    return Orientation(affines, (notice,), (Decision("orientation", axes.upper(), why, "--orientation"),))


def read_header(path: Path) -> Any | None:
    """The header as it is stored: nibabel's loader mends sizes of zero in silence. None where this is no NIfTI file."""
    with suppress(Exception):  # a damaged file can make the parser fail in any way
        with ImageOpener(path) as stream:
            block = stream.read(540)
        for kind in (nib.Nifti1Header, nib.Nifti2Header):
            size = kind.template_dtype.itemsize
            for order in "<>":
                header = kind(block[:size], endianness=order, check=False)
                if int(header["sizeof_hdr"]) == size and bytes(header["magic"].item())[:2] in (b"n+", b"ni"):
                    return header
    return None


def stated_affine(header: Any) -> Matrix | None:
    """The sform, else the qform, in mm; None where neither has a code and spans space. E023 for an impossible size."""
    candidates: list[Matrix] = []
    if int(header["sform_code"]) > 0:
        candidates.append(np.asarray(header.get_sform(), dtype=float))
    if int(header["qform_code"]) > 0:
        with suppress(Exception):  # quaternions that describe no rotation
            candidates.append(np.asarray(header.get_qform(), dtype=float))
    for matrix in candidates:
        if _spans(matrix):
            affine = matrix.copy()
            affine[:3] *= _unit_mm(header)
            _check_size(np.linalg.norm(affine[:3, :3], axis=0), header)
            return affine
    return None


def affine_of(header: Any, axes: str) -> Matrix:
    """The affine of axis codes and the header's voxel size, with the middle of the volume at the isocentre."""
    size = np.asarray(header["pixdim"][1:4], dtype=float) * _unit_mm(header)
    _check_size(size, header)
    affine = np.eye(4)
    affine[:3, :3] = directions(axes) * size
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(header["dim"][1:4], dtype=float) - 1) / 2)
    return affine


def _shape(header: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in header["dim"][1:4])


def _spans(matrix: Matrix) -> bool:
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or not (lengths > 0).all():
        return False
    return bool(abs(np.linalg.det(matrix[:3, :3] / lengths)) > _FLAT)


def _unit_mm(header: Any) -> float:
    return _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)


def _check_size(size_mm: NDArray[np.float64], header: Any) -> None:
    if np.isfinite(size_mm).all() and _SIZE_MM[0] <= size_mm.min() and size_mm.max() <= _SIZE_MM[1]:
        return
    listed = " x ".join(f"{length:.3g}" for length in size_mm)
    unit = {1: "metres", 3: "micrometres"}.get(int(header["xyzt_units"]) & 7)
    source = f", from a file that states {unit}" if unit else ""
    raise ChironError("E023", f"voxels of {listed} mm{source}", f"{_SIZE_MM[0]:g} to {_SIZE_MM[1]:g} mm")


def _missing(lacking: int, count: int, headers: Sequence[Any], b0_dir: Sequence[float]) -> ChironError:
    coded = any(int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0 for header in headers)
    why = "no qform or sform that spans space" if coded and lacking == count else "qform_code and sform_code are 0"
    what = "left and right (B0_dir does not tell them)" if b0_dir else "the direction of B0, and left and right,"
    which = "NIfTI images" if lacking == count else f"{lacking} of {count} NIfTI images"
    return ChironError(
        "E022", f"{which} without orientation ({why}): {what} are unknown", "how the voxels lie in the scanner"
    )


def _check_direction(axes: str, b0_dir: Sequence[float]) -> None:
    """E022 where the foot-head axis of the codes is far from B0 as the sidecar states it."""
    if not np.linalg.norm(b0_dir):
        return
    along = abs((directions(axes) @ np.asarray(b0_dir, dtype=float))[2]) / float(np.linalg.norm(b0_dir))
    angle = float(np.degrees(np.arccos(min(1.0, along))))
    if angle > _FURTHEST_DEG:
        text = f"an orientation {axes.upper()} with its foot-head axis {angle:.0f} degrees from the sidecar's B0_dir"
        raise ChironError("E022", text, "a foot-head axis near B0", "Correct --orientation, or B0_dir in the sidecar.")


def _unused(affines: dict[Path, Matrix], axes: str) -> tuple[Notice, ...]:
    codes = {"".join(nib.aff2axcodes(affine)) for affine in affines.values()}
    if not axes or codes <= {axes.upper()}:
        return ()
    listed = " and ".join(sorted(codes))
    text = f"The images state their orientation ({listed}): {axes.upper()} of --orientation is not used."
    return (Notice("E022", text),)
