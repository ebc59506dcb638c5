"""The settings of a run: frozen dataclasses that the command line fills, `run.json` records and the library uses."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import nn
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from spikerate.adaptive import ALIF
from spikerate.data import LARGEST_SIDE, Data, DataReader, DataSet, check, entry_of
from spikerate.gradients.temperature import Search, adapt
from spikerate.integer import ILIF
from spikerate.learnable import Learnable, ParametricLIF
from spikerate.losses import CrossEntropy, Loss, RatePenalty
from spikerate.measure.averaging import Averaging, check_averaging
from spikerate.models import NETWORKS, Branched, NetworkFactory, Staged, deepconv_branches
from spikerate.neuron import LIF, NeuronSettings, Rectifier, StepNeuron
from spikerate.rules import BPTT, OTTT, RateBP, Rule
from spikerate.runs.optim import SGD, OptimizerFactory
from spikerate.runs.schedule import Schedule
from spikerate.signal import Neuron as NeuronLayer
from spikerate.signal import Signal
from spikerate.surrogate import Sigmoid, Surrogate
from spikerate.synaptic import Synaptic
from spikerate.system.codec import Own, Unnamed, added, decode, encode, flat, path_of
from spikerate.system.ranges import MOST_EPOCHS, MOST_SAMPLES, MOST_STEPS, check_count, check_positive, check_seed

_WIDEST = 4096
"""Largest number of channels of the first stage; the last stage has eight times as many, and a kernel of 150 GB."""
_SIZES = {
    "depth": ("a number of blocks", 256),
    "heads": ("a number of heads", _WIDEST),
    "patch": ("a number of pixels", 16),
}
"""What the sizes of the transformers are, and the largest of each."""
_COMPILED = 4
"""Largest number of different T in a compiled run: torch stops at eight graphs of a function, and evaluation needs some."""
if TYPE_CHECKING:
    NetworkName = str
else:
    NetworkName = Literal[tuple(NETWORKS)]


@dataclass(frozen=True)
class Neuron(NeuronSettings):
    """The neuron of all layers."""

    decay: float = 0.2
    """fraction of the membrane potential that remains after one step, in (0, 1]; 1 is a neuron without leak"""
    threshold: float = 1.0
    """membrane potential at which a spike is fired"""
    v_reset: float | None = None
    """None: soft reset, which subtracts the threshold; a number: hard reset to that value"""
    detach_reset: bool = True
    """treat the reset as a constant for the gradient"""
    surrogate: Surrogate = Sigmoid()

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> LIF:
        """A new layer of such neurons."""
        return LIF(self.decay, None, self.threshold, self.v_reset, self.detach_reset, self.surrogate)


@dataclass(frozen=True)
class LearningNeuron(Neuron):
    """The neuron of all layers, with a decay, and perhaps a threshold and a reset, that each layer learns."""

    decay: float = 0.5
    """decay at the start, between 0 and 1"""
    learn_threshold: bool = added(False)
    """learn the threshold, too; it begins at `threshold`"""
    learn_reset: bool = added(False)
    """learn the value that a hard reset resets to, too; it begins at `v_reset`"""

    def build(self) -> ParametricLIF:
        """A new layer of such neurons.

        Raises:
            ValueError: a value is out of its range, or the reset is to be learned and is soft.
        """
        if self.learn_reset and self.v_reset is None:
            raise ValueError("neuron.learn_reset is for a hard reset: give neuron.v_reset, the value that it begins at, too")
        threshold = Learnable(self.threshold) if self.learn_threshold else self.threshold
        v_reset = Learnable(self.v_reset) if self.learn_reset and self.v_reset is not None else self.v_reset
        return ParametricLIF(Learnable(self.decay), threshold, v_reset, self.detach_reset, self.surrogate)


@dataclass(frozen=True)
class SynapticNeuron(Neuron):
    """The neuron of all layers, with a synaptic current before the membrane."""

    alpha: float = 0.2
    """fraction of the synaptic current that remains after one step, in [0, 1)"""

    def build(self) -> Synaptic:
        """A new layer of such neurons."""
        return Synaptic(self.decay, self.alpha, self.threshold, self.v_reset, self.detach_reset, self.surrogate)


@dataclass(frozen=True)
class AdaptiveNeuron(Neuron):
    """The neuron of all layers, with a threshold that rises with each spike."""

    decay: float = 0.5
    """fraction of the membrane potential that remains after one step, in (0, 1]"""
    beta: float = 0.2
    """by how much a spike raises the threshold"""
    rho: float = 0.9
    """fraction of the adaptation that remains after one step, in [0, 1)"""

    def build(self) -> ALIF:
        """A new layer of such neurons."""
        return ALIF(self.decay, self.beta, self.rho, self.threshold, self.v_reset, self.detach_reset, self.surrogate)


@dataclass(frozen=True)
class IntegerNeuron(NeuronSettings):
    """The integer neuron of all layers: up to `levels` spikes a step in training, as many binary steps in inference."""

    decay: float = 0.25
    """fraction of the membrane potential that remains after one step, in (0, 1]"""
    levels: int = 4
    """most spikes in a step, D; T steps are T D binary ones in inference"""
    threshold: float = 1.0
    """membrane potential of one spike"""
    detach_reset: bool = True
    """treat the reset as a constant for the gradient"""

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> ILIF:
        """A new layer of such neurons."""
        return ILIF(self.decay, self.levels, self.threshold, self.detach_reset)


@dataclass(frozen=True)
class Rectified(NeuronSettings):
    """The activation of an ordinary network (ANN) instead of a neuron; at T = 1."""

    spiking: ClassVar[bool] = False

    def build(self) -> Rectifier:
        """A new layer of such units."""
        return Rectifier()


@dataclass(frozen=True)
class Model:
    """The network."""

    name: Annotated[NetworkName, arg(aliases=["--model"])] = "resnet18"
    """architecture"""
    width: Annotated[int, arg(aliases=["--width"])] = 64
    """channels of the first stage; the other stages follow from it; mlp and recurrent: neurons of each hidden layer"""
    stem: Literal["3x3", "7x7", "whitening"] = "3x3"
    """first layers of the ResNet-18 and -34 kinds: 3x3 for small images, 7x7 (1/4 of the resolution) as for ImageNet; of
    airbench: 3x3, or whitening, which is computed from training images and frozen"""
    residual_branches: bool = False
    """self-distillation: a residual block after each DeepConv of the branches, as for ImageNet"""
    depth: int | None = added(None)
    """transformers: number of blocks; mlp and recurrent: number of hidden layers; None: as the network has it"""
    heads: int | None = added(None)
    """transformers: heads of the attention, a divisor of 8 width; None: 8"""
    patch: int | None = added(None)
    """transformers: pixels of a token's side, a power of 2, 16 as for ImageNet; None: 4, as for CIFAR"""

    def __post_init__(self) -> None:
        if self.name not in NETWORKS:
            raise ValueError(f"model.name is {self.name!r}: give one of {', '.join(NETWORKS)}")
        check_count("model.width", self.width, "a number of channels", _WIDEST)
        stems = NETWORKS[self.name].stems or ("3x3",)
        if self.stem not in stems:
            raise ValueError(f"model.stem is {self.stem!r}, which {self.name} does not have: give {' or '.join(stems)}")
        for name, value in self.sizes.items():
            if name not in NETWORKS[self.name].sizes:
                raise ValueError(f"model.{name} is {value}, which {self.name} does not have: leave it out")
            check_count(f"model.{name}", value, *_SIZES[name])

    @property
    def sizes(self) -> dict[str, int]:
        """Those that only some networks have and that are given, by name."""
        found = {"depth": self.depth, "heads": self.heads, "patch": self.patch}
        return {name: value for name, value in found.items() if value is not None}

    def build(self, num_classes: int, in_shape: tuple[int, int, int], neuron: NeuronSettings) -> Staged:
        """A new network for samples [C, H, W] initialised by PyTorch's global random generator."""
        self.check(num_classes, in_shape, neuron)
        return self._made(num_classes, in_shape, neuron)

    def _made(self, num_classes: int, in_shape: tuple[int, int, int], neuron: NeuronSettings) -> Staged:
        builder, (channels, side, _) = NETWORKS[self.name], in_shape
        if builder.flat:
            channels = math.prod(in_shape)
        if builder.stems:
            return builder.make(num_classes, channels, self.width, neuron.build, self.stem)
        if builder.sided:
            return builder.make(num_classes, channels, self.width, neuron.build, side)
        return builder.make(num_classes, channels, self.width, neuron.build, **self.sizes)

    def check(self, num_classes: int, in_shape: tuple[int, int, int], neuron: NeuronSettings) -> None:
        """Raise `ValueError` if the network does not accept samples [C, H, W]."""
        _, height, width = in_shape
        if NETWORKS[self.name].sided and (height != width or height % 16):
            raise ValueError(
                f"{self.name} needs a side of 16, 32, ..., and the samples are {height} x {width}: give --data.size"
            )
        if self.sizes:  # which must fit each other
            with torch.device("meta"):
                self._made(num_classes, in_shape, neuron)


