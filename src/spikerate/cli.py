"""The command line: `spikerate train | eval | reproduce | fetch | list | show | doctor`."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro
from rich.console import Console
from tyro.conf import AvoidSubcommands, Positional, arg

from spikerate import card
from spikerate.config import Run, encode
from spikerate.console import TrainingBar, TransferBar, table
from spikerate.data import SHAPES, SOURCES, ImageSet, fetch, load, steps_per_epoch
from spikerate.dist import LostRank, Ranks, joined, of_launcher, restarted
from spikerate.evaluate import Accuracy
from spikerate.experiment import Measured, begin, data_card, measure, perform, use_threads_of
from spikerate.guard import NotFinite
from spikerate.interrupt import Interrupt, Interrupted
from spikerate.models import Branched, stage_shapes
from spikerate.presets import PRESETS, preset
from spikerate.record import RunFolder, SaveError, check_free, compare
from spikerate.state import State
from spikerate.train import build_network, pick_device

Command = TypeVar("Command")

_COMMANDS = ("train", "eval", "reproduce", "fetch", "list", "show", "doctor")

_USAGE = """usage: spikerate COMMAND ...

  train [PRESET] [--field value ...]   train a network; without a preset, digits-esd (built-in data, under two minutes)
  train --resume RUN                   continue a run that was stopped
  eval RUN                             accuracy and firing rates of a trained network on the test set
  reproduce RUN                        run it again, and say whether every metric agrees
  fetch DATA FOLDER                    download a data set, check it, and unpack it there
  list                                 the presets
  show PRESET                          a preset's settings and network
  doctor                               what is installed here, and what it can do

spikerate COMMAND --help tells more."""


@dataclass(frozen=True)
class Train:
    """Train a network by the settings of a preset, and keep the run in a folder."""

    run: Annotated[Run, arg(name="")]
    out: Path | None = None
    """folder of the run; runs/PRESET-seedN by default, with a number behind where that is taken"""
    seeds: int = 1
    """run so many seeds, from run.seed on, and report mean and deviation; the same command again goes on where it stopped"""
    save_minutes: float = 10
    """a checkpoint at least so often; there is one after every epoch"""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}: give a number of runs >= 1")


@dataclass(frozen=True)
class Resume:
    """Continue a run that was stopped, from its last checkpoint."""

    resume: Path
    """folder of the run"""
    data: Path | None = None
    """folder of the data set, where it has moved"""
    device: str | None = None
    """another device than before"""
    save_minutes: float = 10
    """a checkpoint at least so often; there is one after every epoch"""


@dataclass(frozen=True)
class Reproduce:
    """Run a finished run again, and say whether every metric agrees."""

    run: Positional[Path]
    """folder of the run"""
    data: Path | None = None
    """folder of the data set, where it has moved"""
    out: Path | None = None
    """folder of the new run; RUN-again by default"""


@dataclass(frozen=True)
class Eval:
    """Accuracy and firing rates of a trained network on the test set."""

    run: Positional[Path]
    """folder of the run"""
    weights: Literal["best", "last"] = "best"
    """best: of the epoch with the highest held-out accuracy; last: of the last epoch"""
    data: Path | None = None
    """folder of the data set, where it has moved"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class Fetch:
    """Download a data set's official archive, check its checksum, and unpack it; goes on where a transfer broke."""

    name: Positional[Literal["cifar10"]]
    """the data set"""
    to: Positional[Path]
    """the folder to put it in"""


@dataclass(frozen=True)
class Show:
    """A preset's settings and network."""

    preset: Positional[str]
    """name of the preset"""


