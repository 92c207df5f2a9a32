"""A head and its scan on voxels averaged from finer ones -> how well a finer map is told from the coarser measurement.

Two tasks: SR, from a map whose higher frequencies were cut off, with noise; SR-DipInv, from the local field likewise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flows.grid.cells import Cell
from flows.grid.score import Numbers, finite, grid_of
from flows.heads import field_noise, noisy, signal_noise
from models.diffusion.measured import Lowpass
from models.gre import Simulation
from models.head import Head, fields
from pipeline.device import pick_device
from pipeline.errors import ChironError
from pipeline.invert import invert
from pipeline.quality import evaluate
from pipeline.settings import Settings
from pipeline.superres import cubic, finer_mask, invert_finer, refine, zero_filled
from pipeline.volumes import Field, Susceptibility

MAP_NOISE_PPM = 0.5  # of the coarser map, over the scan's signal-to-noise ratio

Made = Callable[[], Tensor]


def super_resolution(head: Head, scan: Simulation, cell: Cell, settings: Settings) -> Iterator[Numbers]:
    """Rows of task and method: the diffusion prior beside interpolation, scored on the voxels of `head`, in the brain.

    The noise of the coarser map is not told, as nobody tells that of a published one.
    """
    device, shape = pick_device(settings.device), head.brain.shape
    inside = head.brain.bool() & finer_mask(scan.head.brain.bool(), shape)
    given, field = _map(head, scan, cell, device), _field(head, scan, cell, device)
    ways: tuple[tuple[str, str, Made], ...] = (
        ("SR", "cubic", lambda: cubic(given.ppm, shape)),
        ("SR", "zero-filled", lambda: zero_filled(given.ppm, shape)),
        ("SR", "diffusion", lambda: refine(given, cell.oversample, settings.diffusion).ppm),
        ("SR-DipInv", "tv, cubic", lambda: cubic(invert(field, "tv", settings.tv).ppm, shape)),
        ("SR-DipInv", "diffusion", lambda: invert_finer(field, cell.oversample, settings.diffusion).ppm),
    )
    for task, method, make in ways:
        row: Numbers = {"task": task, "method": method}
        began = time.perf_counter()
        try:
            chi = make().cpu()
        except ChironError as error:
            yield row | {"error": f"{error.code}: {error.found}"}
            continue
        row["seconds"] = time.perf_counter() - began
        x, y = (volume - volume[inside].mean() for volume in (chi, head.chi_ppm))
        yield row | finite(evaluate(x, y, inside, head.labels))


def _map(head: Head, scan: Simulation, cell: Cell, device: torch.device) -> Susceptibility:
    """The true map of the brain, its higher frequencies cut off, with noise."""
    brain = scan.head.brain.bool()
    finer = head.brain.bool()
    chi = _cut(torch.where(finer, head.chi_ppm - head.chi_ppm[finer].mean(), 0), brain)
    chi = noisy(chi, torch.full_like(chi, MAP_NOISE_PPM / cell.snr), seed=2)
    chi = torch.where(brain, chi - chi[brain].mean(), 0)
    return Susceptibility(chi.to(device), brain.to(device), grid_of(scan), "given", {})


def _field(head: Head, scan: Simulation, cell: Cell, device: torch.device) -> Field:
    """The true local field of the finer head, its higher frequencies cut off, with the noise of the scan's echoes."""
    brain, magnitude = scan.head.brain.bool(), scan.signal.abs()
    sd = field_noise(magnitude, scan.echo_times_s, scan.b0_tesla, signal_noise(magnitude, brain, cell.snr))
    ppm = noisy(_cut(fields(head, scan.b0_dir)[1], brain), sd, seed=1)
    return Field(ppm.to(device), sd.to(device), brain.to(device), grid_of(scan))


def _cut(volume: Tensor, like: Tensor) -> Tensor:
    return Lowpass(volume.shape, like.shape, volume.device).forward(volume)