@dataclass(frozen=True)
class OwnNetwork:
    """The user's own network."""

    network: NetworkFactory
    """package.module:name of a function (num_classes, in_shape, neuron) -> module"""
    residual_branches: bool = False
    """self-distillation: a residual block after each DeepConv of the branches, as for ImageNet"""

    def __post_init__(self) -> None:
        if isinstance(self.network, Unnamed):
            return
        try:
            inspect.signature(self.network).bind(10, (3, 32, 32), LIF)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.name} can't make a network ({error}): give a function (num_classes, in_shape, neuron) -> module"
            ) from error

    @property
    def name(self) -> str:
        """The path package.module:name of the function."""
        return path_of(self.network)

    def build(self, num_classes: int, in_shape: tuple[int, int, int], neuron: NeuronSettings) -> nn.Module:
        """A new network for samples [C, H, W] initialised by PyTorch's global random generator.

        Raises:
            ValueError: the function fails, or does not return a module.
        """
        if isinstance(self.network, Unnamed):
            raise ValueError(f"{self.name} is the user's own code: name it again by --network {self.name}")
        try:
            network = self.network(num_classes, in_shape, neuron.build)
        except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, LookupError) as error:
            raise ValueError(f"{self.name} makes no network for samples {list(in_shape)}: {_told(error)}") from error
        if not isinstance(network, nn.Module):
            raise ValueError(f"{self.name} makes a {type(network).__name__}: give a function that returns a torch.nn.Module")
        return network

    def check(self, num_classes: int, in_shape: tuple[int, int, int], neuron: NeuronSettings) -> None:
        """Raise `ValueError` if the network does not accept samples [C, H, W]; it runs one step of one sample."""
        with torch.random.fork_rng(devices=[]):
            check_network(self.build(num_classes, in_shape, neuron), f"the network of {self.name}", num_classes, in_shape)