@dataclass(frozen=True)
class Bare:
    """No options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 after bad input, 130 and 143 when stopped, 1 when training fails."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except Interrupted as stopped:
        return stopped.status
    except (NotFinite, LostRank) as error:
        print(f"spikerate: {error}", file=sys.stderr)
        return 1
    except (ValueError, SaveError) as error:
        print(f"spikerate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"spikerate: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        print("spikerate: there is not enough memory: a smaller --batch, --width or --T takes less", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("spikerate: interrupted", file=sys.stderr)
        return 130


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    name, rest = args[0], args[1:]
    if name == "--version":
        print(f"spikerate {version('spikerate')}")
    elif name == "train" and any(word.partition("=")[0] == "--resume" for word in rest):
        _resume(rest)
    elif name == "train":
        chosen = rest.pop(0) if rest and not rest[0].startswith("-") else "digits-esd"
        _train(chosen, rest, args)
    elif name == "reproduce":
        return _reproduce(rest, args)
    elif name == "eval":
        _eval(_parse(Eval, rest, "spikerate eval"))
    elif name == "fetch":
        _fetch(_parse(Fetch, rest, "spikerate fetch"))
    elif name == "show":
        _show(_parse(Show, rest, "spikerate show").preset)
    elif name == "list":
        _parse(Bare, rest, "spikerate list")
        _list()
    elif name == "doctor":
        _parse(Bare, rest, "spikerate doctor")
        _doctor()
    else:
        near = difflib.get_close_matches(name, _COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(_COMMANDS)}"
        raise ValueError(f"there is no command {name!r}: {hint}")
    return 0


def _parse(kind: type[Command], args: list[str], prog: str, default: Command | None = None) -> Command:
    """Fill a dataclass from the command line; `ValueError` with one sentence where that can't be done."""
    told = io.StringIO()
    given: Any = tyro.MISSING_NONPROP if default is None else default
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(kind, prog=prog, args=args, default=given, config=(AvoidSubcommands,))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(_sentence(told.getvalue(), prog)) from None


def _sentence(box: str, prog: str) -> str:
    """What tyro says in a box, as one sentence."""
    words = [line.strip("│╭╮╰╯─ ").strip() for line in box.splitlines()[1:]]
    kept: list[str] = []
    for line in words:
        if line.startswith(("Argument helptext", "For full helptext")):
            break
        kept += [line] if line.strip("-") else []
    sentence = " ".join(kept).replace(" Perhaps you meant:", "; perhaps you meant")
    return re.sub(r"^Error parsing run[\w.]*: ", "", sentence) + f" ({prog} --help shows all)"


# train, reproduce ------------------------------------------------------------------------------------------------------


def _train(name: str, rest: list[str], args: list[str]) -> None:
    command = _parse(Train, rest, f"spikerate train {name}", Train(preset(name)))
    about = {"preset": name, "command": shlex.join(["spikerate", *args])}
    if command.seeds > 1:
        return _train_seeds(name, command, about)
    path = command.out or _free_folder(Path("runs") / f"{name}-seed{command.run.seed}")
    _check_free(path)
    with _joined(command.run) as ranks:
        data = _load(command.run)
        folder = begin(path, command.run, data, about, ranks)
        _perform(name, command.run, data, folder, command.save_minutes, ranks)


def _train_seeds(name: str, command: Train, about: dict[str, str]) -> None:
    """One run for each seed, in turn; each process that torchrun has started takes its share of them."""
    ranks, first = of_launcher(), command.run.seed
    seeds = range(first, first + command.seeds)
    base = command.out or Path("runs") / f"{name}-seeds{first}-{seeds[-1]}"
    for seed in seeds[ranks.rank :: ranks.n]:
        run, path = replace(command.run, seed=seed), base / f"seed{seed}"
        if (path / "run.json").is_file() and RunFolder.open(path).config() != run:
            raise ValueError(f"{path} holds a run of other settings: choose another folder by --out")
        if RunFolder(path).result():
            continue
        data = _load(run)
        folder = RunFolder.open(path) if (path / "run.json").is_file() else begin(path, run, data, about)
        _perform(f"{name}, seed {seed}", run, data, folder, command.save_minutes, Ranks(local=ranks.local), about["command"])
    results = {seed: RunFolder(base / f"seed{seed}").result() for seed in seeds}
    if all(results.values()):
        _show_seeds(results, base)


