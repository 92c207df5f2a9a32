"""Simulated heads with known truth -> the tables of docs/accuracy.md, written there and printed. Run by `make bench`.

Dipole step alone: the true local field, with the noise that the echoes' fit would leave at the stated SNR, inverted by
every method. Whole way: the complex echoes through phase, mask, background removal and inversion.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import pipeline
from models.gre import Simulation, simulate_scan
from pipeline.background import remove_background
from pipeline.field import total_field
from pipeline.invert import PARAMS, invert
from pipeline.mask import make_mask
from pipeline.quality import evaluate, nrmse
from pipeline.unwrap import unwrap
from pipeline.volumes import Echoes, Field, Grid, ppm_per_rad

PAGE = Path(__file__).resolve().parents[1] / "docs" / "accuracy.md"
COLUMNS = (
    "nrmse",
    "dnrmse",
    "dnrmse_tissue",
    "dnrmse_dgm",
    "dnrmse_blood",
    "slope_deviation",
    "hfen",
    "xsim",
    "psnr",
    "psnr_range_ppm",
    "r",
)


@dataclass(frozen=True)
class Case:
    """A head to be scanned, and the methods to be tried on it."""

    name: str
    shape: tuple[int, int, int]
    voxel_mm: float
    methods: tuple[str, ...]
    snr: float = 100.0
    b0_dir: tuple[float, float, float] = (0, 0, 1)
    oversample: int = 1
    seed: int = 1
    lesions: tuple[str, ...] = ()

    def scan(self) -> Simulation:
        return simulate_scan(
            self.shape,
            (self.voxel_mm,) * 3,
            snr=self.snr,
            b0_dir=self.b0_dir,
            oversample=self.oversample,
            seed=self.seed,
            lesions=self.lesions,
        )


CLASSICAL = ("tkd", "tikhonov", "rts", "tv")
DIPOLE = (
    Case("1 mm, SNR 100", (160, 200, 160), 1.0, CLASSICAL),
    Case("1 mm, SNR 30, B0 oblique", (160, 200, 160), 1.0, CLASSICAL, 30.0, (0.3, 0.2, 1), seed=2),
    Case("2 mm, SNR 100", (84, 104, 84), 2.0, (*CLASSICAL, "dip"), oversample=2, seed=3),
    Case(
        "2 mm, SNR 30, calcification",
        (84, 104, 84),
        2.0,
        (*CLASSICAL, "dip"),
        30.0,
        (0.2, 0, 1),
        2,
        4,
        ("calcification",),
    ),
)
WHOLE = (
    Case("2 mm, SNR 100", (96, 116, 96), 2.0, ("rts", "tv"), oversample=2, seed=3),
    Case(
        "2 mm, SNR 30, B0 oblique, calcification",
        (96, 116, 96),
        2.0,
        ("rts", "tv"),
        30.0,
        (0.3, 0.2, 1),
        2,
        4,
        ("calcification",),
    ),
)


def main() -> None:
    """Score all cases, print each as it is done, and write the page."""
    sections = [_head(), "## Dipole step alone\n"]
    sections += [_table(case.name, _dipole_rows(case)) for case in DIPOLE]
    sections += ["## The whole way from the echoes\n"]
    sections += [_table(case.name, *_whole_rows(case)) for case in WHOLE]
    PAGE.write_text("\n".join(sections))


def _dipole_rows(case: Case) -> list[str]:
    scan = case.scan()
    mask = scan.head.brain.bool()
    sd = _field_noise(scan, case.snr)
    noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(case.seed))
    field = Field(scan.local_ppm + sd * noise, sd, mask, _grid(scan))
    return [_row(method, field, scan) for method in case.methods]


def _whole_rows(case: Case) -> tuple[list[str], str]:
    scan = case.scan()
    brain, grid = scan.head.brain.bool(), _grid(scan)
    echoes = Echoes(scan.signal.abs(), scan.signal.angle(), scan.echo_times_s, scan.b0_tesla, grid)
    mask = make_mask(echoes).mask
    total = total_field(unwrap(echoes, mask).echoes, mask).field
    local, _ = remove_background(total)
    inside = local.mask & brain
    dice = 2 * float((mask & brain).sum()) / float(mask.sum() + brain.sum())
    total_error = nrmse(total.ppm, scan.total_ppm, mask & brain)
    local_error = nrmse(local.ppm, scan.local_ppm, inside)
    kept = 100 * float(inside.sum() / brain.sum())
    text = (
        f"Mask: Dice {dice:.3f}. NRMSE of the total field {total_error:.2f}, of the local field {local_error:.1f}. "
        f"Brain kept: {kept:.0f} %.\n"
    )
    return [_row(method, local, scan) for method in case.methods], text


def _row(method: str, field: Field, scan: Simulation) -> str:
    began = time.perf_counter()
    chi = invert(field, method, PARAMS[method]()).ppm
    seconds = time.perf_counter() - began
    inside = field.mask & scan.head.brain.bool()
    found = evaluate(chi, scan.head.chi_ppm, inside, labels=scan.head.labels)
    values = [f"{found[name]:.3g}" if name in found else "" for name in COLUMNS]
    row = f"| `{method}` | {' | '.join(values)} | {seconds:.1f} |"
    print(row, flush=True)
    return row


def _field_noise(scan: Simulation, snr: float) -> Tensor:
    """Standard deviation of the field (ppm) that the weighted fit of the noisy echoes has."""
    magnitude = scan.signal.abs()
    times = torch.tensor(scan.echo_times_s).view(-1, 1, 1, 1)
    sigma = float(magnitude[0][scan.head.brain.bool()].mean()) / snr
    return sigma / (magnitude**2 * times**2).sum(0).sqrt().clamp_min(1e-9) * ppm_per_rad(1.0, scan.b0_tesla)


def _grid(scan: Simulation) -> Grid:
    return Grid.simple(scan.head.brain.shape, scan.voxel_size_mm, scan.b0_dir)


def _table(name: str, rows: list[str], text: str = "") -> str:
    titles = "method | NRMSE | dNRMSE | tissue | DGM | blood | slope dev. | HFEN | XSIM | PSNR | R | r | s"
    return "\n".join([f"### {name}\n", text, f"| {titles} |", "|---" * 13 + "|", *rows, ""])


def _head() -> str:
    return f"""# Accuracy

Made by `make bench` (tests/bench.py) with Chiron {pipeline.__version__} and torch {torch.__version__} on
{torch.get_num_threads()} threads of {platform.machine()}; one configuration, the defaults, for all cases. Errors in
percent; PSNR in dB, R the range of the truth in the mask in ppm; XSIM with a Gaussian window of 7^3. Lower is better
but for XSIM, PSNR and r. Seconds are those of the inversion. Heads at 2 mm are simulated on finer voxels, so that the
inversion does not meet its own discretisation.
"""


if __name__ == "__main__":
    main()
