"""What a person sees in the terminal: progress of files, tables, sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from spikerate.system.escape import escaped


class PlainConsole(Console):
    """A console that shows every string as it is, in one line: what a file or a folder is called can't steer the terminal.

    All strings that rich shows, cells of tables too, are made texts by `render_str`.
    """

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(escaped(text), **how)


def console(quiet: bool = False, file: TextIO | None = None) -> Console:
    """Where everything is printed: a path or a class may hold what rich would take for markup, or a terminal for orders."""
    return PlainConsole(markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=quiet, file=file)


def complain(sentence: str) -> None:
    """Say on the standard error what is wrong, in one line."""
    print(f"spikerate: {escaped(sentence)}", file=sys.stderr)


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
