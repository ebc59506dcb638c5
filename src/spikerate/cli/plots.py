"""Figures, drawn by matplotlib."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from spikerate.bench.compare import Cost, Outcome
from spikerate.bench.worker import ANN, OF_ANN
from spikerate.gradients.agreement import Agreement, Fidelity
from spikerate.system.files import write_whole

_LINES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))
"""Colours that are distinguishable with colour blindness (Okabe and Ito), and markers, for print without colour."""
_MORE_LINES = (*_LINES, ("#CC79A7", "D"), ("#56B4E9", "v"), ("#E69F00", "P"), ("#F0E442", "X"))
_BLACK, _GREY, _LIGHT = "#000000", "#999999", "#e0e0e0"


def draw_gradients(fidelities: Sequence[Fidelity], file: Path) -> None:
    """Draw cosine similarity and norm ratio of the gradients against the layer, as SVG.

    The same figures give the same file, whatever the person's settings of matplotlib are.

    Raises:
        OSError: the file can't be written; the old one, if any, is as it was.
    """
    with _figure(max(6.0, 1.5 + 0.25 * len(fidelities)), 6.5, file) as figure:
        cosines, ratios = figure.subplots(2, 1, sharex=True)
        _draw_cosines(cosines, fidelities)
        _draw_ratios(ratios, fidelities)
        figure.legend(*cosines.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)


def _draw_cosines(axes: Axes, fidelities: Sequence[Fidelity]) -> None:
    _draw_lines(axes, fidelities, lambda agreement: agreement.cosine)
    noise = [f.noise for f in fidelities]
    low, height = [-n for n in noise], [2 * n for n in noise]
    axes.bar(range(len(noise)), height, 1, low, color=_LIGHT, zorder=0, label="FDG and unrelated gradients, typically")
    axes.use_sticky_edges = False
    axes.set_ylim(top=1.05)
    axes.set_ylabel("cosine similarity")


def _draw_ratios(axes: Axes, fidelities: Sequence[Fidelity]) -> None:
    axes.axhline(1, color=_GREY, lw=0.8)
    axes.set_yscale("log", nonpositive="mask")
    _draw_lines(axes, fidelities, lambda agreement: float("nan") if agreement.ratio is None else agreement.ratio)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("norm ratio")
    axes.set_xticks(range(len(fidelities)), [f.layer for f in fidelities], rotation=90)


def _draw_lines(axes: Axes, fidelities: Sequence[Fidelity], height: Callable[[Agreement], float]) -> None:
    """A line for each pair of gradients."""
    axes.spines[["top", "right"]].set_visible(False)
    for (colour, marker), name in zip(_LINES, fidelities[0].pairs, strict=True):
        heights = [height(f.pairs[name]) for f in fidelities]
        axes.plot(range(len(heights)), heights, color=colour, marker=marker, ms=4, lw=1.2, label=name)


@contextmanager
def _figure(width: float, height: float, file: Path) -> Iterator[Figure]:
    """An empty figure of so many inches, which is written as SVG when it is drawn."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("svg", hashsalt="spikerate", fonttype="none")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_whole(file, content.getvalue())


def draw_bench(outcomes: Sequence[Outcome], file: Path) -> None:
    """Draw the time and the memory of a step against T, a line for each method, as SVG: solid as it comes, dotted compiled.

    The ANN is a level; the floor of a rate-based step, (T + 2) / 3 of the ANN's, is dashed. Cells that died are left out.

    Raises:
        OSError: the file can't be written; the old one, if any, is as it was.
    """
    costs = [outcome.cost for outcome in outcomes if outcome.cost]
    with _figure(9.0, 4.5, file) as figure:
        times, memory = figure.subplots(1, 2)
        _draw_costs(times, costs, lambda cost: 1000 * cost.step.median, "training step or inference, ms")
        _draw_costs(memory, costs, lambda cost: cost.peak_mib, "peak memory, MiB")
        for ann in (cost for cost in costs if cost.cell.method == ANN):
            by_T = sorted({c.cell.T: c.cell.floor for c in costs if c.cell.ann == ann.cell}.items())
            floors = [1000 * ann.step.median * floor for _, floor in by_T]
            line, name = ("-.", f"({_named(ann)})") if ann.cell.setting.compile else ("--", _named(ann))
            times.plot([T for T, _ in by_T], floors, color=_BLACK, ls=line, lw=0.8, label=f"{name} x (T + 2) / 3")
        for axes in (times, memory):
            axes.set_ylim(bottom=0)  # after all lines: from here on the limits stay as they are
        figure.legend(*times.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)


def _draw_costs(axes: Axes, costs: Sequence[Cost], height: Callable[[Cost], float | None], what: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    methods = dict.fromkeys(cost.cell.method for cost in costs if cost.cell.method not in OF_ANN)
    points = [(cost.cell, _named(cost), height(cost)) for cost in costs]
    for (colour, marker), method in zip(itertools.cycle(_MORE_LINES), methods):
        names = dict.fromkeys((cell.setting.compile, name) for cell, name, _ in points if cell.method == method)
        for compiled, name in names:
            own = sorted((cell.T, y) for cell, other, y in points if other == name and y is not None)
            line = ":" if compiled else "-"
            axes.plot([T for T, _ in own], [y for _, y in own], line, color=colour, marker=marker, ms=4, lw=1.2, label=name)
    for cell, name, y in points:
        if cell.method in OF_ANN and y is not None:
            line = ":" if cell.setting.compile else "-"
            axes.axhline(y, color=_BLACK if cell.method == ANN else _GREY, ls=line, lw=0.8, label=name)
    axes.set_xticks(sorted({cost.cell.T for cost in costs}))
    axes.set_xlabel("T")
    axes.set_ylabel(what)


def _named(cost: Cost) -> str:
    """The name of a line."""
    method = cost.cell.method.replace("ann", "ANN") if cost.cell.method in OF_ANN else cost.cell.method
    return f"{method}, compiled" if cost.cell.setting.compile else method