def check_network(network: nn.Module, name: str, num_classes: int, in_shape: tuple[int, int, int]) -> None:
    """Raise `ValueError` if a network on the CPU does not map samples [C, H, W] to logits; messages call it `name`.

    One time step of one sample is run in evaluation mode.
    """
    was_training = network.training
    try:
        with torch.no_grad():
            output = BPTT()(network.eval(), torch.zeros(1, 1, *in_shape))
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"{name} does not run: {_told(error)}") from error
    finally:
        network.train(was_training)
    if not isinstance(output, Signal) or tuple(output.shape) != (1, num_classes):
        found = f"a signal {list(output.shape)}" if isinstance(output, Signal) else f"a {type(output).__name__}"
        raise ValueError(f"{name} gives {found} for one sample: give logits [B, K], here [1, {num_classes}]")


def _told(error: Exception) -> str:
    """An error in the user's code, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


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


@dataclass(frozen=True)
class Phase:
    """A share of the steps of a run that has other time steps than its last part."""

    T: int
    """time steps"""
    share: float
    """fraction of the run's steps, in (0, 1)"""

    def __post_init__(self) -> None:
        check_count("curriculum.T", self.T, "a number of time steps", MOST_STEPS)
        if not 0 < self.share < 1:
            raise ValueError(f"curriculum.share is {self.share}: give a fraction of the run's steps, between 0 and 1")

    def __str__(self) -> str:
        return f"{self.T}:{self.share}"

    @classmethod
    def parse(cls, text: str) -> Phase:
        """The inverse of `str`.

        Raises:
            ValueError: the text is not of the form T:SHARE, or a number is out of range.
        """
        return cls(*_number_and_share(text, "curriculum: give T:SHARE, as 1:0.5 2:0.3"))


