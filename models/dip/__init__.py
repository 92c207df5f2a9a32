"""Local field and its noise -> susceptibility by Deep Image Prior: a 3D network fitted to this one scan.

Ulyanov 2018 (arXiv 1711.10925) applied to the dipole inversion: the weights theta of a network G are found so that the
field of chi = start + G_theta(z) agrees with the measured one, z a fixed input. The network takes up structure sooner
than noise, so the fit is stopped early. By default its weights begin where training on simulated heads has left them
(educated warm start, Barbano 2022, arXiv 2111.11926), z is what the scan offers: classical maps, the field and its
noise; and the weights are fitted only where its map is far from the field.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.cg import conjugate_gradients
from models.dip.fitting import Fitting, learned
from models.dip.params import DIP
from models.dip.stopping import Stopping
from models.dipole import Dipole
from models.found import Found
from models.generator import needed_bytes
from models.seen import Given, educated

__all__ = ["DIP", "Found", "learned", "needed_bytes", "reconstruct"]

Progress = Callable[[float, str], None]

MOVES = 8  # conjugate gradients towards the field
MEDIAN = 0.4549  # of the square of a normal number


def reconstruct(
    field: Tensor,
    weight: Tensor,
    dipole: Dipole,
    params: DIP,
    progress: Progress = lambda share, word: None,
) -> Found:
    """Fit the network; arguments as for the methods in `classical`. The same seed and device give the same map.

    The uncertainty is what the network has learned to expect, and the spread of the fits where there are several.
    Where the loss ceases to be finite the result is not finite either: the caller decides what to put in its place.
    """
    began = time.monotonic()
    given = Given(field, weight, _operator(dipole, params))
    start = given.classical("tv" if params.network == "educated" else params.start)
    seen = educated(given, start) if params.network == "educated" else None
    runs, maps, doubt = [], [], None
    for k in range(params.seeds):
        one = replace(params, seed=params.seed + k)
        done = lambda share, word, k=k: progress((k + share) / params.seeds, word)  # noqa: E731
        fitting = Fitting(given, start, seen, one)
        doubt = fitting.doubt if doubt is None else doubt
        chi, facts = _map(fitting, given, Stopping(one, began), done)
        maps.append(chi)
        runs.append({**facts, "seed": one.seed})
        if seen is not None and not facts["loss"]:
            break  # without a fit every seed gives this map
    facts = {**runs[0], "network": params.network, "seconds": round(time.monotonic() - began, 2)}
    if seen is not None:
        facts["weights"] = learned()[1]["sha256"]
    if len(runs) == 1:
        return Found(maps[0], facts, doubt)
    stack = torch.stack(maps)
    spread = stack.var(0)
    total = spread if doubt is None else spread + doubt.square()
    return Found(stack.mean(0), {**facts, "runs": runs}, total.sqrt())


def _map(fitting: Fitting, given: Given, stop: Stopping, progress: Progress) -> tuple[Tensor, dict[str, Any]]:
    """One map and its facts. What an educated network makes of the scan is left alone unless it is far from the field;
    then it is moved towards the field, and where that is not enough, the network is fitted.

    It has learned what background removal leaves in a field, and is right not to follow it: in scans whose truth is
    known the misfit of the better map is up to 20 by the median, and drawing it to the field costs up to a quarter.
    """
    params = fitting.params
    if fitting.doubt is None:
        chi = _fit(fitting, given.mask, stop, progress)
        return chi, {**stop.facts(), "last_misfit": misfit(chi, given)}
    allowed = params.trust * fitting.doubt[given.mask].median()
    chi = fitting.output()
    first = misfit(chi, given)
    chi = moved(chi, allowed, params.discrepancy, given)
    then = misfit(chi, given)
    if then > params.discrepancy and params.iterations:
        chi = moved(_fit(fitting, given.mask, stop, progress), allowed, params.discrepancy, given)
    else:
        stop.reason = f"no fit: the misfit is {then:.2f} as it is"
        progress(1.0, f"misfit {then:.2f}")
    return chi, {**stop.facts(), "first_misfit": first, "last_misfit": misfit(chi, given)}


def _fit(fitting: Fitting, mask: Tensor, stop: Stopping, progress: Progress) -> Tensor:
    """Fit until it is to stop; the running mean of the outputs, or what all views say at the end."""
    params, mean = fitting.params, fitting.start
    for step in range(params.iterations):
        chi, loss, off = fitting.step(mean)
        keep = min(params.average, step / (step + 10))
        mean = keep * mean + (1 - keep) * chi
        over = stop.after(loss, off, mean, mask)
        progress(_share(step + 1, params, stop.began), f"step {step + 1}, misfit {off:.2f}")
        if over:
            break
    whole = fitting.doubt is not None and stop.chosen is None and stop.finite
    return fitting.output() if whole else stop.best(mean)


def moved(chi: Tensor, by_ppm: Tensor, target: float, given: Given) -> Tensor:
    """chi + u with |W (D (chi + u) - f)|^2 + |u / by_ppm|^2 the least, by conjugate gradients: data consistency.

    It ends as soon as the `misfit` has come down to `target`, for what lies below is noise, and streaks.
    """
    if misfit(chi, given) <= target:
        return chi
    D, w2, inside = given.dipole.forward, given.weight.square(), by_ppm * given.mask
    right = inside * D(w2 * (given.field - D(chi)))
    u, _ = conjugate_gradients(
        lambda v: v + inside * D(w2 * D(inside * v)),
        right,
        iterations=MOVES,
        enough=lambda v: misfit(chi + inside * v, given) <= target,
    )
    return chi + inside * u


def misfit(chi: Tensor, given: Given) -> float:
    """Square misfit in units of the noise, 1 where there is nothing else: by its median, for a map that is better than
    the field at the rim must not be drawn to it."""
    off = given.weight * (given.dipole.forward(chi) - given.field)
    return float(off[given.mask].square().median()) / MEDIAN


def _share(step: int, params: DIP, began: float) -> float:
    """How much of the fit is done, by steps or by the time that it was given."""
    by_time = (time.monotonic() - began) / params.seconds if params.seconds else 0.0
    return min(1.0, max(step / params.iterations, by_time))


def _operator(dipole: Dipole, params: DIP) -> Dipole:
    """The dipole as given; without padding for the seed's set-up, which had none."""
    if params.preset != "seed":
        return dipole
    kernel = dipole.kernel
    return Dipole(
        dipole.shape, dipole.voxel_size_mm, dipole.b0_dir, padding=0, device=kernel.device, dtype=kernel.dtype
    )
