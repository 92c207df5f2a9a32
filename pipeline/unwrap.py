"""Wrapped echoes -> unwrapped echoes, free of phase offsets: MCPC-3D-S, ROMEO in space, the later echoes in time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from models.params import param
from pipeline import romeo
from pipeline.errors import Decision, Notice
from pipeline.filters import gaussian
from pipeline.volumes import Echoes, Grid

TWO_PI = 2 * np.pi


@dataclass(frozen=True)
class Unwrap:
    """How phase offsets are removed and phase is unwrapped."""

    method: Literal["romeo", "laplacian"] = param("romeo", "romeo is exact; laplacian is smooth and approximate")
    offset_smoothing_mm: float = param(5.0, "Gaussian sigma of the phase offset, which is smooth by nature", 1, 30)
    bipolar: Literal["auto", "yes", "no"] = param(
        "auto", "echoes read out in alternating directions; auto tests for it"
    )


@dataclass(frozen=True)
class Unwrapped:
    """Echoes with unwrapped phase that starts from zero at echo time zero, and the offset that was taken off."""

    echoes: Echoes
    offset_rad: Tensor
    facts: dict[str, Any]
    decisions: list[Decision] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)


BIPOLAR_RAD = 0.15  # RMS of the linear part of the difference between echoes of either polarity; 0 when monopolar


def unwrap(echoes: Echoes, mask: Tensor, params: Unwrap = Unwrap()) -> Unwrapped:
    """Unwrap all echoes inside `mask` (bool X, Y, Z); outside it the phase is zero.

    Where the readout alternates, even echoes are first brought in line with odd ones. The offset is what neighbouring,
    equally spaced echoes extrapolate to at time zero, smoothed (MCPC-3D-S, Eckstein 2018, doi 10.1002/mrm.26963); from
    a single echo it cannot be told and stays. The first echo is unwrapped in space with the second as a witness, each
    later one by the field that those before it give (template unwrapping in time).
    """
    phase, decisions, notices = echoes.phase_rad, [], []
    signal = torch.polar(echoes.magnitude, phase)
    if params.bipolar != "no":
        correction, size = _bipolar_excess(signal, echoes, params)
        found = params.bipolar == "yes" or size > BIPOLAR_RAD
        if correction is not None and found:
            signal[1::2] *= torch.polar(torch.ones_like(correction), -correction)
            notices.append(Notice("E013", f"bipolar readout: even echoes differ by {size:.2f} rad; corrected"))
        if correction is None and params.bipolar == "yes":
            notices.append(Notice("E013", "a bipolar readout of echoes that do not allow its correction: it was left"))
        if correction is not None:
            verdict = "bipolar, corrected" if correction is not None and found else "monopolar"
            decisions.append(
                Decision("readout", verdict, f"even echoes off by {size:.2f} rad", "unwrap.bipolar=yes|no")
            )
    offset = _offset(signal, echoes, params)
    signal *= torch.polar(torch.ones_like(offset), -offset)
    clean = replace(echoes, phase_rad=signal.angle())
    unwrapped = _laplacian(clean, mask) if params.method == "laplacian" else _in_space_and_time(clean, mask)
    facts = {"method": params.method, "offset_removed": len(echoes.echo_times_s) > 1}
    return Unwrapped(replace(echoes, phase_rad=unwrapped), offset, facts, decisions, notices)


def _bipolar_excess(signal: Tensor, echoes: Echoes, params: Unwrap) -> tuple[Tensor | None, float]:
    """The phase (X, Y, Z) that even echoes have too much, and how much of a ramp it is; None where it cannot be told.

    Of three equally spaced echoes, phi2 - (phi1 + phi3) / 2 vanishes unless the readout alternates; then it is a ramp
    along the readout. What is left near air by strong dephasing is none.
    """
    times = echoes.echo_times_s
    if len(times) < 3 or abs((times[2] - times[1]) / (times[1] - times[0]) - 1) > 0.02:
        return None, 0.0
    product = _bounded(signal[1]) ** 2 * (_bounded(signal[0]) * _bounded(signal[2])).conj()
    smooth = gaussian(product, echoes.grid.voxel_size_mm, params.offset_smoothing_mm)
    twice = _unwrap_smooth(smooth)
    twice = twice - TWO_PI * torch.round(_weighted_mean(twice, smooth.abs()) / TWO_PI)
    return twice / 2, _ramp_rms(twice / 2, smooth.abs())


def _ramp_rms(phase: Tensor, weight: Tensor) -> float:
    """Weighted RMS of the linear ramp that fits `phase` (X, Y, Z) best."""
    axes = [
        torch.linspace(-1, 1, n, device=phase.device).view([-1 if a == b else 1 for b in range(3)])
        for a, n in enumerate(phase.shape)
    ]
    basis = torch.stack(
        [(axis - _weighted_mean(axis.expand_as(phase), weight)).expand_as(phase).flatten() for axis in axes]
    )
    w = weight.flatten() / weight.sum()
    fit = torch.linalg.lstsq((basis * w) @ basis.T, (basis * w) @ phase.flatten()).solution
    return float((w * (fit @ basis) ** 2).sum().sqrt())


def _offset(signal: Tensor, echoes: Echoes, params: Unwrap) -> Tensor:
    """The phase at echo time zero (X, Y, Z), smooth; zero for a single echo."""
    times = echoes.echo_times_s
    if len(times) < 2:
        return torch.zeros_like(echoes.phase_rad[0])
    step = times[1] - times[0]
    pairs = [e for e in range(len(times) - 1) if abs((times[e + 1] - times[e]) / step - 1) < 0.02]
    turn = torch.stack([signal[e + 1] * signal[e].conj() for e in pairs]).sum(0)
    strong = turn.abs() > 0.01 * turn.abs().mean()
    evolution = romeo.unwrap_volume(*_numpy(turn.angle(), turn.abs().sqrt(), strong))
    unit = torch.polar(
        signal[0].abs(), signal[0].angle() - torch.from_numpy(evolution).to(turn.device) * times[0] / step
    )
    smooth = gaussian(unit * signal[0].abs(), echoes.grid.voxel_size_mm, params.offset_smoothing_mm)
    return smooth.angle()


def _in_space_and_time(echoes: Echoes, mask: Tensor) -> Tensor:
    """The first echo by ROMEO, each later one by the weighted fit of those before it."""
    times, phase = echoes.echo_times_s, echoes.phase_rad
    witness = (phase[1].cpu().numpy(), (times[0], times[1])) if len(times) > 1 else ()
    first = romeo.unwrap_volume(*_numpy(phase[0], echoes.magnitude[0], mask), *witness)
    unwrapped = [torch.from_numpy(first).to(phase.device)]
    above = echoes.magnitude[0] ** 2 * times[0] * unwrapped[0]
    below = echoes.magnitude[0] ** 2 * times[0] ** 2
    for e in range(1, len(times)):
        expected = times[e] * above / below.clamp_min(1e-30)
        this = phase[e] + TWO_PI * torch.round((expected - phase[e]) / TWO_PI)
        unwrapped.append(torch.where(mask, this, 0))
        weight = echoes.magnitude[e] ** 2
        above = above + weight * times[e] * this
        below = below + weight * times[e] ** 2
    return torch.stack(unwrapped)


def _laplacian(echoes: Echoes, mask: Tensor) -> Tensor:
    """Each echo by the Laplacian of its phase (Schofield & Zhu 2003, doi 10.1364/OL.28.001194): smooth, not exact."""
    return torch.stack([torch.where(mask, laplacian_phase(p, echoes.grid), 0) for p in echoes.phase_rad])


def laplacian_phase(phase: Tensor, grid: Grid) -> Tensor:
    """The smooth phase whose Laplacian is that of `phase` (X, Y, Z), wraps or not; mirrored at the edges."""
    mirrored = phase
    for axis in range(3):
        mirrored = torch.cat([mirrored, mirrored.flip(axis)], dim=axis)
    laplacian = torch.zeros((), device=phase.device)
    for axis, (n, size) in enumerate(zip(mirrored.shape, grid.voxel_size_mm, strict=True)):
        k = torch.fft.fftfreq(n, device=phase.device) if axis < 2 else torch.fft.rfftfreq(n, device=phase.device)
        view = [1, 1, 1]
        view[axis] = -1
        laplacian = laplacian + ((2 * torch.cos(TWO_PI * k) - 2) / size**2).view(view)

    def apply(volume: Tensor, response: Tensor) -> Tensor:
        applied: Tensor = torch.fft.irfftn(torch.fft.rfftn(volume) * response, s=mirrored.shape)
        return applied

    sine, cosine = mirrored.sin(), mirrored.cos()
    source = cosine * apply(sine, laplacian) - sine * apply(cosine, laplacian)
    laplacian[0, 0, 0] = 1
    inverse = 1 / laplacian
    inverse[0, 0, 0] = 0
    x, y, z = phase.shape
    return apply(source, inverse)[:x, :y, :z]


def _unwrap_smooth(signal: Tensor) -> Tensor:
    everywhere = torch.ones_like(signal.real, dtype=torch.bool)
    return torch.from_numpy(romeo.unwrap_volume(*_numpy(signal.angle(), signal.abs(), everywhere))).to(signal.device)


def _bounded(signal: Tensor) -> Tensor:
    """The signal with its magnitude's square root, so that products of four do not let the brightest voxel decide."""
    return torch.polar(signal.abs().sqrt(), signal.angle())


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp_min(1e-30)


def _numpy(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(t.cpu().numpy() for t in tensors)