@dataclass(frozen=True)
class Resolution:
    """A share of the steps of a run whose images have another size than those of its last part."""

    side: int
    """height and width in pixels"""
    share: float
    """fraction of the run's steps, in (0, 1)"""

    def __post_init__(self) -> None:
        check_count("resolutions.side", self.side, "a number of pixels", LARGEST_SIDE)
        if not 0 < self.share < 1:
            raise ValueError(f"resolutions.share is {self.share}: give a fraction of the run's steps, between 0 and 1")

    def __str__(self) -> str:
        return f"{self.side}:{self.share}"

    @classmethod
    def parse(cls, text: str) -> Resolution:
        """The inverse of `str`.

        Raises:
            ValueError: the text is not of the form SIDE:SHARE, or a number is out of range.
        """
        return cls(*_number_and_share(text, "progressive resizing: give SIDE:SHARE, as 16:0.3 24:0.3"))


def _number_and_share(text: str, advice: str) -> tuple[int, float]:
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)", text)
    if not found:
        raise ValueError(f"{text!r} is no part of a {advice}")
    return int(found[1]), float(found[2])


def _at(parts: Sequence[Phase] | Sequence[Resolution], step: int, steps: int) -> Any:
    """The part of step 0, 1, ... of a run of `steps` steps; None after the last one."""
    end = 0.0
    for part in parts:
        end += part.share
        if step < round(end * steps):
            return part
    return None


def _texts(kind: type[Round] | type[Phase] | type[Resolution], form: str) -> PrimitiveConstructorSpec[Any]:
    """How the command line reads and shows a tuple of rounds, phases or resolutions: a word of that form for each."""
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[{form} ...]",
        instance_from_str=lambda words: tuple(map(kind.parse, words)),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda values: list(map(str, values)),
    )


