"""Who is told what becomes of a run: the command line, a program of yours, or nobody."""

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
    """Who looks on at one training, and at the evaluation after it."""

    def wait(self, items: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        """Hand the items of the evaluation on, as a `Track` does."""


class Audience(Protocol):
    """Who is told what becomes of a run, from the reading of its data to its result. Each rank has its own."""

    def say(self, line: str) -> None:
        """Something worth knowing."""

    def title(self, line: str) -> None:
        """What begins: a run, or one of its rounds."""

    def track(self, items: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        """Hand items on while data are read, as a `Track` does."""

    def begun(self, folder: RunFolder) -> None:
        """The folder of a run is there, and its rounds are about to be trained."""

    def training(
        self, run: Run, folder: RunFolder, steps: int, title: str, rows: Sequence[Row]
    ) -> AbstractContextManager[Onlooker]:
        """Who looks on at the training of a round.

        Args:
            run: the round, without rounds before.
            folder: its own.
            steps: of an epoch.
            title: which round of several it is, if so.
            rows: of the epochs that are done already; only rank 0 is given them.
        """

    def trained(self, run: Run, folder: RunFolder, state: State, measured: Measured, last: bool) -> None:
        """A round is trained and evaluated; `last` where no other one comes."""

    def finished(self, rounds: Sequence[tuple[Run, RunFolder]]) -> None:
        """All rounds of a run that has several are finished."""


@dataclass(frozen=True)
class Nobody:
    """An audience and an onlooker who shows nothing."""

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
