"""Output to the terminal: messages, tables and progress bars."""

from __future__ import annotations

import contextlib
import io
import os
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


class OutputLost(Exception):
    """Standard output can't be written: its reader has closed it, or its disk is full.

    Attributes:
        closed: whether it is the reader who has closed it, as `head` does when it has seen enough.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the output can't be written: {error.strerror}")
        self.closed = isinstance(error, BrokenPipeError)


class Output:
    """Standard output as a file for rich, which would end the process where a pipe is closed.

    Args:
        needed: whether a command is for its output, as `list` and `eval` are, and ends where it can't be written. What
            trains or measures goes on: it says so on standard error, and what it would print is dropped from then on.
    """

    def __init__(self, needed: bool) -> None:
        self.stream: TextIO = sys.stdout or io.StringIO()  # Python has none where it is closed from the start
        self.needed = needed
        self.encoding = self.stream.encoding

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        drop(self.stream)
        lost = OutputLost(error)
        if self.needed:
            raise lost
        complain(f"{lost}; the run continues without it")


def drop(stream: TextIO) -> None:
    """Discard what is printed from now on, and what is still buffered."""
    with contextlib.suppress(OSError, ValueError):  # not every stream is a file of the system
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def complain(sentence: str) -> None:
    """Print an error message to standard error in one line, if possible."""
    with contextlib.suppress(OSError):
        print(f"spikerate: {escaped(sentence)}", file=sys.stderr, flush=True)


class PlainConsole(Console):
    """A console that shows every string as it is, in one line: what a file or a folder is called can't steer the terminal.

    All strings that rich shows, cells of tables too, are made texts by `render_str`.
    """

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(escaped(text), **how)


def console(quiet: bool = False, needed: bool = True) -> Console:
    """Where everything is printed: a path or a class may hold what rich would take for markup, or a terminal for orders.

    Args:
        needed: whether the command is to end where its output can't be written.
    """
    out: Any = Output(needed)
    return PlainConsole(file=out, markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=quiet)


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
    """A progress bar, for instance for reading files; shows nothing if the output is not a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, items: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            yield from progress.track(items, total=total)


def table(title: str, *columns: str) -> Table:
    """An empty table; the first column is the name of the row."""
    made = Table(title=title, title_justify="left", header_style="bold", show_header=len(columns) > 0)
    for k, column in enumerate(columns):
        made.add_column(column, overflow="fold", no_wrap=k == 0, style="cyan" if k == 0 else None)
    return made
