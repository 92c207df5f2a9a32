"""Wrapped echoes -> unwrapped echoes, free of phase offsets: ROMEO in space, MCPC-3D-S, the later echoes in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from models.params import param
from pipeline import romeo
from pipeline.errors import Decision, Notice
from pipeline.unwrap.laplacian import laplacian_phase as laplacian_phase
from pipeline.unwrap.offset import Coarse, phase_offset, readout
from pipeline.unwrap.time import unwrap_in_time
from pipeline.volumes import Echoes, bounding_box

TWO_PI = 2 * np.pi


@dataclass(frozen=True)
class Unwrap:
    """How phase offsets are removed and phase is unwrapped."""

    method: Literal["romeo", "laplacian"] = param("romeo", "romeo is exact; laplacian is smooth and approximate")
    offset_smoothing_mm: float = param(5.0, "Gaussian sigma of the phase offset, which is smooth by nature", 1, 30)
    bipolar: Literal["auto", "yes", "no"] = param(
        "auto", "echoes read out in alternating directions; auto tests for it"
    )
    least_reach: float = param(
        0.19, "voxels at the mask's rim leave it if only edges weaker than this lead there; 0 keeps all", 0, 0.9
    )


@dataclass(frozen=True)
class Unwrapped:
    """Echoes with unwrapped phase that starts from zero at echo time zero, and the offset that was taken off.

    `mask` is the given one without the rim voxels that no reliable way leads to: one in ten of them is off by a turn.
    """

    echoes: Echoes
    offset_rad: Tensor
    facts: dict[str, Any]
    decisions: list[Decision] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    mask: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))


BIPOLAR_RAD = 0.15  # RMS of the linear part of the difference between echoes of either polarity; 0 when monopolar
SMALL_PIECE = 0.01  # of the mask: pieces below it are not tied to the rest, and their turns are not known
MANY_WRAPS = 0.001  # of all neighbours
MANY_STEEP = 0.05  # of the mask
MANY_UNRELIABLE = 0.1  # of the mask
STEEP = 0.4 * np.pi  # from voxel to voxel in the first echo: where the field is that steep, one more turn looks alike


def unwrap(echoes: Echoes, mask: Tensor, params: Unwrap = Unwrap()) -> Unwrapped:
    """Unwrap all echoes inside `mask` (bool X, Y, Z); outside it the phase is zero.

    The first echo is unwrapped in space with the second as a witness, once. From it follow what a bipolar readout adds
    to even echoes, the phase offset (from a single echo it cannot be told and stays), and the turns of later echoes.
    Facts: wraps_left (share of neighbours that differ by more than pi, of all echoes) and wraps_left_voxels.
    """
    if params.method == "laplacian":
        return _by_laplacian(echoes, mask)
    box = bounding_box(mask)
    inside = mask[box].contiguous()
    phase = echoes.phase_rad[(slice(None), *box)] * inside
    magnitude = echoes.magnitude[(slice(None), *box)] * inside
    grown = _in_space(echoes.phase_rad[(slice(None), *box)], magnitude, inside, echoes.echo_times_s)
    first, piece = torch.from_numpy(grown.phase).to(phase.device), torch.from_numpy(grown.piece).to(phase.device)
    phase, decisions, notices = _one_polarity(first, phase, magnitude, echoes, params)
    offset = _offset(first, phase, magnitude, echoes, params)
    voxels = torch.nonzero(inside.flatten()).flatten()
    first, offset = _without_turns(_taken(first - offset, voxels), offset, _taken(piece, voxels), echoes.echo_times_s)
    later = [_taken(p - offset, voxels) for p in phase]
    found = unwrap_in_time(first, torch.stack(later), magnitude.flatten(1)[:, voxels], echoes.echo_times_s)
    unwrapped = torch.zeros_like(phase)
    unwrapped.flatten(1)[:, voxels] = found
    kept = _reliable(grown, inside, params)
    facts, more = _describe(unwrapped, inside, kept, params, len(echoes.echo_times_s) > 1)
    whole = replace(echoes, phase_rad=_outside(unwrapped, box, echoes.phase_rad))
    notices = [*notices, *more]
    full = _outside(offset, box, echoes.phase_rad[0])
    return Unwrapped(whole, full, facts, decisions, notices, _outside(kept, box, mask))


def _in_space(phase: Tensor, magnitude: Tensor, inside: Tensor, times: Sequence[float]) -> romeo.Grown:
    """Echo 0, whatever its offset: that is smooth, and does not disturb the unwrapping."""
    witness = (phase[1].cpu().numpy(), (times[0], times[1])) if len(times) > 1 else ()
    return romeo.grow(phase[0].cpu().numpy(), magnitude[0].cpu().numpy(), inside.cpu().numpy(), *witness)


def _one_polarity(
    first: Tensor, phase: Tensor, magnitude: Tensor, echoes: Echoes, params: Unwrap
) -> tuple[Tensor, list[Decision], list[Notice]]:
    """The phase, with even echoes brought in line with odd ones where the readout alternates."""
    if params.bipolar == "no" or len(phase) < 3:
        text = "a bipolar readout of echoes that do not allow its correction: it was left"
        return phase, [], [Notice("E013", text)] if params.bipolar == "yes" else []
    coarse = Coarse.of(echoes.grid.voxel_size_mm, params.offset_smoothing_mm)
    found = readout(first, phase, magnitude, echoes.echo_times_s, coarse)
    seen = f"even echoes differ by {found.ramp_rad:.2f} rad"
    bipolar = params.bipolar == "yes" or found.ramp_rad > BIPOLAR_RAD
    verdict = "bipolar, corrected" if bipolar else "monopolar"
    decisions = [Decision("readout", verdict, seen, "unwrap.bipolar=yes|no")]
    if not bipolar:
        return phase, decisions, []
    aligned = torch.stack([p - found.excess_rad if e % 2 else p for e, p in enumerate(phase)])
    return aligned, decisions, [Notice("E013", f"bipolar readout: {seen}; corrected")]


def _offset(first: Tensor, phase: Tensor, magnitude: Tensor, echoes: Echoes, params: Unwrap) -> Tensor:
    """The phase at echo time zero (X, Y, Z); zero for a single echo, which does not tell it."""
    if len(phase) < 2:
        return torch.zeros_like(first)
    coarse = Coarse.of(echoes.grid.voxel_size_mm, params.offset_smoothing_mm)
    return phase_offset(first, phase, magnitude, echoes.echo_times_s, coarse)


def _without_turns(first: Tensor, offset: Tensor, piece: Tensor, times: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Echo 0 (V) and offset (X, Y, Z) with the turns that bring the field of the whole, and of each piece, near zero.

    The offset leaves the field open by full turns of the echo spacing, and each piece by full turns of echo 0.
    """
    if len(times) > 1:
        spacing = (times[1] - times[0]) / times[0]
        turn = TWO_PI / spacing * torch.round(first.median() * spacing / TWO_PI)
        first, offset = first - turn, offset + turn
    medians = romeo.piece_medians(first.cpu().numpy(), piece.cpu().numpy())
    turns = torch.from_numpy(np.round(medians / TWO_PI).astype(np.float32)).to(first.device)
    return first - TWO_PI * turns[piece.long()], offset


