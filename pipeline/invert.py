"""Local or total field -> susceptibility (ppm), by any method of models/, referenced to the mean in the mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models import classical, cyclegan, diffusion, dip
from models.dipole import Dipole
from pipeline.errors import ChironError
from pipeline.learned import LEARNED, by_network, card_of
from pipeline.quality.plausibility import data_consistency
from pipeline.unlearned import unlearned
from pipeline.volumes import Field, Susceptibility, bounding_box

if TYPE_CHECKING:
    from pipeline.settings import Settings

PADDING = 0.2  # share of each size added to the mask's box; tissue's fields have fallen off that far from the mask
PADDING_TOTAL = 0.04  # the same from the total field: what goes round the edge is background
CLASSICAL: dict[str, Callable[..., Tensor]] = {
    "tkd": classical.tkd,
    "tikhonov": classical.tikhonov,
    "rts": classical.rts,
    "tv": classical.tv,
    "nltv": classical.nltv,
    "medi": classical.medi,
    "tfi": classical.tfi,
}
PARAMS: dict[str, type] = {
    "tkd": classical.TKD,
    "tikhonov": classical.Tikhonov,
    "rts": classical.RTS,
    "tv": classical.TV,
    "nltv": classical.NLTV,
    "medi": classical.MEDI,
    "tfi": classical.TFI,
    "dip": dip.DIP,
    "diffusion": diffusion.Diffusion,
    "cyclegan": cyclegan.CycleGAN,
}
FROM_TOTAL = frozenset({"tfi"})  # these read the total field in its whole mask, all others the local field
FROM_MAGNITUDE = frozenset({"medi"})  # these read the magnitude too

Progress = Callable[[float, str], None]


def classical_default() -> str:
    """The classical method that is the default now, and that is shown beside every learned one."""
    return "tv"


def chosen_methods(settings: Settings) -> tuple[str, ...]:
    """The methods of a run, the published one first; the classical default is always among them."""
    names = [settings.method, *settings.also, "classical"]
    if names[0] == "auto":
        on_gpu = settings.device.startswith("cuda") or (settings.device == "auto" and torch.cuda.is_available())
        names[0] = "dip" if on_gpu else "classical"
    resolved = (classical_default() if name in ("classical", "auto") else name for name in names)
    return tuple(dict.fromkeys(resolved))


def check_weights(settings: Settings) -> None:
    """M003 where a method of the run needs weights that are missing or not those of their card."""
    for method in dict.fromkeys([*chosen_methods(settings), *(["diffusion"] if max(settings.upsample) > 1 else [])]):
        card_of(method, getattr(settings, method))


def invert(
    given: Field,
    method: str,
    params: Any = None,
    progress: Progress = lambda share, word: None,
    *,
    magnitude: Tensor | None = None,
) -> Susceptibility:
    """Susceptibility of a local field; of a total field for the methods of `FROM_TOTAL`.

    The field is cropped to its mask and padded; `params` is the method's parameter class (its defaults where None),
    `magnitude` (X, Y, Z) that of all echoes, which the methods of `FROM_MAGNITUDE` need. The facts hold the
    parameters, the reference (mean and SD in the mask before it was subtracted), what the method says of itself, and
    where the scan is unlike what its network has learned from (`unlearned`).
    Raises P007 for an empty mask, X002 for a missing magnitude, M001 where a method leaves numbers that are not finite,
    R002 where memory does not suffice for a network even in tiles and on the CPU, M003 where its weights are not there.
    """
    if method in FROM_MAGNITUDE and magnitude is None:
        raise ChironError("X002", f"no magnitude for {method}", "the magnitude, whose edges it follows")
    params = params or PARAMS[method]()
    box = bounding_box(given.mask)
    mask = given.mask[box]
    field = torch.where(mask, given.ppm[box], 0)
    field = torch.where(mask, field - field[mask].mean(), 0)
    weight = torch.where(mask, 1 / given.sd_ppm[box].clamp_min(1e-6), 0)
    dipole = Dipole(
        mask.shape,
        given.grid.voxel_size_mm,
        given.grid.b0_dir,
        padding=PADDING_TOTAL if method in FROM_TOTAL else PADDING,
        device=field.device,
        dtype=field.dtype,
    )
    facts: dict[str, Any] = {"parameters": asdict(params)}
    uncertainty = None
    if method in LEARNED:
        found, too_large = by_network(method, field, weight, dipole, params, progress)
        chi, uncertainty = found.chi_ppm, found.uncertainty_ppm
        facts |= found.facts | ({"too_large": too_large} if too_large else {})
    else:
        extra = {"magnitude": magnitude[box]} if magnitude is not None and method in FROM_MAGNITUDE else {}
        chi = CLASSICAL[method](field, weight, dipole, params, **extra)
    if not bool(torch.isfinite(chi).all()):
        raise ChironError("M001", f"{method} left values that are not finite", "a finite map")
    chi, facts["reference"] = reference(chi, mask)
    if card := card_of(method, params):
        misfit = data_consistency(chi, field, given.sd_ppm[box], mask, dipole)
        noise = float(given.sd_ppm[box][mask].median())
        facts |= unlearned(card, given.grid, chi, mask, misfit, noise)
    doubt = None if uncertainty is None else _whole(uncertainty, given, box)
    return Susceptibility(_whole(chi, given, box), given.mask, given.grid, method, facts, doubt)


def _whole(cropped: Tensor, given: Field, box: tuple[slice, slice, slice]) -> Tensor:
    """The volume of the whole grid, zero outside the box."""
    whole = torch.zeros(given.grid.shape, device=cropped.device, dtype=cropped.dtype)
    whole[box] = torch.where(given.mask[box], cropped, 0)
    return whole


def invert_twice(given: Field, reliable: Tensor, method: str, **options: Any) -> Susceptibility:
    """The map of the `reliable` voxels alone (bool X, Y, Z), and that of the whole mask where they have holes.

    What is strong or not to be believed, as in a calcification, then makes no streaks around it (Stewart 2022,
    doi 10.1002/mrm.29048). Both maps agree in the mean of the reliable voxels. `options` as `invert` takes them.
    """
    filled = invert(given, method, **options)
    inside = given.mask & reliable
    if not bool(inside.any()) or bool((inside == given.mask).all()):
        return filled
    sound = invert(replace(given, ppm=torch.where(inside, given.ppm, 0), mask=inside), method, **options)
    chi = torch.where(inside, sound.ppm + filled.ppm[inside].mean(), filled.ppm)
    chi, centre = reference(chi, given.mask)
    centre["mean_ppm"] += filled.facts["reference"]["mean_ppm"]
    facts = {**sound.facts, "reference": centre, "two_pass": {"reliable_share": float(inside.sum() / given.mask.sum())}}
    uncertainty = filled.uncertainty_ppm
    if uncertainty is not None and sound.uncertainty_ppm is not None:
        uncertainty = torch.where(inside, sound.uncertainty_ppm, uncertainty)
    return replace(filled, ppm=chi, facts=facts, uncertainty_ppm=uncertainty)


def reference(chi: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Chi minus its mean in the mask, zero outside; and the mean and SD that it had."""
    inside = chi[mask]
    facts = {
        "region": "mean of the final mask",
        "voxels": inside.numel(),
        "mean_ppm": float(inside.mean()),
        "sd_ppm": float(inside.std()),
    }
    return torch.where(mask, chi - inside.mean(), 0), facts
