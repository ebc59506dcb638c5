"""What a run will cost, by counting its operations."""

from __future__ import annotations

from spikerate.config import Run
from spikerate.rules import RateBP

MACHINE = "2 cores of an AMD EPYC (avx512_bf16), bf16, compiled"
FLOPS_PER_SECOND = 4.9e11
"""Measured there: ResNet-18, 32 x 32, batch 32, T = 4, RateBP; 436 ms a step (docs/results.md)."""


def training_flops(run: Run, macs: int, samples: int) -> float:
    """Floating-point operations of all training steps of a run, two for each multiply-accumulate.

    A backward pass costs two forward passes: T + 2 of them a sample by rate-based backpropagation, 3 T by the others.
    Branches, and what the constant input saves in the first layer, are left out.

    Args:
        macs: of the network, for one step of one sample.
        samples: to train on.
    """
    passes = run.T + 2 if isinstance(run.rule, RateBP) else 3 * run.T
    return 2.0 * macs * passes * samples * run.epochs


def in_words(seconds: float) -> str:
    """A duration to two digits at most: "40 s", "12 min", "5 h", "33 days"."""
    for unit, size in (("days", 86400 * 2), ("h", 7200), ("min", 120)):
        if seconds >= size:
            return f"{seconds / (size / 2):,.0f} {unit}"
    return f"{seconds:.0f} s"
