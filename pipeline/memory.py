"""Work that may not fit into memory -> the first of its smaller forms that does: whole, in tiles, on the CPU.

And before any of it: a scan's headers -> whether this machine has room for it, and how many scans for at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import TypeVar

import torch

from models import diffusion
from models.diffusion.patches import LEAST
from pipeline.errors import ChironError
from pipeline.find.scan import Scan

# Peaks of whole scans on the CPU (0.5 to 4.9 million voxels, 1 and 5 echoes): 710 to 1430 MB, of which 700 MB before
# the first voxel, then 20 bytes a voxel and echo and 80 a voxel. These are 12 to 35 % above each of them.
SCAN_BYTES = 750 << 20
SCAN_BYTES_PER_VOXEL = 110
SCAN_BYTES_PER_VOXEL_AND_ECHO = 25
KEPT_FREE = 0.1  # share of the free memory that is left alone
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")  # of Linux
UNKNOWN = 1 << 62  # where nobody says how much there is, only trying tells

T = TypeVar("T")
Rung = tuple[torch.device, int]


def free_memory_bytes(device: torch.device) -> int:
    """What can still be had: of the card, or of this machine within the limit that its container sets."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if not MEMINFO.exists():
        return UNKNOWN
    lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used) + _file_cache())


def _file_cache() -> int:
    """Bytes that the container is charged with for files it read, and that the system takes back when it needs them."""
    try:
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))


def scan_bytes(scan: Scan, upsample: Sequence[float] = (1, 1, 1)) -> int:
    """An upper estimate of what a process takes that reconstructs the scan; without its voxels, what it takes at least.

    Deep Image Prior, which chooses its tiles by the memory there is, is counted with the smallest; so is the diffusion
    prior on voxels `upsample` times finer.
    """
    if scan.shape and max(upsample) > 1:
        finer = [round(n * factor) for n, factor in zip(scan.shape, upsample, strict=True)]
        return scan_bytes(scan) + diffusion.needed_bytes(finer, diffusion.Diffusion(patch=LEAST))
    per_voxel = SCAN_BYTES_PER_VOXEL + SCAN_BYTES_PER_VOXEL_AND_ECHO * len(scan.echo_times_s)
    return SCAN_BYTES + (prod(scan.shape) * per_voxel if scan.shape else 0)


def check_room(scan: Scan, workers: int = 1, upsample: Sequence[float] = (1, 1, 1)) -> None:
    """R004 where this machine has no room for the scan in each of `workers` processes at once."""
    room = (1 - KEPT_FREE) * free_memory_bytes(torch.device("cpu")) / max(1, workers)
    needed = scan_bytes(scan, upsample)
    if needed > room:
        matrix = " x ".join(map(str, scan.shape)) or "unknown size"
        among = f" for each of {workers} workers" if workers > 1 else ""
        found = f"{len(scan.echo_times_s)} echoes of {matrix} voxels, which need {_gigabytes(needed)}"
        raise ChironError("R004", found, f"no more than {_gigabytes(room)}{among}")


def fits(scans: Sequence[Scan], upsample: Sequence[float] = (1, 1, 1)) -> int:
    """How many of the scans this machine has room for at once, whichever they are; at least one."""
    room = (1 - KEPT_FREE) * free_memory_bytes(torch.device("cpu"))
    together = accumulate(sorted((scan_bytes(scan, upsample) for scan in scans), reverse=True))
    return max(1, sum(needed <= room for needed in together))


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def rungs(tiles: Mapping[int, int], device: torch.device) -> Iterator[Rung]:
    """Device and tile to try in turn: on each device every edge of `tiles` whose bytes, an upper estimate, are there.

    The last on each device is always tried: the estimate may be too high.
    """
    for where in dict.fromkeys((device, torch.device("cpu"))):
        free = (1 - KEPT_FREE) * free_memory_bytes(where)
        last = list(tiles)[-1]
        yield from ((where, tile) for tile, needed in tiles.items() if tile == last or needed <= free)


def first_that_fits(work: Callable[[torch.device, int], T], tries: Iterator[Rung]) -> tuple[T, list[str]]:
    """The result of the first rung that has memory enough, and what was too large; R002 where all were."""
    too_large: list[str] = []
    for device, tile in tries:
        try:
            return work(device, tile), too_large
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        too_large.append(f"tiles of {tile} on {device}" if tile else f"the whole on {device}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    raise ChironError("R002", "too little memory for " + ", ".join(too_large), "memory for the smallest tiles")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch (card or CPU) or Python says that memory is at its end."""
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said
