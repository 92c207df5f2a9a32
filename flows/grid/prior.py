"""A simulated scan -> what the diffusion prior is like: its seams, its cost, lesions, and what it makes of mere noise.

Numbers for the page on the prior, beyond its accuracy on the grid; and the picture of the seams.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from flows.grid.score import Numbers, field_of, finite
from flows.heads import noisy
from models.diffusion import Diffusion, Walk
from models.diffusion.patches import Box, Patches
from models.diffusion.process import SCALE_PPM
from models.dipole import Dipole
from models.gre import Simulation
from pipeline.invert import invert
from pipeline.quality import evaluate
from pipeline.settings import Settings
from pipeline.volumes import Field, Grid, bounding_box

FIELD_SD_AT_SNR_30 = 0.001  # ppm, of echoes at 4, 12, 20 and 28 ms at 3 T with the decay of white matter
BLOCK = (48, 56, 48)
BESIDE = ("tv", "dip", "diffusion", "cyclegan")  # compared by lesions and noise
HEAVY_PPM = 0.1
CUT = 48  # edge of the patches whose seams are looked at: the smallest
SEAMS: dict[str, dict[str, Any]] = {
    "no overlap, fixed": {"overlap": 0, "shifting": False},
    "no overlap, shifting": {"overlap": 0, "shifting": True},
    "overlap 8, fixed (the seed's)": {"overlap": 8, "shifting": False},
    "overlap 16, fixed": {"overlap": 16, "shifting": False},
    "overlap 16, shifting (default)": {"overlap": 16, "shifting": True},
}
CURVE: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "diffpir": ({"sampler": "diffpir"}, (4, 10, 20, 50)),
    "diffpir, temperature 1": ({"sampler": "diffpir", "temperature": 1.0}, (20, 50)),
    "dds": ({"sampler": "dds"}, (10, 20, 50)),
    "dps": ({"sampler": "dps", "first_ppm": 0.05}, (50, 200, 1000)),
    "dps from noise": ({"sampler": "dps", "start": "noise"}, (1000,)),
}


def looked_at(scan: Simulation, snr: float, settings: Settings) -> Iterator[tuple[str, Numbers]]:
    """All of it: each row with the name of its table."""
    tables: dict[str, Callable[[], Iterator[Numbers]]] = {
        "seams": lambda: seams(scan, snr, settings),
        "evaluations": lambda: curve(scan, snr, settings),
        "lesions": lambda: lesions(settings),
        "noise": lambda: invented(settings),
    }
    for name, rows in tables.items():
        yield from ((name, row) for row in rows())


def seams(scan: Simulation, snr: float, settings: Settings) -> Iterator[Numbers]:
    """What the cuts between patches leave: of the difference to the volume that was made as a whole, the mean squared
    step across the cuts over that elsewhere. `seam` is of one evaluation, the prior's mean of the true map under noise
    of `HEAVY_PPM`; `guided` of the map from the field. On the middle of the head, of whole patches; smaller heads have
    none.
    """
    size = [(s.stop - s.start) // CUT * CUT for s in bounding_box(scan.head.brain.bool(), margin=0)]
    if max(size) == CUT:
        return
    field, chi = block(scan, snr, size)
    base = replace(settings.diffusion, samples=1, patch=0)
    whole, alone = invert(field, "diffusion", base).ppm, one_evaluation(chi, field.mask, base)
    for name, how in SEAMS.items():
        params, overlap = replace(base, patch=CUT, **how), how["overlap"]
        made = invert(field, "diffusion", params).ppm
        once = one_evaluation(chi, field.mask, params)
        yield {"patches": name, "seam": step_across(once - alone, field.mask, overlap),
               "guided": step_across(made - whole, field.mask, overlap)}  # fmt: skip


def one_evaluation(chi_ppm: Tensor, inside: Tensor, params: Diffusion) -> Tensor:
    """The prior's mean of a map under heavy noise, in units, cut as the parameters say."""
    sigma = HEAVY_PPM / SCALE_PPM
    noise = torch.randn(inside.shape, generator=torch.Generator().manual_seed(5))
    return Walk(params, inside)(inside * (chi_ppm / SCALE_PPM + sigma * noise), sigma)


def curve(scan: Simulation, snr: float, settings: Settings) -> Iterator[Numbers]:
    """Quality against evaluations of the network, one sample each, on the middle of the head; `tv` takes none."""
    field, chi = block(scan, snr, BLOCK)
    yield {"sampler": "tv", "evaluations": 0, **_scores(invert(field, "tv", settings.tv).ppm, chi, field.mask)}
    for name, (how, counts) in CURVE.items():
        for steps in counts:
            params = replace(settings.diffusion, samples=1, steps=steps, **how)
            began = time.perf_counter()
            made = invert(field, "diffusion", params).ppm
            seconds = time.perf_counter() - began
            yield {"sampler": name, "evaluations": steps, "seconds": seconds, **_scores(made, chi, field.mask)}


