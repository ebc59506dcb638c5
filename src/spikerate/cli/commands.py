"""The commands: each takes its options, calls the library and prints the results. The table at the end lists them."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch

from spikerate.bench.compare import Outcome, both_ways, cells, first_uses, peer_cells
from spikerate.bench.compare import measure as measure_cells
from spikerate.bench.roofline import roofline
from spikerate.cli import tensorboard, views
from spikerate.cli.arguments import (
    Bare,
    Bench,
    Check,
    Eval,
    Export,
    Fetch,
    Gradient,
    Options,
    Predict,
    Report,
    Reproduce,
    Resume,
    ResumeSpeedrun,
    Show,
    Speedrun,
    Train,
    parse,
    read_again,
    read_check,
    read_gradient,
    read_speedrun,
    read_train,
)
from spikerate.cli.console import TransferBar, WaitingBar, complain, console
from spikerate.cli.terminal import Terminal
from spikerate.data import SOURCES, entry_of, fetch, sample_files
from spikerate.exchange.export import check_target, export
from spikerate.exchange.predict import Prediction, predict
from spikerate.measure.check import check
from spikerate.models import fold_batch_norm
from spikerate.runs import rounds
from spikerate.runs.config import Run
from spikerate.runs.experiment import (
    data_card,
    different_spikes,
    measure,
    measure_gradients,
)
from spikerate.runs.kinds import own_again, with_kinds
from spikerate.runs.presets import preset
from spikerate.runs.record import RunFolder, check_free
from spikerate.runs.reopen import load_data, load_data_again, note_doubt, settings_again
from spikerate.runs.speedrun import Plan, against_rules, markdown, rows
from spikerate.runs.start import Start
from spikerate.runs.subject import Wanted, subject
from spikerate.runs.train import build_network, pick_device
from spikerate.runs.trained import Trained, read_trained
from spikerate.system import environment
from spikerate.system.codec import Own, encode
from spikerate.system.dist import ranks_from_environment, restarted
from spikerate.system.files import inside, is_there, write_json


@dataclass(frozen=True)
class Command(Generic[Options]):
    """A command of `spikerate`.

    Attributes:
        read: (arguments after its name, "spikerate NAME") -> options; raises `ValueError` with one sentence.
        perform: (options, whole command line for the record) -> exit status.
        usage: arguments -> description, in one line.
    """

    read: Callable[[list[str], str], Options]
    perform: Callable[[Options, str], int]
    usage: dict[str, str]


# train, reproduce ------------------------------------------------------------------------------------------------------


def _train(asked: tuple[str, Own, Train | Resume], line: str) -> int:
    name, own, command = asked
    if isinstance(command, Resume):
        return _resume(own, command)
    about = {"preset": name, "command": line}
    start = Start.read(command.init, own) if command.init else None
    if command.tensorboard:
        tensorboard.check_installed("leave --tensorboard out")
    if command.seeds > 1:
        return _train_seeds(name, command, about, start)
    path = command.out or _free_folder(Path("runs") / f"{name}-seed{command.run.seed}")
    rounds.train(command.run, path, about, start, _terminal(command.tensorboard), command.save_minutes)
    return 0


def _train_seeds(name: str, command: Train, about: dict[str, str], start: Start | None) -> int:
    first = command.run.seed
    seeds = range(first, first + command.seeds)
    base = command.out or Path("runs") / f"{name}-seeds{first}-{seeds[-1]}"
    shown = Terminal(console(needed=False), first=True, logs=command.tensorboard)  # each process trains its own seeds
    folders = rounds.train_seeds(command.run, seeds, base, about, start, shown, command.save_minutes)
    results = {seed: folder.result() for seed, folder in folders.items()}
    if all(results.values()):
        views.show_seeds(console(needed=False), results, base)
    return 0


def _resume(own: Own, command: Resume) -> int:
    folder = rounds.whole(RunFolder.open(command.resume, own))
    log = inside(folder.path, tensorboard.FOLDER)
    if command.tensorboard or log.is_dir():
        tensorboard.check_installed(f"remove {log}" if log.is_dir() else "leave --tensorboard out")
    rounds.resume(folder, command.data, command.device, _terminal(command.tensorboard), command.save_minutes)
    return 0


def _speedrun(asked: tuple[str, Own, Speedrun | ResumeSpeedrun], line: str) -> int:
    name, own, command = asked
    if isinstance(command, ResumeSpeedrun):
        base, plan = command.resume, Plan.read(command.resume, own)
    else:
        first = command.run.seed
        plan = Plan(name, command.run, tuple(range(first, first + command.seeds)), line)
        base = command.out or _free_folder(Path("runs") / f"{name}-speedrun")
        plan.begin(base)
    out = console(needed=False)
    out.print(f"speedrun of {plan.preset} in {base}; if it is stopped: spikerate speedrun --resume {shlex.quote(str(base))}")
    try:
        folders = plan.perform(base, Terminal(out), command.save_minutes)
    except ValueError:
        if isinstance(command, Speedrun):
            plan.withdraw(base)  # so that the command can be given again, with what was wrong in it mended
        raise
    for found in rows(plan, folders):
        views.show_record(out, found)
        out.print(markdown(found), soft_wrap=True)
    for reason in against_rules(plan, folders):
        out.print(f"not for the table of records: {reason}", soft_wrap=True)
    return 0


def _reproduce(asked: tuple[Own, Reproduce], line: str) -> int:
    own, command = asked
    original = RunFolder.open(command.run, own)
    path = command.out or _free_folder(command.run.with_name(f"{command.run.name}-again"))
    repetitions = rounds.reproduce(original, path, line, command.data, command.init, _terminal())
    for repetition in repetitions:
        views.show_repetition(console(needed=False), repetition)
    return int(not all(repetition.agrees for repetition in repetitions))


def _terminal(logs: bool = False) -> Terminal:
    """The audience of a run; only rank 0 prints, and training continues if the output can't be written."""
    first = ranks_from_environment().first
    return Terminal(console(quiet=not first, needed=False), first, logs)


