"""The options of each command as a dataclass, and their parsing from the command line."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import AvoidSubcommands, Positional, arg

from spikerate.bench.worker import Setting
from spikerate.cli.console import Output
from spikerate.data import LARGEST_SIDE
from spikerate.gradients.agreement import Comparison
from spikerate.measure.averaging import Averaging
from spikerate.runs.config import Run
from spikerate.runs.kinds import in_words, own_of, take_kinds, take_own, with_kinds
from spikerate.runs.presets import preset
from spikerate.system.codec import Own
from spikerate.system.ranges import MOST_SAMPLES, MOST_STEPS, check_count, check_number, check_seed

Options = TypeVar("Options")

_MOST_RUNS = 10_000
"""Largest number of seeds."""


@dataclass(frozen=True)
class Train:
    """Train a network with the settings of a preset, and write the run to a folder."""

    run: Annotated[Run, arg(name="")]
    out: Path | None = None
    """folder of the run; by default runs/PRESET-seedN, followed by a number if that exists already"""
    init: Path | None = None
    """start from the best weights of this run, or from a .safetensors file; if classes differ, without its classifier"""
    seeds: int = 1
    """number of seeds to train, starting at --seed; reports mean and deviation; the same command again continues"""
    save_minutes: float = 10
    """largest time between checkpoints in minutes; there is also one after every epoch"""
    tensorboard: bool = False
    """also write a log for TensorBoard to RUN/tensorboard; a resumed run continues it"""

    def __post_init__(self) -> None:
        check_count("seeds", self.seeds, "a number of runs", _MOST_RUNS)
        check_number("save_minutes", self.save_minutes, 0)


@dataclass(frozen=True)
class Resume:
    """Continue a run that was stopped, from its last checkpoint."""

    resume: Path
    """folder of the run"""
    data: Path | None = None
    """folder of the data set, if it has moved"""
    device: str | None = None
    """another device than before"""
    save_minutes: float = 10
    """largest time between checkpoints in minutes; there is also one after every epoch"""
    tensorboard: bool = False
    """start a log for TensorBoard in RUN/tensorboard; an existing log is continued without this option"""

    def __post_init__(self) -> None:
        check_number("save_minutes", self.save_minutes, 0)


@dataclass(frozen=True)
class Speedrun:
    """Train a recipe with several seeds, and print its line for the table of records: accuracy, minutes, PFLOP, spikes."""

    run: Annotated[Run, arg(name="")]
    out: Path | None = None
    """folder of the speedrun; by default runs/PRESET-speedrun, followed by a number if that exists already"""
    seeds: int = 3
    """number of seeds to train, one after the other, starting at --seed"""
    save_minutes: float = 10
    """largest time between checkpoints in minutes; there is also one after every epoch"""

    def __post_init__(self) -> None:
        check_count("seeds", self.seeds, "a number of runs", _MOST_RUNS)
        check_number("save_minutes", self.save_minutes, 0)


@dataclass(frozen=True)
class ResumeSpeedrun:
    """Continue a speedrun that was stopped: seeds that are finished stay, the others go on from their last checkpoint."""

    resume: Path
    """folder of the speedrun"""
    save_minutes: float = 10
    """largest time between checkpoints in minutes; there is also one after every epoch"""

    def __post_init__(self) -> None:
        check_number("save_minutes", self.save_minutes, 0)


@dataclass(frozen=True)
class Reproduce:
    """Train a finished run again, and check whether every metric agrees."""

    run: Positional[Path]
    """folder of the run"""
    data: Path | None = None
    """folder of the data set, if it has moved"""
    out: Path | None = None
    """folder of the new run; by default RUN-again"""
    init: Path | None = None
    """the weights that the run started from, if they have moved"""


@dataclass(frozen=True)
class Eval:
    """Accuracy after each time step, firing rates and energy of a trained network on the test set."""

    run: Positional[Path]
    """folder of the run"""
    weights: Literal["best", "last"] = "best"
    """best: of the epoch with the highest validation accuracy; last: of the last epoch"""
    T: int | None = None
    """number of time steps; by default that of the run, which is the most for recordings"""
    fold: bool = False
    """fold batch norm into the layers before it, and count the spikes that change"""
    averaging: Averaging | None = None
    """also with the mean logits of views of each image, flip or flip-shift; by default as the run"""
    data: Path | None = None
    """folder of the data set, if it has moved"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    check_finite: bool = True
    """check every layer for infinite numbers and NaN, which spikes would hide"""

    def __post_init__(self) -> None:
        if self.T is not None:
            check_count("T", self.T, "a number of time steps", MOST_STEPS)


