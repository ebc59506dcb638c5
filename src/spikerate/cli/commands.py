"""The commands: each takes its options, calls the library, and shows what came of it; and the table of them all."""

from __future__ import annotations

import contextlib
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch

from spikerate.bench.compare import Outcome, cells, peer_cells
from spikerate.bench.compare import measure as measure_cells
from spikerate.bench.roofline import roofline
from spikerate.cli import tensorboard, views
from spikerate.cli.arguments import (
    Bare,
    Bench,
    Eval,
    Export,
    Fetch,
    Gradient,
    Options,
    Predict,
    Report,
    Reproduce,
    Resume,
    Show,
    Train,
    parse,
    read_train,
)
from spikerate.cli.console import TransferBar, WaitingBar, complain, console
from spikerate.cli.live import TrainingView, Watches
from spikerate.data import SETS, SOURCES, DataSet, fetch, keeps_caches, load, sample_files, steps_per_epoch
from spikerate.exchange.export import check_target, export
from spikerate.exchange.predict import Prediction, predict
from spikerate.exchange.start import Start
from spikerate.exchange.trained import read_trained
from spikerate.models import fold_batch_norm
from spikerate.runs.config import Run, encode
from spikerate.runs.experiment import (
    begin,
    check_fits,
    check_shared,
    data_card,
    different_spikes,
    measure,
    measure_gradients,
    perform,
    use_threads_of,
)
from spikerate.runs.presets import headline, preset
from spikerate.runs.record import RunFolder, check_free, check_name, sole_writer
from spikerate.runs.train import build_network, pick_device
from spikerate.system import environment
from spikerate.system.dist import Ranks, process_group, ranks_from_environment, restarted
from spikerate.system.files import inside, is_there, write_json
from spikerate.system.interrupt import Interrupt, Interrupted


@dataclass(frozen=True)
class Command(Generic[Options]):
    """A command of `spikerate`.

    Attributes:
        read: the words after its name, and "spikerate NAME" -> its options; raises `ValueError` with one sentence.
        perform: its options, and the whole command line, which records keep -> the exit status.
        usage: what can follow its name -> what it does then, in one line.
    """

    read: Callable[[list[str], str], Options]
    perform: Callable[[Options, str], int]
    usage: dict[str, str]


# train, reproduce ------------------------------------------------------------------------------------------------------


def _train(asked: tuple[str, Train] | Resume, line: str) -> int:
    if isinstance(asked, Resume):
        return _resume(asked)
    name, command = asked
    about: dict[str, Any] = {"preset": name, "command": line}
    start = Start.read(command.init) if command.init else None
    if command.tensorboard:
        tensorboard.check_installed("leave --tensorboard out")
    if command.seeds > 1:
        return _train_seeds(name, command, about, start)
    path = command.out or _free_folder(Path("runs") / f"{name}-seed{command.run.seed}")
    _check_free(path)
    with _joined(command.run) as ranks:
        data = _load(command.run, ranks)
        check_fits(command.run, data, ranks)
        about |= _init(start, command.run, data, ranks)
        with _writing(path, ranks):
            folder = begin(path, command.run, data, about, ranks)
            _log(folder, command.tensorboard, ranks)
            _perform(name, command.run, data, folder, command.save_minutes, ranks, start=start)
    return 0


def _init(start: Start | None, run: Run, data: DataSet, ranks: Ranks = Ranks()) -> dict[str, Any]:
    """The entry of `run.json` on the weights to start from; says what of the network stays fresh."""
    if start is None:
        return {}
    with torch.device("meta"):
        network = run.rounds[0].build(len(data.classes), data.shape)
    record = start.onto(data.classes).record(network)
    fresh = f"; fresh: {', '.join(record['fresh'])}" if record["fresh"] else ""
    console(quiet=not ranks.first).print(f"starting from the weights of {start.path}{fresh}")
    return {"init": record}