def _free_folder(path: Path) -> Path:
    """The path, followed by a number if it exists; if torchrun has restarted the command, the last existing one."""
    k, free, taken = 1, path, path
    while is_there(free):
        k, taken = k + 1, free
        free = path.with_name(f"{path.name}-{k}")
    return taken if restarted() else free


# eval, report, gradient, predict, export, bench, fetch, check ----------------------------------------------------------


def _eval(asked: tuple[Own, Eval], line: str) -> int:
    own, command = asked
    record, out = RunFolder.open(command.run, own).record(), console()
    audience = Terminal(out)
    run, T = settings_again(record, audience, command.data), command.T
    device = pick_device(command.device)
    data = load_data_again(run, record, audience)
    _check_steps(run, T)
    network = build_network(run, len(data.classes), data.shape, device)
    record.folder.load_weights(command.weights, network)
    if command.fold:
        whole, network = network.eval(), fold_batch_norm(network)
        differ, places = different_spikes(whole, network, data, run, T, WaitingBar(out))
        out.print(f"batch norm folded: {differ:,} of {places:,} spikes differ")
    run = replace(run, averaging=command.averaging or run.averaging)
    measured = measure(network, data, run, T=T, track=WaitingBar(out), check_finite=command.check_finite)
    out.print(f"{record.folder.path}, {command.weights}.safetensors, {data.name}")
    views.show_measured(out, network, measured, run)
    return 0


def _report(command: Report, line: str) -> int:
    from spikerate.report.gather import gather  # here, since matplotlib takes half a second to import
    from spikerate.report.page import check_place, write

    file = command.out or (command.runs[0] if len(command.runs) == 1 else Path()) / "report.html"
    check_place(file)
    report = gather(command.runs)
    write(report, file)
    out = console()
    for note in report.notes:
        out.print(note)
    out.print(f"the report is {file}: open it in a browser")
    return 0


def _check_steps(run: Run, T: int | None) -> None:
    if T is not None and T > 1 and not run.spiking:
        raise ValueError(f"T is {T}, but the network is an ANN, which has no time steps: leave --T out")
    if T is not None and T > run.T and entry_of(run.data).recorded:
        raise ValueError(f"T is {T}, but the recordings were cut into {run.T} frames for this run: give at most {run.T}")