def _show_seeds(results: dict[int, dict[str, Any]], base: Path) -> None:
    shown = table(f"{len(results)} seeds", "seed", "held-out accuracy", "test accuracy", "firing rate")
    names = ("held_out_accuracy", "test_accuracy", "firing_rate")
    for seed, result in results.items():
        shown.add_row(str(seed), *(_number(name, result[name]) for name in names))
    columns = [[result[name] for result in results.values()] for name in names]
    for what, of in (("mean", statistics.fmean), ("standard deviation", statistics.stdev)):
        shown.add_row(what, *(_number(n, of(c) if None not in c else None) for n, c in zip(names, columns, strict=True)))
    console = Console()
    console.print(shown)
    console.print(f"runs in {base}", highlight=False, soft_wrap=True)


def _number(name: str, value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if name == "firing_rate" else f"{value:.2%}"


def _resume(rest: list[str]) -> None:
    command = _parse(Resume, rest, "spikerate train --resume")
    folder = RunFolder.open(command.resume)
    run = _moved(folder.config(), command.data, command.device)
    with _joined(run) as ranks:
        use_threads_of(folder)
        data = _load(run)
        if data_card(data)["sha256"] != folder.about().get("data", {}).get("sha256"):
            raise ValueError(f"the data set is not the one that {folder.path} was begun with: its checksums differ")
        about = folder.about()
        if ranks.first:
            folder.amend(resumed=[*about.get("resumed", []), {"at": card.now(), "environment": card.environment()}])
        _perform(str(about.get("preset", folder.path)), run, data, folder, command.save_minutes, ranks)


def _reproduce(rest: list[str], args: list[str]) -> int:
    command = _parse(Reproduce, rest, "spikerate reproduce")
    original = RunFolder.open(command.run)
    if not original.result():
        raise ValueError(f"{command.run} is not finished: spikerate train --resume {shlex.quote(str(command.run))} first")
    run = _moved(original.config(), command.data, None)
    path = command.out or _free_folder(command.run.with_name(f"{command.run.name}-again"))
    _check_free(path)
    about = {"preset": original.about().get("preset"), "command": shlex.join(["spikerate", *args])}
    with _joined(run) as ranks:
        use_threads_of(original)
        data = _load(run)
        again = begin(path, run, data, about, ranks)
        _perform(f"{command.run} again", run, data, again, 10, ranks)
        return _compare(original, again) if ranks.first else 0


def _compare(original: RunFolder, again: RunFolder) -> int:
    """Say whether two runs agree in every metric, and if not, what differs between their cards; the exit status."""
    console = Console()
    rows = compare(*([*folder.metrics(), dict(_flat(folder.result())) | {"epoch": "test"}] for folder in (original, again)))
    rows.pop("test_interval_95", None)
    if not rows:
        console.print("every metric of every epoch agrees, and the test result too", highlight=False)
        return 0
    shown = table("Metrics that differ", "metric", "first in epoch", "then", "now")
    for name, (epoch, then, now) in rows.items():
        shown.add_row(name, str(epoch), *(f"{v:.6g}" if isinstance(v, float) else str(v) for v in (then, now)))
    console.print(shown)
    then, now = (dict(_flat(folder.about())) for folder in (original, again))
    cards = table("What differs between the two cards", "entry", "then", "now")
    times = ("started", "finished", "command", "resumed", "preset")
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name) and not name.startswith(times):
            cards.add_row(name, str(then.get(name)), str(now.get(name)))
    console.print(cards if cards.row_count else "the two cards do not differ: something here is not deterministic")
    return 1


def _joined(run: Run) -> AbstractContextManager[Ranks]:
    launched_here = of_launcher()
    if run.batch // run.accumulate < 2 * launched_here.n:
        raise ValueError(
            f"batch is {run.batch} with accumulate={run.accumulate} on {launched_here.n} ranks: "
            "batch norm needs two images at least in each part on each rank"
        )
    return joined(pick_device(run.device, launched_here.local).type == "cuda", slow_start=run.compile)


