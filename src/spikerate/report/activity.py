"""Recorded activity as pictures in SVG: the spikes of layers as a raster, and the membranes of single neurons."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.utils import _pytree as pytree

from spikerate.measure.recording import Activity
from spikerate.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Series, chart

_ROW = 4.0
"""Height of a neuron in a raster."""
_LABEL = 16.0
"""Room for the name of a layer above its rows."""
_STYLE = (
    "svg{color-scheme:light dark;--fg:#1b1e22;--muted:#5f6670;--line:#e2e3e6;"
    "--c0:#0072b2;--c1:#d55e00;--c2:#00906a;--c3:#b04a86;--c4:#a87400;--c5:#5b6470}"
    "@media(prefers-color-scheme:dark){svg{--fg:#e9ebee;--muted:#a0a7b1;--line:#2c3136;"
    "--c0:#56b4e9;--c1:#f58a42;--c2:#35c99b;--c3:#e59ac6;--c4:#efc23b;--c5:#aab2bd}}"
    "text{font:10px system-ui,sans-serif;fill:var(--muted)}.name{fill:var(--fg)}"
    ".middle{text-anchor:middle}.end{text-anchor:end}path{fill:none;stroke-width:1.5}.grid{stroke:var(--line);stroke-width:1}"
)


def raster(recorded: Mapping[str, Activity], sample: int = 0, neurons: int = 40) -> str:
    """The spikes of one sample over time, a row for each neuron, as an SVG.

    Args:
        recorded: what `record` has recorded; each of its layers is drawn, but a readout, which has no spikes.
        sample: index in the batch.
        neurons: how many of a layer are shown at most, evenly spaced in it.

    Raises:
        ValueError: nothing was recorded, or there is no such sample.
    """
    T = len(_of_sample(recorded, sample))
    left, width = 8.0, (WIDTH - RIGHT - 8.0) / T
    parts, y = [], TOP
    for place, (name, activity) in enumerate(recorded.items()):
        spikes = activity.spikes[:, sample].flatten(1)
        if not torch.equal(spikes, spikes.round()):
            continue
        shown = spikes[:, _evenly(spikes.shape[1], neurons)] != 0
        rows = y + _LABEL + 0.5 * _ROW
        fired = "".join(
            f"M{left + t * width:.2f} {rows + unit * _ROW:g}h{0.8 * width:.2f}" for unit, t in shown.T.nonzero().tolist()
        )
        rate = f"{float(spikes.float().mean()):.3f} spikes a step"
        parts.append(f'<text class="name" x="{left:g}" y="{y + 11:g}">{escape(name)}: {rate}</text>')
        parts.append(f'<path stroke="var(--c{place % 6})" style="stroke-width:{0.7 * _ROW:g}" d="{fired}"/>')
        y += _LABEL + shown.shape[1] * _ROW + 6
    for step in _steps(T):
        parts.append(f'<text class="middle" x="{left + (step - 0.5) * width:.2f}" y="{y + 8:g}">{step}</text>')
    parts.append(f'<text class="middle" x="{WIDTH / 2:g}" y="{y + 22:g}">time step</text>')
    return _svg(f"spikes of sample {sample}", y + 28, parts)


def membranes(recorded: Mapping[str, Activity], layer: str, neurons: tuple[int, ...] = (0,), sample: int = 0) -> str:
    """The membrane potentials of neurons of a layer over time, with a mark at each spike, as an SVG.

    Of neurons of several states the first is drawn, which is the membrane of ours.

    Args:
        recorded: what `record` has recorded.
        layer: its name in there.
        neurons: their indices in the flattened layer, six at most.
        sample: index in the batch.

    Raises:
        ValueError: there is no such layer, sample or neuron, or its neurons have no membrane.
    """
    if layer not in recorded:
        raise ValueError(f"layer is {layer!r}, which was not recorded: give one of {list(recorded)}")
    activity = recorded[layer]
    states = pytree.tree_leaves(activity.membranes)
    if not states or not isinstance(states[0], Tensor):
        raise ValueError(f"the neurons of {layer!r} have no membrane: give a layer of neurons that have one")
    spikes = _of_sample({layer: activity}, sample).flatten(1)
    u = states[0][:, sample].flatten(1)
    if not 1 <= len(neurons) <= 6 or not all(0 <= neuron < u.shape[1] for neuron in neurons):
        raise ValueError(f"neurons is {neurons}: give one to six indices from 0 to {u.shape[1] - 1}, those of {layer!r}")
    series = [Series(f"neuron {n}", {t + 1: [value] for t, value in enumerate(u[:, n].tolist())}) for n in neurons]
    drawn = chart(f"{layer}: membrane after each step", series, "number", "time step")
    assert drawn is not None
    return _svg(drawn.title, HEIGHT + 16, _lines(drawn, [spikes[:, n].tolist() for n in neurons]))


def _of_sample(recorded: Mapping[str, Activity], sample: int) -> Tensor:
    """The spikes [T, ...] of a sample in the first of the layers."""
    if not recorded:
        raise ValueError("nothing was recorded: call a rule with the recording in place of the network")
    spikes = next(iter(recorded.values())).spikes
    if not 0 <= sample < spikes.shape[1]:
        raise ValueError(f"sample is {sample}: give an index from 0 to {spikes.shape[1] - 1}, that of the batch")
    return spikes[:, sample]


def _evenly(count: int, most: int) -> Tensor:
    """At most so many indices of `count`, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, max(1, most))).round().long()


def _steps(T: int) -> list[int]:
    """The steps that are written below an axis."""
    return [int(t) for t in MaxNLocator(6, integer=True).tick_values(1, T) if 1 <= t <= T] or [1]


def _lines(drawn: Chart, fired: list[list[float]]) -> list[str]:
    """The parts of a chart, with a dot where a neuron has fired."""
    parts = []
    for tick in drawn.y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT:g} {tick.at}H{WIDTH - RIGHT:g}"/>')
        parts.append(f'<text class="end" x="{LEFT - 6:g}" y="{tick.at + 3.5:g}">{tick.label}</text>')
    for tick in drawn.x_ticks:
        parts.append(f'<text class="middle" x="{tick.at}" y="{HEIGHT - BOTTOM + 15:g}">{tick.label}</text>')
    parts.append(f'<text class="middle" x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 4:g}">{drawn.x_label}</text>')
    for line, spikes in zip(drawn.lines, fired, strict=True):
        colour = f"var(--c{line.place % 6})"
        parts.append(f'<path stroke="{colour}" d="{line.path}"/>')
        points = [point.split() for point in line.path.removeprefix("M").split("L")]
        parts += [
            f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for (x, y), s in zip(points, spikes, strict=True) if s
        ]
        at = LEFT + (WIDTH - RIGHT - LEFT) * line.place / len(drawn.lines)
        parts.append(f'<text x="{at:g}" y="{HEIGHT + 10:g}" style="fill:{colour}">{escape(line.name)}</text>')
    return parts


def _svg(title: str, height: float, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" role="img"'
    return (
        f'{head} aria-label="{escape(title)}"><title>{escape(title)}</title><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )
