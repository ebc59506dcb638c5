"""What a person sees in the terminal: progress, tables, sentences."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from spikerate.losses import Terms
from spikerate.state import Row

_REFRESH_SECONDS = 0.25


def console(quiet: bool = False) -> Console:
    """Where everything is printed as it is: a path or a class may hold what rich would take for markup."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=quiet)


class TrainingBar:
    """A progress bar with loss, accuracy, reliable share and time left; a line for each epoch where there is no terminal.

    Args:
        epochs: of the run.
        steps: of the run, all epochs together.
        title: which round of several it is, if so.
    """

    def __init__(self, console: Console, epochs: int, steps: int, title: str = "") -> None:
        self.console = console
        self.epochs = epochs
        self.steps = steps
        self.title = f"{title}, " if title else ""
        self.shown = 0.0
        self.held_out = ""
        self.progress = Progress(
            TextColumn(f"{self.title}epoch {{task.fields[epoch]}}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[terms]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("train", total=steps, epoch=f"1/{epochs}", terms="")

    def __enter__(self) -> TrainingBar:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def say(self, line: str) -> None:
        self.progress.console.print(line)

    def wait(self, items: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        """Hand items on in this bar's place: the training is done."""
        self.progress.stop()
        yield from WaitingBar(self.console)(items, what, total)

    def step(self, step: int, terms: Terms) -> None:
        now = time.monotonic()
        if not self.console.is_terminal or (now - self.shown < _REFRESH_SECONDS and step < self.steps):
            return
        self.shown = now
        epoch = f"{min(self.epochs, 1 + step * self.epochs // self.steps)}/{self.epochs}"
        text = _terms_line({name: float(value) for name, value in terms.items()}) + self.held_out
        self.progress.update(self.task, completed=step, epoch=epoch, terms=text)

    def epoch(self, row: Row) -> None:
        self.held_out = f"  held-out {row['held_out']:.1%}" if "held_out" in row else ""
        if not self.console.is_terminal:
            epoch = f"{self.title}epoch {row['epoch']}/{self.epochs}"
            self.console.print(f"{epoch}  {_terms_line(row)}{self.held_out}  {row['seconds']:.1f} s", soft_wrap=True)


class TransferBar:
    """A progress bar for a download, with the methods that pooch calls."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.progress.add_task("download", total=None)

    def __enter__(self) -> TransferBar:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    @property
    def total(self) -> int:
        return int(self.progress.tasks[self.task].total or 0)

    @total.setter
    def total(self, n: int) -> None:
        self.progress.update(self.task, total=n)

    def update(self, n: int) -> None:
        self.progress.advance(self.task, n)

    def reset(self) -> None:
        self.progress.update(self.task, completed=0)

    def close(self) -> None:
        pass


class WaitingBar:
    """A progress bar for files that are read before the training; nothing where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, items: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            yield from progress.track(items, total=total)


def table(title: str, *columns: str) -> Table:
    """An empty table in the house's style; the first column is the name of the row."""
    made = Table(title=title, title_justify="left", header_style="bold", show_header=len(columns) > 0)
    for k, column in enumerate(columns):
        made.add_column(column, overflow="fold", no_wrap=k == 0, style="cyan" if k == 0 else None)
    return made


def _terms_line(terms: Row) -> str:
    line = f"loss {terms['loss']:.3f}  accuracy {terms['accuracy']:.1%}"
    line += f"  reliable {terms['reliable']:.1%}" if "reliable" in terms else ""
    return line + (f"  temperature {terms['temperature']:.2f}" if "temperature" in terms else "")
