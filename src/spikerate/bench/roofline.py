"""The limits of a machine, measured by a convolution and by copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_SECONDS = 1.0
"""Duration of each measurement."""
_CHANNELS, _SIDE = 256, 28
"""Shape of a 3 x 3 convolution that is wide enough to reach the limit."""


@dataclass(frozen=True)
class Roofline:
    """Upper limits of the speed of a training step.

    Attributes:
        flops: floating-point operations per second in convolutions.
        bytes: bytes read and written per second in copies that are larger than the caches.
    """

    flops: float
    bytes: float


def roofline(device: torch.device, precision: str) -> Roofline:
    """Measure the limits on the device, as the best of many runs, in "fp32" with PyTorch's settings or in "bf16".

    A convolution is used and not a matrix product, for which PyTorch uses a slower library on some processors.
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
    """The shortest time of many runs, after a warm-up run."""

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