@dataclass(frozen=True)
class Report:
    """Write an HTML page about runs: learning curves, firing rates, confusions, examples, energy, reproducibility."""

    runs: Positional[tuple[Path, ...]]
    """run folders, or folders of run folders as made by --seeds; runs that differ only in the seed are one group"""
    out: Path | None = None
    """the file; by default report.html in the folder, or in the current folder if several are given"""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("report got no runs: spikerate report RUN ...")


@dataclass(frozen=True)
class Predict:
    """Classify images or recordings by a trained network, with confidences."""

    run: Positional[Path]
    """folder of the run"""
    files: Positional[tuple[Path, ...]]
    """files like the samples of its data set (MNIST digits are white on black, for instance), or folders of them"""
    weights: Literal["best", "last"] = "best"
    """best: of the epoch with the highest validation accuracy; last: of the last epoch"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    check_finite: bool = True
    """check every layer for infinite numbers and NaN, which spikes would hide"""

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("predict got no files: spikerate predict RUN FILE|FOLDER ...")


@dataclass(frozen=True)
class Export:
    """Export a trained network to a file; the suffix selects the format."""

    run: Positional[Path]
    """folder of the run, or a .safetensors file of an export"""
    file: Positional[Path]
    """.nir: for other simulators and neuromorphic hardware; .pt2: PyTorch program; .onnx; .safetensors: weights only"""
    weights: Literal["best", "last"] = "best"
    """for a run: best: of the epoch with the highest validation accuracy; last: of the last epoch"""


@dataclass(frozen=True)
class Gradient:
    """Measure how well the gradients of RateBP, BPTT and finite differences agree in each layer, and draw a figure."""

    network: Positional[str]
    """folder of a run; or, if there is no such folder, name of a preset, whose weights are drawn from the seed, with
    --network, --neuron and other kinds of parts as for `train`"""
    weights: Literal["best", "last"] = "best"
    """for a run: best: of the epoch with the highest validation accuracy; last: of the last epoch"""
    T: int | None = None
    """number of time steps; by default that of the run, which is the most for recordings"""
    how: Annotated[Comparison, arg(name="")] = Comparison()
    data: Path | None = None
    """folder of the data set; for a run only if it has moved"""
    out: Path | None = None
    """folder for numbers and figure; by default RUN/gradient or runs/PRESET-gradient, followed by a number if it exists"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        if self.T is not None:
            check_count("T", self.T, "a number of time steps", MOST_STEPS)


@dataclass(frozen=True)
class Bench:
    """Measure the cost of a training step by each method; each method and T has its own process, and they take turns."""

    methods: tuple[str, ...] = ("ann", "rate", "esd", "bptt", "bptt-checkpointed")
    """ann (needed for ratios), rate, rate-s, rate-chunk2 (any number), esd, bptt, bptt-checkpointed, tet, ottt, sltt;
    inference (of `eval`) and ann-inference, with which it is compared; with +NEURON, by other neurons: rate+plif"""
    T: tuple[int, ...] = (1, 2, 4)
    """numbers of time steps"""
    of: Annotated[Setting, arg(name="")] = Setting()
    steps: int = 7
    """number of steps to measure for each method and T, after two warm-up steps"""
    both: bool = False
    """measure everything twice, as it comes and compiled, in turns"""
    first_use: tuple[str, ...] = ()
    """methods whose first step to time, too, each in two fresh processes: with an empty compiler's cache, then a warm one"""
    peers: tuple[tuple[str, Path], ...] = ()
    """other libraries: for each a Python that has it, and a script (benchmarks/peers)"""
    out: Path | None = None
    """folder for numbers and figure; by default runs/bench-DATE-HOST, followed by a number if that exists already"""

    def __post_init__(self) -> None:
        check_count("steps", self.steps, "a number", MOST_SAMPLES)
        for t in self.T:
            check_count("T", t, "a number of time steps", MOST_STEPS)
        if not (self.methods or self.peers) or not self.T:
            raise ValueError("bench got no methods or no T: give at least one of each")


@dataclass(frozen=True)
class Check:
    """Go through a network once: what each operation is to the training rules, and what is wrong with it."""

    network: Positional[str]
    """package.module:name of your own network; a network of spikerate, as resnet18; a preset; or a run, by its folder"""
    T: int | None = None
    """number of time steps; by default that of the preset or run, else 4"""
    shape: tuple[int, int, int] | None = None
    """channels, height and width of a sample; by default those of the preset or run, else 3 32 32"""
    classes: int | None = None
    """number of classes; by default that of the preset or run, else 10"""
    batch: int = 4
    """number of samples, of noise"""
    seed: int = 0
    """seed of fresh weights and of the noise"""

    def __post_init__(self) -> None:
        if self.T is not None:
            check_count("T", self.T, "a number of time steps", MOST_STEPS)
        for n in self.shape or ():
            check_count("shape", n, "a number of channels or pixels", LARGEST_SIDE)
        if self.classes is not None:
            check_count("classes", self.classes, "a number of classes", MOST_SAMPLES)
        check_count("batch", self.batch, "a number of samples", MOST_SAMPLES)
        check_seed(self.seed)


