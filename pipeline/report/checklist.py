"""What was found of a scan -> the brain consensus of 2024 as a checklist: found, wanted, met or not.

Source: QSM Consensus Organization Committee 2024, doi 10.1002/mrm.30006.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from pipeline.invert import FROM_TOTAL
from pipeline.report.found import NETWORKS, Found, milliseconds, name_of, number

Level = Literal["ok", "warn", "fail", "unknown"]

T2STAR_3T_S = (0.0315, 0.066)  # putamen to cortex; R2* rises about linearly with the field
SPARSE = ("tv", "rts", "nltv", "medi", "tfi")
BACKGROUND = {"vsharp": "V-SHARP", "resharp": "RESHARP", "pdf": "PDF"}
UNLISTED = {"tfi": "fitted together with the map", "lbv": "LBV"}  # the consensus names the families of SHARP and PDF


@dataclass(frozen=True)
class Item:
    """One line of the checklist."""

    what: str
    found: str
    wanted: str
    level: Level


def checklist(found: Found) -> tuple[list[Item], list[Item]]:
    """The items on the acquisition, and those on the processing that was done."""
    return list(_acquisition(found)), list(_processing(found))


def _acquisition(found: Found) -> Iterator[Item]:
    facts = found.facts("convert")
    if not facts:
        return
    said = facts.get("acquisition") or {}
    yield _dimensions(said)
    tesla = facts.get("b0_nominal_tesla") or facts.get("b0_tesla") or 0
    yield from _echo_times([float(t) for t in facts.get("echo_times_s", ())], float(tesla))
    yield Item("Magnitude and phase", "at every echo", "at every echo", "ok")
    if found.grid:
        yield from _voxels(found.grid.voxel_size_mm)
    yield _readout(found)


def _dimensions(said: dict[str, Any]) -> Item:
    kind = said.get("dimensions")
    level: Level = "unknown" if kind is None else "ok" if str(kind).upper() == "3D" else "fail"
    return Item("Encoding", str(kind or "not stated"), "3D", level)


def _echo_times(times: list[float], b0_tesla: float) -> Iterator[Item]:
    n = len(times)
    yield Item("Echoes", str(n), "3 or more", "ok" if n >= 3 else "warn" if n == 2 else "fail")
    if n == 0:
        return
    if n > 2:
        gaps = [b - a for a, b in pairwise(times)]
        uneven = max(gaps) - min(gaps)
        mean, even = f"{milliseconds(sum(gaps) / len(gaps))} ms", uneven <= 0.02 * min(gaps)
        spacing = mean if even else f"{mean}, differing by {milliseconds(uneven)} ms"
        yield Item("Echo spacing", spacing, "uniform", "ok" if even else "warn")
    first: Level = "ok" if times[0] <= 5.05e-3 else "warn" if times[0] <= 10.05e-3 else "fail"
    yield Item("First echo", f"{milliseconds(times[0])} ms", "at most 5 ms (10 ms is a failure)", first)
    if b0_tesla > 0:
        low, high = 0.75 * T2STAR_3T_S[0] * 3 / b0_tesla, 1.25 * T2STAR_3T_S[1] * 3 / b0_tesla
        wanted = f"{milliseconds(low)} to {milliseconds(high)} ms (0.75 to 1.25 T2* of tissue at {b0_tesla:.2g} T)"
        yield Item("Last echo", f"{milliseconds(times[-1])} ms", wanted, "ok" if low <= times[-1] <= high else "warn")


def _voxels(size: tuple[float, float, float]) -> Iterator[Item]:
    ratio, volume = max(size) / min(size), size[0] * size[1] * size[2]
    text = " × ".join(f"{s:.2f}" for s in size) + " mm"
    yield Item("Voxel shape", text, "isotropic", "ok" if ratio <= 1.1 else "warn")
    yield Item("Voxel volume", f"{volume:.2f} mm³", "at most 1 mm³", "ok" if volume <= 1.05 else "warn")


def _readout(found: Found) -> Item:
    if any(notice["code"] == "E013" for _, notice in found.recorded("notices")):
        return Item("Readout", "bipolar", "monopolar", "warn")
    return Item("Readout", "no sign of bipolar echoes", "monopolar", "ok" if "unwrap" in found.results else "unknown")


def _processing(found: Found) -> Iterator[Item]:
    if "convert" in found.results:
        yield Item("Coil combination", "done by the scanner", "in the complex domain", "unknown")
    if facts := found.facts("unwrap"):
        method = str(facts.get("method", found.settings.unwrap.method))
        exact: Level = "ok" if "romeo" in method.lower() else "warn"
        yield Item("Phase unwrapping", method.upper() if exact == "ok" else method, "exact, not Laplacian", exact)
    if facts := found.facts("field"):
        yield Item("Echo combination", "before background removal", "before background removal", "ok")
        if (share := facts.get("excluded_share")) is not None:
            yield _exclusion(float(share), found.settings.fit.largest_residual)
    if "mask" in found.results:
        yield _mask(found)
    if found.facts("background"):
        yield _background(found)
    if found.methods:
        yield _inversion(found)
        reference = found.facts(f"invert-{found.primary}").get("reference")
        stated: Level = "ok" if reference else "unknown"
        yield Item("Reference", _reference(reference), "stated, whole brain among them", stated)


def _mask(found: Found) -> Item:
    asked = found.settings.mask
    network = asked.method == "deepbet" and not asked.file
    text = "found by deepbet" if network else "found from magnitude and phase quality"
    text = "given by the user" if asked.file else text
    text += ", maps of its reliable voxels and of all joined" if asked.two_pass else ""
    level: Level = "unknown" if asked.file else "warn" if network and not asked.two_pass else "ok"
    return Item("Mask", text, "brain extraction and phase quality", level)


def _exclusion(share: float, limit: float) -> Item:
    text = f"no weight above {number(limit)}: {number(100 * share)} % of the voxels"
    return Item("Relative residual of the echoes", text, "no weight above 0.3", "ok" if limit <= 0.3 else "warn")


def _background(found: Found) -> Item:
    """The background removal that the published map rests on."""
    method = str(found.facts("background").get("method", found.settings.background.method))
    if found.primary in FROM_TOTAL:
        method = found.primary
    if method in BACKGROUND:
        return Item("Background removal", BACKGROUND[method], "SHARP or PDF family", "ok")
    text = f"{UNLISTED.get(method, method)}, which is not on the consensus' list"
    return Item("Background removal", text, "SHARP or PDF family", "warn")


def _inversion(found: Found) -> Item:
    name, wanted = name_of(found.primary), "regularised by sparsity"
    if found.primary in NETWORKS:
        return Item("Inversion", f"{name}, a neural network", f"{wanted}; networks are outside the consensus", "warn")
    return Item("Inversion", name, wanted, "ok" if found.primary in SPARSE else "warn")


def _reference(reference: Any) -> str:
    """The region that chi is relative to, with the mean and SD it had."""
    if not isinstance(reference, dict):
        return str(reference or "not stated")
    mean, sd = reference.get("mean_ppm"), reference.get("sd_ppm")
    said = f" ({number(mean)} ± {number(sd)} ppm before)" if isinstance(mean, float) and isinstance(sd, float) else ""
    return f"{reference.get('region', 'a region')}{said}"
