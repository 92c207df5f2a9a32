"""A folder with a stage's artefacts -> a folder with what the stage makes of them: one step alone, to be scored.

The files and units are those of QSM-CI: `phase.nii.gz` (x, y, z, echo; radians), `magnitude.nii.gz`, `mask.nii.gz`,
`totalfield.nii.gz`, `localfield.nii.gz`, `chimap.nii.gz` (ppm), and `params.json` with TE (s), B0 (T), B0_dir (voxel
axes) and voxel_size (mm). Beyond that contract, phase and magnitude may be of single coils (x, y, z, echo, coil), and
what has another shape than the inputs lies on finer voxels over the same field of view.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.methods import METHODS
from pipeline.background import remove_background
from pipeline.coils import ImageOfCoils, combine
from pipeline.device import pick_device
from pipeline.errors import ChironError
from pipeline.field import total_field
from pipeline.find.orientation import read_header, stated_affine
from pipeline.invert import FROM_MAGNITUDE, FROM_TOTAL, chosen_methods, invert
from pipeline.mask import make_mask
from pipeline.names import match, meant
from pipeline.noise import noise_level
from pipeline.recipe.job import Progress
from pipeline.settings import Settings
from pipeline.superres import finer_affine, invert_finer, refine
from pipeline.unwrap import unwrap
from pipeline.volumes import Echoes, Field, Grid, Susceptibility
from pipeline.work import disk_error


def run_step(
    stage: str, source: Path, target: Path, settings: Settings, progress: Progress = lambda share, word: None
) -> list[str]:
    """Run one stage on the artefacts in `source`; returns the names of those it wrote to `target`.

    `progress` is told how far an inversion is. Raises X002 where the stage is unknown or an artefact is missing or not
    what it should be, E011 where grids differ, P006 where values are not finite.
    """
    stage = meant(stage, STAGES, "stage")
    found = Artefacts(source, pick_device(settings.device), progress)
    made = STAGES[stage](found, settings)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, volume in made.items():
            _write(target / f"{name}.nii.gz", volume, found)
    except OSError as error:
        raise disk_error(error) from error
    return [f"{name}.nii.gz" for name in made]


def overrides(source: Path, words: Iterable[str], method: str | None) -> list[str]:
    """Settings as `section.name=value` words: those of the contract's `config.json`, then `words`.

    A bare name that is no setting of a run belongs to the section of `method`.
    """
    file = source / "config.json"
    method = method and match(method, METHODS)
    given = [f"{name}={json.dumps(value)}" for name, value in _json(file).items()] if file.is_file() else []
    return [
        word if method is None or "." in name or name in Settings.model_fields else f"{method}.{word}"
        for word in [*given, *words]
        for name in [word.partition("=")[0]]
    ]


@dataclass(frozen=True)
class Artefacts:
    """The files of a folder, as tensors on one grid; and where to say how far the step is."""

    folder: Path
    device: torch.device
    progress: Progress = lambda share, word: None

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.nii.gz").is_file()

    def volume(self, name: str) -> Tensor:
        """The named volume (X, Y, Z), or (X, Y, Z, E) as it is stored, float32."""
        values = torch.from_numpy(np.asarray(_load(self.folder, name).dataobj, dtype=np.float32))
        if tuple(values.shape[:3]) != self.grid.shape:
            raise ChironError("E011", f"{name} of shape {tuple(values.shape)}", f"{self.grid.shape}")
        if not bool(torch.isfinite(values).all()):
            raise ChironError("P006", f"values of {name} that are not finite", "numbers only")
        return values.to(self.device)

    def mask(self) -> Tensor:
        mask = self.volume("mask").squeeze() > 0.5
        if not bool(mask.any()):
            raise ChironError("P007", "an empty mask", "a mask of the brain")
        return mask

    @cached_property
    def params(self) -> dict[str, Any]:
        return _json(self.folder / "params.json")

    @cached_property
    def image(self) -> Any:
        """The volume that gives the grid: the first there is."""
        names = ("mask", "phase", "totalfield", "localfield", "magnitude", "chimap")
        return _load(self.folder, next((name for name in names if self.has(name)), "mask"))

    @cached_property
    def oriented(self) -> bool:
        """Whether the image states how its voxels lie; files without it need B0_dir in the parameters."""
        header = read_header(Path(self.image.get_filename()))
        with suppress(ChironError):  # a size that cannot be: the parameters state the right one
            return header is None or stated_affine(header) is not None
        return True

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """The image's affine; a plain one where it has no orientation, as B0_dir is in voxel axes. E022 without it."""
        if self.oriented:
            return np.array(self.image.affine, dtype=float)
        if "B0_dir" not in self.params:
            todo = "Add B0_dir, in voxel axes, to params.json."
            raise ChironError("E022", "images without orientation, and params.json without B0_dir", "one of them", todo)
        sizes = self._triple("voxel_size", [float(size) for size in self.image.header.get_zooms()[:3]])
        return np.asarray(Grid.simple(self.image.shape[:3], sizes).affine, dtype=float)

    @cached_property
    def grid(self) -> Grid:
        """Shape and axes of the image, with voxel size and B0 direction of the parameters where they are given."""
        affine = self.affine.copy()
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        affine[:3, :3] *= np.asarray(self._triple("voxel_size", sizes.tolist())) / sizes
        grid = Grid.from_affine(self.image.shape, affine)
        b0 = np.asarray(self._triple("B0_dir", list(grid.b0_dir)))
        return Grid(grid.shape, grid.affine, tuple((b0 / np.linalg.norm(b0)).tolist()))

    def echoes(self) -> Echoes:
        """Phase and magnitude of all echoes; a magnitude of one everywhere where none was given.

        Of single coils (x, y, z, echo, coil) both are needed, and combined.
        """
        if len(_load(self.folder, "phase").shape) == 5:
            parts = combine(self._coils("magnitude"), self._coils("phase"), self.echo_times_s, self.grid)
            return Echoes(*parts, self.echo_times_s, self.b0_tesla, self.grid)
        phase = _by_echo(self.volume("phase"))
        magnitude = _by_echo(self.volume("magnitude")) if self.has("magnitude") else torch.ones_like(phase)
        return Echoes(magnitude, phase, self.echo_times_s, self.b0_tesla, self.grid)

    def _coils(self, name: str) -> ImageOfCoils:
        image = nib.load(self.folder / f"{name}.nii.gz", keep_file_open=True) if self.has(name) else None
        if image is None or len(image.shape) != 5:
            raise ChironError("X002", f"phase of single coils, and no such {name}", "both as (x, y, z, echo, coil)")
        return ImageOfCoils(image, self.device)

    @property
    def echo_times_s(self) -> tuple[float, ...]:
        times = self.params.get("TE")
        return tuple(float(t) for t in (times if isinstance(times, list) else [self._number("TE")]))

    @property
    def b0_tesla(self) -> float:
        return self._number("B0")

    def _number(self, name: str) -> float:
        value = self.params.get(name)
        if not isinstance(value, int | float) or not value > 0:
            raise ChironError("X002", f"params.json with {name} = {value!r}", "a positive number")
        return float(value)

    def _triple(self, name: str, otherwise: list[float]) -> list[float]:
        value = self.params.get(name, otherwise)
        if not isinstance(value, list) or len(value) != 3 or not np.any(value):
            raise ChironError("X002", f"params.json with {name} = {value!r}", "three numbers")
        return [float(v) for v in value]


