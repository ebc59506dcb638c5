"""Figures, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from spikerate.files import write_whole
from spikerate.gradients import Agreement, Fidelity

_LINES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))
"""Colours that every eye tells apart (Okabe and Ito), and markers, for print without colour."""
_GREY, _LIGHT = "#999999", "#e0e0e0"


def draw_gradients(fidelities: Sequence[Fidelity], file: Path) -> None:
    """Draw cosine similarity and norm ratio of the gradients against the layer, as SVG.

    The same figures give the same file, whatever the person's settings of matplotlib are.

    Raises:
        OSError: the file can't be written; the old one, if any, is as it was.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("svg", hashsalt="spikerate", fonttype="none")
        figure = Figure(figsize=(max(6.0, 1.5 + 0.25 * len(fidelities)), 6.5), layout="constrained")
        cosines, ratios = figure.subplots(2, 1, sharex=True)
        _draw_cosines(cosines, fidelities)
        _draw_ratios(ratios, fidelities)
        figure.legend(*cosines.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_whole(file, content.getvalue())


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
