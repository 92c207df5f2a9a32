"""Maps by number, simulated scans, a site's own fields -> the examples that CycleQSM learns from, in files."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flows.train.files import named, published_fields, read_field, sidecar_of
from flows.train.plan import Plan, Say
from flows.train.pool import STEPS, Sources
from flows.train.scans import Shown, as_inverted, each_scan
from models.cyclegan.crops import Example, example, load_example, save_example
from models.cyclegan.scanned import scanned
from models.dipole import Dipole
from models.maps import Map
from models.seen import Given
from pipeline.errors import ChironError
from pipeline.invert import PADDING
from pipeline.noise import noise_level

Box = tuple[slice, slice, slice]

EDGE = 104  # of the blocks that larger volumes are cut to, so that an example takes at most 24 MB
ENOUGH = 0.4  # of a block is inside, if it can be had
SHAPES_MM = (0.7, 2.5)  # voxels that shapes are taken to be of
HOPELESS = 0.67  # of chi's spread: maps whose classical map is worse teach nothing but background
TRIES, APART = 20, 10**12  # maps drawn for a number, whose own numbers lie so far apart
SHELVED = 40  # examples of fields in memory


@dataclass(frozen=True)
class MapExamples:
    """The map of a number, seen in a field as a scan would leave it; each the same whenever it is made."""

    sources: Sources

    def make(self, number: int) -> Example:
        """A map whose classical map is hopeless is drawn again; X002 where none of many serves."""
        for again in range(TRIES):
            drawn = number + again * APART
            one = self._seen(drawn, self.sources.make(drawn))
            assert one.chi is not None
            if one.size < HOPELESS * float(one.chi.float()[one.mask].std()):
                return one
        raise ChironError("X002", f"{TRIES} maps, one after the other, lost in noise", "maps of more contrast")

    def store(self, number: int, file: Path) -> None:
        save_example(self.make(number), file)

    def read(self, file: Path, device: torch.device | str) -> Example:
        """On the CPU, where crops are cut."""
        return load_example(file)

    def _seen(self, number: int, one: Map) -> Example:
        draw = random.Random(f"{self.sources.seed} scan {number}")
        box = block(one.inside, draw)
        inside = one.inside[box]
        chi = torch.where(inside, one.chi_ppm[box] - one.chi_ppm[box][inside].mean(), 0)
        voxel = (draw.uniform(*SHAPES_MM),) * 3 if one.kind == "shapes" else one.voxel_size_mm
        scan = scanned(chi, inside, voxel, draw.getrandbits(31))
        return example(Given(scan.field_ppm, scan.weight, Dipole(chi.shape, voxel, scan.b0_dir, padding=PADDING)), chi)


def block(inside: Tensor, draw: random.Random) -> Box:
    """All of a volume, or a random part of one that is larger than a cube of `EDGE`; much of it inside if it can."""
    if inside.numel() <= EDGE**3:
        return slice(None), slice(None), slice(None)
    tried: list[tuple[float, Box]] = []
    while len(tried) < 20 and not (tried and tried[-1][0] > ENOUGH):
        x, y, z = (draw.randint(0, max(0, n - EDGE)) for n in inside.shape)
        box = slice(x, x + EDGE), slice(y, y + EDGE), slice(z, z + EDGE)
        tried.append((float(inside[box].float().mean()), box))
    return max(tried, key=lambda one: one[0])[1]


def part(one: Example, box: Box) -> Example:
    """What lies in a box; what is seen there is as in the whole."""
    volumes = {name: getattr(one, name)[box].clone() for name in ("base", "left", "mask")}
    features = one.features[(slice(None), *box)].clone()
    return replace(one, features=features, chi=None if one.chi is None else one.chi[box].clone(), **volumes)


def simulated_fields(plan: Plan, maps: Sequence[Path], folder: Path, say: Say) -> list[Path]:
    """Examples of local fields of simulated scans, without the maps that made them; X002 where none could be made."""
    each_scan(plan, maps, folder, say, _keep)
    found = sorted(folder.glob("[0-9]*.pt"))
    if not found:
        raise ChironError("X002", "no field", "at least one simulated scan")
    return found


def own_fields(fields: Path, folder: Path, say: Say) -> list[Path]:
    """Examples of the local fields that lie published anywhere under `fields`: all are read before one is prepared.

    S003 where it cannot be read, X002 where a file is of no use, told by its place among them.
    """
    sources = published_fields(fields)
    say(f"reading {len(sources)} fields")
    for index, source in enumerate(sources):
        named("own field", index, read_field, source)
    folder.mkdir(parents=True, exist_ok=True)
    found = [folder / f"own-{named('own field', index, _hash, source)}.pt" for index, source in enumerate(sources)]
    for index, (source, file) in enumerate(zip(sources, found, strict=True)):
        if not file.exists():
            save_example(_cut(_of_site(source), file), file)
            say(f"field {index + 1} of {len(sources)}")
    return sorted(set(found))


def _keep(file: Path, shown: Shown) -> None:
    save_example(_cut(example(shown.given), file), file)


def _cut(one: Example, file: Path) -> Example:
    return part(one, block(one.mask, random.Random(file.name)))


def _of_site(source: Path) -> Example:
    """Prepared as the inversion prepares it, its noise told by its finest detail."""
    field = read_field(source)
    mask = field.ppm != 0
    noise = torch.full_like(field.ppm, noise_level(field.ppm, mask))
    return example(as_inverted(field.ppm, noise, mask, field.voxel_size_mm, field.b0_dir)[0])


def _hash(source: Path) -> str:
    """Tells a field whose file has moved from another one."""
    return hashlib.sha256(source.read_bytes() + sidecar_of(source).read_bytes()).hexdigest()[:16]


class Shelf:
    """Of the examples in these files so many as memory admits; those at a step follow from the step alone."""

    def __init__(self, files: Sequence[Path], most: int = SHELVED) -> None:
        self.files, self.most = files, most
        self.ready: dict[Path, Example] = {}

    def __call__(self, step: int) -> Sequence[Example]:
        count = len(self.files)
        wanted = [self.files[(step // STEPS + k) % count] for k in range(min(self.most, count))]
        if wanted != list(self.ready):
            self.ready = {file: self.ready[file] if file in self.ready else load_example(file) for file in wanted}
        return list(self.ready.values())
