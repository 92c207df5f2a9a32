"""A device by name -> a torch device that is there; and how much memory a stage took at most."""

from __future__ import annotations

import os
import re
import resource
from contextlib import suppress
from pathlib import Path

import torch

from pipeline.errors import ChironError

NAME = re.compile(r"auto|cpu|cuda(:[0-9]+)?")
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # of Linux


def pick_device(name: str) -> torch.device:
    """`auto` takes the first GPU, else the CPU; R001, with the devices that are here, where the asked one is absent."""
    name = device_name(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise _absent(f"no {name} on this machine")
    return torch.device(name)


def device_name(text: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N`, whatever its case; R001 for a word that names no device."""
    word = text.strip().lower()
    if not NAME.fullmatch(word):
        raise _absent(f"no device of the name {text!r}")
    kind, _, number = word.partition(":")
    return f"{kind}:{int(number)}" if number else kind


def devices_here() -> str:
    """The devices of this machine in words; where there is no GPU, why."""
    gpus = [f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count())]
    if gpus:
        return f"cpu, {', '.join(gpus)}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") is not None
    why = "PyTorch is installed without CUDA" if torch.version.cuda is None else "PyTorch sees no GPU"
    return f"cpu alone ({why}{', and CUDA_VISIBLE_DEVICES is set' if hidden else ''})"


def _absent(found: str) -> ChironError:
    todo = "Write --device cuda for the first GPU, cpu for none, auto for whichever is there. See `chiron doctor`."
    return ChironError("R001", f"{found}; here is {devices_here()}", "auto, cpu, cuda or cuda:N", todo)


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
