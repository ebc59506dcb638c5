"""The progress of a training: a live view in a terminal, or else a line for each epoch."""

from __future__ import annotations

import datetime
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from spikerate.cli.console import WaitingBar
from spikerate.losses import Terms
from spikerate.measure import health
from spikerate.models import short_path
from spikerate.runs.config import Run
from spikerate.runs.state import Row
from spikerate.runs.train import Watch

_REFRESH_SECONDS, _LINE_SECONDS = 0.5, 300.0
"""Between two views in a terminal; between two lines elsewhere, where the epochs are longer."""
_SIDE_BY_SIDE, _ROOMY = 72, 110
"""Columns of a terminal that has room for figures and firing rates beside each other, and for their course too."""
_ABOVE = 4
"""Lines of a terminal that are neither figures nor firing rates."""
_COURSE = 16
"""Columns of a course over the epochs."""
_SHARES = ("accuracy", "validation", "reliable")
"""Prefixes of the metrics that are fractions, in the order in which they are shown."""
_ASIDE = ("epoch", "lr", "T", "firing_rate", "firing_rates", "seconds", "train_seconds", "compile_seconds", "search_seconds")
"""Entries of a row that are not shown as numbers."""


class TrainingView:
    """Loss terms, accuracies, firing rates, speed and time left; a line for each epoch if there is no terminal.

    Args:
        run: without rounds before.
        steps: of an epoch.
        title: which round of several it is, if so.
        rows: of the epochs that are done already.
    """

    def __init__(self, console: Console, run: Run, steps: int, title: str = "", rows: Sequence[Row] = ()) -> None:
        self.console = console
        self.run = run
        self.steps = steps
        self.title = f"{title}, " if title else ""
        self.rows = list(rows)
        self.terms: Row = {}
        self.shown = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            expand=True,
        )
        done = len(self.rows)
        self.task = self.progress.add_task(self._epoch(done + 1), total=run.epochs * steps, completed=done * steps, speed="")
        self.live = Live(self, console=console, refresh_per_second=1 / _REFRESH_SECONDS)
        # A rank that is quiet has a terminal too, and a live view would take its standard error.
        self.visible = console.is_interactive and not console.quiet

    def __enter__(self) -> TrainingView:
        if self.visible:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.stop()

    def say(self, line: str) -> None:
        self.console.print(line)

    def wait(self, items: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        """Progress of the evaluation, which replaces this view."""
        self.live.stop()
        yield from WaitingBar(self.console)(items, what, total)

    def step(self, step: int, terms: Terms) -> None:
        self.progress.update(self.task, completed=step, description=self._epoch(-(-step // self.steps)), speed=self._speed())
        now = time.monotonic()
        rest = now - self.shown < (_REFRESH_SECONDS if self.visible else _LINE_SECONDS)
        if rest and not (self.visible and step == self.run.epochs * self.steps):
            return
        self.shown = now
        self.terms = {name: float(value) for name, value in terms.items()}
        if not self.visible:
            self.console.print(self._line_within(step))

    def epoch(self, row: Row) -> None:
        self.rows.append(row)
        if not self.visible:
            self.shown = time.monotonic()
            self.console.print(self._line(row))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        figures = self._figures(options.max_width >= _ROOMY and options.encoding.startswith("utf"))
        lines = options.size.height - _ABOVE
        if options.max_width >= _SIDE_BY_SIDE:
            both = Table.grid(Column(), Column(ratio=1), padding=(0, 3), pad_edge=False, expand=True)
            both.add_row(figures, self._rates(lines))
            shown: Group = Group("", both)
        else:
            shown = Group(figures, self._rates(lines - figures.row_count))
        # The last line is empty: the ^C that a terminal shows would wrap from a full one, and move the view.
        yield Group(self.progress, shown, "")

    def _figures(self, with_course: bool) -> Table:
        """Loss terms and accuracies of the last step and of the last epoch, and their course over the epochs."""
        row = self.rows[-1] if self.rows else {}
        made = _bare()
        made.add_column("", style="cyan", no_wrap=True)
        made.add_column("step", justify="right", no_wrap=True)
        if row:
            made.add_column(f"epoch {row['epoch']}", justify="right", no_wrap=True)
        if row and with_course:
            made.add_column("all epochs", style="dim", no_wrap=True)
        for name in sorted((name for name in self.terms | row if name not in _ASIDE), key=_place):
            course = _course([known[name] for known in self.rows if name in known])
            cells = _label(name), _figure(name, self.terms), _figure(name, row), course
            made.add_row(*cells[: len(made.columns)])
        return made

    def _rates(self, most: int) -> Table:
        """Firing rates of the layers at the end of the last epoch, as at most `most` bars relative to the longest."""
        rates = self.rows[-1].get("firing_rates", {}) if self.rows else {}
        stuck = health.stuck(rates, self.run.spiking)
        parts = {part: statistics.fmean(rates[layer] for layer in layers) for part, layers in grouped(rates, most).items()}
        longest = max(parts.values(), default=0.0) or 1.0
        made = _bare(expand=True)
        made.show_header = len(parts) > 0
        made.add_column("firing rate" if self.run.spiking else "active units", no_wrap=True)
        made.add_column("", ratio=1)
        made.add_column("", justify="right", no_wrap=True)
        for part, layers in grouped(rates, most).items():
            style = "red" if stuck.keys() & layers else "cyan"
            bar = ProgressBar(longest, parts[part], complete_style=style, finished_style=style)
            made.add_row(Text(part, style), bar, f"{parts[part]:.3f}")
        return made

    def _line(self, row: Row) -> str:
        figures = [self._epoch(row["epoch"]), f"loss {row['loss']:.3f}", f"accuracy {row['accuracy']:.1%}"]
        exits = [f"{row[name]:.1%}" for name in row if name.startswith("accuracy/exit")]
        figures += [f"exits {' '.join(exits)}"] if exits else []
        figures += [f"reliable {row['reliable']:.1%}"] if "reliable" in row else []
        figures += [f"temperature {row['temperature']:.2f}"] if "temperature" in row else []
        figures += [f"validation {row['validation']:.1%}"] if "validation" in row else []
        figures += [f"{'firing' if self.run.spiking else 'active'} {row['firing_rate']:.3f}"]
        figures += [self._speed()] if self._speed() else []
        figures += [f"{row['seconds']:.1f} s"]
        left = statistics.fmean(known["seconds"] for known in self.rows) * (self.run.epochs - row["epoch"])
        figures += [f"{datetime.timedelta(seconds=round(left))} left"] if left else []
        return "  ".join(figures)

    def _line_within(self, step: int) -> str:
        figures = [self._epoch(-(-step // self.steps)), f"step {(step - 1) % self.steps + 1:,} of {self.steps:,}"]
        figures += [f"{_label(name)} {_figure(name, self.terms)}" for name in ("loss", "accuracy") if name in self.terms]
        return "  ".join([*figures, self._speed()]).rstrip()

    def _speed(self) -> str:
        """The speed over the last half minute; "" before the second step."""
        speed = self.progress.tasks[0].speed
        return f"{speed * self.run.batch:,.0f} images/s" if speed else ""

    def _epoch(self, number: int) -> str:
        return f"{self.title}epoch {min(number, self.run.epochs)}/{self.run.epochs}"


@dataclass(frozen=True)
class Watches:
    """Passes the progress of a training on to a live view and to logs, in this order."""

    view: TrainingView
    others: Sequence[Watch] = ()

    @property
    def watches(self) -> tuple[Watch, ...]:
        """All of them."""
        return (self.view, *self.others)

    def wait(self, items: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        return self.view.wait(items, what, total)

    def say(self, line: str) -> None:
        for watch in self.watches:
            watch.say(line)

    def step(self, step: int, terms: Terms) -> None:
        for watch in self.watches:
            watch.step(step, terms)

    def epoch(self, row: Row) -> None:
        for watch in self.watches:
            watch.epoch(row)


def grouped(layers: Iterable[str], most: int) -> dict[str, list[str]]:
    """The layers, by module path, as `most` parts of the network at most: part -> its layers.

    The parts are those of the finest depth of the paths that has no more; a part of several layers says how many. Where
    even the coarsest has, the first ones are left.
    """
    paths = {layer: short_path(layer).split(".") for layer in layers}
    parts: dict[str, list[str]] = {}
    for depth in range(max(map(len, paths.values()), default=0), 0, -1):
        parts = {}
        for layer, path in paths.items():
            parts.setdefault(".".join(path[:depth]), []).append(layer)
        if len(parts) <= most:
            break
    named = {f"{part} ({len(members)})" if len(members) > 1 else part: members for part, members in parts.items()}
    return dict(list(named.items())[: max(0, most)])


def _bare(expand: bool = False) -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=expand)


def _place(name: str) -> int:
    return next((k for k, start in enumerate(_SHARES, 1) if name.startswith(start)), 0)


def _label(name: str) -> str:
    return name.replace("accuracy/exit", "  exit ").replace("validation", "validation").replace("_", " ")


def _figure(name: str, row: Row) -> str:
    return "" if name not in row else f"{row[name]:.1%}" if _place(name) else f"{row[name]:.3f}"


def _course(values: Sequence[float]) -> str:
    """Values as bars between their lowest and highest; of many, so many at even distances, with the last one."""
    known = [value for value in values if math.isfinite(value)]
    n, low, high = len(known), min(known, default=0.0), max(known, default=0.0)
    chosen = known if n <= _COURSE else [known[(k + 1) * n // _COURSE - 1] for k in range(_COURSE)]
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / ((high - low) or 1.0))] for value in chosen)
