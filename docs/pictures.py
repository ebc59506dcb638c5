"""Draws the pictures of these pages with the library itself: `python docs/pictures.py` writes them beside this file."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from spikerate import ALIF, LIF, ATan, Dspike, FastSigmoid, Readout, Rectangular, Sigmoid, Synaptic, Triangular
from spikerate.signal import Neuron

BLUE, RED, GREY = "#0072B2", "#D55E00", "#999999"
SOURCE = Path(__file__).resolve().parents[1] / "src" / "spikerate"
SURROGATES = {
    "Sigmoid(4)": Sigmoid(),
    "ATan(2)": ATan(),
    "Triangular(1)": Triangular(),
    "Rectangular(1)": Rectangular(),
    "FastSigmoid(25)": FastSigmoid(),
    "Dspike(3, width=2)": Dspike(3.0, width=2.0),
}


def neuron() -> Figure:
    """The membrane of a neuron over 20 steps; and the firing rate, with its gain, against a constant input."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    steps, rates = figure.subplots(1, 2)
    lif, T, current = LIF(decay=0.8), 20, 0.38
    spikes = lif.spikes(torch.full((T, 1), current)).squeeze(1)
    u, v = 0.0, []
    for spike in spikes.tolist():
        v.append(lif.decay * u + current)
        u = v[-1] - lif.threshold * spike
    fired = [t for t in range(T) if spikes[t]]
    steps.plot(range(1, T + 1), v, color=BLUE, marker="o", ms=3, lw=1, label="membrane v[t]")
    steps.plot([t + 1 for t in fired], [v[t] for t in fired], color=RED, marker="o", ls="", label="spike, then reset")
    steps.axhline(lif.threshold, color=GREY, lw=0.8)
    steps.set(xlabel="time step", ylim=(0, 1.5), xticks=(1, 5, 10, 15, 20), title=f"decay {lif.decay}, input {current}")
    steps.legend(frameon=False, loc="upper left", fontsize="small")

    lif, T, x = LIF(), 8, torch.linspace(-0.5, 1.5, 201)
    train, state = lif.trace(x.expand(T, 1, -1), None)
    rates.plot(x, train.mean(0)[0], color=BLUE, lw=1.2, label="rate")
    rates.plot(x, state[-1][0] / T, color=RED, lw=1.2, ls="--", label="gain")
    rates.set(xlabel="input at each step", ylim=(0, 1.5), title=f"decay {lif.decay}, T = {T}")
    rates.legend(frameon=False, loc="upper left", fontsize="small")
    return figure


def kinds() -> Figure:
    """Neurons of several states over 40 steps: after pulses of input, and under a constant one."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    synaptic, adaptive, readout = figure.subplots(1, 3)
    T, time = 40, range(1, 41)
    pulses, constant = torch.zeros(T, 1), torch.full((T, 1), 1.0)
    pulses[4::12] = 1.0
    pulses[[17, 18]] = 1.0

    u, i = held(Synaptic(decay=0.8, alpha=0.8, threshold=99.0), pulses)
    synaptic.plot(time, i, color=GREY, lw=1, label="current i[t]")
    synaptic.plot(time, u, color=BLUE, lw=1.2, label="membrane u[t]")
    synaptic.set(title="Synaptic, pulses of input")

    alif = ALIF(decay=0.8, beta=0.4, rho=0.95)
    u, a = held(alif, constant)
    fired = [t for t in range(T) if alif.spikes(constant)[t]]
    raised = alif.threshold + alif.beta * a
    adaptive.plot(time, u, color=BLUE, lw=1, label="membrane u[t]")
    adaptive.plot(time, raised, color=GREY, lw=1, label="threshold")
    adaptive.plot([t + 1 for t in fired], raised[fired], color=RED, marker="o", ms=3, ls="", label="spike")
    adaptive.set(title="ALIF, constant input")

    v, most, _ = held(Readout(decay=0.9, output="max"), pulses)
    readout.plot(time, v, color=BLUE, lw=1.2, label="membrane v[t]")
    readout.plot(time, most, color=RED, lw=1, ls="--", label="maximum")
    readout.plot(time, v.cumsum(0) / torch.arange(1, T + 1), color=GREY, lw=1, label="mean")
    readout.set(title="Readout, pulses of input")
    for axes in (synaptic, adaptive, readout):
        axes.set(xlabel="time step", ylim=(axes.get_ylim()[0], 1.5 * axes.get_ylim()[1]))
        axes.legend(frameon=False, loc="upper left", fontsize="x-small", ncols=2)
    return figure


def held(neuron: Neuron, inputs: Tensor) -> list[Tensor]:
    """Each state [T] of a single neuron after each step of its input [T, 1]."""
    state, states = None, []
    for current in inputs:
        _, state = neuron.unroll(current.unsqueeze(0), state)
        states.append(torch.cat(state))
    return list(torch.stack(states).unbind(1))


def surrogates() -> Figure:
    """What stands in for the derivative of the step, by each surrogate."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    x = torch.linspace(-1.5, 1.5, 301)
    panels = figure.subplots(2, 3, sharex=True, sharey=True).flat
    for axes, (name, surrogate) in zip(panels, SURROGATES.items(), strict=True):
        axes.axvline(0, color=GREY, lw=0.8)
        axes.plot(x, surrogate.slope(x), color=BLUE, lw=1.4)
        axes.set_title(name, fontsize="medium")
    figure.supxlabel("membrane potential above the threshold", fontsize="medium")
    return figure


