"""What a machine can do at most, measured: matrix products and copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_SECONDS = 1.0
"""How long each is measured."""


@dataclass(frozen=True)
class Roofline:
    """The roofs over a training step.

    Attributes:
        flops: floating-point operations a second, in matrix products.
        bytes: read and written a second, in copies that fit into no cache.
    """

    flops: float
    bytes: float


def roofline(device: torch.device, precision: str) -> Roofline:
    """The best of many runs on the device; in "fp32" as PyTorch is set, or "bf16"."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side, size = (8192, 2**28) if device.type == "cuda" else (2048, 2**26)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(size, device=device)
    target = torch.empty_like(source)
    products = _least_seconds(device, lambda: a @ b)
    copies = _least_seconds(device, lambda: target.copy_(source))
    return Roofline(2 * side**3 / products, 2 * source.nbytes / copies)


def _least_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Of one of many runs, after one to warm up."""

    def run() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    run()
    took = [run()]
    while sum(took) < _SECONDS:
        took.append(run())
    return min(took)
