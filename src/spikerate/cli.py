"""The command line: `spikerate train | eval | list | show | doctor`."""

from __future__ import annotations

import contextlib
import datetime
import difflib
import inspect
import io
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro
from rich.console import Console
from tyro.conf import AvoidSubcommands, Positional, arg

from spikerate import card
from spikerate.config import Run, encode
from spikerate.console import TrainingBar, table
from spikerate.data import SHAPES, ImageSet, load, steps_per_epoch
from spikerate.evaluate import Accuracy, accuracy
from spikerate.meter import Ledger, Meter
from spikerate.models import Branched, stage_shapes
from spikerate.presets import PRESETS, preset
from spikerate.record import RunFolder, check_free
from spikerate.train import build_network, pick_device, train

Command = TypeVar("Command")

_USAGE = """usage: spikerate COMMAND ...

  train [PRESET] [--field value ...]   train a network; without a preset, digits-esd (built-in data, under two minutes)
  eval RUN                             accuracy and firing rates of a trained network on the test set
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
class Show:
    """A preset's settings and network."""

    preset: Positional[str]
    """name of the preset"""


@dataclass(frozen=True)
class Bare:
    """No options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 after bad input, 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except ValueError as error:
        print(f"spikerate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"spikerate: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("spikerate: interrupted; the run's folder keeps what its finished epochs gave", file=sys.stderr)
        return 130


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    name, rest = args[0], args[1:]
    if name == "--version":
        print(f"spikerate {version('spikerate')}")
    elif name == "train":
        chosen = rest.pop(0) if rest and not rest[0].startswith("-") else "digits-esd"
        _train(chosen, _parse(Train, rest, f"spikerate train {chosen}", Train(preset(chosen))), args)
    elif name == "eval":
        _eval(_parse(Eval, rest, "spikerate eval"))
    elif name == "show":
        _show(_parse(Show, rest, "spikerate show").preset)
    elif name == "list":
        _parse(Bare, rest, "spikerate list")
        _list()
    elif name == "doctor":
        _parse(Bare, rest, "spikerate doctor")
        _doctor()
    else:
        near = difflib.get_close_matches(name, ["train", "eval", "list", "show", "doctor"], 1)
        hint = f"did you mean {near[0]}?" if near else "give one of train, eval, list, show, doctor"
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
        kept += [line] if line else []
    sentence = " ".join(kept).replace(" Perhaps you meant:", "; perhaps you meant")
    return re.sub(r"^Error parsing run\.\w+: ", "", sentence) + f" ({prog} --help shows all)"


# train ------------------------------------------------------------------------------------------------------------------


def _train(name: str, command: Train, args: list[str]) -> None:
    run, console = command.run, Console()
    folder_path = command.out or _free_folder(Path("runs") / f"{name}-seed{run.seed}")
    check_free(folder_path)
    pick_device(run.device)
    data = load(run.data.name, run.data.path, run.data.held_out)
    about = {
        "preset": name,
        "command": shlex.join(["spikerate", *args]),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "data": _data_card(data),
        "environment": card.environment(),
    }
    folder = RunFolder.create(folder_path, run, about)
    console.print(f"[bold]{name}[/]: {_headline(name)}", highlight=False, soft_wrap=True)
    console.print(
        f"{len(data.train):,} images to train on, {len(data.held_out):,} held out, {len(data.test):,} to test; "
        f"T = {run.T}, {run.epochs} epochs of {run.batch} images a batch, on {pick_device(run.device)}",
        highlight=False,
        soft_wrap=True,
    )
    with TrainingBar(console, run.epochs, run.epochs * steps_per_epoch(data.train, run.batch)) as bar:
        trained = train(run, data, folder, bar)
    folder.load_weights("best", trained.network)
    test, ledger = _measure(trained.network, data, run)
    result = table("Result")
    result.add_column(style="cyan")
    result.add_column()
    best = trained.best
    chosen = f", chosen by held-out accuracy {best['held_out']:.2%}" if "held_out" in best else ", the last"
    result.add_row("test accuracy, spiking network", _with_interval(test))
    result.add_row("weights", f"best.safetensors: epoch {best['epoch']} of {run.epochs}{chosen}")
    result.add_row("firing rate", f"{ledger.mean_rate():.3f} spikes per neuron and step")
    result.add_row("training time", f"{sum(row['seconds'] for row in trained.rows):.0f} s")
    result.add_row("run folder", str(folder.path))
    result.add_row("next", f"spikerate eval {shlex.quote(str(folder.path))}")
    console.print(result)
    folder.save_result(_result(test, ledger, trained.network, best["epoch"]))


def _free_folder(path: Path) -> Path:
    k, free = 1, path
    while free.exists():
        k += 1
        free = path.with_name(f"{path.name}-{k}")
    return free


def _data_card(data: ImageSet) -> dict[str, Any]:
    sizes = {"train": len(data.train), "held_out": len(data.held_out), "test": len(data.test)}
    return {"name": data.name, "licence": data.licence, "sizes": sizes, "split": data.split, "sha256": data.checksums}


def _measure(network: torch.nn.Module, data: ImageSet, run: Run) -> tuple[Accuracy, Ledger]:
    ledger = Ledger()
    data = data.to(next(network.parameters()).device)
    return accuracy(network, data, data.test, run.T, run.precision, Meter(ledger)), ledger


def _with_interval(result: Accuracy) -> str:
    low, high = result.interval()
    return f"{result.value:.2%}  (95 % interval {low:.2%} to {high:.2%}, {result.n:,} images)"


def _result(test: Accuracy, ledger: Ledger, network: torch.nn.Module, epoch: int | None) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "test_accuracy": test.value,
        "test_interval_95": test.interval(),
        "test_images": test.n,
        "firing_rate": ledger.mean_rate(),
        "firing_rates": ledger.rates(network),
    }


# eval, list, show, doctor -----------------------------------------------------------------------------------------------


def _eval(command: Eval) -> None:
    folder = RunFolder.open(command.run)
    run = folder.config()
    device = pick_device(command.device)
    data = load(run.data.name, command.data or run.data.path, run.data.held_out)
    network = build_network(run, data, device)
    folder.load_weights(command.weights, network)
    test, ledger = _measure(network, data, run)
    console = Console()
    console.print(f"{folder.path}, {command.weights}.safetensors, {data.name}, T = {run.T}", highlight=False, soft_wrap=True)
    console.print(f"test accuracy of the spiking network: {_with_interval(test)}", highlight=False, soft_wrap=True)
    rates = table("Firing rates", "layer", "spikes per neuron and step", "")
    for layer, rate in ledger.rates(network).items():
        rates.add_row(layer.removeprefix("body."), f"{rate:.3f}", "█" * round(40 * rate))
    rates.add_row("all", f"{ledger.mean_rate():.3f}", "█" * round(40 * ledger.mean_rate()), style="bold")
    console.print(rates)


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