def _train_seeds(name: str, command: Train, about: dict[str, Any], start: Start | None) -> int:
    """One run for each seed, in turn; each process that torchrun has started takes its share of them."""
    ranks, first = ranks_from_environment(), command.run.seed
    seeds = range(first, first + command.seeds)
    base = command.out or Path("runs") / f"{name}-seeds{first}-{seeds[-1]}"
    check_name(base)
    for seed in seeds[ranks.rank :: ranks.n]:
        run, path = replace(command.run, seed=seed), inside(base, f"seed{seed}")
        then = RunFolder(path).about().get("init") if RunFolder(path).stands else None
        if RunFolder(path).stands and (
            RunFolder(path).config() != run or (then or {}).get("sha256") != (start.sha256 if start else None)
        ):
            raise ValueError(f"{path} holds a run of other settings: choose another folder by --out")
        if RunFolder(path).result():
            continue
        data, alone = _load(run), Ranks(local=ranks.local)
        check_fits(run, data)
        about |= _init(start, run, data)
        with _writing(path):
            folder = RunFolder(path) if RunFolder(path).stands else begin(path, run, data, about)
            _log(folder, command.tensorboard)
            _perform(f"{name}, seed {seed}", run, data, folder, command.save_minutes, alone, about["command"], start)
    results = {seed: RunFolder(base / f"seed{seed}").result() for seed in seeds}
    if all(results.values()):
        views.show_seeds(console(needed=False), results, base)
    return 0


def _resume(command: Resume) -> int:
    folder = _whole(RunFolder.open(command.resume))
    folder.check_settings()
    run = _run_of(folder, command.data, command.device)
    log = inside(folder.path, tensorboard.FOLDER)
    if command.tensorboard or log.is_dir():
        tensorboard.check_installed(f"remove {log}" if log.is_dir() else "leave --tensorboard out")
    with _joined(run) as ranks:
        use_threads_of(folder)
        data = _load_again(run, folder, ranks)
        with _writing(folder.path, ranks):
            about = folder.about()
            with ranks.barrier():
                if ranks.first:
                    now = {"at": environment.now(), "environment": environment.card()}
                    folder.amend(resumed=[*(about.get("resumed") or []), now])
            check_shared(folder.path, ranks)
            _log(folder, command.tensorboard, ranks)
            begun = folder.rounds(run)[0][1].has_state
            start = Start.again(about["init"]) if about.get("init") and not begun else None
            _perform(str(about.get("preset", folder.path)), run, data, folder, command.save_minutes, ranks, start=start)
    return 0


def _reproduce(command: Reproduce, line: str) -> int:
    original = RunFolder.open(command.run)
    if _whole(original) != original:
        raise ValueError(f"{command.run} is one round of a run: give the folder of the run, {_whole(original).path}")
    if not original.result():
        raise ValueError(f"{command.run} is not finished: spikerate train --resume {shlex.quote(str(command.run))} first")
    original.check_settings()
    run = _run_of(original, command.data, None)
    path = command.out or _free_folder(command.run.with_name(f"{command.run.name}-again"))
    _check_free(path)
    then = original.about()
    start = Start.again(then["init"], command.init) if then.get("init") else None
    about = {"preset": then.get("preset"), "command": line}
    about["repeats"] = then.get("repeats") or then.get("command")
    with _joined(run) as ranks:
        use_threads_of(original)
        data = _load_again(run, original, ranks)
        check_fits(run, data, ranks)
        about |= _init(start, run, data, ranks)
        with _writing(path, ranks):
            again = begin(path, run, data, about, ranks)
            _perform(f"{command.run} again", run, data, again, 10, ranks, start=start)
        if not ranks.first:
            return 0
        pairs = zip(original.rounds(run), again.rounds(run), strict=True)
        agree = [views.show_comparison(console(needed=False), then, now) for (_, then), (_, now) in pairs]
        return int(not all(agree))


def _log(folder: RunFolder, wanted: bool, ranks: Ranks = Ranks()) -> None:
    """Have a run log for TensorBoard: one that has the folder for it does, in all of its rounds."""
    if wanted and ranks.first:
        inside(folder.path, tensorboard.FOLDER).mkdir(exist_ok=True)


def _whole(folder: RunFolder) -> RunFolder:
    """The folder of the whole run, given that or one of its rounds'."""
    return RunFolder.open(folder.path.absolute().parent) if "round" in folder.about() else folder


@contextlib.contextmanager
def _joined(run: Run) -> Iterator[Ranks]:
    """The ranks, connected, which have the same settings and the same code."""
    launched_here = ranks_from_environment()
    if run.batch // run.accumulate < 2 * launched_here.n:
        raise ValueError(
            f"batch is {run.batch} with accumulate={run.accumulate} on {launched_here.n} ranks: "
            "batch norm needs two images at least in each part on each rank"
        )
    gpu = pick_device(run.device, launched_here.local).type == "cuda"
    with process_group(gpu, slow_start=run.compile) as ranks:
        anywhere = replace(run, data=replace(run.data, path=None, cache=None, workers=None))  # hosts may differ in places
        ranks.check_same({**environment.versions(), "code": environment.source(), "run": encode(anywhere)})
        yield ranks


