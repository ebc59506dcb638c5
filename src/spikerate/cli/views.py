"""The output of the commands: results, comparisons, presets and networks as tables."""

from __future__ import annotations

import itertools
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from rich.console import Console
from torch import nn

from spikerate.bench.compare import FirstUse, Outcome
from spikerate.bench.roofline import Roofline
from spikerate.cli.console import table
from spikerate.data import SETS, input_shape
from spikerate.exchange.predict import Prediction
from spikerate.gradients.agreement import Fidelity
from spikerate.measure.check import Check
from spikerate.measure.energy import AC_PJ, CAVEAT, MAC_PJ, Energy, joules_in_words
from spikerate.measure.evaluate import Accuracy
from spikerate.models import Branched, Staged, body_of, branch_macs, macs, short_path, stage_shapes
from spikerate.runs.config import Run
from spikerate.runs.estimate import MACHINE, in_words, least_seconds, resolution_macs, training_flops
from spikerate.runs.experiment import Averaged, Measured
from spikerate.runs.presets import PRESETS, Preset
from spikerate.runs.record import RunFolder
from spikerate.runs.rounds import Repetition
from spikerate.runs.speedrun import COLUMNS
from spikerate.runs.state import State
from spikerate.runs.subject import Subject
from spikerate.runs.trained import Trained
from spikerate.system import environment
from spikerate.system.codec import flat, named_again

_LIKELY = 3
_CLASSES = 10
"""Shown of a preset whose data say the number of classes."""
_RESULTS = {"validation_accuracy": "validation accuracy", "test_accuracy": "test accuracy", "firing_rate": "firing rate"}
"""Entries of `result.json` that stand in tables, and their names there."""
_OPERATIONS = "Operations of an image over all T steps: MACs of real input, ACs of binary"


def show_result(console: Console, run: Run, folder: RunFolder, state: State, measured: Measured, last: bool) -> None:
    """The result of a training, and after the last round the next commands."""
    result = table("Result")
    result.add_column(style="cyan")
    result.add_column()
    best = state.best
    chosen = f", chosen by validation accuracy {best['validation']:.2%}" if "validation" in best else ", the last"
    result.add_row(f"test accuracy, {_network_in_words(run)}", _with_interval(measured.accuracy))
    if measured.averaged:
        result.add_row(*_averaged(measured.averaged))
    result.add_row("weights", f"best.safetensors: epoch {best['epoch']} of {run.epochs}{chosen}")
    result.add_row("firing rate", f"{measured.ledger.mean_rate():.3f} ({_rate_in_words(run)})")
    result.add_row("training time", f"{sum(row['seconds'] for row in state.rows):.0f} s")
    result.add_row("run folder", str(folder.path))
    if last:
        result.add_row("next", f"spikerate report {shlex.quote(str(folder.path))}")
        result.add_row("", f"spikerate eval {shlex.quote(str(folder.path))}{named_again(run)}")
    console.print(result)


def show_measured(console: Console, network: nn.Module, measured: Measured, run: Run) -> None:
    """Accuracy after each time step, firing rates of the layers, and the cost of an image."""
    accuracy, ledger = _with_interval(measured.accuracy), measured.ledger
    console.print(f"test accuracy of the {_network_in_words(run)}: {accuracy}")
    if run.spiking:
        curve = table(f"Accuracy against time steps (trained with T = {run.T})", "T", "test accuracy", "")
        for t, at_step in enumerate(measured.at_step, 1):
            curve.add_row(str(t), f"{at_step.value:.2%}", _bar(console, at_step.value))
        console.print(curve)
    rates = table("Firing rates", "layer", _rate_in_words(run), "")
    for layer, rate in ledger.rates(network).items():
        rates.add_row(short_path(layer), f"{rate:.3f}", _bar(console, rate))
    rates.add_row("all", f"{ledger.mean_rate():.3f}", _bar(console, ledger.mean_rate()), style="bold")
    console.print(rates)
    show_energy(console, measured.energy, run)
    if measured.averaged:
        console.print(": ".join(_averaged(measured.averaged)))


def _averaged(averaged: Averaged) -> tuple[str, str]:
    """What test-time averaging gives and costs: its name, and the figures."""
    accuracy, measured = _with_interval(averaged.measured.accuracy), averaged.measured
    held_out = f", {averaged.validation.value:.2%} of the validation images" if averaged.validation else ""
    cost = f"{measured.spikes:,.0f} spikes an image, {joules_in_words(measured.energy.snn_nj)}"
    return f"averaged over {averaged.views} views ({averaged.averaging})", f"{accuracy}{held_out}; {cost}"


