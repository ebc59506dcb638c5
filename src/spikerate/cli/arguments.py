"""What can be given to each command: its options as a dataclass, filled from the words of a command line."""

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
from spikerate.gradients.agreement import Comparison
from spikerate.runs.config import Run
from spikerate.runs.kinds import in_words, own_of, take_kinds, take_own, with_kinds
from spikerate.runs.presets import preset
from spikerate.system.codec import Own
from spikerate.system.ranges import MOST_SAMPLES, MOST_STEPS, check_count, check_number

Options = TypeVar("Options")

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


def parse(
    kind: type[Options], args: list[str], prog: str, default: Options | None = None, description: str | None = None
) -> Options:
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


def read_again(kind: type[Options], words: list[str], prog: str) -> tuple[Own, Options]:
    """The code of the user's own that a command names again for a run that there is, and its options; as `parse`."""
    own, rest = take_own(words)
    return own, parse(kind, rest, prog)


def read_train(words: list[str], prog: str) -> tuple[str, Own, Train | Resume]:
    """What `train` was asked for: a preset's name or "", the user's own code, and the options; `ValueError` as `parse`."""
    if any(word.partition("=")[0] == "--resume" for word in words):
        return "", *_read_resume(words, prog)
    name, rest = ("digits-esd", words) if not words or words[0].startswith("-") else (words[0], words[1:])
    chosen, rest = take_kinds(rest)
    run = with_kinds(preset(name).run, chosen)
    options = parse(Train, rest, f"{prog} {name}", Train(run), f"{Train.__doc__} {in_words()}")
    return name, own_of(chosen), options


def _read_resume(words: list[str], prog: str) -> tuple[Own, Resume]:
    try:
        return read_again(Resume, words, f"{prog} --resume")
    except ValueError as error:
        if "Unrecognized" not in str(error):
            raise
        raise ValueError(
            f"{str(error).partition(' (')[0]}: a run goes on with its own settings, and only --data, --device, "
            "--save-minutes and --tensorboard can be given; to train on with others: spikerate train PRESET --init RUN"
        ) from None


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
