"""The tissues of a simulated head: what each is made of, in one table, and the `Head` that is built from them.

Susceptibilities are those of the 2019 QSM challenge's phantom (doi 10.1002/mrm.28716) where it has the tissue;
relaxation is of the order that the literature gives at 3 T. Codes 1 to 11 follow the order of that phantom's labels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Tissue:
    """`chi_ppm` is relative to water; `texture_ppm` is the standard deviation of chi within the tissue."""

    code: int
    chi_ppm: float
    m0: float
    t1_s: float
    r2star_3t: float
    texture_ppm: float


TISSUES: dict[str, Tissue] = {
    #                          code   chi     m0    t1     r2*   texture
    "air": Tissue(0, 9.4, 0.0, 1.0, 0.0, 0.0),
    "caudate": Tissue(1, 0.044, 0.80, 1.30, 25.0, 0.010),
    "pallidum": Tissue(2, 0.131, 0.70, 0.95, 42.0, 0.018),
    "putamen": Tissue(3, 0.038, 0.78, 1.20, 26.0, 0.012),
    "red nucleus": Tissue(4, 0.100, 0.72, 1.00, 36.0, 0.012),
    "dentate": Tissue(5, 0.152, 0.75, 1.10, 34.0, 0.015),
    "substantia nigra": Tissue(6, 0.111, 0.72, 1.00, 38.0, 0.015),
    "thalamus": Tissue(7, 0.020, 0.76, 1.10, 22.0, 0.012),
    "white matter": Tissue(8, -0.030, 0.70, 0.85, 21.0, 0.010),
    "grey matter": Tissue(9, 0.020, 0.82, 1.35, 17.0, 0.010),
    "CSF": Tissue(10, 0.019, 1.00, 4.00, 1.5, 0.002),
    "vein": Tissue(11, 0.190, 0.80, 1.60, 45.0, 0.010),
    "fat": Tissue(12, 0.600, 0.85, 0.37, 35.0, 0.050),
    "bone": Tissue(13, -2.000, 0.08, 0.40, 400.0, 0.100),
    "muscle": Tissue(15, 0.000, 0.70, 1.40, 30.0, 0.030),
    "calcification": Tissue(16, -3.300, 0.15, 0.60, 150.0, 0.100),
    "haemorrhage": Tissue(17, 1.000, 0.60, 1.10, 120.0, 0.100),
    "brain stem": Tissue(18, -0.015, 0.72, 0.95, 21.0, 0.010),
    "vitreous": Tissue(19, 0.010, 1.00, 3.50, 2.0, 0.002),
    "nerve": Tissue(20, -0.015, 0.72, 0.95, 21.0, 0.010),  # optic nerve, spinal cord
}

BRAIN = ("caudate", "pallidum", "putamen", "red nucleus", "dentate", "substantia nigra", "thalamus", "white matter",
         "grey matter", "brain stem")  # fmt: skip
DEEP_GREY = BRAIN[:6]


@dataclass(frozen=True)
class Head:
    """A simulated head on one grid; all volumes (X, Y, Z), axes towards right, anterior, superior.

    `labels` int16 codes of `TISSUES`; `chi_ppm` relative to water; `m0` relative to CSF; `t1_s`; `r2star_3t` in 1/s;
    `brain` the region that QSM is made of: brain, its sulci and ventricles.
    """

    labels: Tensor
    chi_ppm: Tensor
    m0: Tensor
    t1_s: Tensor
    r2star_3t: Tensor
    brain: Tensor
    voxel_size_mm: tuple[float, float, float]
