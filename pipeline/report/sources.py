"""Steps that were used -> the papers to cite, and a paragraph for the methods section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.invert import chosen_methods
from pipeline.settings import Settings


@dataclass(frozen=True)
class Citation:
    """One paper: the steps it is cited for, a key, authors, title, where, year, and a DOI or arXiv number."""

    step: str
    key: str
    authors: str
    title: str
    journal: str
    year: int
    id: str

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.id[6:]}" if self.id.startswith("arXiv:") else f"https://doi.org/{self.id}"

    @property
    def text(self) -> str:
        return f"{self.authors}. {self.title}. {self.journal} ({self.year}). {self.url}"


_TABLE = (
    Citation(
        "consensus",
        "qsmconsensus2024",
        "QSM Consensus Organization Committee",
        "Recommended implementation of quantitative susceptibility mapping for clinical research in the brain",
        "Magn Reson Med 91:1834",
        2024,
        "10.1002/mrm.30006",
    ),
    Citation(
        "offset",
        "eckstein2018",
        "Eckstein K, Dymerska B, Bachrata B, et al",
        "Computationally efficient combination of multi-channel phase data from multi-echo acquisitions (ASPIRE)",
        "Magn Reson Med 79:2996",
        2018,
        "10.1002/mrm.26963",
    ),
    Citation(
        "romeo",
        "dymerska2021",
        "Dymerska B, Eckstein K, Bachrata B, et al",
        "Phase unwrapping with a rapid opensource minimum spanning tree algorithm (ROMEO)",
        "Magn Reson Med 85:2294",
        2021,
        "10.1002/mrm.28563",
    ),
    Citation(
        "laplacian",
        "schofield2003",
        "Schofield MA, Zhu Y",
        "Fast phase unwrapping algorithm for interferometric applications",
        "Opt Lett 28:1194",
        2003,
        "10.1364/OL.28.001194",
    ),
    Citation(
        "vsharp",
        "li2011",
        "Li W, Wu B, Liu C",
        "Quantitative susceptibility mapping of human brain reflects spatial variation in tissue composition",
        "NeuroImage 55:1645",
        2011,
        "10.1016/j.neuroimage.2010.11.088",
    ),
    Citation(
        "vsharp",
        "wu2012",
        "Wu B, Li W, Guidon A, Liu C",
        "Whole brain susceptibility mapping using compressed sensing",
        "Magn Reson Med 67:137",
        2012,
        "10.1002/mrm.23000",
    ),
    Citation(
        "pdf",
        "liu2011",
        "Liu T, Khalidov I, de Rochefort L, et al",
        "A novel background field removal method for MRI using projection onto dipole fields (PDF)",
        "NMR Biomed 24:1129",
        2011,
        "10.1002/nbm.1670",
    ),
    Citation(
        "tkd",
        "shmueli2009",
        "Shmueli K, de Zwart JA, van Gelderen P, et al",
        "Magnetic susceptibility mapping of brain tissue in vivo using MRI phase data",
        "Magn Reson Med 62:1510",
        2009,
        "10.1002/mrm.22135",
    ),
    Citation(
        "rts",
        "kames2018",
        "Kames C, Wiggermann V, Rauscher A",
        "Rapid two-step dipole inversion for susceptibility mapping with sparsity priors",
        "NeuroImage 167:276",
        2018,
        "10.1016/j.neuroimage.2017.11.018",
    ),
    Citation(
        "tikhonov tv",
        "bilgic2014",
        "Bilgic B, Fan AP, Polimeni JR, et al",
        "Fast quantitative susceptibility mapping with L1-regularization and automatic parameter selection",
        "Magn Reson Med 72:1444",
        2014,
        "10.1002/mrm.25029",
    ),
    Citation(
        "tv nltv",
        "milovic2018",
        "Milovic C, Bilgic B, Zhao B, et al",
        "Fast nonlinear susceptibility inversion with variational regularization",
        "Magn Reson Med 80:814",
        2018,
        "10.1002/mrm.27073",
    ),
    Citation(
        "nltv tfi",
        "milovic2019",
        "Milovic C, Bilgic B, Zhao B, et al",
        "Weak-harmonic regularization for quantitative susceptibility mapping",
        "Magn Reson Med 81:1399",
        2019,
        "10.1002/mrm.27483",
    ),
    Citation(
        "medi",
        "liu2012",
        "Liu J, Liu T, de Rochefort L, et al",
        "Morphology enabled dipole inversion for quantitative susceptibility mapping using structural consistency "
        "between the magnitude image and the susceptibility map",
        "NeuroImage 59:2560",
        2012,
        "10.1016/j.neuroimage.2011.08.082",
    ),
    Citation(
        "medi tfi",
        "liu2013",
        "Liu T, Wisnieff C, Lou M, et al",
        "Nonlinear formulation of the magnetic field to source relationship for robust quantitative susceptibility "
        "mapping",
        "Magn Reson Med 69:467",
        2013,
        "10.1002/mrm.24272",
    ),
    Citation(
        "tfi",
        "liu2017",
        "Liu Z, Kee Y, Zhou D, et al",
        "Preconditioned total field inversion (TFI) method for quantitative susceptibility mapping",
        "Magn Reson Med 78:303",
        2017,
        "10.1002/mrm.26331",
    ),
    Citation(
        "dip",
        "ulyanov2018",
        "Ulyanov D, Vedaldi A, Lempitsky V",
        "Deep image prior",
        "Proc IEEE CVPR",
        2018,
        "arXiv:1711.10925",
    ),
    Citation(
        "arlo",
        "pei2015",
        "Pei M, Nguyen TD, Thimmappa ND, et al",
        "Algorithm for fast monoexponential fitting based on Auto-Regression on Linear Operations (ARLO) of data",
        "Magn Reson Med 73:843",
        2015,
        "10.1002/mrm.25137",
    ),
    Citation(
        "arlo loglinear",
        "gudbjartsson1995",
        "Gudbjartsson H, Patz S",
        "The Rician distribution of noisy MRI data",
        "Magn Reson Med 34:910",
        1995,
        "10.1002/mrm.1910340618",
    ),
    Citation(
        "swi",
        "eckstein2021",
        "Eckstein K, Bachrata B, Hangel G, et al",
        "Improved susceptibility weighted imaging at ultra-high field using bipolar multi-echo acquisition and "
        "optimized image processing: CLEAR-SWI",
        "NeuroImage 237:118175",
        2021,
        "10.1016/j.neuroimage.2021.118175",
    ),
    Citation(
        "csf",
        "liu2018",
        "Liu Z, Spincemaille P, Yao Y, et al",
        "MEDI+0: Morphology enabled dipole inversion with automatic uniform cerebrospinal fluid zero reference for "
        "quantitative susceptibility mapping",
        "Magn Reson Med 79:2795",
        2018,
        "10.1002/mrm.26946",
    ),
    Citation(
        "xsim",
        "milovic2025",
        "Milovic C, Tejos C, Silva J, et al",
        "XSIM: A structural similarity index measure optimized for MRI QSM",
        "Magn Reson Med",
        2025,
        "10.1002/mrm.30271",
    ),
)

_PHRASES = {
    "offset": "Phase offsets were removed by MCPC-3D-S",
    "romeo": "phase was unwrapped by ROMEO",
    "laplacian": "phase was unwrapped by the Laplacian method",
    "vsharp": "the background field was removed by V-SHARP",
    "pdf": "the background field was removed by projection onto dipole fields",
    "tkd": "thresholded k-space division",
    "tikhonov": "Tikhonov regularisation",
    "rts": "rapid two-step inversion",
    "tv": "total variation solved by ADMM",
    "nltv": "nonlinear total variation solved by ADMM",
    "medi": "morphology enabled dipole inversion, solved by ADMM",
    "tfi": "total field inversion in one step",
    "dip": "Deep Image Prior, an untrained network fitted to the scan",
    "diffusion": "posterior sampling with a diffusion prior",
    "cyclegan": "a physics-informed cycle-consistent network",
}

_BESIDE = {
    "arlo": "R2* was fitted to the magnitudes by ARLO.",
    "loglinear": "R2* was fitted to the logarithm of the magnitudes, weighted by their noise, its floor taken off.",
    "swi": "Susceptibility-weighted images were made of magnitudes and local field in the manner of CLEAR-SWI.",
}


def citations(used: Settings | Mapping[str, Mapping[str, Any]]) -> list[Citation]:
    """The papers of the steps that `used` names: settings (what will run), or the facts of each stage (what ran)."""
    steps = {"consensus", *_steps(used)}
    return [paper for paper in _TABLE if steps & set(paper.step.split())]


def methods_text(used: Mapping[str, Mapping[str, Any]], version: str) -> str:
    """A paragraph for a paper's methods section, on the stages whose facts are in `used`."""
    steps, convert = _steps(used), used.get("convert", {})
    methods = [_PHRASES.get(m, m) for m in _methods(used)]
    sentences = [f"Susceptibility maps were reconstructed with Chiron {version}."]
    if times := convert.get("echo_times_s"):
        span = f"{len(times)} echoes from {times[0] * 1e3:.3g} to {times[-1] * 1e3:.3g} ms"
        sentences.append(f"The gradient-echo scan at {convert.get('b0_tesla', 0):.2g} T had {span}.")
    way = [_PHRASES[s] for s in ("offset", "romeo", "laplacian", "vsharp", "pdf") if s in steps]
    if way:
        text = "; ".join(way)
        sentences.append(text[0].upper() + text[1:] + ".")
    if "field" in used:
        sentences.append("Echoes were combined, weighted by their phase noise, before background removal.")
    if methods:
        beside = f", and for comparison by {' and '.join(methods[1:])}" if len(methods) > 1 else ""
        sentences.append(f"The local field was inverted by {methods[0]}{beside}.")
        region = "the cerebrospinal fluid of the ventricles" if "csf" in steps else "the mean in the final mask"
        sentences.append(f"Susceptibility is given in ppm relative to {region}.")
    sentences += [_BESIDE[s] for s in ("arlo", "loglinear", "swi") if s in steps]
    return " ".join(sentences)


def _steps(used: Settings | Mapping[str, Mapping[str, Any]]) -> set[str]:
    if isinstance(used, Settings):
        reference = {"csf"} if used.reference.region == "csf" else set()
        beside = {used.r2star.method, "swi", *reference}
        return {used.unwrap.method, "offset", used.background.method, *chosen_methods(used), *beside}
    steps = set(_methods(used))
    if "unwrap" in used:
        steps.add(used["unwrap"].get("method", "romeo"))
        if used["unwrap"].get("offset_removed", True):
            steps.add("offset")
    if "background" in used:
        steps.add(used["background"].get("method", "vsharp"))
    if "method" in used.get("r2star", {}):
        steps.add(used["r2star"]["method"])
    if "missing" not in used.get("swi", {"missing": "all"}):
        steps.add("swi")
    if any("fluid" in str(facts.get("reference")) for facts in used.values()):
        steps.add("csf")
    if "xsim" in str(used.get("quality", {})).lower():
        steps.add("xsim")
    return steps


def _methods(used: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Inversion methods, the published one first."""
    primary = used.get("quality", {}).get("primary")
    made = [stage.removeprefix("invert-") for stage in used if stage.startswith("invert-")]
    return sorted(made, key=lambda m: m != primary)