def _load(run: Run, ranks: Ranks = Ranks()) -> DataSet:
    """Rank 0 reads first: it makes the cache that the others find. All have read the same."""
    out = console(quiet=not ranks.first, needed=False)
    with ranks.barrier():
        found = load(run.data, run.T, WaitingBar(out)) if ranks.first else None
    with ranks.barrier():
        data = found or load(run.data, run.T, WaitingBar(out))
    ranks.check_same(
        {"data": data_card(data) | {"skipped": len(data.skipped), "notes": len(data.notes)}}
    )  # these name places
    for note in data.notes:
        out.print(note)
    for reason in data.skipped[:3]:
        out.print(f"left out: {reason}")
    if data.skipped:
        out.print(f"{len(data.skipped)} broken files in all were left out")
    return data


def _load_again(run: Run, folder: RunFolder, ranks: Ranks = Ranks()) -> DataSet:
    """The data of a run that there is already: the same files, or the parts would be others."""
    data, then = _load(run, ranks), folder.about()["data"].get("sha256")
    now = data_card(data)["sha256"]
    then = then if isinstance(then, dict) else {}
    differing = [name for name in (then or now) if then.get(name) != now.get(name)]
    if differing:
        raise ValueError(
            f"the data set is not the one that {folder.path} was begun with: its checksums differ ({', '.join(differing)})"
        )
    for name in now.keys() - then.keys():
        told = f"note: the record of {folder.path} has no checksum of the data's {name}: they may be others"
        console(quiet=not ranks.first).print(told)
    return data


def _writing(path: Path, ranks: Ranks = Ranks()) -> AbstractContextManager[None]:
    """Only one command at a time writes into a run folder; rank 0 holds it for all."""
    return sole_writer(path, console().print) if ranks.first else nullcontext()


def _note_doubt(folder: RunFolder) -> None:
    if folder.doubt:
        console(quiet=not ranks_from_environment().first).print(f"note: {folder.doubt}")


def _run_of(folder: RunFolder, data: Path | None, device: str | None) -> Run:
    """The settings of a run that there is already, with its data or the device in another place."""
    run, out = folder.config(), console(quiet=not ranks_from_environment().first)
    _note_doubt(folder)
    if run.data.cache and not keeps_caches(run.data.cache):
        # The record may be a stranger's, who could have named any folder of the user's.
        out.print(f"there is no cache in {run.data.cache}, which the run names: one is kept in the user's cache folder")
        run = replace(run, data=replace(run.data, cache=None))
    run = replace(run, data=replace(run.data, path=data)) if data else run
    return replace(run, device=device) if device else run


def _perform(
    name: str,
    run: Run,
    data: DataSet,
    folder: RunFolder,
    save_minutes: float,
    ranks: Ranks,
    again: str | None = None,
    start: Start | None = None,
) -> None:
    """All rounds of a run, from where their folders stand, the first one from `start`; `data` are cut for its last one."""
    out = console(quiet=not ranks.first, needed=False)
    out.print(": ".join(filter(None, (name, headline(name, run)))), style="bold")
    again = again or f"spikerate train --resume {shlex.quote(str(folder.path))}"
    about = {entry: value for entry, value in folder.about().items() if entry in ("preset", "command", "repeats")}
    rounds, frames = folder.rounds(run), run.T
    before: Start | RunFolder | None = start.onto(data.classes) if start else None
    logged = inside(folder.path, tensorboard.FOLDER).is_dir() and ranks.first
    try:
        for k, (own, place) in enumerate(rounds, 1):
            title, stands = f"round {k} of {len(rounds)}" if run.before else "", ranks.broadcast(place.stands)
            over = stands == "finished" and place != folder
            if stands:
                place.check_settings()
            if title:
                out.print(f"{title}: {own.in_words}{', finished' if over else ''}", style="bold")
            if not over:
                if SETS[run.data.name].kind == "events" and frames != own.T:
                    data, frames = _load(own, ranks), own.T
                if not stands:
                    begin(place.path, own, data, about | {"round": title}, ranks)
                stop = _perform_round(own, data, place, save_minutes, ranks, before, title, logged, place == folder)
                if place != folder and ranks.all_max(int(stop.asked)):
                    raise Interrupted(stop.signal)
            before = place
    except Interrupted as stopped:
        out.print(f"stopped ({stopped}), and saved; go on by: {again}")
        raise
    if run.before and ranks.first:
        views.show_rounds(out, rounds)


