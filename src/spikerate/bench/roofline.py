"""What a machine can do at most, measured: a convolution and copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_SECONDS = 1.0
"""How long each is measured."""
_CHANNELS, _SIDE = 256, 28
"""Of a convolution of 3 x 3 that is wide enough to reach the roof."""


@dataclass(frozen=True)
class Roofline:
    """The roofs over a training step.

    Attributes:
        flops: floating-point operations a second, in convolutions.
        bytes: read and written a second, in copies that fit into no cache.
    """

    flops: float
    bytes: float


def roofline(device: torch.device, precision: str) -> Roofline:
    """The best of many runs on the device; in "fp32" as PyTorch is set, or "bf16".

    A convolution and not a matrix product, which on some processors goes through another library at half of the rate.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    batch, size = (1024, 2**28) if device.type == "cuda" else (32, 2**26)
    shapes = (batch, _CHANNELS, _SIDE, _SIDE), (_CHANNELS, _CHANNELS, 3, 3)
    x, weight = (torch.rand(s, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last) for s in shapes)
    source = torch.zeros(size, device=device)
    target = torch.empty_like(source)
    with torch.no_grad():
        convolution = _least_seconds(device, lambda: F.conv2d(x, weight, padding=1))
        copies = _least_seconds(device, lambda: target.copy_(source))
    return Roofline(2 * batch * _SIDE**2 * _CHANNELS**2 * 9 / convolution, 2 * source.nbytes / copies)


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
