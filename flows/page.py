"""What pages of measurements share: the machine in words, with no host name and no path, and Markdown tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

import pipeline


def machine() -> str:
    """Processor, memory, GPUs and versions."""
    gpus = {torch.cuda.get_device_name(i): None for i in range(torch.cuda.device_count())}
    parts = [
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores of which torch uses {torch.get_num_threads()}",
        f"{_memory_gb():.0f} GB of memory",
        *gpus,
        f"Chiron {pipeline.__version__}",
        f"torch {torch.__version__}",
        f"Python {platform.python_version()}",
    ]
    return ", ".join(parts)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def _processor() -> str:
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:
        return []