def _field_mapping(found: Artefacts, settings: Settings) -> dict[str, Tensor]:
    field, mask = _total(found, settings)
    made = {"totalfield": field.ppm}
    return made if found.has("mask") else {**made, "mask": mask}


def _bfr(found: Artefacts, settings: Settings) -> dict[str, Tensor]:
    return {"localfield": _local(_given_field(found, "totalfield"), settings).ppm}


def _dipole(found: Artefacts, settings: Settings) -> dict[str, Tensor]:
    method = chosen_methods(settings)[0]
    if method in FROM_TOTAL:
        raise ChironError("X002", f"the stage dipole with {method}", f"bfr+dipole: {method} reads the total field")
    return {"chimap": _chi(_given_field(found, "localfield"), found, settings)}


def _bfr_dipole(found: Artefacts, settings: Settings) -> dict[str, Tensor]:
    return {"chimap": _chi(_read_field(_given_field(found, "totalfield"), settings), found, settings)}


def _end_to_end(found: Artefacts, settings: Settings) -> dict[str, Tensor]:
    return {"chimap": _chi(_read_field(_total(found, settings)[0], settings), found, settings)}


def _super_resolution(found: Artefacts, settings: Settings) -> dict[str, Tensor]:
    """Of a map or, where there is none, of the local field."""
    how = (settings.upsample, settings.diffusion, found.progress)
    if not found.has("chimap") and not found.has("localfield"):
        raise ChironError("X002", "no chimap.nii.gz and no localfield.nii.gz", "one of them")
    if found.has("chimap"):
        chi, mask = _as_given(found, "chimap")
        finer = refine(Susceptibility(chi, mask, found.grid, "given", {}), *how)
    else:
        finer = invert_finer(_given_field(found, "localfield"), *how)
    return {"chimap": finer.ppm, "mask": finer.mask}