def _gradient(asked: tuple[dict[str, str], Gradient], line: str) -> int:
    from spikerate.cli.plots import draw_gradients  # here, since matplotlib takes half a second to import

    chosen, command = asked
    name, place = command.network, Path(command.network)
    record = RunFolder.open(place, own_again(chosen)).record() if place.is_dir() else None
    out = console()
    audience = Terminal(out)
    run = settings_again(record, audience, command.data) if record else _fresh(command, chosen)
    if not run.spiking:
        raise ValueError(f"{name} is an ANN, which has no spikes: give a spiking network")
    _check_steps(run, command.T)
    path = command.out or _free_folder(place / "gradient" if record else Path("runs") / f"{name}-gradient")
    check_free(path)
    device, T = pick_device(command.device), command.T or run.T
    data = load_data_again(run, record, audience) if record else load_data(run, audience)
    torch.manual_seed(run.seed)
    network = build_network(run, len(data.classes), data.shape, device)
    if record:
        record.folder.load_weights(command.weights, network)
    found = measure_gradients(network, data, run, command.how, T, WaitingBar(out))
    weights = command.weights if record else "fresh"
    told = {
        "network": name,
        "weights": weights,
        "T": T,
        **asdict(command.how),
        "layers": [asdict(layer) for layer in found],
        "command": line,
        "made": environment.now(),
        "device": str(device),
        "run": encode(run),
        "data": {"sha256": data_card(data)["sha256"]},
        "source": environment.source(),
        "environment": environment.card(),
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "gradient.json", told)
        draw_gradients(found, path / "gradient.svg")
    finally:
        out.print(f"{name}, {weights} weights, {command.how.samples} samples of {data.name}, T = {T}")
        views.show_gradients(out, found)
    out.print(f"figure and numbers are in {path}")
    return 0


def _fresh(command: Gradient, chosen: Mapping[str, str]) -> Run:
    """The run of a preset, with the number of time steps and the kinds of parts that are asked for."""
    try:
        run = preset(command.network).run
    except ValueError as error:
        raise ValueError(f"{command.network} is no folder, and {error}") from None
    run = with_kinds(run, chosen)
    return replace(run, T=command.T or run.T, data=replace(run.data, path=command.data or run.data.path))


def _predict(asked: tuple[Own, Predict], line: str) -> int:
    own, command = asked
    record, out = RunFolder.open(command.run, own).record(), console()
    note_doubt(record, Terminal(out))
    files, notes = sample_files(command.files, record.run.data)
    for note in notes:
        out.print(note)
    answers = predict(record, files, command.weights, pick_device(command.device), command.check_finite)
    done: list[Prediction] = []
    try:
        for answer in WaitingBar(out)(answers, "classifying files", len(files)):
            done.append(answer)
    finally:
        views.show_predictions(out, done)
    return 0


def _export(asked: tuple[Own, Export], line: str) -> int:
    (own, command), out = asked, console()
    check_target(command.file)
    record = RunFolder.open(command.run, own).record() if command.run.is_dir() else None
    trained = Trained.of_run(record, command.weights) if record else read_trained(command.run, command.weights, own)
    if record:
        note_doubt(record, Terminal(out))
    export(trained, command.file)
    views.show_export(out, trained, command.file)
    return 0


def _bench(command: Bench, line: str) -> int:
    from spikerate.cli.plots import draw_bench  # here, since matplotlib takes half a second to import

    setting = command.of
    ways = both_ways(setting) if command.both else (setting,)
    commands = cells(command.methods, command.T, *ways) | peer_cells(command.peers, command.T, *ways)
    firsts = cells(command.first_use, command.T, ways[0])
    path = command.out or _free_folder(Path("runs") / f"bench-{environment.now()[:10]}-{platform.node()}")
    check_free(path)
    device = pick_device(setting.device)
    if setting.threads:
        torch.set_num_threads(setting.threads)
    out = console(needed=False)
    out.print(f"{len(commands)} measurements on {device}, {torch.get_num_threads()} threads; only one runs at a time")
    peak = roofline(device, setting.precision)
    outcomes = measure_cells(commands, command.steps, out.print, WaitingBar(out))
    first = first_uses(firsts, out.print, WaitingBar(out)) if firsts else []
    record = {
        "command": line,
        "made": environment.now(),
        "device": str(device),
        "steps": command.steps,
        "setting": encode(setting),
        "roofline": asdict(peak),
        "both": command.both,
        "cells": [outcome.record() for outcome in outcomes],
        "first_use": [use.record() for use in first],
        "source": environment.source(),
        "environment": environment.card(),
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "bench.json", record)
        draw_bench(outcomes, path / "bench.svg")
    finally:
        views.show_bench(out, outcomes, peak, first)
    out.print(f"figure and numbers are in {path}")
    return _tell_dead(outcomes)