def show_energy(console: Console, energy: Energy, run: Run) -> None:
    """The operations of each layer and its share of the energy; their sums beside those of the ANN, and the caveat."""
    shown = table(_OPERATIONS, "layer", "input", "operations", "of dense", "energy")
    for layer, cost in energy.layers.items():
        share = cost.nanojoules / (energy.snn_nj or 1)
        numbers = (f"{cost.effective:,.0f}", f"{cost.effective / cost.dense:.1%}", f"{share:.1%}")
        shown.add_row(short_path(layer), cost.input, *numbers)
    console.print(shown)
    sums = table("An image, all layers", "network", "MACs", "ACs", "synaptic operations", "estimate")
    own, rival = ("spiking", "ANN of the same shape") if run.spiking else ("ANN, zeros skipped", "the same, zeros too")
    operations = (f"{n:,.0f}" for n in (energy.macs, energy.acs, energy.synaptic_operations))
    sums.add_row(own, *operations, joules_in_words(energy.snn_nj))
    dense = f"{energy.dense / energy.T:,.0f}"
    sums.add_row(rival, dense, "0", dense, joules_in_words(energy.ann_nj))
    console.print(sums)
    console.print(f"{MAC_PJ} pJ a MAC and {AC_PJ} pJ an AC: {CAVEAT}")


def show_gradients(console: Console, fidelities: Sequence[Fidelity]) -> None:
    """Cosine similarity and norm ratio of the gradients of each layer."""
    shown = table("Gradients: cosine similarity, norm ratio", "layer", *fidelities[0].pairs)
    for f in fidelities:
        cells = (f"{a.cosine:6.3f}, {'-' if a.ratio is None else f'{a.ratio:.2g}'}" for a in f.pairs.values())
        shown.add_row(f.layer, *cells)
    console.print(shown)
    most = max(fidelities, key=lambda f: f.directions)
    console.print(
        f"FDG: finite differences. With directions = {most.directions}, unrelated gradients typically have a cosine "
        f"of {most.noise:.2f} with it, up or down"
    )


def show_check(console: Console, of: Subject, found: Check) -> None:
    """The operations of a network as a table, the faults and the summary."""
    kind = "a recording" if of.recorded else "an image"
    console.print(f"{of.about}: a step of training, {kind} {list(of.shape)} of noise, T = {of.T}")
    for line in ("", *found.lines):
        console.print(line)


def show_export(console: Console, trained: Trained, file: Path) -> None:
    """The exported file, its input and its output."""
    card = trained.card
    console.print(f"{file}, {file.stat().st_size:,} bytes")
    if file.suffix == ".safetensors":
        console.print(f"spikerate.load({str(file)!r}) returns the network")
    elif file.suffix == ".nir":
        console.print(f"input: {list(card.shape)} at each of {card.T} time steps, normalised as its metadata say")
        console.print(f"output: {len(card.classes)} logits at each step; their mean over the steps is the result")
    else:
        takes = ", ".join(map(str, ("B", *card.sample_shape)))
        console.print(f"input: [{takes}] in float32, not normalised: pixel values or counts of events as they are")
        console.print(f"output: [B, {len(card.classes)}], the logits after {card.T} time steps")


def show_bench(console: Console, outcomes: Sequence[Outcome], roof: Roofline, first: Sequence[FirstUse] = ()) -> None:
    """Time and memory of a training step for each method and T; the row of a measurement that failed is empty."""
    steps = table("Step, ms", "method", "", "T", "median", "min", "max", "/ ANN", "/ floor", "of roof")
    parts = table("Its parts, ms", "method", "", "T", "forward", "backward", "optimiser", "images/s")
    room = table("Memory in MiB, operations", "method", "", "T", "peak", "reserved", "saved", "GFLOP", "first step, s")
    for outcome in outcomes:
        name, cost = (outcome.cell.method, outcome.cell.how, str(outcome.cell.T)), outcome.cost
        if cost is None:
            for shown in (steps, parts, room):
                shown.add_row(*name)
            continue
        times = (f"{1000 * t:.1f}" for t in (cost.step.median, cost.step.low, cost.step.high))
        share = cost.flops / cost.step.median / roof.flops
        steps.add_row(*name, *times, _measured(cost.to_ann, ".2f"), _measured(cost.to_floor, ".2f"), f"{share:.0%}")
        medians = (f"{1000 * spread.median:.1f}" for spread in cost.parts.values())
        parts.add_row(*name, *medians, f"{cost.images_per_second:.1f}")
        sizes = (_measured(size, ".1f") for size in (cost.peak_mib, cost.reserved_mib, cost.saved_mib))
        room.add_row(*name, *sizes, f"{cost.flops / 1e9:.2f}", f"{cost.first:.1f}")
    for shown in (steps, parts, room):
        console.print(shown)
    if first:
        shown = table("First use: seconds until the end of the first step", "method", "", "T", "empty cache", "warm cache")
        for use in first:
            seconds = (_measured(s, ".1f") for s in (use.empty, use.warm))
            shown.add_row(use.cell.method, use.cell.how, str(use.cell.T), *seconds)
        console.print(shown)
    console.print(
        "/ ANN: to the ANN that is compiled if this is, the median over the rounds; / floor: the same by (T + 2) / 3, the "
        "passes of a rate-based step by an ANN's, or by T for inference; "
        f"of roof: operations by those that a wide convolution reaches here, {roof.flops / 1e9:,.0f} GFLOP/s (copies: "
        f"{roof.bytes / 1e9:,.1f} GB/s); saved: by the forward pass for the backward pass, not compiled, without parameters"
    )


