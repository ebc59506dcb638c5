"""The terminal as the audience of a run: its messages, its live view and its log for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console

from spikerate.cli import tensorboard, views
from spikerate.cli.console import WaitingBar
from spikerate.cli.live import TrainingView, Watches
from spikerate.runs.audience import Onlooker
from spikerate.runs.config import Run
from spikerate.runs.experiment import Measured
from spikerate.runs.record import RunFolder
from spikerate.runs.state import Row, State
from spikerate.system.files import inside


class Terminal:
    """Shows a run on a console, and writes a log for TensorBoard if the run has one.

    Args:
        console: where to print.
        first: whether this process writes into the run folder.
        logs: whether to start a log; an existing log is continued anyway, in all rounds.
    """

    def __init__(self, console: Console, first: bool = True, logs: bool = False) -> None:
        self.console = console
        self.first = first
        self.logs = logs
        self.logged = False

    def say(self, line: str) -> None:
        self.console.print(line)

    def title(self, line: str) -> None:
        self.console.print(line, style="bold")

    def track(self, items: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        return WaitingBar(self.console)(items, what, total)

    def begun(self, folder: RunFolder) -> None:
        place = inside(folder.path, tensorboard.FOLDER)
        if self.logs and self.first:
            place.mkdir(exist_ok=True)
        self.logged = self.first and place.is_dir()

    @contextmanager
    def training(self, run: Run, folder: RunFolder, steps: int, title: str, rows: Sequence[Row]) -> Iterator[Onlooker]:
        view = TrainingView(self.console, run, steps, title, rows)
        with view, ExitStack() as files:
            place = folder.path / tensorboard.FOLDER
            log = [files.enter_context(tensorboard.Board(place, steps, rows))] if self.logged else []
            yield Watches(view, log)

    def trained(self, run: Run, folder: RunFolder, state: State, measured: Measured, last: bool) -> None:
        views.show_result(self.console, run, folder, state, measured, last)

    def finished(self, rounds: Sequence[tuple[Run, RunFolder]]) -> None:
        views.show_rounds(self.console, rounds)
