"""The command line: `spikerate train | eval | report | predict | export | gradient | bench | reproduce | fetch | ...`."""

from __future__ import annotations

import contextlib
import difflib
import io
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro
from tyro.conf import AvoidSubcommands, Positional, arg

from spikerate.bench.compare import Outcome, cells, peer_cells
from spikerate.bench.compare import measure as measure_cells
from spikerate.bench.roofline import roofline
from spikerate.bench.worker import Setting
from spikerate.cli import tensorboard, views
from spikerate.cli.console import Output, OutputLost, TransferBar, WaitingBar, complain, console
from spikerate.cli.live import TrainingView, Watches
from spikerate.data import SOURCES, DataSet, entry_of, fetch, keeps_caches, load, sample_files, steps_per_epoch
from spikerate.exchange.export import check_target, export
from spikerate.exchange.predict import Prediction, predict
from spikerate.exchange.start import Start
from spikerate.exchange.trained import read_trained
from spikerate.gradients.agreement import Comparison
from spikerate.measure.health import NotFinite
from spikerate.models import fold_batch_norm
from spikerate.runs.config import Run
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
from spikerate.runs.kinds import in_words, own_of, take_kinds, take_own, with_kinds
from spikerate.runs.presets import headline, preset
from spikerate.runs.record import RunFolder, SaveError, check_free, check_name, sole_writer
from spikerate.runs.train import build_network, pick_device
from spikerate.system import environment
from spikerate.system.codec import Own, encode, named_again
from spikerate.system.dist import LostRank, Ranks, joined, of_launcher, restarted
from spikerate.system.files import inside, is_there, write_json
from spikerate.system.interrupt import Ended, Interrupt, Interrupted, ended_by_signals
from spikerate.system.memory import ADVICE, is_out_of_memory
from spikerate.system.ranges import MOST_SAMPLES, MOST_STEPS, check_count, check_number

Command = TypeVar("Command")

_COMMANDS = (
    *("train", "eval", "report", "predict", "export", "gradient"),
    *("bench", "reproduce", "fetch", "list", "show", "doctor"),
)

_USAGE = """usage: spikerate COMMAND ...

  train [PRESET] [--field value ...]   train a network; without a preset, digits-esd (built-in data, under two minutes)
  train --resume RUN                   continue a run that was stopped
  train PRESET --init RUN              train on from the weights of another run, with other settings or classes
  eval RUN                             accuracy, also against time steps, and firing rates on the test set
  report RUN ...                       one HTML page of a run, or of several side by side
  predict RUN FILE|FOLDER ...          classes of images or recordings by a trained network
  export RUN FILE                      the trained network as .nir, .pt2, .onnx, or its weights alone as .safetensors
  gradient RUN|PRESET                  how well gradients agree in each layer, trained or fresh, and a figure of it
  bench                                what a training step costs here, by method and time steps
  reproduce RUN                        run it again, and say whether every metric agrees
  fetch DATA FOLDER                    download a data set, check it, and unpack it there
  list                                 the presets
  show PRESET                          a preset's settings and network
  doctor                               what is installed here, and what it can do

spikerate COMMAND --help tells more."""

_MOST_RUNS = 10_000
"""One for each seed."""


@dataclass(frozen=True)
class Train:
    """Train a network by the settings of a preset, and keep the run in a folder."""

    run: Annotated[Run, arg(name="")]
    out: Path | None = None
    """folder of the run; runs/PRESET-seedN by default, with a number behind where that is taken"""
    init: Path | None = None
    """start from the best weights of this run, or from a .safetensors file; for other classes the classifier is fresh"""
    seeds: int = 1
    """run so many seeds, from run.seed on, and report mean and deviation; the same command again goes on where it stopped"""
    save_minutes: float = 10
    """a checkpoint at least so often; there is one after every epoch"""
    tensorboard: bool = False
    """keep a log for TensorBoard in RUN/tensorboard, too; a run that is resumed goes on with it"""

    def __post_init__(self) -> None:
        check_count("seeds", self.seeds, "a number of runs", _MOST_RUNS)
        check_number("save_minutes", self.save_minutes, 0)


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
    tensorboard: bool = False
    """keep a log for TensorBoard in RUN/tensorboard from now on, too; one that is there goes on without"""

    def __post_init__(self) -> None:
        check_number("save_minutes", self.save_minutes, 0)


