"""A device by name -> a torch device that is there; and how much memory a stage took at most."""

from __future__ import annotations

import resource

import torch

from pipeline.errors import ChironError


def pick_device(name: str) -> torch.device:
    """`auto` takes the first GPU, else the CPU; R001 where the asked device is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ChironError("R001", f"{torch.cuda.device_count()} CUDA devices", f"{name}")
    return device


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: of the device where it is a GPU, of this process where it is the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
