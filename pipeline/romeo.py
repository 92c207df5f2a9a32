"""Wrapped phase of one or two echoes -> the phase unwrapped in space, region by region along its most reliable edges.

ROMEO (Dymerska 2021, doi 10.1002/mrm.28563). An edge joins two neighbouring voxels; its weight (0 to 1) is the product
of phase coherence, phase linearity, magnitude coherence and, with a second echo, the coherence of the phase gradient in
time. Edges are taken best first from a queue of 255 buckets, each a linked list in one array: every edge is queued at
most once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[np.float32]
TWO_PI = 2 * np.pi


def unwrap_volume(
    phase: Volume,
    magnitude: Volume,
    mask: npt.NDArray[np.bool_],
    second: Volume | None = None,
    times_s: tuple[float, float] = (1.0, 1.0),
) -> Volume:
    """Phase (X, Y, Z) in radians, unwrapped inside the mask and zero outside.

    `second` is the phase of another echo at `times_s[1]`; `times_s[0]` belongs to `phase`. Each connected piece of the
    mask is unwrapped by itself, and shifted by the multiple of 2 pi that brings its median nearest to zero.
    """
    phase = np.ascontiguousarray(phase, dtype=np.float32)
    other = phase if second is None else np.ascontiguousarray(second, dtype=np.float32)
    ratio = 0.0 if second is None else times_s[0] / times_s[1]
    mask = np.ascontiguousarray(mask)
    weights = edge_weights(phase, np.ascontiguousarray(magnitude, dtype=np.float32), mask, other, ratio)
    unwrapped = phase.copy()
    piece = np.zeros(phase.shape, np.int32)
    pieces = _grow(unwrapped.reshape(-1), weights.reshape(-1, 3), mask.reshape(-1), piece.reshape(-1), phase.shape)
    _centre(unwrapped, piece, pieces)
    unwrapped[~mask] = 0
    return unwrapped


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
    return angle - TWO_PI * np.round(angle / TWO_PI)


@numba.njit(cache=True, parallel=True, nogil=True)  # type: ignore[untyped-decorator]
def edge_weights(phase: Any, magnitude: Any, mask: Any, second: Any, ratio: float) -> Any:
    """Weight 1 to 255 (X, Y, Z, 3) of the edge from each voxel to the next along each axis; 0 where there is none."""
    nx, ny, nz = phase.shape
    out = np.zeros((nx, ny, nz, 3), np.uint8)
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
                    weight = 1 - abs(step) / np.pi
                    if ratio > 0:
                        later = _wrap(second[i, j, k] - second[x, y, z])
                        weight *= max(0.0, 1 - abs(step - later * ratio))
                    a, b, c = x - dx, y - dy, z - dz
                    if a >= 0 and b >= 0 and c >= 0 and mask[a, b, c]:
                        bend = _wrap(step - _wrap(phase[x, y, z] - phase[a, b, c]))
                        weight *= max(0.0, 1 - abs(bend) / TWO_PI)
                    a, b, c = i + dx, j + dy, k + dz
                    if a < nx and b < ny and c < nz and mask[a, b, c]:
                        bend = _wrap(_wrap(phase[a, b, c] - phase[i, j, k]) - step)
                        weight *= max(0.0, 1 - abs(bend) / TWO_PI)
                    low = min(magnitude[x, y, z], magnitude[i, j, k])
                    high = max(magnitude[x, y, z], magnitude[i, j, k])
                    if high > 0:
                        weight *= (low / high) ** 2
                    out[x, y, z, axis] = max(1, int(np.round(255 * weight)))
    return out


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _grow(phase: Any, weights: Any, mask: Any, piece: Any, shape: Any) -> int:
    """Unwrap `phase` (flat) in place; `piece` becomes the number (from 1) of the connected piece of each voxel."""
    n = phase.size
    strides = (shape[1] * shape[2], shape[2], 1)
    first = np.full(256, -1, np.int32)
    following = np.empty(3 * n, np.int32)
    pieces = 0
    order = _seeds(weights, mask)
    for seed in order:
        if piece[seed]:
            continue
        pieces += 1
        piece[seed] = pieces
        best = 256
        new = seed
        while True:
            for axis in range(3):
                for edge, far in (
                    (3 * new + axis, new + strides[axis]),
                    (3 * (new - strides[axis]) + axis, new - strides[axis]),
                ):
                    if far < 0 or far >= n or edge < 0 or piece[far]:
                        continue
                    weight = weights[edge // 3, axis]
                    if weight == 0:
                        continue
                    bucket = 255 - weight
                    following[edge] = first[bucket]
                    first[bucket] = edge
                    best = min(best, bucket)
            found = False
            while best < 256:
                edge = first[best]
                if edge < 0:
                    best += 1
                    continue
                first[best] = following[edge]
                near = edge // 3
                far = near + strides[edge % 3]
                if piece[near] and piece[far]:
                    continue
                if piece[far]:
                    near, far = far, near
                phase[far] -= TWO_PI * np.round((phase[far] - phase[near]) / TWO_PI)
                piece[far] = pieces
                new = far
                found = True
                break
            if not found:
                break
    return pieces


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _seeds(weights: Any, mask: Any) -> Any:
    """All voxels of the mask, those with the best edges first."""
    n = mask.size
    score = np.empty(n, np.int64)
    for v in range(n):
        score[v] = int(weights[v, 0]) + int(weights[v, 1]) + int(weights[v, 2]) if mask[v] else -1
    counts = np.zeros(767, np.int64)
    for v in range(n):
        if score[v] >= 0:
            counts[765 - score[v] + 1] += 1
    for bucket in range(1, 767):
        counts[bucket] += counts[bucket - 1]
    order = np.empty(counts[766], np.int64)
    for v in range(n):
        if score[v] >= 0:
            order[counts[765 - score[v]]] = v
            counts[765 - score[v]] += 1
    return order


def _centre(phase: Volume, piece: npt.NDArray[np.int32], pieces: int) -> None:
    """Shift every piece by the multiple of 2 pi that brings its median nearest to zero."""
    order = np.argsort(piece, axis=None, kind="stable")
    bounds = np.searchsorted(piece.reshape(-1)[order], np.arange(1, pieces + 2))
    flat = phase.reshape(-1)
    for start, stop in pairwise(bounds):
        members = order[start:stop]
        flat[members] -= np.float32(TWO_PI) * np.round(np.median(flat[members]) / TWO_PI)
