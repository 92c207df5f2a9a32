"""What was found of a scan -> its pictures in three planes, at windows that are the same for every scan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from models.dipole import Dipole
from pipeline.report.found import Array, Found, milliseconds, name_of
from pipeline.report.view import DIVERGING, Plane, View, Window

WRAPPED = Window(-float(np.pi), float(np.pi), "rad")
TOTAL = Window(-0.50, 0.50, "ppm")
LOCAL = Window(-0.05, 0.05, "ppm")
CHI = Window(-0.10, 0.10, "ppm")
CHI_WIDE = Window(-0.15, 0.15, "ppm")
DIFFERENCE = Window(-0.05, 0.05, "ppm", DIVERGING)
MISFIT = Window(-0.02, 0.02, "ppm", DIVERGING)
SPREAD = Window(0.0, 0.05, "ppm")

R2STAR_PER_TESLA = 20.0  # the upper end of R2*'s window in 1/s per tesla, with which R2* grows
WEIGHTED = Window(0.0, 1.3, "of usual brightness")

STRIP = 8


@dataclass(frozen=True)
class Picture:
    """One volume at one window, with what to look for."""

    title: str
    note: str
    window: Window
    planes: tuple[Plane, ...]


def view_of(found: Found) -> View | None:
    """Where the scan is cut: around its mask, or through its middle where there is none."""
    if found.grid is None:
        return None
    mask = found.brain if found.brain is not None and found.brain.any() else np.ones(found.grid.shape, dtype=bool)
    return View.of(found.grid.affine, mask)


def glance(found: Found, view: View) -> list[Picture]:
    """The way of the scan in axial cuts: magnitude, local field, the published map and a classical one."""
    return [_picture(v, (view.plane(v.array, 2, v.window, v.inside, v.outlines),)) for v in _volumes(found, brief=True)]


def pictures(found: Found, view: View) -> list[Picture]:
    """Every picture of the report, in the order of the steps."""
    return [_picture(v, view.planes(v.array, v.window, v.inside, v.outlines)) for v in _volumes(found)]


def strip(found: Found, view: View) -> Picture | None:
    """The published map in axial cuts from top to bottom."""
    chi = found.chi(found.primary)
    if chi is None:
        return None
    planes = tuple(view.plane(chi, 2, CHI, found.final, index=i) for i in view.through(2, STRIP))
    return Picture(f"χ, {name_of(found.primary)}, from top to bottom", "", CHI, planes)


@dataclass(frozen=True)
class _Volume:
    """What is to be a picture: `inside` is where it is shown, `outlines` CSS class and mask."""

    title: str
    note: str
    window: Window
    array: Array
    inside: Array | None = None
    outlines: dict[str, Array] | None = None


def _picture(volume: _Volume, planes: tuple[Plane, ...]) -> Picture:
    return Picture(volume.title, volume.note, volume.window, planes)


def _volumes(found: Found, brief: bool = False) -> Iterator[_Volume]:
    yield from _echoes(found, brief)
    yield from _fields(found, brief)
    yield from _maps(found, brief)
    if not brief:
        yield from _comparisons(found)
        yield from _beside(found)
        yield from _truth(found)


def _echoes(found: Found, brief: bool) -> Iterator[_Volume]:
    magnitude, phase = found.array("convert", "magnitude"), found.array("convert", "phase_rad")
    times = found.facts("convert").get("echo_times_s", [])
    masks = {"brain": found.brain, "final": None if found.final is found.brain else found.final}
    outlines = {name: mask for name, mask in masks.items() if mask is not None}
    if magnitude is not None and magnitude.ndim == 4:
        note = ("No mask was made.", "With the brain mask.", "With the brain mask and that of the map.")[len(outlines)]
        for echo in [0] if brief or len(magnitude) == 1 else [0, len(magnitude) - 1]:
            volume = np.asarray(magnitude[echo])
            window = brightness(volume, found.brain)
            yield _Volume(f"Magnitude, {_echo(times, echo)}", note, window, volume, outlines=outlines)
    if phase is not None and phase.ndim == 4 and not brief:
        note = "Fringes should be smooth. Noise inside the brain, or a step between slices, is not."
        last = len(phase) - 1
        yield _Volume(f"Wrapped phase, {_echo(times, last)}", note, WRAPPED, np.asarray(phase[last]))


def _fields(found: Found, brief: bool) -> Iterator[_Volume]:
    total, local = found.array("field", "total_ppm"), found.array("background", "local_ppm")
    if total is not None and not brief:
        note = "All sources, inside and outside the head. A sharp jump is a wrap that was left."
        yield _Volume("Total field", note, TOTAL, total, found.brain)
    if local is not None:
        note = "What the tissue of the brain adds. Lobes at the rim are background that was left."
        yield _Volume("Local field", note, LOCAL, local, found.final)


def _maps(found: Found, brief: bool) -> Iterator[_Volume]:
    note = "Bright is paramagnetic (iron, venous blood), dark diamagnetic (myelin, calcium)."
    for method in (found.primary, found.classical) if brief else found.methods:
        chi = found.chi(method)
        if chi is None:
            continue
        published = method == found.primary
        title = f"χ, {name_of(method)}" + (" (published)" if published else "")
        yield _Volume(title, note if published else "For comparison.", CHI, chi, found.final)
        if published and not brief:
            wide = "The same at a wider window, for veins and nuclei rich in iron."
            yield _Volume(title, wide, CHI_WIDE, chi, found.final)
        spread = found.array(f"invert-{method}", "uncertainty_ppm")
        if spread is not None and not brief:
            own = (
                "Standard deviation that the method gives to its own map. An error that all its tries share, as of "
                "the field, the mask or the model, is not in it: bright is doubtful, dark is no proof."
            )
            yield _Volume(f"Uncertainty of χ, {name_of(method)}", own, SPREAD, spread, found.final)


def _comparisons(found: Found) -> Iterator[_Volume]:
    chi, beside = found.chi(found.primary), found.chi(found.classical)
    if chi is not None and beside is not None:
        title = f"{name_of(found.primary)} − {name_of(found.classical)}"
        note = "Red: the published map is higher. What is seen here hangs on the choice of method."
        yield _Volume(title, note, DIFFERENCE, chi - beside, found.final)
    residual = misfit(found)
    if residual is not None:
        note = "The field that the map does not explain. It should look like noise."
        yield _Volume("D∗χ − local field", note, MISFIT, residual, found.final)


def _beside(found: Found) -> Iterator[_Volume]:
    r2star, swi, minip = found.array("r2star", "r2star"), found.array("swi", "swi"), found.array("swi", "minip")
    if r2star is not None:
        top = R2STAR_PER_TESLA * float(found.facts("convert").get("b0_tesla", 3.0))
        note = "Bright is fast decay: iron, veins, and tissue near air, where the field dephases a voxel."
        yield _Volume("R2*", note, Window(0.0, top, "1/s"), r2star, found.brain)
    if swi is not None:
        note = "The magnitude, dark where the local field rises: veins, iron, blood."
        yield _Volume("SWI", note, WEIGHTED, swi)
    if minip is not None:
        slab = found.facts("swi").get("slab_mm", 0.0)
        note = f"The darkest of {slab:.0f} mm around each slice: veins are seen along their course."
        yield _Volume("Minimum-intensity projection of SWI", note, WEIGHTED, minip)


def _truth(found: Found) -> Iterator[_Volume]:
    truth, chi, mask = found.array("quality", "truth_ppm"), found.chi(found.primary), found.final
    if truth is None or mask is None or not mask.any():
        return
    note = "Known because this scan is simulated; referenced to its mean in the mask and the true brain."
    yield _Volume("True χ", note, CHI, truth, mask)
    if chi is not None:
        error = chi - truth
        error = error - np.median(error[mask])
        yield _Volume("Error: χ − truth", "Red: the published map is too high.", DIFFERENCE, error, mask)


def misfit(found: Found) -> Array | None:
    """D*chi - local field in ppm inside the final mask, computed in the mask's box.

    Neither the field's constant nor chi's reference is known: both are fitted and taken out.
    """
    chi, local, mask = found.chi(found.primary), found.array("background", "local_ppm"), found.final
    if chi is None or local is None or mask is None or found.grid is None or not mask.any():
        return None
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(mask))
    inside = mask[box]
    dipole = Dipole(inside.shape, found.grid.voxel_size_mm, found.grid.b0_dir)
    source = np.stack([np.where(inside, np.nan_to_num(chi[box]), 0), inside]).astype(np.float32)
    made, unit = dipole.forward(torch.from_numpy(source)).numpy()[:, inside].astype(np.float64)
    difference = made - np.nan_to_num(local[box])[inside]
    free = np.stack([unit, np.ones_like(unit)])
    out = np.zeros(mask.shape, dtype=np.float32)
    out[box][inside] = difference - np.linalg.solve(free @ free.T, free @ difference) @ free
    return out


def brightness(volume: Array, mask: Array | None) -> Window:
    """From nothing to just above the brightest tissue of the mask, in the scanner's own unit."""
    values = volume[mask] if mask is not None and mask.any() else volume
    top = float(np.nanpercentile(values[np.isfinite(values)][::7], 99)) if np.isfinite(values).any() else 1.0
    return Window(0.0, max(top, 1e-6) * 1.1, "a.u.")


def _echo(times: list[float], echo: int) -> str:
    return f"echo {echo + 1}" + (f" ({milliseconds(times[echo])} ms)" if echo < len(times) else "")
