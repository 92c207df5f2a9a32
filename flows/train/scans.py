"""A number -> a random simulated scan, and what it shows of its head: the true local field and the found one."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flows.grid.cells import Anatomy, Cell, simulate
from flows.grid.score import as_far_as
from flows.heads import field_noise, noisy, signal_noise
from flows.train.plan import Plan, Say
from models.dipole import Dipole
from models.gre import Simulation
from models.seen import Given
from pipeline.errors import ChironError
from pipeline.invert import PADDING
from pipeline.settings import parse
from pipeline.volumes import bounding_box

# voxel size and how many finer voxels are averaged along each axis, and how often it is drawn
SIZES = (
    ((1.0, 1.0, 1.0), (1, 1, 1), 7),
    ((1.5, 1.5, 1.5), (1, 1, 1), 2),
    ((2.0, 2.0, 2.0), (2, 2, 2), 10),
    ((2.5, 2.5, 2.5), (2, 2, 2), 3),
    ((3.0, 3.0, 3.0), (3, 3, 3), 3),
    ((1.0, 1.0, 2.0), (1, 1, 2), 5),
)
LESIONS = ((), (), ("calcification",), ("haemorrhage",), ("calcification", "haemorrhage"))


@dataclass(frozen=True)
class Shown:
    """What a scan shows of its head: the field, and what is true of it; volumes (X, Y, Z) cropped alike."""

    name: str
    given: Given
    chi_ppm: Tensor
    brain: Tensor


Keep = Callable[[Path, Shown], None]


def random_scan(number: int, maps: Sequence[Path]) -> tuple[Simulation, Cell]:
    """Head, voxels, field, direction, echoes, noise and lesions drawn by the number; half the heads are label maps."""
    draw = random.Random(number)
    voxel, oversample, _ = draw.choices(SIZES, [size[2] for size in SIZES])[0]
    tilt, turn = math.radians(draw.uniform(0, 40)), draw.uniform(0, 2 * math.pi)
    tesla = draw.choice((1.5, 3.0, 3.0, 3.0, 7.0))
    first, last = draw.uniform(0.003, 0.006), draw.uniform(0.020, 0.032) * (0.6 if tesla == 7 else 1)
    echoes = draw.choice((3, 4, 5, 6))
    cell = Cell(
        voxel,
        oversample,
        snr=math.exp(draw.uniform(math.log(20), math.log(150))),
        b0_tesla=tesla,
        b0_dir=(math.sin(tilt) * math.cos(turn), math.sin(tilt) * math.sin(turn), math.cos(tilt)),
        echo_times_s=tuple(first + (last - first) * e / (echoes - 1) for e in range(echoes)),
        lesions=draw.choice(LESIONS),
    )
    labels = draw.choice(maps) if maps and draw.random() < 0.5 else None
    return simulate(cell, Anatomy(f"training {number}", number, labels)), cell


def each_scan(plan: Plan, maps: Sequence[Path], folder: Path, say: Say, keep: Keep) -> None:
    """Have what each scan of the plan shows kept in `folder`, unless it was; a mark says so, whatever came of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(plan.first, plan.first + plan.scans):
        done = folder / f"{number}.done"
        if done.exists():
            continue
        scan, cell = random_scan(number, maps)
        for shown in scan_fields(scan, cell):
            keep(folder / f"{number}-{shown.name}.pt", shown)
        done.touch()
        say(f"scan {number}: {' x '.join(f'{v:g}' for v in cell.voxel_mm)} mm, SNR {cell.snr:.0f}, {cell.b0_tesla:g} T")


def scan_fields(scan: Simulation, cell: Cell) -> Iterator[Shown]:
    """`dipole`: the true local field with its noise; `whole`: the local field that the recipe finds, and its errors."""
    magnitude, brain = scan.signal.abs(), scan.head.brain.bool()
    sd = field_noise(magnitude, scan.echo_times_s, scan.b0_tesla, signal_noise(magnitude, brain, cell.snr))
    found = {"dipole": (noisy(scan.local_ppm, sd, seed=1), sd, brain)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = as_far_as("background", scan, parse({"device": "cpu"}), Path(folder))
            found["whole"] = (result.array("local_ppm"), result.array("sd_ppm"), result.array("mask").bool())
        except ChironError as error:
            if error.fault.owed != "set aside":  # a scan that the recipe sets aside is no example of its fields
                raise
    for name, (ppm, noise, mask) in found.items():
        given, box = as_inverted(ppm, noise, mask, scan.voxel_size_mm, scan.b0_dir)
        yield Shown(name, given, scan.head.chi_ppm[box], brain[box])


def as_inverted(
    ppm: Tensor, sd: Tensor, mask: Tensor, voxel_size_mm: Sequence[float], b0_dir: Sequence[float]
) -> tuple[Given, tuple[slice, slice, slice]]:
    """A field as the inversion gives it to a network, and the box that it is cropped to."""
    box = bounding_box(mask)
    inside = mask[box]
    field = torch.where(inside, ppm[box] - ppm[box][inside].mean(), 0)
    weight = torch.where(inside, 1 / sd[box].clamp_min(1e-6), 0)
    return Given(field, weight, Dipole(inside.shape, voxel_size_mm, b0_dir, padding=PADDING)), box
