"""The parameters of sampling from the diffusion prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.params import param


@dataclass(frozen=True)
class Diffusion:
    """Susceptibility by a diffusion prior, guided by the measurement (DM-QSM)."""

    sampler: Literal["diffpir", "dds", "dps"] = param(
        "diffpir",
        "how the measurement guides: diffpir, a proximal step; dds, some steps of CG; dps, a slope (the seed's)",
    )
    steps: int = param(10, "evaluations of the network in a sample, each of all patches", 2, 5000)
    samples: int = param(2, "samples whose mean is the map; their spread is its uncertainty", 1, 100)
    start: Literal["tv", "rts", "tkd", "noise"] = param("tv", "map that sampling starts from, noised; or noise alone")
    first_ppm: float = param(
        0.008, "standard deviation of the noise on that map; from noise alone it is the largest", 1e-3, 8
    )
    last_ppm: float = param(0.002, "noise at which sampling ends", 1e-4, 1)
    temperature: float = param(
        0.5, "diffpir, dds: share of the noise that is left on the way; 1 samples, 0 finds one best guess", 0, 1
    )
    churn: float = param(0.0, "diffpir, dds: share of that noise that is drawn anew at each step", 0, 1)
    strength: float = param(1.0, "diffpir: what the prior counts against the measurement", 1e-3, 1e3)
    slope: float = param(0.07, "uncertainty of a field over its change from voxel to voxel, beside its noise", 0, 10)
    finer_first_ppm: float = param(0.06, "first_ppm where the map is to be finer than the measurement", 1e-3, 8)
    finer_strength: float = param(0.25, "strength where the map is to be finer than the measurement", 1e-3, 1e3)
    gamma: float = param(100.0, "dds: what keeps its CG near the prior's mean", 1e-6, 1e6)
    iterations: int = param(6, "diffpir, dds: CG iterations a step", 1, 200)
    xi: float = param(0.5, "dps: share of the misfit that a step makes up for", 1e-4, 10)
    patch: int = param(96, "largest edge of a patch in voxels; 0: the whole volume at once", 0, 4096)
    overlap: int = param(16, "voxels over which patches fade into each other", 0, 48)
    shifting: bool = param(True, "move the cuts between patches from step to step")
    seed: int = param(0, "of the noise; the samples count on", 0, 2**31)
    seconds: float = param(0.0, "stop after so many seconds with what there is by then; 0 never", 0, 1e6)
    precision: Literal["auto", "float32", "bfloat16"] = param(
        "auto", "of convolutions; auto is bfloat16 where it is fast"
    )

    def __post_init__(self) -> None:
        if self.patch and self.patch < 48:
            raise ValueError(f"patch = {self.patch}: 48 voxels at least, as the prior has learned from, or 0")
        if self.patch and self.overlap > self.patch // 2:
            raise ValueError(f"overlap = {self.overlap}: at most half of patch = {self.patch}")
