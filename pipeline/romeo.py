"""Wrapped phase of one or two echoes -> the phase unwrapped in space, along its most reliable edges, and how reliably.

ROMEO (Dymerska 2021, doi 10.1002/mrm.28563). An edge joins two neighbouring voxels; its weight (0 to 1) is the product
of phase coherence, phase linearity, magnitude coherence and, with a second echo, the coherence of the phase gradient in
time. Edges are taken best first from a queue of 255 buckets, each a linked list in one array: every edge is queued at
most once. Beyond the paper, a voxel is unwrapped against all neighbours that already are, each continued by its slope.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[np.float32]
TWO_PI = 2 * np.pi
_TURN, _PER_TURN, _PI = np.float32(TWO_PI), np.float32(1 / TWO_PI), np.float32(np.pi)
_SHARES = (600, 300, 0)  # of 765: how good the edges of a voxel must be from which a further piece is begun


@dataclass(frozen=True)
class Grown:
    """Unwrapped phase (X, Y, Z, zero outside the mask), the number of each voxel's piece (from 1), and its reach.

    Reach (0 to 255, uint8) is the weakest edge on the way from the piece's seed: a wrong turn is behind a weak one.
    """

    phase: Volume
    piece: npt.NDArray[np.int32]
    reach: npt.NDArray[np.uint8]


def grow(
    phase: Volume,
    magnitude: Volume,
    mask: npt.NDArray[np.bool_],
    second: Volume | None = None,
    times_s: tuple[float, float] = (1.0, 1.0),
) -> Grown:
    """Unwrap phase (X, Y, Z) in radians inside the mask, each connected piece by itself.

    `second` is the phase of another echo at `times_s[1]`; `times_s[0]` belongs to `phase`.
    """
    phase = np.ascontiguousarray(phase, dtype=np.float32)
    other = phase if second is None else np.ascontiguousarray(second, dtype=np.float32)
    ratio = 0.0 if second is None else times_s[0] / times_s[1]
    mask = np.ascontiguousarray(mask)
    weights = edge_weights(phase, np.ascontiguousarray(magnitude, dtype=np.float32), mask, other, ratio)
    unwrapped = np.where(mask, phase, np.float32(0))
    piece, reach = np.zeros(phase.shape, np.int32), np.zeros(phase.shape, np.uint8)
    flat = unwrapped.reshape(-1), weights.reshape(-1, 3), mask.reshape(-1), piece.reshape(-1), reach.reshape(-1)
    _grow(*flat, phase.shape)
    return Grown(unwrapped, piece, reach)


def unwrap_volume(
    phase: Volume,
    magnitude: Volume,
    mask: npt.NDArray[np.bool_],
    second: Volume | None = None,
    times_s: tuple[float, float] = (1.0, 1.0),
) -> Volume:
    """As `grow`, with each piece shifted by the multiple of 2 pi that brings its median nearest to zero."""
    grown = grow(phase, magnitude, mask, second, times_s)
    turns = piece_medians(grown.phase, grown.piece) / TWO_PI
    return np.asarray(grown.phase - _TURN * np.round(turns).astype(np.float32)[grown.piece], np.float32)


def piece_medians(values: Volume, piece: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Median of `values` in each piece, by number; 0 for number 0, which is none."""
    inside = piece > 0
    number, found = piece[inside], values[inside]
    medians = np.zeros(int(piece.max(initial=0)) + 1)
    counts = np.bincount(number, minlength=len(medians))
    order = np.argsort(number, kind="stable") if len(medians) > 2 else np.arange(len(number))
    for k, part in enumerate(np.split(found[order], np.cumsum(counts)[1:-1]), start=1) if len(found) else ():
        medians[k] = np.median(part)
    return medians


def quality(
    phase: Volume, magnitude: Volume, second: Volume | None = None, times_s: tuple[float, float] = (1.0, 1.0)
) -> Volume:
    """Mean weight (0 to 1) of the six edges of each voxel: how well its phase agrees with its neighbours'."""
    other = phase if second is None else second
    ratio = 0.0 if second is None else times_s[0] / times_s[1]
    everywhere = np.ones(phase.shape, np.bool_)
    weights = edge_weights(phase, magnitude, everywhere, other, ratio).astype(np.float32) / 255
    total = weights.sum(-1)
    for axis in range(3):
        ahead = np.roll(weights[..., axis], 1, axis)
        ahead[(slice(None),) * axis + (0,)] = 0
        total += ahead
    return np.asarray(total / 6, np.float32)


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _wrap(angle: Any) -> Any:
    return angle - _TURN * np.rint(angle * _PER_TURN)


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _tempered(share: Any) -> Any:
    """No single criterion rules an edge out."""
    return np.float32(0.1) + np.float32(0.9) * max(share, np.float32(0))


