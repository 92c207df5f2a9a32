"""A number -> a random simulated scan, and what a network can learn from it: the true local field and the found one."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from flows.grid.cells import Anatomy, Cell, simulate
from flows.grid.score import as_far_as
from flows.heads import field_noise, noisy, signal_noise
from models.dip.features import Given
from models.dip.training import Example, example
from models.dipole import Dipole
from models.gre import Simulation
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


def random_scan(number: int, maps: list[Path]) -> tuple[Simulation, Cell]:
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


def scan_examples(scan: Simulation, cell: Cell) -> Iterator[tuple[str, Example]]:
    """`dipole`: the true local field with its noise; `whole`: the local field that the recipe finds, and its errors."""
    magnitude, brain = scan.signal.abs(), scan.head.brain.bool()
    sd = field_noise(magnitude, scan.echo_times_s, scan.b0_tesla, signal_noise(magnitude, brain, cell.snr))
    given = {"dipole": (noisy(scan.local_ppm, sd, seed=1), sd, brain)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = as_far_as("background", scan, parse({"device": "cpu"}), Path(folder))
            given["whole"] = (found.array("local_ppm"), found.array("sd_ppm"), found.array("mask").bool())
        except ChironError as error:
            if error.fault.owed != "set aside":  # a scan that the recipe sets aside is no example of its fields
                raise
    for name, (ppm, noise, mask) in given.items():
        made = _example(scan, ppm, noise, mask, brain)
        if made:
            yield name, made


def _example(scan: Simulation, ppm: Tensor, sd: Tensor, mask: Tensor, brain: Tensor) -> Example | None:
    """Cropped as the inversion crops it."""
    box = bounding_box(mask)
    inside = mask[box]
    field = torch.where(inside, ppm[box] - ppm[box][inside].mean(), 0)
    weight = torch.where(inside, 1 / sd[box].clamp_min(1e-6), 0)
    dipole = Dipole(inside.shape, scan.voxel_size_mm, scan.b0_dir, padding=PADDING)
    return example(Given(field, weight, dipole), scan.head.chi_ppm[box], brain[box])
