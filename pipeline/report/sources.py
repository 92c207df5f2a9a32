"""Steps that were used -> the papers to cite, and a paragraph for the methods section."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.invert import chosen_methods
from pipeline.settings import Settings, finer


@dataclass(frozen=True)
class Citation:
    """One paper: the steps it is cited for, a key, authors, title, where, year, and a DOI or arXiv number."""

    steps: list[str]
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


PAPERS = tuple(Citation(**paper) for paper in json.loads(Path(__file__).with_name("papers.json").read_text("utf-8")))

_PREPARED = {
    "offset": "phase offsets were removed by MCPC-3D-S",
    "romeo": "phase was unwrapped by ROMEO",
    "laplacian": "phase was unwrapped by the Laplacian method",
}
_FITTED = {"linear": "the unwrapped phase", "nonlinear": "the complex signal"}
_REMOVED = {
    "tfi": "fitted together with the susceptibility, as a field that is harmonic in the mask",
    "vsharp": "removed by V-SHARP",
    "pdf": "removed by projection onto dipole fields",
    "resharp": "removed by RESHARP",
    "lbv": "removed by solving the Laplacian boundary value problem",
}
_INVERTED = {
    "tkd": "thresholded k-space division",
    "tikhonov": "Tikhonov regularisation",
    "rts": "rapid two-step inversion",
    "tv": "total variation, solved by ADMM",
    "nltv": "nonlinear total variation, solved by ADMM",
    "medi": "morphology enabled dipole inversion, solved by ADMM",
    "tfi": "inversion of the total field in one step",
    "dip": "Deep Image Prior, a network with weights learned on simulated heads unless stated",
    "diffusion": "posterior sampling with a diffusion prior, a network learned on simulated heads",
    "cyclegan": "CycleQSM, a cycle-consistent network learned on simulated fields and maps without pairs",
}
_BESIDE = {
    "arlo": "R2* was fitted to the magnitudes by ARLO.",
    "loglinear": "R2* was fitted to the logarithm of the magnitudes, weighted by their noise, its floor taken off.",
    "SR-DipInv": "A further map on finer voxels was made from that of the same field by a diffusion prior.",
    "swi": "Susceptibility-weighted images were made of magnitudes and local field in the manner of CLEAR-SWI.",
}
_NAMED = (
    ("mask", "source"),
    ("field", "method"),
    ("r2star", "method"),
    ("invert-diffusion", "sampler"),
    *(("upsample", fact) for fact in ("method", "sampler", "task")),
)  # what was done


def citations(used: Settings | Mapping[str, Mapping[str, Any]]) -> list[Citation]:
    """The papers of the steps that `used` names: settings (what will run), or the facts of each stage (what ran)."""
    steps = {"consensus", *(_planned(used) if isinstance(used, Settings) else _done(used))}
    return [paper for paper in PAPERS if steps & set(paper.steps)]


def methods_text(used: Mapping[str, Mapping[str, Any]], version: str) -> str:
    """A paragraph for a paper's methods section, on the stages whose facts are in `used`."""
    steps, convert = _done(used), used.get("convert", {})
    sentences = [f"Susceptibility maps were reconstructed with Chiron {version}."]
    if times := convert.get("echo_times_s"):
        span = f"{len(times)} echoes from {times[0] * 1e3:.3g} to {times[-1] * 1e3:.3g} ms"
        tesla = convert.get("b0_nominal_tesla") or convert.get("b0_tesla", 0)
        sentences.append(f"The gradient-echo scan at {tesla:.2g} T had {span}.")
    if way := [text for step, text in _PREPARED.items() if step in steps]:
        text = "; ".join(way)
        sentences.append(f"{text[0].upper()}{text[1:]}.")
    if "field" in used:
        fitted = _FITTED.get(str(used["field"].get("method")), "the phase")
        sentences.append(f"One field was fitted to {fitted} of all echoes, weighted by its noise.")
    if "background" in used:
        method = _background(used)
        sentences.append(f"The background field was {_REMOVED.get(method, f'removed by {method}')}.")
    sentences += [*_mapped(used, steps), *(text for step, text in _BESIDE.items() if step in steps)]
    return " ".join(sentences)


def _mapped(used: Mapping[str, Mapping[str, Any]], steps: set[str]) -> list[str]:
    """Sentences on the inversion, if there was one."""
    methods = [_INVERTED.get(m, m) for m in _methods(used)]
    if not methods:
        return []
    beside = f", and for comparison by {' and '.join(methods[1:])}" if len(methods) > 1 else ""
    twice = ["The map of the voxels of coherent phase was filled with that of the whole mask."]
    region = "the cerebrospinal fluid of the ventricles" if "csf" in steps else "the mean in the final mask"
    return [
        f"Susceptibility was mapped by {methods[0]}{beside}.",
        *(twice if "two_pass" in steps else []),
        f"It is given in ppm relative to {region}.",
    ]


def _planned(settings: Settings) -> set[str]:
    steps = {settings.unwrap.method, "offset", settings.fit.method, settings.background.method}
    steps |= {*chosen_methods(settings), settings.r2star.method, "swi"}
    steps |= set() if settings.mask.file else {settings.mask.method}
    steps |= {"diffusion"} if finer(settings) else set()
    steps |= {settings.diffusion.sampler} if "diffusion" in steps else set()
    steps |= {"two_pass"} if settings.mask.two_pass else set()
    return steps | ({"csf"} if settings.reference.region == "csf" else set())


def _done(used: Mapping[str, Mapping[str, Any]]) -> set[str]:
    steps = set(_methods(used))
    if "unwrap" in used:
        steps |= {used["unwrap"].get("method", "romeo")}
        steps |= {"offset"} if used["unwrap"].get("offset_removed", True) else set()
    if "background" in used:
        steps.add(_background(used))
    steps |= {str(used[stage][fact]) for stage, fact in _NAMED if fact in used.get(stage, {})}
    if "missing" not in used.get("swi", {"missing": "all"}):
        steps.add("swi")
    if any("two_pass" in facts for facts in used.values()):
        steps.add("two_pass")
    if any("fluid" in str(facts.get("reference")) for facts in used.values()):
        steps.add("csf")
    if "xsim" in str(used.get("quality", {})).lower():
        steps.add("xsim")
    return steps


def _background(used: Mapping[str, Mapping[str, Any]]) -> str:
    return str(used["background"].get("method", "an unnamed method"))


def _methods(used: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Inversion methods that made a map, the published one first."""
    primary = used.get("quality", {}).get("primary")
    inverted = [stage for stage in used if stage.startswith("invert-")]
    made = [stage.removeprefix("invert-") for stage in inverted if "diverged" not in used[stage]]
    return sorted(made, key=lambda m: m != primary)