def _load(run: Run) -> ImageSet:
    return load(run.data.name, run.data.path, run.data.held_out)


def _moved(run: Run, data: Path | None, device: str | None) -> Run:
    run = replace(run, data=replace(run.data, path=data)) if data else run
    return replace(run, device=device) if device else run


def _perform(
    name: str, run: Run, data: ImageSet, folder: RunFolder, save_minutes: float, ranks: Ranks, again: str | None = None
) -> None:
    console = Console(quiet=not ranks.first)
    headline = f": {_headline(name)}" if name in PRESETS else ""
    console.print(f"[bold]{name}[/]{headline}", highlight=False, soft_wrap=True)
    console.print(
        f"{len(data.train):,} images to train on, {len(data.held_out):,} held out, {len(data.test):,} to test; "
        f"T = {run.T}, {run.epochs} epochs of {run.batch} images a batch, on {pick_device(run.device, ranks.local)}"
        + (f", {ranks.n} ranks" if ranks.n > 1 else ""),
        highlight=False,
        soft_wrap=True,
    )
    again = again or f"spikerate train --resume {shlex.quote(str(folder.path))}"
    bar = TrainingBar(console, run.epochs, run.epochs * steps_per_epoch(data.train, run.batch))
    try:
        with Interrupt() as stop, bar:
            state, measured = perform(run, data, folder, bar, ranks, stop, save_minutes)
    except Interrupted as stopped:
        console.print(f"stopped ({stopped}), and saved; go on by: {again}", highlight=False, soft_wrap=True)
        raise
    _show_result(console, run, folder, state, measured)


def _show_result(console: Console, run: Run, folder: RunFolder, state: State, measured: Measured) -> None:
    result = table("Result")
    result.add_column(style="cyan")
    result.add_column()
    best = state.best
    chosen = f", chosen by held-out accuracy {best['held_out']:.2%}" if "held_out" in best else ", the last"
    result.add_row("test accuracy, spiking network", _with_interval(measured.accuracy))
    result.add_row("weights", f"best.safetensors: epoch {best['epoch']} of {run.epochs}{chosen}")
    result.add_row("firing rate", f"{measured.ledger.mean_rate():.3f} spikes per neuron and step")
    result.add_row("training time", f"{sum(row['seconds'] for row in state.rows):.0f} s")
    result.add_row("run folder", str(folder.path))
    result.add_row("next", f"spikerate eval {shlex.quote(str(folder.path))}")
    console.print(result)


def _free_folder(path: Path) -> Path:
    """The path, or with a number behind; the last one taken where torchrun has started the same command again."""
    k, free, taken = 1, path, path
    while free.exists():
        k, taken = k + 1, free
        free = path.with_name(f"{path.name}-{k}")
    return taken if restarted() else free


def _check_free(path: Path) -> None:
    """Before the data is read; the other ranks may come when rank 0 has made the folder."""
    if of_launcher().first and not restarted():
        check_free(path)


def _with_interval(result: Accuracy) -> str:
    low, high = result.interval()
    return f"{result.value:.2%}  (95 % interval {low:.2%} to {high:.2%}, {result.n:,} images)"


# eval, list, show, doctor -----------------------------------------------------------------------------------------------


