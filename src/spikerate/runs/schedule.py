"""Learning-rate schedules: each is a function of the step, without state that would have to be saved."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule(ABC):
    """The learning rate of each step as a fraction of the highest one. Your own is a frozen dataclass with `__call__`."""

    warmup: float = 0.0
    """fraction of the run's steps in which the learning rate rises linearly, in [0, 1)"""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"schedule.warmup is {self.warmup}: give a fraction of the run's steps, in [0, 1)")

    @abstractmethod
    def __call__(self, step: int, steps: int) -> float:
        """The fraction of the highest learning rate at step 0, 1, ... of a run of `steps` steps."""

    def warmed(self, step: int, steps: int) -> tuple[float, float]:
        """The progress of the warm-up, in (0, 1], and that of the run after it, in [0, 1).

        With n = round(warmup * steps) steps of warm-up, step k < n has (k + 1) / (n + 1), so that no step has 0.
        """
        n = round(self.warmup * steps)
        return ((step + 1) / (n + 1), 0.0) if step < n else (1.0, (step - n) / (steps - n))


@dataclass(frozen=True)
class _Falling(Schedule, ABC):
    final: float = 0.0
    """fraction of the highest learning rate at the end, in [0, 1]"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("final", self.final)


@dataclass(frozen=True)
class Cosine(_Falling):
    """Half a cosine from 1 to `final`: final + (1 - final) (1 + cos(pi k / n)) / 2 at step k of the n after the warm-up.

    Reference: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """

    def __call__(self, step: int, steps: int) -> float:
        rise, done = self.warmed(step, steps)
        return rise * (self.final + (1 - self.final) * ((1 + math.cos(math.pi * done)) / 2))


@dataclass(frozen=True)
class Linear(_Falling):
    """A line from 1 to `final`: 1 + (final - 1) k / n at step k of the n after the warm-up."""

    def __call__(self, step: int, steps: int) -> float:
        rise, done = self.warmed(step, steps)
        return rise * (1 + (self.final - 1) * done)


@dataclass(frozen=True)
class OneCycle(_Falling):
    """A triangle: linear from `start` to 1 during the warm-up, then linear to `final` at the last step.

    As `torch.optim.lr_scheduler.OneCycleLR` with `anneal_strategy="linear"`, but without a cycle of the momentum.
    Reference: Smith and Topin, "Super-convergence", 2018.
    """

    warmup: float = 0.3
    """fraction of the run's steps until the highest learning rate, in [0, 1)"""
    start: float = 0.04
    """fraction of the highest learning rate at the first step, in [0, 1]"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("start", self.start)

    def __call__(self, step: int, steps: int) -> float:
        peak, last = max(0.0, self.warmup * steps - 1), steps - 1
        if step < peak:
            return self.start + (1 - self.start) * step / peak
        return 1 + (self.final - 1) * ((step - peak) / (last - peak) if last > peak else 0.0)


@dataclass(frozen=True)
class Step(Schedule):
    """A step function: the learning rate is multiplied by `factor` at each fraction of the run in `at`."""

    at: tuple[float, ...] = (0.5, 0.75)
    """fractions of the run after which the learning rate falls, each in (0, 1)"""
    factor: float = 0.1
    """factor on the learning rate at each of them, in (0, 1]"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < share < 1 for share in self.at):
            raise ValueError(f"schedule.at is {self.at}: give fractions of the run's steps, each between 0 and 1")
        if not 0 < self.factor <= 1:
            raise ValueError(f"schedule.factor is {self.factor}: give a number in (0, 1]")

    def __call__(self, step: int, steps: int) -> float:
        rise, _ = self.warmed(step, steps)
        return rise * float(self.factor ** sum(step >= round(share * steps) for share in self.at))


@dataclass(frozen=True)
class Constant(Schedule):
    """The same learning rate at every step."""

    def __call__(self, step: int, steps: int) -> float:
        return self.warmed(step, steps)[0]


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"schedule.{name} is {value}: give a fraction of the highest learning rate, in [0, 1]")