def _reliable(grown: romeo.Grown, inside: Tensor, params: Unwrap) -> Tensor:
    """The mask without rim voxels of low reach or steep phase, nor small pieces; islands of them within it stay.

    In noise, where all edges are weak, half the median reach is asked for and no more; and where many voxels are steep,
    as in noise or in thick slices, that says nothing of the single one.
    """
    mask = inside.cpu().numpy()
    count = np.bincount(grown.piece[mask])
    least = min(255 * params.least_reach, 0.5 * float(np.median(grown.reach[mask])))
    large = count >= SMALL_PIECE * mask.sum()
    low = mask & (grown.reach < least)
    if params.least_reach > 0:
        steep = _jumps(torch.from_numpy(grown.phase), inside.cpu(), STEEP).numpy()
        rare = steep.sum() <= MANY_STEEP * mask.sum()
        low |= mask & (~large[grown.piece] | (steep if rare else False))
    outer = ndimage.binary_propagation(~mask, np.ones((3, 3, 3)), mask=~mask | low)
    return torch.from_numpy(~outer).to(inside.device)


def _describe(
    unwrapped: Tensor, inside: Tensor, kept: Tensor, params: Unwrap, offset: bool
) -> tuple[dict[str, Any], list[Notice]]:
    """Facts, and a notice where even the first echo, which later ones follow, is torn in many places."""
    torn, voxels = wraps_left(unwrapped, kept)
    left_out = 1 - float(kept.sum()) / float(inside.sum())
    facts = {
        "method": params.method,
        "offset_removed": offset,
        "wraps_left": sum(torn) / len(torn),
        "wraps_left_first_echo": torn[0],
        "wraps_left_voxels": voxels,
        "unreliable_share": left_out,
    }
    text = f"the first echo jumps by more than half a turn at {voxels} voxels, {100 * torn[0]:.2g} % of neighbours"
    notices = [Notice("P010", text)] if torn[0] > MANY_WRAPS else []
    if left_out > MANY_UNRELIABLE:
        text = f"{100 * left_out:.0f} % of the mask was left out: no reliable way leads there"
        notices.append(Notice("P010", text))
    return facts, notices


def wraps_left(unwrapped: Tensor, mask: Tensor) -> tuple[list[float], int]:
    """Share of neighbours in the mask that differ by more than pi, of each echo; and the voxels that do in the first.

    The later echoes follow the field of all: theirs are steep, not torn.
    """
    jumps, edges = torch.zeros(len(unwrapped), device=mask.device), 0
    for axis in range(3):
        n = mask.shape[axis] - 1
        pairs = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
        edges += int(pairs.sum())
        for e, phase in enumerate(unwrapped):
            jumps[e] += (phase.diff(dim=axis).abs_() > np.pi).logical_and_(pairs).sum()
    return (jumps / max(1, edges)).tolist(), int(_jumps(unwrapped[0], mask, np.pi).sum())


def _jumps(phase: Tensor, mask: Tensor, limit: float) -> Tensor:
    """The voxels (bool) that differ from a neighbour in the mask by more than `limit` radians."""
    found = torch.zeros_like(mask)
    for axis in range(3):
        n = mask.shape[axis] - 1
        jump = (phase.diff(dim=axis).abs_() > limit) & mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
        found.narrow(axis, 0, n).logical_or_(jump)
        found.narrow(axis, 1, n).logical_or_(jump)
    return found


def _by_laplacian(echoes: Echoes, mask: Tensor) -> Unwrapped:
    """Each echo by the Laplacian of its phase; offsets, being smooth, go with the background field."""
    smooth = torch.stack([torch.where(mask, laplacian_phase(p, echoes.grid), 0) for p in echoes.phase_rad])
    facts = {"method": "laplacian", "offset_removed": False}
    return Unwrapped(replace(echoes, phase_rad=smooth), torch.zeros_like(smooth[0]), facts, mask=mask)


def _taken(volume: Tensor, voxels: Tensor) -> Tensor:
    return volume.flatten()[voxels]


def _outside(inner: Tensor, box: tuple[slice, slice, slice], like: Tensor) -> Tensor:
    whole = torch.zeros_like(like)
    whole[(..., *box)] = inner
    return whole
