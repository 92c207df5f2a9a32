"""A run of a step -> the cost that no implementation of it avoids: its FFTs and convolutions, or a pass over its data.

Neither is written down anywhere: they are counted while the step runs, below torch's own functions, so that none
escapes; then those very transforms are timed alone, and convolutions are taken at the rate of a large matrix product.
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
from torch.utils.flop_counter import FlopCounterMode

ATEN = torch.ops.aten
FFT_OPS = (ATEN._fft_r2c, ATEN._fft_c2r, ATEN._fft_c2c)
COPY_BYTES = 2**28  # larger than any cache
SMALL_FLOPS = 1e9  # fewer are not spoken of


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


class CountFlops(FlopCounterMode):
    """While entered, counts the floating-point operations of convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__(display=False)

    @property
    def total(self) -> int:
        return int(self.get_total_flops())

    def seconds(self, device: torch.device) -> float:
        """Time of as many in a large matrix product, in bfloat16 or float32, whichever is the faster."""
        return self.total / max(product_rate(device, kind) for kind in (torch.bfloat16, torch.float32))


def floor(
    ffts: CountFFTs, flops: CountFlops, inputs: Any, outputs_bytes: int, device: torch.device
) -> tuple[float, str]:
    """Seconds that cannot be avoided, and what they are spent on."""
    seconds, spent = 0.0, []
    if ffts.calls:
        largest = max(ffts.calls, key=lambda kind: math.prod(kind.grid)).grid
        seconds += ffts.seconds(device)
        spent.append(f"{ffts.volumes} FFTs, {'x'.join(map(str, largest))}")
    if flops.total > SMALL_FLOPS:
        seconds += flops.seconds(device)
        spent.append(f"{flops.total / 1e9:.0f} GFLOP")
    if spent:
        return seconds, "; ".join(spent)
    touched = bytes_of(inputs) + outputs_bytes
    return touched / bandwidth(device), f"{touched / 1e6:.0f} MB"


def bandwidth(device: torch.device, size: int = COPY_BYTES) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times = [clocked(lambda: target.copy_(source), device)[0] for _ in range(6)]
    return 2 * size / median(times[1:])


def product_rate(device: torch.device, kind: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of a product of square matrices of that kind of number."""
    matrix = torch.ones((size, size), device=device, dtype=kind)
    times = [clocked(lambda: matrix @ matrix, device)[0] for _ in range(4)]
    return 2 * size**3 / median(times[1:])


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
