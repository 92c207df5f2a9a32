"""Label maps, a site's own maps -> numbered training maps without end, made by processes beside the training."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from models.diffusion.process import SCALE_PPM
from models.diffusion.training import Known
from models.head.labelmap import FREESURFER, tissue_codes
from models.maps import Map, random_map
from pipeline.errors import ChironError

FIRST, KEPT, STEPS = 12, 96, 100  # maps to begin with, maps kept, steps after which a further one is used
AHEAD = 4  # maps made before they are asked for
OWN_SHARE = 0.5  # of the maps that are a site's own, where there are any
LARGEST_PPM = 20.0
KINDS = {
    "label map": "a NIfTI file of FreeSurfer's codes of a head",
    "own map": "a NIfTI file of susceptibility in ppm",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Sources:
    """What maps are made of: a seed, files of label maps (FreeSurfer's codes), files of susceptibility maps (ppm)."""

    seed: int
    labels: tuple[Path, ...] = ()
    own: tuple[Path, ...] = ()

    def make(self, number: int) -> Map:
        """The map of that number; half the heads are of label maps where there are any. X002 for a file of no use."""
        draw = random.Random(f"{self.seed} {number}")
        own, labels = draw.random() < OWN_SHARE, draw.random() < 0.5
        if self.own and own:
            return self.of_site(draw.randrange(len(self.own)))
        if not (self.labels and labels):
            return random_map(draw.getrandbits(31))
        index = draw.randrange(len(self.labels))
        codes, number = self.anatomy(index), draw.getrandbits(31)
        return _named("label map", index, random_map, number, codes)

    def check(self) -> None:
        """Read all files, so that one of no use is found before an hour's training: X002."""
        for index in range(len(self.labels)):
            codes = self.anatomy(index)[::2, ::2, ::2]
            _named("label map", index, tissue_codes, codes, FREESURFER)
        for index in range(len(self.own)):
            self.of_site(index)

    def anatomy(self, index: int) -> Tensor:
        """Codes (X, Y, Z) in RAS order of a label map of 1 mm."""
        return _named("label map", index, read_labels, self.labels[index])

    def of_site(self, index: int) -> Map:
        return _named("own map", index, read_map, self.own[index])


class Pool:
    """The maps (chi in units of the prior, inside; chi on `device`) that there are at a step.

    The same at a step for the same sources, however fast they were made: training waits for those that it is to use.
    They are kept in `folder`, so that training can go on. Without `workers` nothing is made: another process of the
    same training does that, and its files are waited for.
    """

    def __init__(
        self, sources: Sources, folder: Path, workers: int, device: torch.device | str = "cpu", ahead: int = AHEAD
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.sources, self.folder, self.device, self.ahead = sources, folder, device, ahead
        self.ready: dict[int, Known] = {}
        self.coming: dict[int, Future[None]] = {}
        self.makers: ProcessPoolExecutor | None = None
        if workers:
            context = multiprocessing.get_context("spawn")
            leash, self.leash = context.Pipe(duplex=False)
            self.makers = ProcessPoolExecutor(workers, context, _modest, (leash,))

    def __call__(self, step: int) -> Sequence[Known]:
        newest = FIRST + step // STEPS
        wanted = range(max(0, newest - KEPT), newest)
        self.order(self.sources, range(wanted.start, newest + self.ahead))
        for number in wanted:
            if number not in self.ready:
                chi, inside = self.get(number)[:2]
                self.ready[number] = chi.to(self.device), inside
        for number in [n for n in self.ready if n not in wanted]:
            del self.ready[number]
            if self.makers:
                self.file(number).unlink(missing_ok=True)
        return [self.ready[number] for number in wanted]

    def order(self, sources: Sources, numbers: Sequence[int]) -> None:
        """Have maps made that are not there yet."""
        for number in numbers:
            known = number in self.ready or number in self.coming
            if self.makers and not known and not self.file(number).exists():
                try:
                    self.coming[number] = self.makers.submit(_store, sources, number, self.file(number))
                except BrokenProcessPool:
                    raise _died() from None

    def get(self, number: int) -> tuple[Any, ...]:
        """Chi, inside, voxel size and kind of a map that was ordered, as soon as it is made."""
        if number in self.coming:
            try:
                self.coming.pop(number).result()
            except BrokenProcessPool:
                raise _died() from None
        while not self.file(number).exists():
            time.sleep(0.05)
        found: tuple[Any, ...] = torch.load(self.file(number), weights_only=True)
        return found

    def close(self) -> None:
        """Stop the makers, whatever they are at."""
        if self.makers:
            self.leash.close()
            self.makers.shutdown(cancel_futures=True)

    def file(self, number: int) -> Path:
        return self.folder / f"{number}.pt"


def files(folder: Path | None, kind: str) -> tuple[Path, ...]:
    """The NIfTI files of a folder, by name; S003 where it cannot be read, X002 where there is none."""
    if folder is None:
        return ()
    if not folder.is_dir():
        raise ChironError("S003", "no such folder", f"a folder of {kind}s")
    found = tuple(sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz"))))
    if not found:
        raise ChironError("X002", f"no {kind}", KINDS[kind])
    return found


def units(one: Map) -> Known:
    """Chi in units of the prior (float16) and where it is known."""
    return (one.chi_ppm / SCALE_PPM).half(), one.inside


def read_labels(file: Path) -> Tensor:
    """Codes (X, Y, Z) in RAS order of a label map of 1 mm; X002 where it is no such file."""
    image = _read(file)
    if image.ndim != 3 or not np.allclose(image.header.get_zooms()[:3], 1, atol=0.05):
        size = " x ".join(f"{v:g}" for v in image.header.get_zooms()[:3])
        raise ChironError("X002", f"{image.ndim} axes, voxels of {size} mm", "a volume with voxels of 1 mm")
    return torch.from_numpy(np.asarray(image.dataobj).astype(np.int32))


def read_map(file: Path) -> Map:
    """A susceptibility map (NIfTI, ppm, zero outside the brain), its mean taken off; X002 where it is none."""
    image = _read(file)
    chi = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))
    inside = chi != 0
    if chi.dim() != 3 or not bool(chi.isfinite().all()) or not bool(inside.any()):
        raise ChironError("X002", f"an image of shape {tuple(chi.shape)} that is no map", "a volume of finite numbers")
    if float(chi.abs().max()) > LARGEST_PPM:
        raise ChironError("X002", f"values up to {float(chi.abs().max()):.0f}", "susceptibility in ppm")
    x, y, z = (float(v) for v in image.header.get_zooms()[:3])
    return Map(torch.where(inside, chi - chi[inside].mean(), 0), inside, (x, y, z), "own")


def _read(file: Path) -> Any:
    try:
        image = nib.squeeze_image(nib.load(file))
        if image.ndim < 3:
            raise ValueError(image.ndim)
        return nib.as_closest_canonical(image)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
        raise ChironError("X002", "a file that cannot be read as NIfTI", "NIfTI files only") from None


def _named(kind: str, index: int, work: Callable[..., T], *given: Any) -> T:
    """Work on a file, whose faults tell it by its place among the others, for its name may be a patient's."""
    which = f"{kind} {index + 1}"
    try:
        return work(*given)
    except ChironError as error:
        raise ChironError(error.code, f"{which}: {error.found}", error.expected) from None
    except (OSError, EOFError, zlib.error):  # its head could be read, its voxels not
        raise ChironError("X002", f"{which}: a file that is not whole", KINDS[kind]) from None
    except ValueError as error:
        raise ChironError("X002", f"{which}: {error}", KINDS[kind]) from None


def _died() -> ChironError:
    return ChironError(
        "R002", "a process that makes maps has died", "", "Give the machine more memory, or fewer --workers."
    )


def _modest(leash: Connection) -> None:
    """The makers leave the processors to the training where both want them, and end with it, however it ends."""
    torch.set_num_threads(1)
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_held, args=(leash,), daemon=True).start()


def _held(leash: Connection) -> None:
    leash.poll(None)  # until the other end is closed
    os._exit(1)


def _store(sources: Sources, number: int, file: Path) -> None:
    if not file.exists():
        one = sources.make(number)
        aside = file.with_suffix(".part")
        torch.save((*units(one), one.voxel_size_mm, one.kind), aside)
        aside.rename(file)
