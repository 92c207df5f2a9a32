"""`auto`, `float32` or `bfloat16` and a device -> whether convolutions there are to run in half precision."""

from __future__ import annotations

from collections.abc import Callable

import torch


def half(precision: str, device: torch.device) -> bool:
    """`auto` is bfloat16 where the device computes it fast."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    supported: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return supported()