def _eval(command: Eval) -> None:
    folder = RunFolder.open(command.run)
    run = folder.config()
    device = pick_device(command.device)
    data = load(run.data.name, command.data or run.data.path, run.data.held_out)
    network = build_network(run, data, device)
    folder.load_weights(command.weights, network)
    measured = measure(network, data, run)
    accuracy, ledger = _with_interval(measured.accuracy), measured.ledger
    console = Console()
    console.print(f"{folder.path}, {command.weights}.safetensors, {data.name}, T = {run.T}", highlight=False, soft_wrap=True)
    console.print(f"test accuracy of the spiking network: {accuracy}", highlight=False, soft_wrap=True)
    block = "█" if console.encoding.startswith("utf") else "#"
    rates = table("Firing rates", "layer", "spikes per neuron and step", "")
    for layer, rate in ledger.rates(network).items():
        rates.add_row(layer.removeprefix("body."), f"{rate:.3f}", block * round(40 * rate))
    rates.add_row("all", f"{ledger.mean_rate():.3f}", block * round(40 * ledger.mean_rate()), style="bold")
    console.print(rates)


def _fetch(command: Fetch) -> None:
    console, source = Console(), SOURCES[command.name]
    console.print(f"{source.url} -> {command.to}", highlight=False, soft_wrap=True)
    with TransferBar(console) as bar:
        folder = fetch(source, command.to, bar)
    console.print(f"checked and unpacked: {folder}", highlight=False, soft_wrap=True)


def _list() -> None:
    presets = table("Presets", "name", "what it trains", "T", "epochs")
    for name, make in PRESETS.items():
        run = make()
        presets.add_row(name, _headline(name), str(run.T), str(run.epochs))
    Console().print(presets)


def _headline(name: str) -> str:
    """The first line of a preset's docstring."""
    return (inspect.getdoc(PRESETS[name]) or "").split("\n")[0]


def _show(name: str) -> None:
    run, console = preset(name), Console()
    console.print(f"[bold]{name}[/]: {inspect.getdoc(PRESETS[name])}", highlight=False, soft_wrap=True)
    settings = table("Settings", "field", "value")
    for field, value in _flat(encode(run)):
        settings.add_row(field, str(value))
    console.print(settings)
    shape, num_classes = SHAPES[run.data.name]
    with torch.device("meta"):
        network = run.build(num_classes, shape)
    body = network.body if isinstance(network, Branched) else network
    stages = table("Network", "part", "output [C, H, W]", "parameters")
    parts = [("stem", body.stem), *body.stages.items(), ("head", body.head)]
    shapes = ["", *(str(list(s[1:])) for s in stage_shapes(body, shape)), f"[{num_classes}]"]
    for (part, module), out in zip(parts, shapes, strict=True):
        stages.add_row(part, out, f"{_parameters(module):,}")
    stages.add_row("all, as used after training", "", f"{_parameters(body):,}", style="bold")
    if isinstance(network, Branched):
        stages.add_row("branches, in training only", "", f"{_parameters(network.branches):,}")
    console.print(stages)


def _flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in record.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif key != "type" or prefix in ("rule.", "loss.", "neuron.surrogate."):
            rows.append((prefix.rstrip(".") if key == "type" else prefix + key, value))
    return rows


def _parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _doctor() -> None:
    console = Console()
    device = pick_device("auto")
    env = card.environment()
    what = table("What is here", "", "")
    what.add_row("python", f"{env['python']} on {env['platform']}")
    what.add_row("processor", f"{env['cpu']}, {env['cores']} cores, {env['threads']} threads in use")
    what.add_row("memory", f"{env['memory_gib']} GiB")
    what.add_row("GPU", ", ".join(env["gpus"]) or "none")
    what.add_row("device used", str(device))
    flags = card.cpu_flags()
    fast = "AMX" if "amx_bf16" in flags else "AVX-512" if "avx512_bf16" in flags else None
    if device.type == "cuda":
        what.add_row("bf16", "fast" if torch.cuda.is_bf16_supported() else "slow on this GPU: use --precision fp32")
    else:
        what.add_row("bf16", f"fast, by {fast}" if fast else "slow on this processor: use --precision fp32")
    problem = card.compiler_problem(device)
    what.add_row("torch.compile", f"no: {problem}" if problem else "yes")
    for name, found in env["packages"].items():
        what.add_row(name, found or "not installed")
    console.print(what)


def entry() -> None:
    """The `spikerate` script."""
    sys.exit(main())
