"""A head and its field -> the complex signal of a spoiled multi-echo gradient-echo scan, and a whole simulated scan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.dipole import GAMMA_MHZ_PER_T, Triple
from models.head import Head, fields, simulate_head
from models.head.geometry import Waves, grid_axes


@dataclass(frozen=True)
class Simulation:
    """A simulated scan: complex `signal` (E, X, Y, Z), the truth behind it, and what a header would say."""

    head: Head
    total_ppm: Tensor
    local_ppm: Tensor
    signal: Tensor
    echo_times_s: tuple[float, ...]
    b0_tesla: float
    b0_dir: tuple[float, float, float]
    voxel_size_mm: tuple[float, float, float]


def simulate_scan(
    shape: Sequence[int],
    voxel_size_mm: Triple,
    *,
    echo_times_s: Sequence[float] = (0.004, 0.012, 0.020, 0.028),
    b0_tesla: float = 3.0,
    b0_dir: Triple = (0, 0, 1),
    oversample: int | Sequence[int] = 1,
    seed: int = 0,
    lesions: Sequence[str] = (),
    skull: bool = True,
    flip_deg: float = 15,
    tr_s: float | None = None,
    phase_offset: bool = True,
    bipolar: bool = False,
    snr: float = 100.0,
    device: torch.device | str = "cpu",
) -> Simulation:
    """A random head, scanned. `oversample` > 1 simulates that many finer voxels along each axis: see `scan_head`."""
    factors = triple(oversample)
    fine_shape = [n * f for n, f in zip(shape, factors, strict=True)]
    fine_size = [v / f for v, f in zip(voxel_size_mm, factors, strict=True)]
    head = simulate_head(fine_shape, fine_size, seed=seed, lesions=lesions, skull=skull, device=device)
    return scan_head(
        head,
        echo_times_s=echo_times_s,
        b0_tesla=b0_tesla,
        b0_dir=b0_dir,
        oversample=oversample,
        seed=seed,
        flip_deg=flip_deg,
        tr_s=tr_s,
        phase_offset=phase_offset,
        bipolar=bipolar,
        snr=snr,
    )


def scan_head(
    head: Head,
    *,
    echo_times_s: Sequence[float] = (0.004, 0.012, 0.020, 0.028),
    b0_tesla: float = 3.0,
    b0_dir: Triple = (0, 0, 1),
    oversample: int | Sequence[int] = 1,
    seed: int = 0,
    flip_deg: float = 15,
    tr_s: float | None = None,
    phase_offset: bool = True,
    bipolar: bool = False,
    snr: float = 100.0,
) -> Simulation:
    """Scan any head, at voxels `oversample` times its own: one factor, or one for each axis.

    The complex signal is averaged over each scanned voxel, as are the true chi and fields, so that an inversion does
    not meet the very discretisation that made the data. ValueError where a size is no multiple of `oversample`.
    """
    total, local = fields(head, b0_dir)
    echoes = tuple(float(t) for t in echo_times_s)
    signal = gre_signal(
        head,
        total,
        echoes,
        b0_tesla,
        flip_deg=flip_deg,
        tr_s=tr_s,
        phase_offset=phase_offset,
        bipolar=bipolar,
        snr=math.inf,
        seed=seed,
    )
    signal = torch.complex(average(signal.real, oversample), average(signal.imag, oversample))
    coarse = coarsen(head, oversample)
    b = [float(c) / math.hypot(*b0_dir) for c in b0_dir]
    return Simulation(
        coarse,
        average(total, oversample),
        average(local, oversample),
        add_noise(signal, coarse.brain, snr, seed),
        echoes,
        float(b0_tesla),
        (b[0], b[1], b[2]),
        coarse.voxel_size_mm,
    )


def gre_signal(
    head: Head,
    total_ppm: Tensor,
    echo_times_s: Sequence[float],
    b0_tesla: float,
    *,
    flip_deg: float = 15,
    tr_s: float | None = None,
    phase_offset: bool = True,
    bipolar: bool = False,
    snr: float = 100.0,
    seed: int = 0,
) -> Tensor:
    """Complex signal (E, X, Y, Z) of a spoiled gradient echo: Ernst's steady state, R2* decay, phase of the field.

    A higher field turns the phase forward: phase = 2 pi gamma B0 TE field. `tr_s` is 10 ms after the last echo unless
    given. `phase_offset` adds a smooth phase of some radians that all echoes share, as coils do; `bipolar` a
    linear phase along x whose sign alternates from echo to echo. R2* grows in proportion to B0 and T1 is that at 3 T.
    The field's change across a voxel dephases it (Fernandez-Seara & Wehrli 2000, Magn Reson Med 44:358).
    `snr` is the mean magnitude of the brain in the first echo over the standard deviation of the noise in
    the real (or imaginary) part; infinite means no noise.
    """
    hertz = GAMMA_MHZ_PER_T * b0_tesla * total_ppm
    steady = ernst(head.m0, head.t1_s, flip_deg, tr_s if tr_s is not None else echo_times_s[-1] + 0.010)
    spread = [(torch.roll(hertz, -1, i) - torch.roll(hertz, 1, i)) / 2 for i in range(3)]
    offset = coil_phase(head, seed) if phase_offset else torch.zeros_like(hertz)
    slope = readout_phase(head, seed) if bipolar else torch.zeros_like(hertz)
    signal = torch.empty((len(echo_times_s), *hertz.shape), dtype=torch.complex64, device=hertz.device)
    for e, te in enumerate(echo_times_s):
        magnitude = steady * torch.exp(-te * head.r2star_3t * (b0_tesla / 3.0))
        for across in spread:
            magnitude = magnitude * torch.sinc(across * te).abs()
        phase = 2 * math.pi * (hertz * te).remainder(1) + offset + (-1) ** e * slope
        signal[e] = torch.polar(magnitude, phase)
    return add_noise(signal, head.brain, snr, seed)


def ernst(m0: Tensor, t1_s: Tensor, flip_deg: float, tr_s: float) -> Tensor:
    """Steady-state magnitude of a spoiled gradient echo at TE = 0."""
    recovered, flip = torch.exp(-tr_s / t1_s), math.radians(flip_deg)
    return m0 * math.sin(flip) * (1 - recovered) / (1 - math.cos(flip) * recovered)


def coil_phase(head: Head, seed: int) -> Tensor:
    """A smooth phase of about +-3 rad over the head, the same for every echo and every voxel size."""
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    p = grid_axes(head.labels.shape, head.voxel_size_mm, (0, 0, 0), head.chi_ppm.device)
    return 1.5 * Waves(300.0, generator)(p) + 0.5 * Waves(150.0, generator)(p)


def readout_phase(head: Head, seed: int) -> Tensor:
    """A phase linear along x, one to three radians over the field of view, and a constant, as a bipolar readout has."""
    u = torch.rand(2, generator=torch.Generator().manual_seed(seed + 2_000_003)).tolist()
    x = torch.linspace(-0.5, 0.5, head.labels.shape[0], device=head.chi_ppm.device)[:, None, None]
    phase: Tensor = (1 + 2 * u[0]) * x + 0.5 * (u[1] - 0.5)
    return phase.expand(head.labels.shape)


def add_noise(signal: Tensor, brain: Tensor, snr: float, seed: int) -> Tensor:
    """Complex Gaussian noise, the same in every echo and voxel; `snr` as in `gre_signal`."""
    if math.isinf(snr):
        return signal
    generator = torch.Generator().manual_seed(seed + 3_000_003)
    sigma = float(signal[0].abs()[brain].mean()) / snr
    noise = torch.randn((*signal.shape, 2), generator=generator).to(signal.device)
    return signal + sigma * torch.view_as_complex(noise)


def triple(factor: int | Sequence[int]) -> tuple[int, int, int]:
    """One factor for all three axes, or the three as they are."""
    x, y, z = (factor,) * 3 if isinstance(factor, int) else factor
    return x, y, z


def average(volume: Tensor, factor: int | Sequence[int]) -> Tensor:
    """Mean over blocks of `factor` voxels along each of the last three axes; ValueError where a size is no multiple."""
    factors = triple(factor)
    if any(n % f for n, f in zip(volume.shape[-3:], factors, strict=True)):
        raise ValueError(f"a volume of {tuple(volume.shape[-3:])} voxels is no multiple of {factor}")
    lead = volume.shape[:-3]
    return torch.nn.functional.avg_pool3d(volume.reshape(-1, 1, *volume.shape[-3:]), factors).reshape(
        *lead, *(n // f for n, f in zip(volume.shape[-3:], factors, strict=True))
    )


def coarsen(head: Head, factor: int | Sequence[int]) -> Head:
    """The head at voxels `factor` times as large along each axis: means, and for labels and brain the majority.

    In the brain, chi is the mean of what the brain has in the voxel, as in the local field: at its rim, bone and air
    do not count.
    """
    a, b, c = factors = triple(factor)
    if factors == (1, 1, 1):
        return head
    brain = average(head.brain.float(), factor) > 0.5
    chi = torch.where(brain, average(head.chi_ppm * head.brain, factor), average(head.chi_ppm, factor))
    x, y, z = chi.shape
    blocks = head.labels.reshape(x, a, y, b, z, c).permute(0, 2, 4, 1, 3, 5).reshape(x, y, z, -1)
    return Head(
        blocks.mode(dim=-1).values,
        chi,
        average(head.m0, factor),
        average(head.t1_s, factor),
        average(head.r2star_3t, factor),
        brain,
        tuple(v * f for v, f in zip(head.voxel_size_mm, factors, strict=True)),  # type: ignore[arg-type]
    )
