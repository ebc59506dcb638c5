"""An estimate of a run's cost from its number of operations."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from spikerate.models import body_of, branch_macs, step_macs
from spikerate.runs.config import Run

MACHINE = "2 cores of an AMD EPYC (avx512_bf16)"
_FAST, _PLAIN = 4.5e11, 1.8e11
"""Operations per second measured on it, compiled in bf16 and eager in fp32: ResNet-18 of width 64, 32 x 32, batch 32, T = 4,
RateBP, 471 and 1,190 ms per step (docs/results.md)."""


def training_flops(
    run: Run,
    macs: int,
    branch_macs: int,
    samples: int,
    differences: int = 0,
    resized: Mapping[int, tuple[int, int]] | None = None,
) -> float:
    """Floating-point operations of all training steps of a run and its rounds before, two for each multiply-accumulate.

    A sample takes `rule.passes(T)` forward passes: T + 2 by rate-based backpropagation, 3 T by the others. With a
    curriculum or other resolutions it is the mean over their shares. What the constant input saves in the first layer is
    left out. A search for the temperature takes two forward passes for each finite difference in each epoch.

    Args:
        macs: of the network, for one step of one sample.
        branch_macs: of all branches, for one sample.
        samples: to train on.
        differences: finite differences of a search.
        resized: side of the images of `run.resolutions` -> `macs` and `branch_macs` there.
    """
    there = resized or {}

    def of_round(own: Run) -> float:
        searched = 0 if own.search is None else 2 * differences * own.search.samples * own.mean(float) * macs
        trained = 0.0
        for share, T, side in own.shares:
            body, branches = (macs, branch_macs) if side is None else there[side]
            trained += share * (own.rule.passes(T) * body + 3 * branches)
        return 2.0 * (trained * samples + searched) * own.epochs

    return sum(map(of_round, run.rounds))


def resolution_macs(run: Run, shape: tuple[int, int, int], num_classes: int) -> dict[int, tuple[int, int]]:
    """Side of the images of `run.resolutions` -> multiply-accumulates of a step, and of the branches, for a sample.

    Raises:
        ValueError: the network does not take images of another size than [H, W].
    """
    with torch.device("meta"):
        network = run.build(num_classes, shape)
    found = {}
    for side in dict.fromkeys(resolution.side for resolution in run.resolutions):
        there = (shape[0], side, side)
        try:
            found[side] = step_macs(body_of(network), there), branch_macs(network, there)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(
                f"resolutions has {side}, and the network takes no images of {side} x {side} pixels "
                f"({' '.join(str(error).split())[:80]}): choose other sides, or a network with a mean over all pixels"
            ) from error
    return found


def least_seconds(run: Run, flops: float) -> float:
    """The time of so many operations on `MACHINE` at the speed of a wide network; narrow networks are slower."""
    return flops / (_FAST if run.precision == "bf16" and run.compile else _PLAIN)


def in_words(seconds: float) -> str:
    """A duration as text, rounded: "40 s", "12 min", "5 h", "33 days"."""
    for unit, size in (("days", 86400 * 2), ("h", 7200), ("min", 120)):
        if seconds >= size:
            return f"{seconds / (size / 2):,.0f} {unit}"
    return f"{seconds:.0f} s"