@numba.njit(cache=True, parallel=True, nogil=True)  # type: ignore[untyped-decorator]
def edge_weights(phase: Any, magnitude: Any, mask: Any, second: Any, ratio: float) -> Any:
    """Weight 1 to 255 (X, Y, Z, 3) of the edge from each voxel to the next along each axis; 0 where there is none."""
    nx, ny, nz = phase.shape
    out = np.zeros((nx, ny, nz, 3), np.uint8)
    one, half, scale = np.float32(1), np.float32(0.5), np.float32(ratio)
    for x in numba.prange(nx):
        for y in range(ny):
            for z in range(nz):
                if not mask[x, y, z]:
                    continue
                for axis in range(3):
                    dx, dy, dz = int(axis == 0), int(axis == 1), int(axis == 2)
                    i, j, k = x + dx, y + dy, z + dz
                    if i >= nx or j >= ny or k >= nz or not mask[i, j, k]:
                        continue
                    step = _wrap(phase[i, j, k] - phase[x, y, z])
                    weight = _tempered(one - abs(step) / _PI)
                    if scale > 0:
                        later = _wrap(second[i, j, k] - second[x, y, z])
                        weight *= _tempered(one - abs(step - later * scale))
                    a, b, c = x - dx, y - dy, z - dz
                    d, e, f = i + dx, j + dy, k + dz
                    if a >= 0 and b >= 0 and c >= 0 and d < nx and e < ny and f < nz:
                        bend = abs(_wrap(step - (phase[x, y, z] - phase[a, b, c])))
                        next_bend = abs(_wrap(phase[d, e, f] - phase[i, j, k] - step))
                        straight = max(np.float32(0), one - bend * half) * max(np.float32(0), one - next_bend * half)
                    else:
                        straight = np.float32(0.9)
                    weight *= _tempered(straight)
                    low = min(magnitude[x, y, z], magnitude[i, j, k])
                    high = max(magnitude[x, y, z], magnitude[i, j, k])
                    if high > 0:
                        weight *= _tempered((low / high) * (low / high))
                    out[x, y, z, axis] = max(1, int(np.rint(np.float32(255) * weight)))
    return out


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _grow(phase: Any, weights: Any, mask: Any, piece: Any, reach: Any, shape: Any) -> None:
    """Unwrap `phase` (flat) in place, from the voxel with the best edges on; fill `piece` and `reach`."""
    strides = (shape[1] * shape[2], shape[2], 1)
    first = np.full(256, -1, np.int32)
    following = np.empty(3 * phase.size, np.int32)
    offer = np.zeros(phase.size, np.uint8)
    pieces = 0
    for least in (_best(weights, mask), *_SHARES):
        for seed in range(phase.size):
            if not mask[seed] or piece[seed] or _score(weights, seed) < least:
                continue
            pieces += 1
            _grow_from(seed, pieces, phase, weights, piece, reach, strides, first, following, offer)


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _score(weights: Any, voxel: int) -> Any:
    return np.int64(weights[voxel, 0]) + np.int64(weights[voxel, 1]) + np.int64(weights[voxel, 2])


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _best(weights: Any, mask: Any) -> Any:
    best = np.int64(0)
    for voxel in range(mask.size):
        if mask[voxel]:
            best = max(best, _score(weights, voxel))
    return best


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _grow_from(
    seed: int,
    number: int,
    phase: Any,
    weights: Any,
    piece: Any,
    reach: Any,
    strides: Any,
    first: Any,
    following: Any,
    offer: Any,
) -> None:
    """Unwrap the piece of `seed`. `first` and `following` are the queue, empty before and after.

    `offer` is the best weight that a voxel was queued with, 255 once it is unwrapped: only better edges are queued.
    """
    piece[seed], reach[seed], offer[seed] = number, 255, 255
    new, best = seed, 256
    while new >= 0:
        for axis in range(3):
            ahead, behind = new + strides[axis], new - strides[axis]
            weight = weights[new, axis]
            if weight > 0 and weight > offer[ahead]:
                offer[ahead] = weight
                best = min(best, _queue(3 * new + axis, weight, first, following))
            weight = weights[behind, axis] if behind >= 0 else np.uint8(0)
            if weight > 0 and weight > offer[behind]:
                offer[behind] = weight
                best = min(best, _queue(3 * behind + axis, weight, first, following))
        new = -1
        while new < 0 and best < 256:
            edge = first[best]
            if edge < 0:
                best += 1
                continue
            first[best] = following[edge]
            near = edge // 3
            far = near + strides[edge - 3 * near]
            if reach[far]:
                near, far = far, near
            if reach[far]:
                continue
            expected = _continued(phase, weights, reach, far, strides)
            phase[far] -= _TURN * np.rint((phase[far] - expected) * _PER_TURN)
            reach[far] = min(np.int64(reach[near]), np.int64(255 - best))
            piece[far], offer[far] = number, 255
            new = far


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _queue(edge: int, weight: Any, first: Any, following: Any) -> Any:
    bucket = 255 - np.int64(weight)
    following[edge] = first[bucket]
    first[bucket] = edge
    return bucket


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _continued(phase: Any, weights: Any, reach: Any, voxel: int, strides: Any) -> Any:
    """What the unwrapped neighbours let expect of a voxel: the phase of each, and its slope, at most half a turn."""
    total, norm = np.float32(0), np.float32(0)
    for axis in range(3):
        for sign in (-1, 1):
            near = voxel + sign * strides[axis]
            beyond = near + sign * strides[axis]
            if near < 0 or near >= phase.size or reach[near] == 0:
                continue
            weight = np.float32(weights[voxel if sign > 0 else near, axis])
            if weight == 0:
                continue
            value = phase[near]
            if 0 <= beyond < phase.size and reach[beyond] and weights[near if sign > 0 else beyond, axis] > 0:
                value += min(max(phase[near] - phase[beyond], -_PI), _PI)
            total += weight * value
            norm += weight
    return total / norm
