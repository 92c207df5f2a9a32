"""A run of a step -> the cost that no implementation of it avoids: its FFTs, or one pass over what it reads and writes.

FFTs are not written down anywhere but counted while the step runs, below torch's own functions, so that none escapes;
then those very transforms are timed alone.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
FFT_OPS = (ATEN._fft_r2c, ATEN._fft_c2r, ATEN._fft_c2c)
COPY_BYTES = 2**28  # larger than any cache


@dataclasses.dataclass(frozen=True)
class Transform:
    """One kind of FFT: the operation, shape and type of its input, and its further arguments."""

    operation: Any
    shape: tuple[int, ...]
    dtype: torch.dtype
    arguments: tuple[Any, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes of the real grid, of the axes that are transformed."""
        dims, size = [d % len(self.shape) for d in self.arguments[0]], list(self.shape)
        if self.operation is ATEN._fft_c2r:
            size[dims[-1]] = int(self.arguments[2])
        return tuple(size[d] for d in sorted(dims))

    @property
    def count(self) -> int:
        """Volumes of real numbers that one call transforms: a complex one counts as two."""
        dims = {d % len(self.shape) for d in self.arguments[0]}
        volumes = math.prod(n for d, n in enumerate(self.shape) if d not in dims)
        return volumes * (2 if self.operation is ATEN._fft_c2c else 1)

    def seconds(self, device: torch.device, repeat: int = 3) -> float:
        """Median time of the transform alone."""
        volume = torch.randn(self.shape, dtype=self.dtype, device=device)
        times = [clocked(lambda: self.operation(volume, *self.arguments), device)[0] for _ in range(repeat + 1)]
        return median(times[1:])


class CountFFTs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, counts every FFT that torch is asked for: `calls` maps each kind to its number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[Transform] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in FFT_OPS:
            rest = tuple(tuple(a) if isinstance(a, list) else a for a in args[1:])
            self.calls[Transform(func.overloadpacket, tuple(args[0].shape), args[0].dtype, rest)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def volumes(self) -> int:
        return sum(kind.count * calls for kind, calls in self.calls.items())

    def seconds(self, device: torch.device) -> float:
        """Time of all the transforms alone, on inputs that are there already."""
        return sum(calls * kind.seconds(device) for kind, calls in self.calls.items())


def floor(ffts: CountFFTs, inputs: Any, outputs_bytes: int, device: torch.device) -> tuple[float, str]:
    """Seconds that cannot be avoided, and what they are spent on."""
    if ffts.calls:
        largest = max(ffts.calls, key=lambda kind: math.prod(kind.grid)).grid
        return ffts.seconds(device), f"{ffts.volumes} FFTs, {'x'.join(map(str, largest))}"
    touched = bytes_of(inputs) + outputs_bytes
    return touched / bandwidth(device), f"{touched / 1e6:.0f} MB"


def bandwidth(device: torch.device, size: int = COPY_BYTES) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times = [clocked(lambda: target.copy_(source), device)[0] for _ in range(6)]
    return 2 * size / median(times[1:])


def clocked(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of a run, to the end of what it queued on the device; and its result."""
    _wait(device)
    began = time.perf_counter()
    made = run()
    _wait(device)
    return time.perf_counter() - began, made


def bytes_of(value: Any) -> int:
    """Bytes of all tensors in a value, each counted once."""
    unique = {(t.data_ptr(), tuple(t.shape)): t.nbytes for t in _tensors(value)}
    return sum(unique.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