def show_predictions(console: Console, predictions: Sequence[Prediction]) -> None:
    """The most likely class of each file, its confidence, and the next ones."""
    if not predictions:
        return
    shown = table("Predictions", "file", "class", "confidence", "then")
    for found in predictions:
        (name, confidence), *others = found.ranking[:_LIKELY]
        shown.add_row(str(found.file), name, f"{confidence:.1%}", ", ".join(f"{n} {c:.1%}" for n, c in others))
    console.print(shown)


def show_rounds(console: Console, rounds: Sequence[tuple[Run, RunFolder]]) -> None:
    """The results of all rounds of a run."""
    shown = table("Rounds", "round", "T", "epochs", *_RESULTS.values())
    for k, (run, folder) in enumerate(rounds, 1):
        result = folder.result()
        numbers = (_number(name, result[name]) for name in _RESULTS)
        shown.add_row(str(k), str(run.T) if run.spiking else "ANN", str(run.epochs), *numbers)
    console.print(shown)


def show_seeds(console: Console, results: Mapping[int, Mapping[str, Any]], base: Path) -> None:
    """The results of several seeds, their mean and standard deviation."""
    shown = table(f"{len(results)} seeds", "seed", *_RESULTS.values())
    for seed, result in results.items():
        shown.add_row(str(seed), *(_number(name, result[name]) for name in _RESULTS))
    columns = [[result[name] for result in results.values()] for name in _RESULTS]
    for what, statistic in (("mean", statistics.fmean), ("standard deviation", statistics.stdev)):
        shown.add_row(
            what, *(_number(n, statistic(c) if None not in c else None) for n, c in zip(_RESULTS, columns, strict=True))
        )
    console.print(shown)
    console.print(f"runs in {base}; next: spikerate report {shlex.quote(str(base))}")


def show_record(console: Console, row: Sequence[str]) -> None:
    """The line of a speedrun in the table of records, an entry below the other."""
    shown = table("Speedrun", "", "mean over the seeds")
    for column, cell in zip(COLUMNS, row, strict=True):
        shown.add_row(column, cell)
    console.print(shown)


def show_repetition(console: Console, repetition: Repetition) -> None:
    """Whether two runs agree in every metric; if not, where they differ, and how their `run.json` differ."""
    original, again = repetition.original, repetition.again
    console.print(f"{again.path} against {original.path}:")
    if repetition.agrees:
        console.print("every metric of every epoch agrees, and the test result too")
        return
    shown = table("Metrics that differ", "metric", "first in epoch", "then", "now")
    for name, (epoch, then, now) in repetition.differing.items():
        shown.add_row(
            name,
            str(epoch),
            *(f"{v:.6g}" if isinstance(v, float) else shorten(str(v), 60, placeholder=" ...") for v in (then, now)),
        )
    console.print(shown)
    then, now = (dict(flat(folder.about())) for folder in (original, again))
    cards = table("What differs between the two cards", "entry", "then", "now")
    times = ("started", "finished", "command", "repeats", "resumed", "preset")
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name) and not name.startswith(times):
            cards.add_row(name, str(then.get(name)), str(now.get(name)))
    console.print(cards if cards.row_count else "the two cards do not differ: something here is not deterministic")


def show_presets(console: Console) -> None:
    """All presets, a table for each paper."""
    for paper, group in itertools.groupby(sorted(PRESETS.items(), key=_by_paper), key=lambda item: item[1].paper):
        presets = table(paper, "name", "data and network", "method", "T", "epochs")
        for name, preset in group:
            presets.add_row(name, preset.title, preset.method, str(preset.run.T), str(preset.run.epochs))
        console.print(presets)
    console.print(
        "spikerate show NAME describes a preset, spikerate train NAME --data PATH trains it; --epochs, --width and --subset "
        "make it smaller",
    )