@dataclass(frozen=True)
class Fetch:
    """Download a data set's official archive, verify its checksum, and unpack it. A broken transfer is resumed."""

    name: Positional[Literal["cifar10", "cifar100", "mnist", "fashion-mnist"]]
    """the data set"""
    to: Positional[Path]
    """the folder to put it in"""


@dataclass(frozen=True)
class Show:
    """Show a preset's settings and network."""

    preset: Positional[str]
    """name of the preset"""


@dataclass(frozen=True)
class Bare:
    """No options."""


def parse(
    kind: type[Options], args: list[str], prog: str, default: Options | None = None, description: str | None = None
) -> Options:
    """Fill a dataclass from the command line; raises `ValueError` with one sentence if that fails."""
    if any(word == "" or re.fullmatch(r"--[\w.-]+=", word) for word in args):
        raise ValueError(f"{prog} got an empty argument, as from a variable that is not set: give a value, or leave it out")
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


def read_again(kind: type[Options], words: list[str], prog: str) -> tuple[Own, Options]:
    """The user's own code that a command names again for an existing run, and the options; raises as `parse`."""
    own, rest = take_own(words)
    return own, parse(kind, rest, prog)


def read_gradient(words: list[str], prog: str) -> tuple[dict[str, str], Gradient]:
    """The kinds of parts that a preset gets, or the user's own code of a run, option -> name; and the options."""
    chosen, rest = take_kinds(words)
    return chosen, parse(Gradient, rest, prog)


def read_check(words: list[str], prog: str) -> tuple[dict[str, str], Check]:
    """The kinds of parts that `check` builds a network of, option -> name, and its options; raises as `parse`."""
    chosen, rest = take_kinds(words)
    if others := chosen.keys() - {"--neuron", "--surrogate", "--network"}:
        raise ValueError(f"{prog} takes no {min(others)}: a network has neurons and a surrogate, --neuron and --surrogate")
    return chosen, parse(Check, rest, prog)


def read_train(words: list[str], prog: str) -> tuple[str, Own, Train | Resume]:
    """The arguments of `train`: a preset's name or "", the user's own code, and the options; raises as `parse`."""
    if any(word.partition("=")[0] == "--resume" for word in words):
        return "", *_read_resume(words, prog)
    name, rest = ("digits-esd", words) if not words or words[0].startswith("-") else (words[0], words[1:])
    chosen, rest = take_kinds(rest)
    run = with_kinds(preset(name).run, chosen)
    options = parse(Train, rest, f"{prog} {name}", Train(run), f"{Train.__doc__} {in_words()}")
    return name, own_of(chosen), options


def read_speedrun(words: list[str], prog: str) -> tuple[str, Own, Speedrun | ResumeSpeedrun]:
    """The arguments of `speedrun`: a preset's name or "", the user's own code, and the options; raises as `parse`."""
    if any(word.partition("=")[0] == "--resume" for word in words):
        return "", *read_again(ResumeSpeedrun, words, f"{prog} --resume")
    name, rest = ("cifar10-fast-rate", words) if not words or words[0].startswith("-") else (words[0], words[1:])
    chosen, rest = take_kinds(rest)
    run = with_kinds(preset(name).run, chosen)
    options = parse(Speedrun, rest, f"{prog} {name}", Speedrun(run), f"{Speedrun.__doc__} {in_words()}")
    return name, own_of(chosen), options


def _read_resume(words: list[str], prog: str) -> tuple[Own, Resume]:
    try:
        return read_again(Resume, words, f"{prog} --resume")
    except ValueError as error:
        if "Unrecognized" not in str(error):
            raise
        raise ValueError(
            f"{str(error).partition(' (')[0]}: a run is resumed with its own settings, and only --data, --device, "
            "--save-minutes and --tensorboard can be given; to change others: spikerate train PRESET --init RUN"
        ) from None


def _sentence(box: str, prog: str) -> str:
    """tyro's error message, which it prints in a box, as one sentence."""
    words = [line.strip("│╭╮╰╯─ ").strip() for line in box.splitlines()[1:]]
    kept: list[str] = []
    for line in words:
        if line.startswith(("Argument helptext", "For full helptext")):
            break
        kept += [line] if line.strip("-") else []
    sentence = " ".join(kept).replace(" Perhaps you meant:", "; perhaps you meant")
    return re.sub(r"^Error parsing [\w.]+: ", "", sentence) + f" ({prog} --help shows all)"