@dataclass(frozen=True)
class Reproduce:
    """Run a finished run again, and say whether every metric agrees."""

    run: Positional[Path]
    """folder of the run"""
    data: Path | None = None
    """folder of the data set, where it has moved"""
    out: Path | None = None
    """folder of the new run; RUN-again by default"""
    init: Path | None = None
    """the weights that the run started from, where they have moved"""


@dataclass(frozen=True)
class Eval:
    """Accuracy, also against time steps, and firing rates of a trained network on the test set."""

    run: Positional[Path]
    """folder of the run"""
    weights: Literal["best", "last"] = "best"
    """best: of the epoch with the highest validation accuracy; last: of the last epoch"""
    T: int | None = None
    """so many time steps instead of the run's; recordings are cut for the run's"""
    fold: bool = False
    """fold batch norm into the layers before it, and count the spikes that differ by that"""
    data: Path | None = None
    """folder of the data set, where it has moved"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    check_finite: bool = True
    """look for infinite numbers and NaN in every layer, which spikes would hide"""

    def __post_init__(self) -> None:
        if self.T is not None:
            check_count("T", self.T, "a number of time steps", MOST_STEPS)


@dataclass(frozen=True)
class Report:
    """One HTML page of runs, from their folders alone: curves, rates, confusions, examples, energy, reproducibility."""

    runs: Positional[tuple[Path, ...]]
    """folders of runs, or folders of such folders as --seeds makes them; runs that differ in the seed only are one group"""
    out: Path | None = None
    """the file; report.html in the folder by default, and in the current folder where several are given"""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("report got no runs: spikerate report RUN ...")


@dataclass(frozen=True)
class Predict:
    """Classes of images or recordings by a trained network, with confidences."""

    run: Positional[Path]
    """folder of the run"""
    files: Positional[tuple[Path, ...]]
    """files like the samples of its data set (digits of MNIST are white on black, for instance), or folders of them"""
    weights: Literal["best", "last"] = "best"
    """best: of the epoch with the highest validation accuracy; last: of the last epoch"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    check_finite: bool = True
    """look for infinite numbers and NaN in every layer, which spikes would hide"""

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("predict got no files: spikerate predict RUN FILE|FOLDER ...")


@dataclass(frozen=True)
class Export:
    """Write a trained network to a file for the world outside; the suffix says the kind."""

    run: Positional[Path]
    """folder of the run, or a .safetensors file of an export"""
    file: Positional[Path]
    """.nir: for other simulators and neuromorphic hardware; .pt2: a PyTorch program; .onnx; .safetensors: weights alone"""
    weights: Literal["best", "last"] = "best"
    """of a run: best: of the epoch with the highest validation accuracy; last: of the last epoch"""


