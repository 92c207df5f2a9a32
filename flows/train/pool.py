"""Label maps, a site's own maps -> numbered training maps without end; what has a number is made beside training."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from flows.train.files import files, named, read_labels, read_map
from flows.train.plan import Plan
from models.diffusion.process import SCALE_PPM
from models.diffusion.training import Known
from models.head.labelmap import FREESURFER, tissue_codes
from models.maps import Map, random_map
from pipeline import child
from pipeline.errors import ChironError

FIRST, KEPT, STEPS = 12, 96, 100  # maps to begin with, maps kept, steps after which a further one is used
AHEAD = 4  # maps made before they are asked for
OWN_SHARE = 0.5  # of the maps that are a site's own, where there are any
T = TypeVar("T")
Made = TypeVar("Made", covariant=True)
Numbered = tuple[Tensor, Tensor, tuple[float, float, float], str]  # chi in units, inside, voxel size and kind of a map


class Makes(Protocol[Made]):
    """What things of a kind are made of: each by its number, into a file, whole or not at all."""

    def store(self, number: int, file: Path) -> None: ...

    def read(self, file: Path, device: torch.device | str) -> Made: ...


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
        return named("label map", index, random_map, number, codes)

    def store(self, number: int, file: Path) -> None:
        one, aside = self.make(number), file.with_suffix(".part")
        torch.save((*units(one), one.voxel_size_mm, one.kind), aside)
        aside.rename(file)

    def read(self, file: Path, device: torch.device | str) -> Numbered:
        chi, inside, voxel, kind = torch.load(file, weights_only=True)
        return chi.to(device), inside, voxel, kind

    def data(self, count: int) -> str:
        """What so many maps are, for a card."""
        heads = f", half of them of {len(self.labels)} label maps, deformed at random" if self.labels else ""
        own = f"; every second map is one of {len(self.own)} of a site's own" if self.own else ""
        return f"{count} random maps: a third shapes, the others simulated heads{heads}{own}"

    def check(self) -> None:
        """Read all files, so that one of no use is found before an hour's training: X002."""
        for index in range(len(self.labels)):
            codes = self.anatomy(index)[::2, ::2, ::2]
            named("label map", index, tissue_codes, codes, FREESURFER)
        for index in range(len(self.own)):
            self.of_site(index)

    def anatomy(self, index: int) -> Tensor:
        """Codes (X, Y, Z) in RAS order of a label map of 1 mm."""
        return named("label map", index, read_labels, self.labels[index])

    def of_site(self, index: int) -> Map:
        return named("own map", index, read_map, self.own[index])


class Pool(Generic[T]):
    """The maps, or what else `sources` make, that there are at a step: at most `kept`.

    The same at a step for the same sources, however fast they were made: training waits for those that it is to use.
    They are kept in `folder`, so that training can go on. Without `workers` nothing is made: another process of the
    same training does that, and its files are waited for.
    """

    def __init__(
        self,
        sources: Makes[T],
        folder: Path,
        workers: int,
        device: torch.device | str = "cpu",
        kept: int = KEPT,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.sources, self.folder, self.device, self.kept = sources, folder, device, kept
        self.ready: dict[int, T] = {}
        self.coming: dict[int, Future[None]] = {}
        self.makers: ProcessPoolExecutor | None = None
        if workers:
            context = child.context("spawn")
            leash, self.leash = context.Pipe(duplex=False)
            self.makers = ProcessPoolExecutor(workers, context, _modest, (leash,))

    def __call__(self, step: int) -> Sequence[T]:
        newest = FIRST + step // STEPS
        wanted = range(max(0, newest - self.kept), newest)
        self.order(self.sources, range(wanted.start, newest + AHEAD))
        for number in wanted:
            if number not in self.ready:
                self.ready[number] = self.get(number, self.device)
        for number in [n for n in self.ready if n not in wanted]:
            del self.ready[number]
            if self.makers:
                self.file(number).unlink(missing_ok=True)
        return [self.ready[number] for number in wanted]

    def order(self, sources: Makes[T], numbers: Sequence[int]) -> None:
        """Have those made that are not there yet."""
        for number in numbers:
            known = number in self.ready or number in self.coming
            if self.makers and not known and not self.file(number).exists():
                try:
                    self.coming[number] = self.makers.submit(_store, sources, number, self.file(number))
                except BrokenProcessPool:
                    raise _died() from None

    def get(self, number: int, device: torch.device | str = "cpu") -> T:
        """What was ordered, as soon as it is made."""
        if number in self.coming:
            try:
                self.coming.pop(number).result()
            except BrokenProcessPool:
                raise _died() from None
        while not self.file(number).exists():
            time.sleep(0.05)
        return self.sources.read(self.file(number), device)

    def close(self) -> None:
        """Stop the makers, whatever they are at."""
        if self.makers:
            self.leash.close()
            self.makers.shutdown(cancel_futures=True)

    def file(self, number: int) -> Path:
        return self.folder / f"{number}.pt"


def map_sources(plan: Plan) -> tuple[Sources, Sources]:
    """What is learned from, and what is held out of it: of two label maps or more the last."""
    labels, own = files(plan.labels, "label map"), files(plan.maps, "own map")
    held = labels[-1:] if len(labels) > 1 else ()
    return Sources(plan.seed, labels[: len(labels) - len(held)], own), Sources(0, held)


def units(one: Map) -> Known:
    """Chi in units of the prior (float16) and where it is known."""
    return (one.chi_ppm / SCALE_PPM).half(), one.inside


def _died() -> ChironError:
    return ChironError(
        "R002", "a process that makes maps has died", "", "Give the machine more memory, or fewer --workers."
    )


def _modest(leash: Connection) -> None:
    """The makers leave the processors to the training where both want them, and end with it, however it ends."""
    torch.set_num_threads(1)
    os.nice(10)
    child.tie(leash)


def _store(sources: Makes[Any], number: int, file: Path) -> None:
    if not file.exists():
        sources.store(number, file)
