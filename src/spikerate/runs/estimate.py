"""An estimate of a run's cost from its number of operations."""

from __future__ import annotations

from spikerate.runs.config import Run

MACHINE = "2 cores of an AMD EPYC (avx512_bf16)"
_FAST, _PLAIN = 4.5e11, 1.8e11
"""Operations per second measured on it, compiled in bf16 and eager in fp32: ResNet-18 of width 64, 32 x 32, batch 32, T = 4,
RateBP, 471 and 1,190 ms per step (docs/results.md)."""


def training_flops(run: Run, macs: int, branch_macs: int, samples: int, differences: int = 0) -> float:
    """Floating-point operations of all training steps of a run and its rounds before, two for each multiply-accumulate.

    A sample takes `rule.passes(T)` forward passes: T + 2 by rate-based backpropagation, 3 T by the others. With a
    curriculum it is the mean over its shares. What the constant input saves in the first layer is left out. A search for
    the temperature takes two forward passes for each finite difference in each epoch.

    Args:
        macs: of the network, for one step of one sample.
        branch_macs: of all branches, for one sample.
        samples: to train on.
        differences: finite differences of a search.
    """

    def of_round(own: Run) -> float:
        searched = 0 if own.search is None else 2 * differences * own.search.samples * own.mean(float) * macs
        return 2.0 * ((macs * own.mean(own.rule.passes) + 3 * branch_macs) * samples + searched) * own.epochs

    return sum(map(of_round, run.rounds))


def least_seconds(run: Run, flops: float) -> float:
    """The time of so many operations on `MACHINE` at the speed of a wide network; narrow networks are slower."""
    return flops / (_FAST if run.precision == "bf16" and run.compile else _PLAIN)


def in_words(seconds: float) -> str:
    """A duration as text, rounded: "40 s", "12 min", "5 h", "33 days"."""
    for unit, size in (("days", 86400 * 2), ("h", 7200), ("min", 120)):
        if seconds >= size:
            return f"{seconds / (size / 2):,.0f} {unit}"
    return f"{seconds:.0f} s"