@dataclass(frozen=True)
class Gradient:
    """How well the gradients of RateBP, BPTT and finite differences agree in each layer of a network, and a figure of it."""

    network: Positional[str]
    """folder of a run; or, where there is no such folder, the name of a preset, for fresh weights"""
    weights: Literal["best", "last"] = "best"
    """of a run: best: of the epoch with the highest validation accuracy; last: of the last epoch"""
    T: int | None = None
    """so many time steps instead of the run's; recordings are cut for the run's"""
    how: Annotated[Comparison, arg(name="")] = Comparison()
    data: Path | None = None
    """folder of the data set; of a run, where it has moved"""
    out: Path | None = None
    """folder of figures and picture; RUN/gradient or runs/PRESET-gradient by default, with a number behind where taken"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        if self.T is not None:
            check_count("T", self.T, "a number of time steps", MOST_STEPS)


@dataclass(frozen=True)
class Bench:
    """What a training step costs by each method, side by side: a process for each method and T, which take turns."""

    methods: tuple[str, ...] = ("ann", "rate", "esd", "bptt", "bptt-checkpointed")
    """ann, rate, rate-s, rate-chunk2 (any number), esd, bptt, bptt-checkpointed, tet, ottt, sltt; the ratios want ann"""
    T: tuple[int, ...] = (1, 2, 4)
    """time steps"""
    of: Annotated[Setting, arg(name="")] = Setting()
    steps: int = 7
    """steps to time of each, after two to warm up"""
    peers: tuple[tuple[str, Path], ...] = ()
    """other libraries: for each a Python that has it, and a script (benchmarks/peers)"""
    out: Path | None = None
    """folder of figures and picture; runs/bench-DATE-HOST by default, with a number behind where that is taken"""

    def __post_init__(self) -> None:
        check_count("steps", self.steps, "a number", MOST_SAMPLES)
        for t in self.T:
            check_count("T", t, "a number of time steps", MOST_STEPS)
        if not (self.methods or self.peers) or not self.T:
            raise ValueError("bench got no methods or no T: give one of each at least")


@dataclass(frozen=True)
class Fetch:
    """Download a data set's official archive, check its checksum, and unpack it; goes on where a transfer broke."""

    name: Positional[Literal["cifar10", "cifar100", "mnist", "fashion-mnist"]]
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
    """Run a command; returns the exit status.

    0; 1 where training fails; 2 after bad input; 130 after Control-C and 143 after another signal that asks to stop; 141
    where the reader of the output has closed it, as shells have it.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with ended_by_signals():
            return _dispatch(args)
    except Interrupted as stopped:
        return stopped.status
    except OutputLost as lost:
        if lost.closed:
            return 141
        complain(str(lost))
        return 2
    except (NotFinite, LostRank) as error:
        complain(str(error))
        return 1
    except (ValueError, SaveError) as error:
        complain(str(error))
        return 2
    except OSError as error:
        complain(f"{error.filename or 'a file'}: {error.strerror}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        complain(ADVICE)
        return 1
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except Ended as signal:
        complain(f"ended by {signal}")
        return 143


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        console().print(_USAGE)
        return 0
    name, rest = args[0], args[1:]
    if name == "--version":
        console().print(f"spikerate {version('spikerate')}")
    elif name == "train" and any(word.partition("=")[0] == "--resume" for word in rest):
        _resume(rest)
    elif name == "train":
        chosen = rest.pop(0) if rest and not rest[0].startswith("-") else "digits-esd"
        _train(chosen, rest, args)
    elif name == "reproduce":
        return _reproduce(rest, args)
    elif name == "eval":
        own, rest = take_own(rest)
        _eval(_parse(Eval, rest, "spikerate eval"), own)
    elif name == "report":
        _report(_parse(Report, rest, "spikerate report"))
    elif name == "predict":
        own, rest = take_own(rest)
        _predict(_parse(Predict, rest, "spikerate predict"), own)
    elif name == "export":
        own, rest = take_own(rest)
        _export(_parse(Export, rest, "spikerate export"), own)
    elif name == "gradient":
        own, rest = take_own(rest)
        _gradient(_parse(Gradient, rest, "spikerate gradient"), args, own)
    elif name == "bench":
        return _bench(_parse(Bench, rest, "spikerate bench"), args)
    elif name == "fetch":
        _fetch(_parse(Fetch, rest, "spikerate fetch"))
    elif name == "show":
        chosen = _parse(Show, rest, "spikerate show").preset
        views.show_preset(console(), chosen, preset(chosen))
    elif name == "list":
        _parse(Bare, rest, "spikerate list")
        views.show_presets(console())
    elif name == "doctor":
        _parse(Bare, rest, "spikerate doctor")
        views.show_machine(console(), pick_device("auto"))
    else:
        near = difflib.get_close_matches(name, _COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(_COMMANDS)}"
        raise ValueError(f"there is no command {name!r}: {hint}")
    return 0


def _parse(
    kind: type[Command], args: list[str], prog: str, default: Command | None = None, description: str | None = None
) -> Command:
    """Fill a dataclass from the command line; `ValueError` with one sentence where that can't be done."""
    if any(word == "" or re.fullmatch(r"--[\w.-]+=", word) for word in args):
        raise ValueError(f"{prog} was given an empty word, as of a variable that is not set: give a value, or leave it out")
    told, out = io.StringIO(), Output(needed=True)
    shown: Any = out
    given: Any = tyro.MISSING_NONPROP if default is None else default
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(shown):
            return tyro.cli(kind, prog=prog, args=args, default=given, description=description, config=(AvoidSubcommands,))
    except SystemExit as stop:
        if stop.code in (0, None):
            out.flush()
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
    return re.sub(r"^Error parsing [\w.]+: ", "", sentence) + f" ({prog} --help shows all)"


# train, reproduce ------------------------------------------------------------------------------------------------------


def _train(name: str, rest: list[str], args: list[str]) -> None:
    chosen, rest = take_kinds(rest)
    run = with_kinds(preset(name).run, chosen)
    command = _parse(Train, rest, f"spikerate train {name}", Train(run), f"{Train.__doc__} {in_words()}")
    about: dict[str, Any] = {"preset": name, "command": shlex.join(["spikerate", *args])}
    start = Start.read(command.init, own_of(chosen)) if command.init else None
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


