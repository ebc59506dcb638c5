"""Charts as plain geometry in a box of fixed size, which a page draws in its own colours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.ticker import EngFormatter, MaxNLocator

WIDTH, HEIGHT = 360.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 34.0
"""Room for the labels around the lines."""
_MOST_DOTS = 40
"""A line with more points is drawn without dots."""

Form = Literal["share", "number", "count", "joules"]


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (n - 1) over n runs; a single run has no deviation."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Series:
    """A line to draw.

    Attributes:
        name: in the legend.
        values: x -> values of the runs.
        mark: an x to mark on the line, if any.
    """

    name: str
    values: Mapping[float, Sequence[float]]
    mark: float | None = None


@dataclass(frozen=True)
class Tick:
    """A label at a position on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A point with its values as text."""

    x: float
    y: float
    says: str


@dataclass(frozen=True)
class Line:
    """A series as SVG paths.

    Attributes:
        place: index among all series, including those without values; it determines the colour.
        path: the means.
        band: the area from mean - sd to mean + sd; "" for a single run.
        last: the last value as text.
    """

    name: str
    place: int
    path: str
    band: str
    dots: tuple[Dot, ...]
    mark: Dot | None
    last: str


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis."""

    title: str
    x_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Strip:
    """A row of single values with their mean and deviation; positions are in per cent of the width.

    Attributes:
        place: index among all rows; it determines the colour.
        dots: positions, and values as text.
        low, high: mean - sd and mean + sd.
    """

    name: str
    place: int
    dots: tuple[tuple[float, str], ...]
    mean: float
    low: float
    high: float
    says: str


@dataclass(frozen=True)
class Strips:
    """Rows of values over a common axis."""

    strips: tuple[Strip, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class _Axis:
    """Maps numbers to positions: `low` to `start` and `high` to `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    form: Form

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, form: Form, bins: int = 5) -> _Axis:
        """An axis with round ends that contains all values."""
        room = 0.05 * max(1.0, abs(values[0])) if max(values) - min(values) < 1e-6 else 0.0
        locator = MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10])
        ticks = [float(t) for t in locator.tick_values(min(values) - room, max(values) + room)]
        if form == "share":
            ticks = [t for t in ticks if -1e-9 <= t <= 1 + 1e-9]
        low, high = min(ticks[0], *values), max(ticks[-1], *values)
        return cls(low, high, start, end, tuple(ticks), form)

    def at(self, value: float) -> float:
        return round(self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low), 2)

    def marks(self) -> tuple[Tick, ...]:
        return tuple(Tick(self.at(t), f"{100 * t:.4g} %" if self.form == "share" else f"{t:.4g}") for t in self.ticks)


def in_words(value: float | Stat, form: Form) -> str:
    """A value, or "mean ± sd": "97.22 %", "0.262", "26.5 M", "1.26 ± 0.02 µJ".

    A share has two places, the others have three digits and a deviation to the same place.
    """
    mean, sd = (value.mean, value.sd) if isinstance(value, Stat) else (value, None)
    scale, unit = (100.0, " %") if form == "share" else (1.0, "")
    if form in ("count", "joules"):
        power = 3 * math.floor(math.log10(float(f"{mean:.3g}")) / 3) if mean else 0
        scale, unit = 10.0**-power, f" {EngFormatter.ENG_PREFIXES[power]}{'J' if form == 'joules' else ''}".rstrip()
    places = 2 if form == "share" else max(0, 2 - math.floor(math.log10(abs(scale * mean)))) if mean else 1
    return f"{scale * mean:.{places}f}" + ("" if sd is None else f" ± {scale * sd:.{places}f}") + unit


def chart(title: str, series: Sequence[Series], form: Form, x_label: str, zero: bool = False) -> Chart | None:
    """Draw lines of finite numbers; lines without values are left out. None if no line is left.

    Args:
        zero: whether the axis must include 0.
    """
    stats = {place: points for place, one in enumerate(series) if (points := _stats(one))}
    if not stats:
        return None
    ends = [end for points in stats.values() for s in points.values() for end in _ends(s, form)]
    ys = _Axis.over([*ends, *([0.0] if zero else [])], HEIGHT - BOTTOM, TOP, form)
    at = sorted({x for points in stats.values() for x in points})
    ticks = [t for t in MaxNLocator(6, integer=True).tick_values(at[0], at[-1]) if at[0] <= t <= at[-1]] or at
    xs = _Axis(at[0] - (len(at) == 1), at[-1] + (len(at) == 1), LEFT, WIDTH - RIGHT, tuple(ticks), "number")
    lines = tuple(_line(series[place], place, points, xs, ys, x_label) for place, points in stats.items())
    return Chart(title, x_label, lines, xs.marks(), ys.marks())


def strips(values: Mapping[str, Mapping[str, float]]) -> Strips:
    """Draw fractions in rows: row -> run -> value. Rows without values are left out; at least one row must have values."""
    stats = {name: Stat.of(list(row.values())) for name, row in values.items() if row}
    ends = [v for row in values.values() for v in row.values()]
    ends += [end for s in stats.values() for end in _ends(s, "share")]
    axis = _Axis.over(ends, 6, 94, "share", 4)
    drawn = []
    for place, (name, row) in enumerate(values.items()):
        if row:
            dots = tuple((axis.at(v), f"{run}: {in_words(v, 'share')}") for run, v in row.items())
            low, high = map(axis.at, _ends(stats[name], "share"))
            says = in_words(stats[name], "share")
            drawn.append(Strip(name, place, dots, axis.at(stats[name].mean), low, high, says))
    return Strips(tuple(drawn), axis.marks())


def _ends(stat: Stat, form: Form) -> tuple[float, float]:
    """Mean - sd and mean + sd; for a fraction limited to 0 and 1."""
    low, high = stat.mean - (stat.sd or 0), stat.mean + (stat.sd or 0)
    return (max(low, 0.0), min(high, 1.0)) if form == "share" else (low, high)


def _stats(series: Series) -> dict[float, Stat]:
    return {x: Stat.of(values) for x, values in sorted(series.values.items()) if values}


def _line(series: Series, place: int, stats: Mapping[float, Stat], xs: _Axis, ys: _Axis, x_label: str) -> Line:
    points = [(xs.at(x), ys.at(s.mean)) for x, s in stats.items()]
    spread = [(xs.at(x), *map(ys.at, _ends(s, ys.form))) for x, s in stats.items() if s.sd is not None]
    edge = [(x, up) for x, _, up in spread] + [(x, down) for x, down, _ in reversed(spread)]
    dots = {
        x: Dot(*point, f"{series.name}, {x_label} {x:g}: {in_words(s, ys.form)}")
        for (x, s), point in zip(stats.items(), points, strict=True)
    }
    last = in_words(list(stats.values())[-1], ys.form)
    shown = tuple(dots.values()) if len(dots) <= _MOST_DOTS else ()
    mark = None if series.mark is None else dots.get(series.mark)
    return Line(series.name, place, _path(points), _path(edge) + "Z" if edge else "", shown, mark, last)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