@dataclass(frozen=True)
class Run:
    """A training run."""

    data: Data = Data()
    model: Model | OwnNetwork = Model()
    neuron: NeuronSettings = Neuron()
    rule: Rule = RateBP()
    loss: Loss = CrossEntropy()
    penalty: RatePenalty = RatePenalty(weight=0.0)
    optim: OptimizerFactory = SGD()
    search: Search | None = None
    T: int = 4
    """time steps, which is also the number of frames of a recording"""
    epochs: int = 300
    """passes over the training samples"""
    before: Annotated[tuple[Round, ...], _texts(Round, "ann|T:EPOCHS:LR")] = ()
    """rounds to train before this run, each from the best weights of the previous one, as ann:300:0.1 6:300:0.01"""
    curriculum: Annotated[tuple[Phase, ...], _texts(Phase, "T:SHARE")] = added(())
    """other time steps at the beginning, for shares of the run's steps, as 1:0.5 2:0.3; the rest, and validation, have T;
    schedule and optimiser go on. A step costs (T + 2) / 3 of the ANN's by rate-based backpropagation"""
    resolutions: Annotated[tuple[Resolution, ...], _texts(Resolution, "SIDE:SHARE")] = added(())
    """progressive resizing: smaller images at the beginning, for shares of the run's steps, as 16:0.3 24:0.3; the rest, and
    validation, have the data's size; for networks that take images of any size (Howard et al., DAWNBench 2018)"""
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
    bn_momentum: float | None = added(None)
    """weight of a batch in the running statistics of batch norm, in (0, 1]; None: as the network has it, 0.1 in torch;
    cifar10-airbench keeps 0.6 of the old ones, which is 0.4 here"""
    averaging: Averaging | None = added(None)
    """test also with the mean logits of views of each sample, reported apart: flip, itself and its mirror image; flip-shift,
    both also moved by one pixel (Keller Jordan 2024). It multiplies spikes and operations by 2 or 6"""

    def __post_init__(self) -> None:
        check(self.data)
        _check_part("neuron", self.neuron, NeuronSettings)
        _check_part("rule", self.rule, Rule)
        _check_part("loss", self.loss, Loss)
        _check_part("optim", self.optim, OptimizerFactory)
        _check_part("data.reader", self.data.reader, DataReader)
        _check_layer(self.neuron)
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
        if self.batch % self.data.augment.repeats:
            raise ValueError(
                f"batch is {self.batch} with data.augment.repeats={self.data.augment.repeats}: give a multiple of that"
            )
        if self.loss.per_step and not self.rule.per_step:
            loss, rule = type(self.loss).__name__, type(self.rule).__name__
            raise ValueError(
                f"{loss} needs a gradient at every step, but {rule} has one for the rate only: choose another rule"
            )
        if not self.spiking and self.T != 1:
            raise ValueError(f"T is {self.T}, but an ANN has no time steps: give 1")
        if isinstance(self.model, Model) and NETWORKS[self.model.name].recurrent and isinstance(self.rule, RateBP):
            raise ValueError(
                f"rule is RateBP, and the spikes of {self.model.name} come back to its neurons at a time that no rate "
                "tells: give --rule bptt, sltt or ottt"
            )
        # The decay of the user's own neurons is not known.
        if isinstance(self.rule, OTTT) and isinstance(self.neuron, Neuron) and self.rule.decay != self.neuron.decay:
            raise ValueError(f"rule.decay is {self.rule.decay}, and the neurons' {self.neuron.decay}: OTTT needs the same")
        if self.search is not None:
            if not adaptable(self.neuron):
                raise ValueError("search is for the temperature of Dspike: give --surrogate dspike, or leave search alone")
            if self.search.samples > self.batch:
                raise ValueError(f"search.samples is {self.search.samples}: give at most the batch size, {self.batch}")
        if self.sync_bn and self.compile:
            raise ValueError("sync_bn can't be compiled yet: give --no-compile, or leave sync_bn alone")
        if self.compile and isinstance(self.rule, BPTT) and self.rule.checkpoint:
            raise ValueError("rule.checkpoint can't be compiled: give --no-compile, or leave rule.checkpoint alone")
        if self.compile and not isinstance(self.rule, BPTT) and _by_step(self.neuron):
            raise ValueError(
                f"neuron is of the kind {path_of(self.neuron)}, written as one step, which is compiled under BPTT only: "
                "give --no-compile, or --rule bptt"
            )
        self._check_curriculum()
        self._check_resolutions()
        check_averaging(self.averaging, (1, 2, 2))
        if self.bn_momentum is not None and not 0 < self.bn_momentum <= 1:
            raise ValueError(f"bn_momentum is {self.bn_momentum}: give a number in (0, 1], or None")
        if self.before and (not self.spiking or any(r.T is None for r in self.before[1:])):
            raise ValueError("before puts a round ahead of an ANN: only the first round can be an ANN")
        for earlier in self.before:
            self._of(earlier)  # checks its settings

    @property
    def spiking(self) -> bool:
        """Whether the network is spiking, not an ANN."""
        return self.neuron.spiking

    @property
    def rounds(self) -> tuple[Run, ...]:
        """All rounds in order, as runs without `before`; the last one is this run itself."""
        return (*(self._of(earlier) for earlier in self.before), replace(self, before=()))

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The whole curriculum: the time steps of all shares of the run; a single share of 1 is no phase, but its T."""
        rest = 1 - sum(phase.share for phase in self.curriculum)
        return (*self.curriculum, Phase(self.T, rest)) if self.curriculum else ()

    def T_at(self, step: int, steps: int) -> int:
        """The time steps of step 0, 1, ... of a run of `steps` steps."""
        phase = _at(self.curriculum, step, steps)
        return self.T if phase is None else phase.T

    def side_at(self, step: int, steps: int) -> int | None:
        """Height and width of the images of step 0, 1, ... of a run of `steps` steps; None: as the data have them."""
        resolution = _at(self.resolutions, step, steps)
        return None if resolution is None else resolution.side

    @property
    def shares(self) -> list[tuple[float, int, int | None]]:
        """Shares of the run's steps with the same cost, in order: share, T, side of the images or None for the data's."""
        ends = [tuple(itertools.accumulate(part.share for part in parts)) for parts in (self.curriculum, self.resolutions)]
        edges = sorted({0.0, 1.0, *itertools.chain(*ends)})
        fine = 10**9  # steps, of a run so long that rounding does not matter
        middles = [(b - a, round((a + b) / 2 * fine)) for a, b in itertools.pairwise(edges)]
        return [(share, self.T_at(step, fine), self.side_at(step, fine)) for share, step in middles]

    def mean(self, cost: Callable[[int], float]) -> float:
        """The mean over the run's steps of a cost that depends on their T."""
        return sum(phase.share * cost(phase.T) for phase in self.phases) if self.curriculum else cost(self.T)

    @property
    def times(self) -> str:
        """Time steps without earlier rounds: "T = 6", "T = 1 -> 2 -> 6", of integer neurons "T = 1, D = 4", or "ANN"."""
        if not self.spiking:
            return "ANN"
        steps = f"T = {' -> '.join(str(T) for T in (*(p.T for p in self.curriculum), self.T))}"
        return f"{steps}, D = {self.neuron.levels}" if isinstance(self.neuron, IntegerNeuron) else steps

    @property
    def settings(self) -> list[tuple[str, Any]]:
        """All fields as (name, value), those of parts with a dot; rounds and curriculum as on the command line."""
        texts = {name: " ".join(map(str, getattr(self, name))) for name in ("before", "curriculum", "resolutions")}
        return flat(encode(self) | texts)

    @property
    def in_words(self) -> str:
        """Time steps and epochs without earlier rounds: "T = 6, 300 epochs"."""
        return f"{self.times}, {self.epochs} {'epoch' if self.epochs == 1 else 'epochs'}"

    def _check_curriculum(self) -> None:
        if not self.curriculum:
            return
        if not self.spiking:
            raise ValueError("curriculum is for spiking networks: an ANN has no time steps, so leave it out")
        if entry_of(self.data).recorded:
            raise ValueError(
                "curriculum is for images: recordings are cut into T frames, so train them in rounds by --before"
            )
        if sum(phase.share for phase in self.curriculum) > 1 - 1e-6:
            raise ValueError(
                f"curriculum {' '.join(map(str, self.curriculum))} leaves no step to T = {self.T}, which the run ends with: "
                "give shares that add up to less than 1"
            )
        different = {self.T, *(phase.T for phase in self.curriculum)}
        if self.compile and len(different) > _COMPILED:
            raise ValueError(
                f"curriculum has {len(different)} different T, each to compile: give at most {_COMPILED}, or --no-compile"
            )

    def _check_resolutions(self) -> None:
        if not self.resolutions:
            return
        if entry_of(self.data).recorded:
            raise ValueError("resolutions are for images: frames of recordings count events, so leave them out")
        if sum(resolution.share for resolution in self.resolutions) > 1 - 1e-6:
            raise ValueError(
                f"resolutions {' '.join(map(str, self.resolutions))} leave no step to the data's size, which the run ends "
                "with: give shares that add up to less than 1"
            )
        different = {(T, side) for _, T, side in self.shares}
        if self.compile and len(different) > _COMPILED:
            raise ValueError(
                f"curriculum and resolutions have {len(different)} different steps, each to compile: give at most "
                f"{_COMPILED}, or --no-compile"
            )

    def _of(self, earlier: Round) -> Run:
        optim = replace(self.optim, lr=earlier.lr)
        own = replace(self, before=(), curriculum=(), resolutions=(), averaging=None, epochs=earlier.epochs, optim=optim)
        return (
            replace(own, T=1, neuron=Rectified(), rule=BPTT(), search=None, penalty=RatePenalty(weight=0.0))
            if earlier.T is None
            else replace(own, T=earlier.T)
        )

    def build(self, num_classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
        """The network to train: with branches for a loss that wants them, else plain.

        Raises:
            ValueError: the network has no stages between which branches could leave, or is not for such samples.
        """
        return self.complete(self.model.build(num_classes, in_shape, self.neuron), num_classes, in_shape)

    def complete(self, body: nn.Module, num_classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
        """A network with what the run's method adds to it: temperatures and the momentum of batch norm, in place; branches.

        Raises:
            ValueError: as `build`.
        """
        if self.search is not None:
            adapt(body)
        network = self._branched(body, num_classes, in_shape)
        if self.bn_momentum is not None:
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.momentum = self.bn_momentum
        return network

    def _branched(self, body: nn.Module, num_classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
        if not self.loss.branches or isinstance(body, Branched):
            return body
        if not isinstance(body, Staged):
            raise ValueError(
                f"{type(self.loss).__name__} wants branches, and the network is a {type(body).__name__}, which has no "
                "stages that they could leave from: make a spikerate.Staged of it, or choose another loss"
            )
        return Branched(body, deepconv_branches(body, in_shape, num_classes, self.model.residual_branches))


def adaptable(neuron: NeuronSettings) -> bool:
    """Whether such neurons have a temperature that can be searched for."""
    if isinstance(neuron, Unnamed):
        return True
    try:
        adapt(nn.Sequential(neuron.build()))
    except ValueError:
        return False
    return True


def _by_step(neuron: NeuronSettings) -> bool:
    """Whether such neurons are written as one time step."""
    return not isinstance(neuron, Unnamed) and isinstance(neuron.build(), StepNeuron)


def _check_part(field: str, value: Any, base: type) -> None:
    """Raise `ValueError` unless a part is of its kind, and can be written to a file if it is the user's own."""
    if not isinstance(value, base):
        raise ValueError(
            f"{field} is of {path_of(value)}: give an instance of a class that inherits from spikerate's {base.__name__}"
        )
    kind = type(value)
    if ":" not in path_of(kind) or isinstance(value, Unnamed):
        return
    try:
        same = decode(kind, encode(value), field, Own.of(value)) == value
    except (ValueError, TypeError, NameError) as error:
        raise ValueError(f"{path_of(kind)} can't be kept in a file: {error}") from error
    if not same:
        raise ValueError(f"{path_of(kind)} is another after it was written and read: make it a frozen dataclass")


def _check_layer(neuron: NeuronSettings) -> None:
    """Raise `ValueError` where what the user's neuron settings build is no layer of neurons."""
    if ":" not in path_of(neuron) or isinstance(neuron, Unnamed):
        return
    try:
        layer = neuron.build()
    except (TypeError, AttributeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"{path_of(neuron)} builds no layer: {_told(error)}") from error
    if not isinstance(layer, nn.Module):
        raise ValueError(f"{path_of(neuron)} builds a {type(layer).__name__}: give what builds a torch.nn.Module")
    asked = [name for name in vars(NeuronLayer) if not name.startswith("_")]
    missing = [name for name in asked if name not in dir(layer)]
    if missing:
        raise ValueError(f"{path_of(layer)} has no {missing[0]}: a layer of neurons has it, or inherits from StepNeuron")


@dataclass(frozen=True)
class _UnnamedRule(Unnamed, Rule):
    def __call__(self, network: Any, x: Any) -> Any:
        raise AssertionError("it is only shown")

    def passes(self, T: int) -> float:
        raise AssertionError("it is only shown")


@dataclass(frozen=True)
class _UnnamedLoss(Unnamed, Loss):
    def __call__(self, outputs: Any, labels: Any) -> Any:
        raise AssertionError("it is only shown")


@dataclass(frozen=True)
class UnnamedNeuron(Unnamed, NeuronSettings):
    """Neuron settings of the user's own that are only shown."""

    spiking: bool = True  # type: ignore[misc]  # the record of the run says it

    def build(self) -> nn.Module:
        raise AssertionError("it is only shown")


@dataclass(frozen=True)
class _UnnamedOptim(Unnamed, OptimizerFactory):
    lr: float = 1.0

    def build(self, network: nn.Module) -> Any:
        raise AssertionError("it is only shown")


@dataclass(frozen=True)
class _UnnamedSchedule(Unnamed, Schedule):
    def __call__(self, step: int, steps: int) -> float:
        raise AssertionError("it is only shown")


@dataclass(frozen=True)
class _UnnamedReader(Unnamed, DataReader):
    def read(self, path: Path | None, T: int) -> DataSet:
        raise AssertionError("it is only shown")


@dataclass(frozen=True)
class _UnnamedSurrogate(Unnamed, Surrogate):
    def slope(self, x: Any) -> Any:
        raise AssertionError("it is only shown")