def show_preset(console: Console, name: str, preset: Preset) -> None:
    """A preset's description, settings and network, and its estimated cost."""
    run = preset.run
    console.print(name, style="bold")
    console.print(preset.text)
    settings = table("Settings", "field", "value")
    for field, value in run.settings:
        settings.add_row(field, str(value))
    console.print(settings)
    entry, shape = SETS[run.data.name], input_shape(run.data)
    num_classes = entry.num_classes or _CLASSES
    with torch.device("meta"):
        network = run.build(num_classes, shape)
    body = body_of(network)
    assert isinstance(body, Staged)
    console.print(_network(network, body, shape, num_classes))
    if entry.samples is None:
        console.print(f"with {_CLASSES} classes; yours are the class folders")
        return
    trained_on = entry.samples - (0 if entry.built_in else run.data.validation + run.data.test)
    moved = 0 if run.search is None else run.search.differences(network)
    own, there = sum(macs(body, shape).values()), resolution_macs(run, shape, num_classes)
    flops = training_flops(run, own, branch_macs(network, shape), trained_on, moved, there)
    console.print(
        f"training takes {flops:.1e} FLOP: at least {in_words(least_seconds(run, flops))} on {MACHINE}, at the speed "
        "measured there for ResNet-18 of width 64; narrow networks and small batches are slower"
    )


def show_machine(console: Console, device: torch.device) -> None:
    """The installed software, the hardware, and what it supports."""
    env = environment.card()
    what = table("What is here", "", "")
    what.add_row("python", f"{env['python']} on {env['platform']}")
    what.add_row("processor", f"{env['cpu']}, {env['cores']} cores, {env['threads']} threads in use")
    what.add_row("memory", f"{env['memory_gib']} GiB")
    what.add_row("GPU", ", ".join(env["gpus"]) or "none")
    what.add_row("device used", str(device))
    flags = environment.cpu_flags()
    fast = "AMX" if "amx_bf16" in flags else "AVX-512" if "avx512_bf16" in flags else None
    if device.type == "cuda":
        what.add_row("bf16", "fast" if torch.cuda.is_bf16_supported() else "slow on this GPU: use --precision fp32")
    else:
        what.add_row("bf16", f"fast, by {fast}" if fast else "slow on this processor: use --precision fp32")
    problem = environment.compiler_problem(device)
    what.add_row("torch.compile", f"no: {problem}" if problem else "yes")
    for name, found in env["packages"].items():
        what.add_row(name, found or "not installed")
    console.print(what)


def _network(network: nn.Module, body: Staged, shape: tuple[int, int, int], num_classes: int) -> Any:
    stages = table("Network", "part", "output [C, H, W]", "parameters", "MACs a step")
    parts = [("stem", body.stem), *body.stages.items(), ("head", body.head)]
    shapes = ["", *(str(list(s[1:])) for s in stage_shapes(body, shape)), f"[{num_classes}]"]
    cost = macs(body, shape)
    for (part, module), out in zip(parts, shapes, strict=True):
        stages.add_row(part, out, f"{_parameters(module):,}", f"{cost[part]:,}")
    total = f"{sum(cost.values()):,}"
    stages.add_row("all, as used after training", "", f"{_parameters(body):,}", total, style="bold")
    if isinstance(network, Branched):
        stages.add_row(
            "branches, in training only", "", f"{_parameters(network.branches):,}", f"{branch_macs(network, shape):,}"
        )
    return stages


def _by_paper(item: tuple[str, Preset]) -> int:
    """Papers in the order in which they first appear."""
    papers = list(dict.fromkeys(preset.paper for preset in PRESETS.values()))
    return papers.index(item[1].paper)


def _with_interval(result: Accuracy) -> str:
    low, high = result.interval()
    return f"{result.value:.2%}  (95 % interval {low:.2%} to {high:.2%}, {result.n:,} samples)"


def _network_in_words(run: Run) -> str:
    return "spiking network" if run.spiking else "ANN"


def _rate_in_words(run: Run) -> str:
    return "spikes per neuron and step" if run.spiking else "share of active units"


def _number(name: str, value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if name == "firing_rate" else f"{value:.2%}"


def _measured(value: float | None, digits: str) -> str:
    return "-" if value is None else format(value, digits)


def _bar(console: Console, share: float) -> str:
    return ("█" if console.encoding.startswith("utf") else "#") * round(40 * share)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