def block(scan: Simulation, snr: float, size: Sequence[int]) -> tuple[Field, Tensor]:
    """The middle of the brain by itself, of so many voxels, with the field that it would have and the scan's noise."""
    whole = field_of(scan, snr, torch.device("cpu"))
    middle = [(s.start + s.stop) // 2 for s in bounding_box(whole.mask, margin=0)]
    box = tuple(slice(max(0, m - b // 2), m - b // 2 + b) for m, b in zip(middle, size, strict=True))
    mask, sd, chi = whole.mask[box], whole.sd_ppm[box], scan.head.chi_ppm[box]
    chi = torch.where(mask, chi - chi[mask].mean(), 0)
    ppm = Dipole(chi.shape, scan.voxel_size_mm, scan.b0_dir).forward(chi)
    return Field(noisy(ppm, sd, seed=3), sd, mask, Grid.simple(chi.shape, scan.voxel_size_mm, scan.b0_dir)), chi


def lesions(
    settings: Settings,
    methods: tuple[str, ...] = BESIDE,
    values_ppm: tuple[float, ...] = (1.0, -3.0, 0.1, -0.1),
) -> Iterator[Numbers]:
    """A haemorrhage of +1 ppm, a calcification of -3 ppm and a weak sphere alone in a ball: the share of the moment
    that comes back, summed over the sphere and the two voxels around it."""
    for value in values_ppm:
        field, chi, near = ball(value)
        for method in methods:
            made = invert(field, method, getattr(settings, method)).ppm
            base = made[field.mask & ~near].mean() - chi[field.mask & ~near].mean()
            share = float((made - base)[near].sum() / chi[near].sum())
            yield {"chi_ppm": value, "method": method, "moment_percent": 100 * share}


def invented(settings: Settings, methods: tuple[str, ...] = BESIDE) -> Iterator[Numbers]:
    """What a method makes of an empty field with the noise of SNR 30 (four echoes at 3 T): mean and largest |chi|."""
    sd = FIELD_SD_AT_SNR_30
    field, _, _ = ball(0.0, sd)
    for method in methods:
        made = invert(field, method, getattr(settings, method)).ppm[field.mask].abs()
        yield {"method": method, "field_sd_ppm": sd, "mean_ppm": float(made.mean()), "largest_ppm": float(made.max())}


FIELD_SD_AT_SNR_30 = 0.001  # ppm, of echoes at 4, 12, 20 and 28 ms at 3 T with the decay of white matter


def ball(value_ppm: float, sd_ppm: float = FIELD_SD_AT_SNR_30, n: int = 64) -> tuple[Field, Tensor, Tensor]:
    """A field of one sphere in a ball of 1.5 mm voxels with noise; its chi; the sphere and two voxels around it."""
    p = torch.stack(torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for _ in range(3)), indexing="ij"))
    at = p - torch.tensor([5.0, -3.0, 4.0]).view(3, 1, 1, 1)
    radius, inside = at.square().sum(0).sqrt(), p.square().sum(0).sqrt() < 0.47 * n
    chi = value_ppm * (4.5 - radius).clamp(0, 1)
    b0 = (0.1, 0.2, 1.0)
    noise = sd_ppm * torch.randn(chi.shape, generator=torch.Generator().manual_seed(4))
    ppm = Dipole(chi.shape, (1.5,) * 3, b0).forward(chi) + noise
    grid = Grid.simple(chi.shape, (1.5,) * 3, b0)
    return Field(ppm, torch.full_like(ppm, sd_ppm), inside, grid), chi, (radius < 6.5) & inside


def step_across(chi: Tensor, mask: Tensor, overlap: int) -> float:
    """Mean squared step across the middles of the patches' overlaps, over that between all other neighbours."""
    boxes = Patches(CUT, overlap).boxes(chi.shape)
    across, elsewhere = [], []
    for axis in range(3):
        n = chi.shape[axis]
        step = chi.diff(dim=axis).square()
        both = mask.narrow(axis, 1, n - 1) & mask.narrow(axis, 0, n - 1)
        here = torch.zeros(n - 1, dtype=torch.bool)
        here[[c - 1 for c in _cuts(boxes, axis)]] = True
        shape = [1, 1, 1]
        shape[axis] = n - 1
        here = here.view(shape).expand_as(both)
        across.append(step[both & here])
        elsewhere.append(step[both & ~here])
    return float(torch.cat(across).mean() / torch.cat(elsewhere).mean())


def _cuts(boxes: list[Box], axis: int) -> list[int]:
    """Where one patch gives way to the next."""
    starts = sorted({(box[axis].start, box[axis].stop) for box in boxes})
    return [(a[1] + b[0]) // 2 for a, b in pairwise(starts)]


def _scores(made: Tensor, truth: Tensor, mask: Tensor) -> Numbers:
    x, y = (v - v[mask].mean() for v in (made, truth))
    return finite(evaluate(x.cpu(), y.cpu(), mask.cpu()))