def _train_seeds(name: str, command: Train, about: dict[str, Any], start: Start | None) -> None:
    """One run for each seed, in turn; each process that torchrun has started takes its share of them."""
    ranks, first = of_launcher(), command.run.seed
    seeds = range(first, first + command.seeds)
    base = command.out or Path("runs") / f"{name}-seeds{first}-{seeds[-1]}"
    check_name(base)
    for seed in seeds[ranks.rank :: ranks.n]:
        run, path = replace(command.run, seed=seed), inside(base, f"seed{seed}")
        there = RunFolder(path, Own.of(run))
        then = there.about().get("init") if there.stands else None
        if there.stands and (there.config() != run or (then or {}).get("sha256") != (start.sha256 if start else None)):
            raise ValueError(f"{path} holds a run of other settings: choose another folder by --out")
        if there.result():
            continue
        data, alone = _load(run), Ranks(local=ranks.local)
        check_fits(run, data)
        about |= _init(start, run, data)
        with _writing(path):
            folder = there if there.stands else begin(path, run, data, about)
            _log(folder, command.tensorboard)
            _perform(f"{name}, seed {seed}", run, data, folder, command.save_minutes, alone, about["command"], start)
    results = {seed: RunFolder(base / f"seed{seed}").result() for seed in seeds}
    if all(results.values()):
        views.show_seeds(console(needed=False), results, base)


def _resume(rest: list[str]) -> None:
    own, rest = take_own(rest)
    try:
        command = _parse(Resume, rest, "spikerate train --resume")
    except ValueError as error:
        if "Unrecognized" not in str(error):
            raise
        raise ValueError(
            f"{str(error).partition(' (')[0]}: a run goes on with its own settings, and only --data, --device, "
            "--save-minutes and --tensorboard can be given; to train on with others: spikerate train PRESET --init RUN"
        ) from None
    folder = _whole(RunFolder.open(command.resume, own))
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
            with ranks.waited_for():
                if ranks.first:
                    now = {"at": environment.now(), "environment": environment.card()}
                    folder.amend(resumed=[*(about.get("resumed") or []), now])
            check_shared(folder.path, ranks)
            _log(folder, command.tensorboard, ranks)
            begun = folder.rounds(run)[0][1].has_state
            start = Start.again(about["init"], own=own) if about.get("init") and not begun else None
            _perform(str(about.get("preset", folder.path)), run, data, folder, command.save_minutes, ranks, start=start)


def _reproduce(rest: list[str], args: list[str]) -> int:
    own, rest = take_own(rest)
    command = _parse(Reproduce, rest, "spikerate reproduce")
    original = RunFolder.open(command.run, own)
    if _whole(original) != original:
        raise ValueError(f"{command.run} is one round of a run: give the folder of the run, {_whole(original).path}")
    if not original.result():
        raise ValueError(f"{command.run} is not finished: spikerate train --resume {shlex.quote(str(command.run))} first")
    original.check_settings()
    run = _run_of(original, command.data, None)
    path = command.out or _free_folder(command.run.with_name(f"{command.run.name}-again"))
    _check_free(path)
    then = original.about()
    start = Start.again(then["init"], command.init, own) if then.get("init") else None
    about = {"preset": then.get("preset"), "command": shlex.join(["spikerate", *args])}
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
    return RunFolder.open(folder.path.absolute().parent, folder.own) if "round" in folder.about() else folder


@contextlib.contextmanager
def _joined(run: Run) -> Iterator[Ranks]:
    """The ranks, connected, which have the same settings and the same code."""
    launched_here = of_launcher()
    if run.batch // run.accumulate < 2 * launched_here.n:
        raise ValueError(
            f"batch is {run.batch} with accumulate={run.accumulate} on {launched_here.n} ranks: "
            "batch norm needs two images at least in each part on each rank"
        )
    gpu = pick_device(run.device, launched_here.local).type == "cuda"
    with joined(gpu, slow_start=run.compile) as ranks:
        anywhere = replace(run, data=replace(run.data, path=None, cache=None, workers=None))  # hosts may differ in places
        ranks.agree({**environment.versions(), "code": environment.source(), "run": encode(anywhere)})
        yield ranks


