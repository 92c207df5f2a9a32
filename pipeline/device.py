"""A device by name -> a torch device that is there; and how much memory a stage took at most."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import torch

from pipeline.errors import ChironError

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # of Linux


def pick_device(name: str) -> torch.device:
    """`auto` takes the first GPU, else the CPU; R001 where the asked device is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ChironError("R001", f"{torch.cuda.device_count()} CUDA devices", f"{name}")
    return device


def forget_peak(device: torch.device) -> None:
    """Count the peak memory anew from now on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        CLEAR_REFS.write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory since `forget_peak`: of the device where it is a GPU, of this process where it is the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
