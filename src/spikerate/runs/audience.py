"""Interfaces that receive the messages and progress of a run; the command line implements them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from spikerate.losses import Terms
from spikerate.runs.config import Run
from spikerate.runs.experiment import Measured
from spikerate.runs.record import RunFolder
from spikerate.runs.state import Row, State
from spikerate.runs.train import Watch


class Onlooker(Watch, Protocol):
    """Receives the progress of one training, and of the evaluation after it."""

    def wait(self, items: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        """Progress of the evaluation, as a `Track`."""


class Audience(Protocol):
    """Receives the messages and progress of a run, from reading its data to its result. Each rank has its own."""

    def say(self, line: str) -> None:
        """Called with a message."""

    def title(self, line: str) -> None:
        """Called with a heading when a run or one of its rounds begins."""

    def track(self, items: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        """Progress of reading the data, as a `Track`."""

    def begun(self, folder: RunFolder) -> None:
        """Called when the folder of a run exists and its rounds are about to be trained."""

    def training(
        self, run: Run, folder: RunFolder, steps: int, title: str, rows: Sequence[Row]
    ) -> AbstractContextManager[Onlooker]:
        """A context manager for the training of a round, which yields an `Onlooker`.

        Args:
            run: the settings of the round.
            folder: the folder of the round.
            steps: steps per epoch.
            title: "round 1 of 3", or empty if there is only one.
            rows: metrics of the epochs that are finished already; on rank 0 only.
        """

    def trained(self, run: Run, folder: RunFolder, state: State, measured: Measured, last: bool) -> None:
        """Called when a round is trained and evaluated; `last` if it is the last round."""

    def finished(self, rounds: Sequence[tuple[Run, RunFolder]]) -> None:
        """Called when all rounds of a run with several rounds are finished."""


@dataclass(frozen=True)
class Nobody:
    """An `Audience` and `Onlooker` that ignores everything."""

    def say(self, line: str) -> None:
        pass

    def title(self, line: str) -> None:
        pass

    def track(self, items: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        return items

    wait = track

    def step(self, step: int, terms: Terms) -> None:
        pass

    def epoch(self, row: Row) -> None:
        pass

    def begun(self, folder: RunFolder) -> None:
        pass

    def training(
        self, run: Run, folder: RunFolder, steps: int, title: str, rows: Sequence[Row]
    ) -> AbstractContextManager[Onlooker]:
        return nullcontext(self)

    def trained(self, run: Run, folder: RunFolder, state: State, measured: Measured, last: bool) -> None:
        pass

    def finished(self, rounds: Sequence[tuple[Run, RunFolder]]) -> None:
        pass
