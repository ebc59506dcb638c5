"""The settings of a run: frozen dataclasses that the command line fills, `run.json` records and the library uses."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from spikerate.data import Data, check
from spikerate.gradients.temperature import Search, adapt
from spikerate.losses import TET, CrossEntropy, RatePenalty, SelfDistillation
from spikerate.models import (
    Branched,
    Staged,
    deepconv_branches,
    preact_resnet18,
    preact_resnet34,
    resnet18,
    resnet19,
    resnet20,
    resnet34,
    sew_resnet18,
    sew_resnet34,
    vgg11,
    vgg13,
    vgg16,
    vggsnn,
)
from spikerate.neuron import LIF, Rectifier
from spikerate.rules import BPTT, OTTT, SLTT, RateBP
from spikerate.runs.optim import SGD, Optim, OptimizerFactory
from spikerate.surrogate import ATan, Dspike, FastSigmoid, Rectangular, Sigmoid, Triangular
from spikerate.system.ranges import MOST_EPOCHS, MOST_SAMPLES, MOST_STEPS, check_count, check_positive, check_seed

_WITH_STEM = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "preact-resnet18": preact_resnet18,
    "preact-resnet34": preact_resnet34,
    "sew-resnet18": sew_resnet18,
    "sew-resnet34": sew_resnet34,
}
_WIDEST = 4096
"""Largest number of channels of the first stage; the last stage has eight times as many, and a kernel of 150 GB."""
_OF_ANY_SIZE = {"resnet19": resnet19, "resnet20": resnet20, "vgg11": vgg11, "vgg13": vgg13, "vgg16": vgg16}


@dataclass(frozen=True)
class Neuron:
    """The neuron of all layers."""

    decay: float = 0.2
    """fraction of the membrane potential that remains after one step, in (0, 1]; 1 is a neuron without leak"""
    threshold: float = 1.0
    """membrane potential at which a spike is fired"""
    v_reset: float | None = None
    """None: soft reset, which subtracts the threshold; a number: hard reset to that value"""
    detach_reset: bool = True
    """treat the reset as a constant for the gradient"""
    surrogate: Sigmoid | ATan | Triangular | Rectangular | FastSigmoid | Dspike = Sigmoid()

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> LIF:
        """A new layer of such neurons."""
        return LIF(self.decay, None, self.threshold, self.v_reset, self.detach_reset, self.surrogate)


@dataclass(frozen=True)
class Rectified:
    """The activation of an ordinary network (ANN) instead of a neuron; at T = 1."""

    def build(self) -> Rectifier:
        """A new layer of such units."""
        return Rectifier()


@dataclass(frozen=True)
class Model:
    """The network."""

    name: Annotated[
        Literal[
            "resnet18",
            "resnet19",
            "resnet20",
            "resnet34",
            "preact-resnet18",
            "preact-resnet34",
            "sew-resnet18",
            "sew-resnet34",
            "vgg11",
            "vgg13",
            "vgg16",
            "vggsnn",
        ],
        arg(aliases=["--model"]),
    ] = "resnet18"
    """architecture"""
    width: Annotated[int, arg(aliases=["--width"])] = 64
    """channels of the first stage; the other stages follow from it"""
    stem: Literal["3x3", "7x7"] = "3x3"
    """first layers of the ResNet-18 and -34 kinds: 3x3 for small images, 7x7 (1/4 of the resolution) as for ImageNet"""
    residual_branches: bool = False
    """self-distillation: a residual block after each DeepConv of the branches, as for ImageNet"""

    def __post_init__(self) -> None:
        names = (*_WITH_STEM, *_OF_ANY_SIZE, "vggsnn")
        if self.name not in names:
            raise ValueError(f"model.name is {self.name!r}: give one of {', '.join(names)}")
        check_count("model.width", self.width, "a number of channels", _WIDEST)
        if self.stem not in ("3x3", "7x7"):
            raise ValueError(f"model.stem is {self.stem!r}: give 3x3 or 7x7")
        if self.stem == "7x7" and self.name not in _WITH_STEM:
            raise ValueError(f"model.stem is 7x7, which {self.name} does not have: give 3x3")

    def build(self, num_classes: int, in_shape: tuple[int, int, int], neuron: Neuron | Rectified) -> Staged:
        """A new network for samples [C, H, W], initialised by PyTorch's global random generator."""
        self.check(in_shape)
        channels, side, _ = in_shape
        if self.name in _WITH_STEM:
            return _WITH_STEM[self.name](num_classes, channels, self.width, neuron.build, self.stem)
        if self.name in _OF_ANY_SIZE:
            return _OF_ANY_SIZE[self.name](num_classes, channels, self.width, neuron.build)
        return vggsnn(num_classes, channels, self.width, neuron.build, side)

    def check(self, in_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` if the network does not accept samples [C, H, W]."""
        _, height, width = in_shape
        if self.name == "vggsnn" and (height != width or height % 16):
            raise ValueError(f"vggsnn needs a side of 16, 32, ..., and the samples are {height} x {width}: give --data.size")


@dataclass(frozen=True)
class Round:
    """A round of training before the run itself: the same network and method, other time steps, epochs, learning rate."""

    T: int | None
    """time steps; None for an ANN of the same shape"""
    epochs: int
    """passes over the training samples"""
    lr: float
    """highest learning rate"""

    def __post_init__(self) -> None:
        check_count("before.epochs", self.epochs, "a number of epochs", MOST_EPOCHS)
        if self.T is not None:
            check_count("before.T", self.T, "a number of time steps", MOST_STEPS)
        check_positive("before.lr", self.lr)

    def __str__(self) -> str:
        return f"{self.T or 'ann'}:{self.epochs}:{self.lr}"

    @classmethod
    def parse(cls, text: str) -> Round:
        """The inverse of `str`.

        Raises:
            ValueError: the text is not of the form ann:EPOCHS:LR or T:EPOCHS:LR, or a number is out of range.
        """
        found = re.fullmatch(r"(ann|[0-9]{1,9}):([0-9]{1,9}):([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)", text)
        if not found:
            raise ValueError(f"{text!r} is no round: give ann:EPOCHS:LR or T:EPOCHS:LR, as ann:300:0.1 or 6:300:0.01")
        return cls(None if found[1] == "ann" else int(found[1]), int(found[2]), float(found[3]))


_AS_TEXTS = PrimitiveConstructorSpec(
    nargs="*",
    metavar="[ann|T:EPOCHS:LR ...]",
    instance_from_str=lambda texts: tuple(map(Round.parse, texts)),
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda rounds: list(map(str, rounds)),
)


@dataclass(frozen=True)
class Run:
    """A training run."""

    data: Data = Data()
    model: Model = Model()
    neuron: Neuron | Rectified = Neuron()
    rule: BPTT | RateBP | SLTT | OTTT = RateBP()
    loss: CrossEntropy | SelfDistillation | TET = CrossEntropy()
    penalty: RatePenalty = RatePenalty(weight=0.0)
    optim: Optim = SGD()
    search: Search | None = None
    T: int = 4
    """time steps, which is also the number of frames of a recording"""
    epochs: int = 300
    """passes over the training samples"""
    before: Annotated[tuple[Round, ...], _AS_TEXTS] = ()
    """rounds to train before this run, each from the best weights of the previous one, as ann:300:0.1 6:300:0.01"""
    batch: int = 128
    """batch size, over all ranks together"""
    seed: int = 0
    """seed of the initial weights, the order of the samples and their augmentation"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: convolutions in bfloat16 by autocast; membrane potentials, statistics and weights stay in float32"""
    compile: bool = False
    """compile the network by torch.compile, which takes about a minute and makes steps faster"""
    accumulate: int = 1
    """divide each batch into this number of parts and accumulate gradients: less memory; batch norm uses each part alone"""
    sync_bn: bool = False
    """batch-norm statistics over the samples of all ranks instead of each rank's own, which the papers use"""
    deterministic: bool = False
    """use only operations that are reproducible to the bit; slower on a GPU, where some operations raise an error"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        check(self.data)
        if not isinstance(self.optim, OptimizerFactory):
            raise ValueError(f"optim is {self.optim!r}: give SGD, AdamW, Muon or another OptimizerFactory")
        check_count("T", self.T, "a number of time steps", MOST_STEPS)
        check_count("epochs", self.epochs, "a number of epochs", MOST_EPOCHS)
        check_count("batch", self.batch, "a number of images", MOST_SAMPLES)
        check_count("accumulate", self.accumulate, "a number of parts", MOST_SAMPLES)
        check_seed(self.seed)
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}: give fp32 or bf16")
        if self.batch < 2 * self.accumulate:
            raise ValueError(
                f"batch is {self.batch} with accumulate={self.accumulate}: batch norm needs at least two images in each part"
            )
        if isinstance(self.loss, TET) and isinstance(self.rule, RateBP):
            raise ValueError("TET needs a gradient at every step, but RateBP has one for the rate only: choose another rule")
        if isinstance(self.neuron, Rectified):
            if self.T != 1:
                raise ValueError(f"T is {self.T}, but an ANN has no time steps: give 1")
        elif isinstance(self.rule, OTTT) and self.rule.decay != self.neuron.decay:
            raise ValueError(f"rule.decay is {self.rule.decay}, and the neurons' {self.neuron.decay}: OTTT needs the same")
        if self.search is not None:
            if not (isinstance(self.neuron, Neuron) and isinstance(self.neuron.surrogate, Dspike)):
                raise ValueError("search is for the temperature of Dspike: give --surrogate dspike, or leave search alone")
            if self.search.samples > self.batch:
                raise ValueError(f"search.samples is {self.search.samples}: give at most the batch size, {self.batch}")
        if self.sync_bn and self.compile:
            raise ValueError("sync_bn can't be compiled yet: give --no-compile, or leave sync_bn alone")
        if self.before and (not self.spiking or any(r.T is None for r in self.before[1:])):
            raise ValueError("before puts a round ahead of an ANN: only the first round can be an ANN")
        for earlier in self.before:
            self._of(earlier)  # checks its settings

    @property
    def spiking(self) -> bool:
        """Whether the network is spiking, not an ANN."""
        return isinstance(self.neuron, Neuron)

    @property
    def rounds(self) -> tuple[Run, ...]:
        """All rounds in order, as runs without `before`; the last one is this run itself."""
        return (*(self._of(earlier) for earlier in self.before), replace(self, before=()))

    @property
    def in_words(self) -> str:
        """Time steps and epochs without earlier rounds: "T = 6, 300 epochs"."""
        steps = f"T = {self.T}" if self.spiking else "ANN"
        return f"{steps}, {self.epochs} {'epoch' if self.epochs == 1 else 'epochs'}"

    def _of(self, earlier: Round) -> Run:
        own = replace(self, before=(), epochs=earlier.epochs, optim=replace(self.optim, lr=earlier.lr))
        return (
            replace(own, T=1, neuron=Rectified(), rule=BPTT(), search=None, penalty=RatePenalty(weight=0.0))
            if earlier.T is None
            else replace(own, T=earlier.T)
        )

    def build(self, num_classes: int, in_shape: tuple[int, int, int]) -> Staged | Branched:
        """The network to train: with branches for self-distillation, else plain."""
        body = self.model.build(num_classes, in_shape, self.neuron)
        if self.search is not None:
            adapt(body)
        if isinstance(self.loss, SelfDistillation):
            branches = deepconv_branches(body, in_shape, num_classes, self.model.residual_branches)
            return Branched(body, branches)
        return body


def encode(value: Any) -> Any:
    """A configuration as JSON types; a dataclass says its type."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [encode(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """What `encode` gives, or another record, as rows of dotted names; of the types, those that a person chooses."""
    rows: list[tuple[str, Any]] = []
    for key, value in record.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}.")
        elif key != "type" or prefix in ("rule.", "loss.", "neuron.", "neuron.surrogate.", "optim.", "optim.schedule."):
            rows.append((prefix.rstrip(".") if key == "type" else prefix + key, value))
    return rows


def decode(kind: Any, value: Any, where: str = "run") -> Any:
    """The inverse of `encode` for the type `kind`, for files from strangers.

    Raises:
        ValueError: a field is unknown or missing, or a value has the wrong type or range; the sentence says where.
    """
    if typing.get_origin(kind) is Annotated:
        return decode(typing.get_args(kind)[0], value, where)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return _decode_union(typing.get_args(kind), value, where)
    if typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
        raise ValueError(f"{where} is {value!r}: give one of {', '.join(map(repr, typing.get_args(kind)))}")
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        kinds = typing.get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) == len(value):
            return tuple(decode(k, v, where) for k, v in zip(kinds, value, strict=True))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is kind:
        return value
    raise ValueError(f"{where} is {value!r}: give a value of type {getattr(kind, '__name__', kind)}")


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(k for k in kinds if k is not type(None))
    if isinstance(value, dict):
        named = [k for k in kinds if dataclasses.is_dataclass(k) and typing.cast(type, k).__name__ == value.get("type")]
        if named:
            return decode(named[0], value, where)
        names = ", ".join(getattr(k, "__name__", str(k)) for k in kinds)
        raise ValueError(f"{where} is of type {value.get('type')!r}: give one of {names}")
    return decode(kinds[0], value, where)


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict) or value.get("type") != kind.__name__:
        raise ValueError(f"{where} is {str(value)[:60]!r}: give the fields of a {kind.__name__}")
    of_all = typing.get_type_hints(kind, include_extras=True)
    hints = {field.name: of_all[field.name] for field in dataclasses.fields(kind)}
    given = {name: v for name, v in value.items() if name != "type"}
    for name in given:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            raise ValueError(f"{where} has the unknown field {name!r}" + (f": did you mean {near[0]}?" if near else ""))
    missing = [name for name in hints if name not in given]
    if missing:
        raise ValueError(f"{where} has no field {missing[0]!r}: it was written by another version of spikerate")
    return kind(**{name: decode(hints[name], v, f"{where}.{name}") for name, v in given.items()})