def _load(run: Run, ranks: Ranks = Ranks()) -> DataSet:
    """Rank 0 reads first: it makes the cache that the others find. All have read the same."""
    out = console(quiet=not ranks.first, needed=False)
    with ranks.waited_for():
        found = load(run.data, run.T, WaitingBar(out)) if ranks.first else None
    with ranks.waited_for():
        data = found or load(run.data, run.T, WaitingBar(out))
    ranks.agree({"data": data_card(data) | {"skipped": len(data.skipped), "notes": len(data.notes)}})  # these name places
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
        console(quiet=not of_launcher().first).print(f"note: {folder.doubt}")


def _run_of(folder: RunFolder, data: Path | None, device: str | None) -> Run:
    """The settings of a run that there is already, with its data or the device in another place."""
    run, out = folder.config(), console(quiet=not of_launcher().first)
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
    again = again or f"spikerate train --resume {shlex.quote(str(folder.path))}{named_again(run)}"
    about = {entry: value for entry, value in folder.about().items() if entry in ("preset", "command", "repeats")}
    rounds, frames = folder.rounds(run), run.T
    before: Start | RunFolder | None = start.onto(data.classes) if start else None
    logged = inside(folder.path, tensorboard.FOLDER).is_dir() and ranks.first
    try:
        for k, (own, place) in enumerate(rounds, 1):
            title, stands = f"round {k} of {len(rounds)}" if run.before else "", ranks.tell(place.stands)
            over = stands == "finished" and place != folder
            if stands:
                place.check_settings()
            if title:
                out.print(f"{title}: {own.in_words}{', finished' if over else ''}", style="bold")
            if not over:
                if entry_of(run.data).kind == "events" and frames != own.T:
                    data, frames = _load(own, ranks), own.T
                if not stands:
                    begin(place.path, own, data, about | {"round": title}, ranks)
                stop = _perform_round(own, data, place, save_minutes, ranks, before, title, logged, place == folder)
                if place != folder and ranks.most(int(stop.asked)):
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
    if of_launcher().first and not restarted():
        check_free(path)


# eval, report, gradient, predict, export, bench, fetch -----------------------------------------------------------------


def _eval(command: Eval, own: Own) -> None:
    folder = RunFolder.open(command.run, own)
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


def _report(command: Report) -> None:
    from spikerate.report.gather import check_place, gather, write  # here, since matplotlib takes half a second to import

    file = command.out or (command.runs[0] if len(command.runs) == 1 else Path()) / "report.html"
    check_place(file)
    report = gather(command.runs)
    write(report, file)
    out = console()
    for note in report.notes:
        out.print(note)
    out.print(f"the report is {file}: open it in a browser")


def _check_steps(run: Run, T: int | None) -> None:
    if T is not None and T > 1 and not run.spiking:
        raise ValueError(f"T is {T}, but the network is an ANN, which has no time steps: leave --T out")
    if T is not None and T > run.T and entry_of(run.data).kind == "events":
        raise ValueError(f"T is {T}, but the recordings were cut into {run.T} frames for this run: give {run.T} at most")


def _gradient(command: Gradient, args: list[str], own: Own) -> None:
    from spikerate.cli.plots import draw_gradients  # here, since matplotlib takes half a second to import

    name, place = command.network, Path(command.network)
    folder = RunFolder.open(place, own) if place.is_dir() else None
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
        "command": shlex.join(["spikerate", *args]),
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


def _fresh(command: Gradient) -> Run:
    """The run of a preset, for so many time steps as are asked for."""
    try:
        run = preset(command.network).run
    except ValueError as error:
        raise ValueError(f"{command.network} is no folder, and {error}") from None
    return replace(run, T=command.T or run.T, data=replace(run.data, path=command.data or run.data.path))


def _predict(command: Predict, own: Own) -> None:
    folder = RunFolder.open(command.run, own)
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


def _export(command: Export, own: Own) -> None:
    check_target(command.file)
    trained = read_trained(command.run, command.weights, own)
    if command.run.is_dir():
        _note_doubt(RunFolder(command.run))
    export(trained, command.file)
    views.show_export(console(), trained, command.file)


def _bench(command: Bench, args: list[str]) -> int:
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
        "command": shlex.join(["spikerate", *args]),
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


def _fetch(command: Fetch) -> None:
    out, source = console(), SOURCES[command.name]
    for url in source.files:
        out.print(f"{url} -> {command.to}")
    with TransferBar(out) as bar:
        folder = fetch(source, command.to, bar)
    out.print(f"checked and whole: {folder}")