def _perform_round(
    run: Run,
    data: DataSet,
    folder: RunFolder,
    save_minutes: float,
    ranks: Ranks,
    start: Start | RunFolder | None,
    title: str,
    logged: bool,
    last: bool,
) -> Interrupt:
    """One round, or the whole of a run without rounds before; returns whether it was asked to stop meanwhile."""
    out = console(quiet=not ranks.first, needed=False)
    out.print(
        f"{len(data.train):,} samples to train on, {len(data.validation):,} for validation, {len(data.test):,} to test; "
        f"{run.in_words} of {run.batch} samples a batch, on {pick_device(run.device, ranks.local)}"
        + (f", {ranks.n} ranks" if ranks.n > 1 else ""),
    )
    steps, rows = steps_per_epoch(data.train, run.batch), folder.rows() if ranks.first else []
    view = TrainingView(out, run, steps, title, rows)
    with Interrupt() as stop, view, ExitStack() as files:
        log = [files.enter_context(tensorboard.Board(folder.path / tensorboard.FOLDER, steps, rows))] if logged else []
        state, measured = perform(run, data, folder, Watches([view, *log]), ranks, stop, save_minutes, view.wait, start)
    views.show_result(out, run, folder, state, measured, last)
    return stop


def _free_folder(path: Path) -> Path:
    """The path, or with a number behind; the last one taken where torchrun has started the same command again."""
    k, free, taken = 1, path, path
    while is_there(free):
        k, taken = k + 1, free
        free = path.with_name(f"{path.name}-{k}")
    return taken if restarted() else free


def _check_free(path: Path) -> None:
    """Before the data is read; the other ranks may come when rank 0 has made the folder."""
    if ranks_from_environment().first and not restarted():
        check_free(path)


# eval, report, gradient, predict, export, bench, fetch -----------------------------------------------------------------


def _eval(command: Eval, line: str) -> int:
    folder = RunFolder.open(command.run)
    run, T = _run_of(folder, command.data, None), command.T
    device = pick_device(command.device)
    data = _load_again(run, folder)
    _check_steps(run, T)
    network = build_network(run, len(data.classes), data.shape, device)
    folder.load_weights(command.weights, network)
    out = console()
    if command.fold:
        whole, network = network.eval(), fold_batch_norm(network)
        differ, places = different_spikes(whole, network, data, run, T, WaitingBar(out))
        out.print(f"batch norm folded: {differ:,} of {places:,} spikes differ")
    measured = measure(network, data, run, T=T, track=WaitingBar(out), check_finite=command.check_finite)
    out.print(f"{folder.path}, {command.weights}.safetensors, {data.name}")
    views.show_measured(out, network, measured, run)
    return 0


def _report(command: Report, line: str) -> int:
    from spikerate.report.gather import check_place, gather, write  # here, since matplotlib takes half a second to import

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
    if T is not None and T > run.T and SETS[run.data.name].kind == "events":
        raise ValueError(f"T is {T}, but the recordings were cut into {run.T} frames for this run: give {run.T} at most")