def _tell_dead(outcomes: Sequence[Outcome]) -> int:
    """Report the measurements that failed; returns the exit status."""
    dead = [outcome for outcome in outcomes if outcome.died]
    for outcome in dead:
        complain(f"{outcome.cell} died: {outcome.died}")
    return int(len(dead) > 0)


def _fetch(command: Fetch, line: str) -> int:
    out, source = console(), SOURCES[command.name]
    for url in source.files:
        out.print(f"{url} -> {command.to}")
    with TransferBar(out) as bar:
        folder = fetch(source, command.to, bar)
    out.print(f"complete and verified: {folder}")
    return 0


def _check(asked: tuple[dict[str, str], Check], line: str) -> int:
    chosen, command = asked
    torch.manual_seed(command.seed)
    of = subject(command.network, Wanted(command.T, command.shape, command.classes), chosen)
    found = check(of.network, of.noise(command.batch))
    views.show_check(console(), of, found)
    return int(not found.fine)


# show, list, doctor ----------------------------------------------------------------------------------------------------


def _show(command: Show, line: str) -> int:
    views.show_preset(console(), command.preset, preset(command.preset))
    return 0


def _list(command: Bare, line: str) -> int:
    views.show_presets(console())
    return 0


def _doctor(command: Bare, line: str) -> int:
    views.show_machine(console(), pick_device("auto"))
    return 0


_TRAIN = {
    "[PRESET] [--field value ...]": "train a network; without a preset, digits-esd (built-in data, under two minutes)",
    "--resume RUN": "continue a run that was stopped",
    "PRESET --init RUN": "train from the weights of another run, with other settings or classes",
}
COMMANDS: dict[str, Command[Any]] = {
    "train": Command(read_train, _train, _TRAIN),
    "speedrun": Command(
        read_speedrun,
        _speedrun,
        {
            "[PRESET] [--seeds N]": "train a recipe with N seeds, and print its line for the table of records",
            "--resume FOLDER": "continue a speedrun that was stopped",
        },
    ),
    "eval": Command(
        partial(read_again, Eval), _eval, {"RUN": "accuracy after each time step, firing rates and energy on the test set"}
    ),
    "report": Command(partial(parse, Report), _report, {"RUN ...": "one HTML page about a run, or several side by side"}),
    "predict": Command(
        partial(read_again, Predict),
        _predict,
        {"RUN FILE|FOLDER ...": "classify images or recordings by a trained network"},
    ),
    "export": Command(
        partial(read_again, Export),
        _export,
        {"RUN FILE": "export the trained network as .nir, .pt2, .onnx, or its weights as .safetensors"},
    ),
    "gradient": Command(
        read_gradient,
        _gradient,
        {"RUN|PRESET": "measure how well gradients agree in each layer, and draw a figure"},
    ),
    "check": Command(
        read_check,
        _check,
        {"PACKAGE.MODULE:NAME|NETWORK|PRESET|RUN": "go through a network once: what each operation is, and what is wrong"},
    ),
    "bench": Command(partial(parse, Bench), _bench, {"": "measure the cost of a training step, by method and T"}),
    "reproduce": Command(
        partial(read_again, Reproduce), _reproduce, {"RUN": "train it again, and check whether every metric agrees"}
    ),
    "fetch": Command(partial(parse, Fetch), _fetch, {"DATA FOLDER": "download a data set, check it, and unpack it there"}),
    "list": Command(partial(parse, Bare), _list, {"": "the presets"}),
    "show": Command(partial(parse, Show), _show, {"PRESET": "a preset's settings and network"}),
    "doctor": Command(partial(parse, Bare), _doctor, {"": "show the installed software, the hardware and what it supports"}),
}
"""All commands by name. To add one, add an entry here; usage and hints follow from it."""
