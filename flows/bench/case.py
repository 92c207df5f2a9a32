"""A matrix size -> a simulated head that fills it, as files; and what each step is given of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from flows.heads import field_noise, noisy, signal_noise
from models.gre import gre_signal
from models.head import Head, fields, simulate_head
from pipeline.unwrap import unwrap
from pipeline.volumes import Echoes, Field, Grid

Shape = tuple[int, int, int]

FIELD_OF_VIEW_MM = (192.0, 208.0, 180.0)  # a head and little more, whatever the matrix
COARSE = (64, 70, 60)
ECHO_SPACING_S, B0_TESLA, SNR, SEED = 0.005, 3.0, 50.0, 1
B0_DIR = (0.2, 0.1, 1.0)


@dataclass(frozen=True)
class Case:
    """The head of `make`, its first `echoes` echoes, on a device. Every volume is read anew from its file."""

    folder: Path
    shape: Shape
    echoes: int
    device: str = "cpu"

    def scan(self, phase: str = "phase") -> Echoes:
        """The echoes, with their phase as it was scanned or `unwrapped`."""
        magnitude, angle = self._load("magnitude")[: self.echoes], self._load(phase)[: self.echoes]
        return Echoes(magnitude, angle, echo_times(self.echoes), B0_TESLA, grid(self.shape))

    def mask(self) -> Tensor:
        return self._load("mask")

    def field(self, name: str) -> Field:
        """The `total` or `local` field with its noise."""
        return Field(self._load(name), self._load("sd"), self.mask(), grid(self.shape))

    def _load(self, name: str) -> Tensor:
        return torch.from_numpy(np.load(self.folder / f"{name}.npy")).to(self.device)


def make(folder: Path, shape: Shape, echoes: int) -> None:
    """Write magnitude, phase, unwrapped phase, mask, fields and their noise.

    The head is simulated at about 3 mm and interpolated, which takes seconds at any size; noise is that of the size.
    """
    voxel = tuple(v / n for v, n in zip(FIELD_OF_VIEW_MM, COARSE, strict=True))
    coarse = simulate_head(COARSE, voxel, seed=SEED)
    total, local = (_finer(field, shape) for field in fields(coarse, B0_DIR))
    head = _refined(coarse, shape)
    signal = gre_signal(head, total, echo_times(echoes), B0_TESLA, snr=SNR, seed=SEED)
    scan = Echoes(signal.abs(), signal.angle(), echo_times(echoes), B0_TESLA, grid(shape))
    sd = field_noise(scan.magnitude, scan.echo_times_s, B0_TESLA, signal_noise(scan.magnitude, head.brain, SNR))
    sd = sd.clamp_max(1.0)
    volumes = {
        "magnitude": scan.magnitude,
        "phase": scan.phase_rad,
        "unwrapped": unwrap(scan, head.brain).echoes.phase_rad,
        "mask": head.brain,
        "total": noisy(total, sd, SEED),
        "local": noisy(local, sd, SEED),
        "sd": sd,
    }
    for name, volume in volumes.items():
        np.save(folder / f"{name}.npy", volume.contiguous().numpy())


def echo_times(count: int) -> tuple[float, ...]:
    return tuple(ECHO_SPACING_S * (e + 1) for e in range(count))


def grid(shape: Shape) -> Grid:
    voxel = [v / n for v, n in zip(FIELD_OF_VIEW_MM, shape, strict=True)]
    return Grid.simple(shape, voxel, B0_DIR)


def _refined(head: Head, shape: Shape) -> Head:
    labels = interpolate(head.labels.float()[None, None], size=shape, mode="nearest")[0, 0].short()
    chi, m0, t1, r2star = (_finer(v, shape) for v in (head.chi_ppm, head.m0, head.t1_s, head.r2star_3t))
    return Head(labels, chi, m0, t1, r2star, _finer(head.brain.float(), shape) > 0.5, grid(shape).voxel_size_mm)


def _finer(volume: Tensor, shape: Shape) -> Tensor:
    return interpolate(volume[None, None], size=shape, mode="trilinear")[0, 0]