def imports() -> dict[str, set[str]]:
    """Each package and top-level module -> those that it imports, read from the code."""
    found: dict[str, set[str]] = {}
    for file in SOURCE.rglob("*.py"):
        own = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        wanted = found.setdefault(own, set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "spikerate":
                names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
                wanted.update(name for name in names if name != own)
    del found["__init__"], found["__main__"]
    return {own: {name for name in wanted if name in found} for own, wanted in found.items()}


def house() -> Figure:
    """The packages and top-level modules, each above all that it imports; an arrow that others imply is left out."""
    wanted, floors = imports(), dict[str, int]()
    while len(floors) < len(wanted):
        ready = [name for name in wanted if name not in floors and wanted[name] <= floors.keys()]
        floors |= {name: 1 + max((floors[below] for below in wanted[name]), default=-1) for name in sorted(ready)}
    top = max(floors.values())
    figure = Figure(figsize=(8, 0.75 * (top + 1)), layout="constrained")
    axes = figure.subplots()
    place: dict[str, tuple[float, float]] = {}
    for floor in range(top + 1):
        here = sorted(name for name in floors if floors[name] == floor)
        # Each floor is shifted a little, so that arrows pass between the rooms.
        place |= {name: ((k + 0.5 + 0.12 * (floor % 3 - 1)) / len(here), float(floor)) for k, name in enumerate(here)}
    reached = {name: set[str]() for name in wanted}
    for name in sorted(floors, key=floors.__getitem__):
        reached[name] = wanted[name].union(*(reached[below] for below in wanted[name]))
    direct = {name: wanted[name].difference(*(reached[below] for below in wanted[name])) for name in wanted}
    style = {"arrowstyle": "-|>", "color": GREY, "lw": 0.6, "shrinkA": 9, "shrinkB": 9}
    for above in sorted(direct):
        for below in sorted(direct[above]):
            axes.annotate("", place[below], place[above], arrowprops=style)
    for name, (x, y) in place.items():
        package = (SOURCE / name).is_dir()
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": BLUE if package else RED}
        axes.text(x, y, f"{name}/" if package else name, ha="center", va="center", fontsize="medium", bbox=box)
    axes.set(xlim=(0, 1), ylim=(-0.5, top + 0.5))
    axes.axis("off")
    return figure


def draw(folder: Path) -> None:
    """Write all pictures into a folder; the same versions write the same files."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("svg", hashsalt="spikerate", fonttype="none")
        matplotlib.rc("axes.spines", top=False, right=False)
        for picture in (neuron, kinds, surrogates, house):
            picture().savefig(folder / f"{picture.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