STAGES: dict[str, Callable[[Artefacts, Settings], dict[str, Tensor]]] = {
    "field-mapping": _field_mapping,
    "bfr": _bfr,
    "dipole": _dipole,
    "bfr+dipole": _bfr_dipole,
    "end-to-end": _end_to_end,
    "super-resolution": _super_resolution,
}


def _total(found: Artefacts, settings: Settings) -> tuple[Field, Tensor]:
    echoes = found.echoes()
    mask = found.mask() if found.has("mask") else make_mask(echoes, settings.mask).mask
    unwrapped = unwrap(echoes, mask, settings.unwrap)
    return total_field(unwrapped.echoes, unwrapped.mask, settings.fit).field, mask


def _local(total: Field, settings: Settings) -> Field:
    method = settings.background.method
    return remove_background(total, method, getattr(settings, method))[0]


def _read_field(total: Field, settings: Settings) -> Field:
    """The field that the method of the settings reads: the total one as it is, or the local one."""
    return total if chosen_methods(settings)[0] in FROM_TOTAL else _local(total, settings)


def _chi(field: Field, found: Artefacts, settings: Settings) -> Tensor:
    method = chosen_methods(settings)[0]
    magnitude = None
    if method in FROM_MAGNITUDE and found.has("magnitude"):
        magnitude = _by_echo(found.volume("magnitude")).norm(dim=0)
    return invert(field, method, getattr(settings, method), found.progress, magnitude=magnitude).ppm


def _given_field(found: Artefacts, name: str) -> Field:
    """A field that comes without its noise."""
    ppm, mask = _as_given(found, name)
    return Field(ppm, _noise(ppm, mask, found), mask, found.grid)


def _as_given(found: Artefacts, name: str) -> tuple[Tensor, Tensor]:
    """A volume and its mask. Exact zeros in the mask are a rim that an earlier step removed: no data."""
    ppm = found.volume(name).squeeze()
    mask = found.mask() & (ppm != 0)
    return ppm * mask, mask


def _noise(ppm: Tensor, mask: Tensor, found: Artefacts) -> Tensor:
    """Standard deviation (X, Y, Z) of the field's noise: its level from the field, its shape from the magnitude where
    there is one, as 1 / (magnitude * echo time).
    """
    level = noise_level(ppm, mask)
    flat = torch.full_like(ppm, level)
    if not found.has("magnitude"):
        return flat
    echoes = _by_echo(found.volume("magnitude"))
    times = (
        found.echo_times_s if len(found.echo_times_s) == len(echoes) else (1.0,) * len(echoes)
    )  # a placeholder is allowed
    signal = (echoes * torch.tensor(times, device=ppm.device)[:, None, None, None]).square().sum(0).sqrt()
    typical = signal[mask].median()
    return flat * typical / signal.clamp(min=0.05 * float(typical))


def _by_echo(volume: Tensor) -> Tensor:
    """(X, Y, Z) or (X, Y, Z, E) -> (E, X, Y, Z); of single coils (X, Y, Z, E, C) the root of the sum of squares."""
    volume = volume.square().sum(-1).sqrt() if volume.dim() == 5 else volume
    return (volume if volume.dim() == 4 else volume[..., None]).permute(3, 0, 1, 2).contiguous()


def _load(folder: Path, name: str) -> Any:
    try:
        return nib.load(folder / f"{name}.nii.gz")
    except FileNotFoundError:
        raise ChironError("X002", f"no {name}.nii.gz", "every artefact that the stage reads") from None
    except (nib.filebasedimages.ImageFileError, OSError, EOFError):
        raise ChironError("X002", f"a {name}.nii.gz that cannot be read", "a NIfTI file") from None


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise ChironError("X002", f"no readable {file.name}", "a JSON object")
    return value


def _write(path: Path, volume: Tensor, found: Artefacts) -> None:
    """Aside, then renamed: a full disk leaves nothing at the final name."""
    kind = np.uint8 if volume.dtype == torch.bool else np.float32
    affine = finer_affine(found.affine, found.grid.shape, volume.shape)
    image = nib.Nifti1Image(volume.cpu().numpy().astype(kind), affine if found.oriented else None)
    if not found.oriented:
        image.header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0).astype(np.float32))
    aside = path.with_name(f".{path.name}")
    try:
        aside.write_bytes(_gzipped(image))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _gzipped(image: Any) -> bytes:
    return gzip.compress(image.to_bytes(), compresslevel=5, mtime=0)