def _gradient(command: Gradient, line: str) -> int:
    from spikerate.cli.plots import draw_gradients  # here, since matplotlib takes half a second to import

    name, place = command.network, Path(command.network)
    folder = RunFolder.open(place) if place.is_dir() else None
    run = _run_of(folder, command.data, None) if folder else _fresh(command)
    if not run.spiking:
        raise ValueError(f"{name} is an ANN, which has no spikes: give a spiking network")
    _check_steps(run, command.T)
    path = command.out or _free_folder(place / "gradient" if folder else Path("runs") / f"{name}-gradient")
    _check_free(path)
    device, T = pick_device(command.device), command.T or run.T
    data = _load_again(run, folder) if folder else _load(run)
    torch.manual_seed(run.seed)
    network = build_network(run, len(data.classes), data.shape, device)
    if folder:
        folder.load_weights(command.weights, network)
    out = console()
    found = measure_gradients(network, data, run, command.how, T, WaitingBar(out))
    weights = command.weights if folder else "fresh"
    record = {
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
        write_json(path / "gradient.json", record)
        draw_gradients(found, path / "gradient.svg")
    finally:
        out.print(f"{name}, {weights} weights, {command.how.samples} samples of {data.name}, T = {T}")
        views.show_gradients(out, found)
    out.print(f"figure and numbers are in {path}")
    return 0


def _fresh(command: Gradient) -> Run:
    """The run of a preset, for so many time steps as are asked for."""
    try:
        run = preset(command.network).run
    except ValueError as error:
        raise ValueError(f"{command.network} is no folder, and {error}") from None
    return replace(run, T=command.T or run.T, data=replace(run.data, path=command.data or run.data.path))


def _predict(command: Predict, line: str) -> int:
    folder = RunFolder.open(command.run)
    _note_doubt(folder)
    files, notes = sample_files(command.files, folder.config().data)
    out = console()
    for note in notes:
        out.print(note)
    answers = predict(folder, files, command.weights, pick_device(command.device), command.check_finite)
    done: list[Prediction] = []
    try:
        for answer in WaitingBar(out)(answers, "looking at files", len(files)):
            done.append(answer)
    finally:
        views.show_predictions(out, done)
    return 0


def _export(command: Export, line: str) -> int:
    check_target(command.file)
    trained = read_trained(command.run, command.weights)
    if command.run.is_dir():
        _note_doubt(RunFolder(command.run))
    export(trained, command.file)
    views.show_export(console(), trained, command.file)
    return 0


def _bench(command: Bench, line: str) -> int:
    from spikerate.cli.plots import draw_bench  # here, since matplotlib takes half a second to import

    setting = command.of
    commands = cells(command.methods, command.T, setting) | peer_cells(command.peers, command.T, setting)
    path = command.out or _free_folder(Path("runs") / f"bench-{environment.now()[:10]}-{platform.node()}")
    _check_free(path)
    device = pick_device(setting.device)
    if setting.threads:
        torch.set_num_threads(setting.threads)
    out = console(needed=False)
    out.print(f"{len(commands)} cells on {device}, {torch.get_num_threads()} threads; only one works at a time")
    peak = roofline(device, setting.precision)
    outcomes = measure_cells(commands, command.steps, out.print, WaitingBar(out))
    record = {
        "command": line,
        "made": environment.now(),
        "device": str(device),
        "steps": command.steps,
        "setting": encode(setting),
        "roofline": asdict(peak),
        "cells": [outcome.record() for outcome in outcomes],
        "source": environment.source(),
        "environment": environment.card(),
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "bench.json", record)
        draw_bench(outcomes, path / "bench.svg")
    finally:
        views.show_bench(out, outcomes, peak)
    out.print(f"figure and numbers are in {path}")
    return _tell_dead(outcomes)


def _tell_dead(outcomes: Sequence[Outcome]) -> int:
    """The exit status: whether a cell died."""
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
    out.print(f"checked and whole: {folder}")
    return 0


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
    "PRESET --init RUN": "train on from the weights of another run, with other settings or classes",
}
COMMANDS: dict[str, Command[Any]] = {
    "train": Command(read_train, _train, _TRAIN),
    "eval": Command(
        partial(parse, Eval), _eval, {"RUN": "accuracy, also against time steps, and firing rates on the test set"}
    ),
    "report": Command(partial(parse, Report), _report, {"RUN ...": "one HTML page of a run, or of several side by side"}),
    "predict": Command(
        partial(parse, Predict), _predict, {"RUN FILE|FOLDER ...": "classes of images or recordings by a trained network"}
    ),
    "export": Command(
        partial(parse, Export),
        _export,
        {"RUN FILE": "the trained network as .nir, .pt2, .onnx, or its weights alone as .safetensors"},
    ),
    "gradient": Command(
        partial(parse, Gradient),
        _gradient,
        {"RUN|PRESET": "how well gradients agree in each layer, trained or fresh, and a figure of it"},
    ),
    "bench": Command(partial(parse, Bench), _bench, {"": "what a training step costs here, by method and time steps"}),
    "reproduce": Command(
        partial(parse, Reproduce), _reproduce, {"RUN": "run it again, and say whether every metric agrees"}
    ),
    "fetch": Command(partial(parse, Fetch), _fetch, {"DATA FOLDER": "download a data set, check it, and unpack it there"}),
    "list": Command(partial(parse, Bare), _list, {"": "the presets"}),
    "show": Command(partial(parse, Show), _show, {"PRESET": "a preset's settings and network"}),
    "doctor": Command(partial(parse, Bare), _doctor, {"": "what is installed here, and what it can do"}),
}
"""Every command by its name: a new one is an entry here, and the usage and the hints follow."""
