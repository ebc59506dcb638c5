"""Signals: what flows through a spiking network, and where its gradient goes.

A network is written for tensors [B, ...]; time is a hidden axis of the `Signal` that flows through it. Torch's functions
are called on a signal by `__torch_function__`. A table, which `operations` fills, maps each of them to one of five verbs:
`affine`, `product`, `nonlinear`, `normalize` and `fire`. A training rule is defined by how its kind of signal implements
these five methods. A function that is not in the table raises `TypeError`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import FrameType, FunctionType
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spikerate import autograd, fused

PerStep = Callable[..., Tensor]
_Own = TypeVar("_Own", bound="Stepwise")

VERBS: dict[Any, Callable[..., Any]] = {}
"""Torch function -> its verb. `operations` fills it, and is imported by whatever begins signals."""

METHODS: dict[str, Callable[..., Any]] = {}
"""Name of a method of a tensor -> its verb, in the same way."""


@runtime_checkable
class Neuron(Protocol):
    """The methods of a neuron layer that signals call; its `forward` is `return x.fire(self)`.

    `inputs` are currents [T, B, ...]; `state` is what the layer was left with by the steps before, None at the start. A
    layer that inherits from `StepNeuron` has all by one method, `step`.

    """

    def spikes(self, inputs: Tensor) -> Tensor:
        """Spikes [T, B, ...] from the start, without a graph: inference."""

    def unroll(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Spikes with the gradient through every step, and the state: `Unrolled` (BPTT)."""

    def trace(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Spikes without a graph, and a tuple as state: `RateCoded` (RateBP).

        Its last two, [B, ...], are sums over all steps so far: of the spikes; and of d(spike)/d(current), where the current
        of every step grows by the same, which divided by T is the gain of the rate. Where there are two before these, the
        first is the membrane, the state of `unroll`, so that a stream can go on from it (`Rule.continued`).
        """

    def slopes(self, inputs: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Spikes without a graph, the slope of each at its own step, and the state: `Spatial`, `Traced` (SLTT, OTTT)."""

    @property
    def elementwise(self) -> bool:
        """Whether neurons know nothing of each other, and `torch.compile` takes the methods above.

        Then they may be called with trains [T, N] and states [N] of all neurons in another order, to be made one pass.
        """


class RuleRefused(TypeError, ValueError):
    """A layer's word that it has no gradient under the rule that runs it, and which rules it has one under.

    It is no mistake in a network but a property of it, which `check` tells as such. A layer of neurons raises it in `trace`
    (`RateBP`) or in `slopes` (`SLTT`, `OTTT`).
    """


class Feedback(ABC):
    """A neuron layer whose own spikes come back to it through a layer of weights, at the next step.

    Attributes:
        layer: what they come back through, [B, ...] -> [B, ...].
    """

    layer: nn.Module

    @abstractmethod
    def returning(self, spikes: Tensor, state: Any) -> Tensor:
        """The spikes that come back at each step of [T, B, ...], those of the step before; `state` is that at the start."""


class Memory(Protocol):
    """What goes on from call to call of a rule: a name for each layer's state (`Rule.continued`)."""

    def recall(self, layer: Any, train: Tensor) -> Any:
        """The state that the call before left of a layer, None at the start; `train` [T or 1, B, ...] is its input."""

    def keep(self, layer: Any, state: Any) -> None:
        """Leave the state of a layer to the next call."""

    def before(self, name: str) -> Any:
        """The state that the call before left of the layer of that name; None at the start."""


State = tuple[Any, ...]
"""The state of a neuron layer between chunks: tensors [B, ...], or a number that is the same for all neurons."""

Moved = tuple[Any, dict[str, Any], Any, dict[str, Any]]
"""What `Learns.trace` leaves, each [B, ...]: membranes, their derivatives by each name; the summed spikes, and theirs.

The names are those of what is learned, and "current" for a current that grows by the same at every step.
"""


class Learns(ABC):
    """A layer of neurons that has values which are learned."""

    @property
    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """Name -> the value, with the gradient of its parameter; it goes with a sample [...] by broadcasting."""

    @abstractmethod
    def at_once(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Spikes [T, B, ...] with a graph in which the state before each step is a constant, and the state: SLTT, OTTT."""

    @abstractmethod
    def trace(self, inputs: Tensor, state: Moved | None) -> tuple[Tensor, Moved]:
        """As `Neuron.trace`, with what each value moves."""


class Tape:
    """The state that layers carry from chunk to chunk of one forward pass: one slot per layer, in order of execution.

    Each chunk has its own tape, which identifies the signals of that chunk; the slots are shared by all chunks.

    Args:
        T: number of time steps in all chunks together.
        whole: whether a single chunk contains all steps, so that no state is needed.

    Attributes:
        memory: what goes on from call to call; None where each call starts anew.
    """

    def __init__(self, T: int, whole: bool = True) -> None:
        self.T = T
        self.whole = whole
        self.last = whole
        self.closed = False
        self.graph = torch.is_grad_enabled()
        self.slots: list[Any] = []
        self.position = 0
        self.layers: list[Any] = []
        self.met = 0
        self.first = True
        self.memory: Memory | None = None

    def following(self, last: bool) -> Tape:
        """The tape of the next chunk; `last` tells whether it is the final one."""
        tape = Tape(self.T, self.whole)
        tape.last = last
        tape.slots, tape.layers, tape.first, tape.memory = self.slots, self.layers, False, self.memory
        return tape

    def meet(self, *layer: Any) -> None:
        """Check that the layer that runs now is the same as in the first chunk; otherwise it would read another's state.

        Args:
            layer: the kind of layer and what identifies it: its parameters, settings, functions.

        Raises:
            ValueError: another layer ran at this position in the first chunk.
            RuntimeError: a layer runs again after its chunk has ended, as under activation checkpointing.
        """
        if self.whole:
            return
        self._check_open()
        if self.first:
            self.layers.append(layer)
        elif self.met == len(self.layers) or not _alike(layer, self.layers[self.met]):
            raise ValueError(_other_layers(f"{layer[0]} is number {self.met + 1} of the layers"))
        self.met += 1

    def close(self) -> None:
        """End the chunk: afterwards no layer may run on this tape, unless the tape carries no state.

        Raises:
            ValueError: fewer layers ran than in the first chunk.
        """
        self.closed = not self.whole
        if self.met < len(self.layers):
            raise ValueError(_other_layers(f"{self.met} layers ran instead of {len(self.layers)}"))

    def recall(self) -> Any:
        """The state that this layer kept in the previous chunk; None in the first one. In the last chunk it is released.

        Raises:
            RuntimeError: a layer runs again after its chunk has ended, as under activation checkpointing.
        """
        self._check_open()
        if self.position >= len(self.slots):
            return None
        state = self.slots[self.position]
        if self.last:
            self.slots[self.position] = None  # while the graph grows, what is carried shrinks
        return state

    def keep(self, state: Any) -> None:
        """Keep `state` for this layer if another chunk follows, and move on to the next layer."""
        if self.whole:
            return
        if self.first:
            self.slots.append(state)
        elif not self.last:
            self.slots[self.position] = state
        self.position += 1

    def resume(self, layer: Any, train: Tensor) -> Any:
        """As `recall`, of a layer whose state goes on from call to call; `train` [T or 1, B, ...] is its input.

        Raises:
            ValueError: the state is not that of such a layer.
        """
        if self.first and self.memory is not None:
            return self.memory.recall(layer, train)
        return self.recall()

    def leave(self, layer: Any, state: Any) -> None:
        """As `keep`, of a layer whose state goes on from call to call."""
        if self.last and self.memory is not None:
            self.memory.keep(layer, state)
        self.keep(state)

    def mean(self, x: Tensor, n: int) -> Tensor:
        """The mean over the time steps of all chunks, where `x` is the mean over the `n` steps of this chunk.

        It is complete in the last chunk only.
        """
        if self.whole:
            return x
        past = self.recall()
        wide = torch.promote_types(x.dtype, torch.float32)
        total = x.to(wide) * n if past is None else torch.add(past, x, alpha=n)  # one pass over memory
        self.keep(total)
        return (total / self.T).to(x.dtype)

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError(
                "a layer ran again after the forward pass, but with chunk < T it can run only once: "
                "use chunk=None together with activation checkpointing"
            )


def _other_layers(found: str) -> str:
    return (
        f"the network runs other layers in this chunk of steps than in the first one ({found}): with chunk < T all chunks "
        "must run the same layers in the same order, so make random choices once per forward pass, or use chunk=None"
    )


def _alike(a: Any, b: Any) -> bool:
    """Whether two descriptions are of the same layer. Tensors that are computed anew in each chunk must be equal."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        computed = a.shape == b.shape and not isinstance(a, nn.Parameter) and not isinstance(b, nn.Parameter)
        return a is b or (computed and _equal(a, b))
    if isinstance(a, FunctionType) and isinstance(b, FunctionType):
        # The compiler can't look into functions; but what it traces as one graph has no random choice that could differ.
        return torch.compiler.is_compiling() or (a.__code__ is b.__code__ and _alike(_enclosed(a), _enclosed(b)))
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_alike(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[name], b[name]) for name in a)
    return type(a) is type(b) and bool(a == b)


def _equal(a: Tensor, b: Tensor) -> bool:
    if torch.compiler.is_compiling():
        # A program has no branch for what a tensor turns out to be, but it can end there.
        torch._assert_async((a == b).all(), _other_layers("a tensor beside a signal has other values"))
        return True
    return torch.equal(a, b)


def _enclosed(f: FunctionType) -> tuple[Any, ...]:
    """The values in the closure of a function."""
    return tuple(cell.cell_contents for cell in f.__closure__ or ())


@dataclass(frozen=True, eq=False)
class Signal(ABC):
    """Spikes or input currents over time, and their mean, the rate: always `rate == steps.mean(0)`.

    Every kind of signal is registered as a pytree node, so that `DistributedDataParallel`, FSDP and `vmap` find its tensors.

    Attributes:
        train: [T, B, ...], or [1, B, ...] if it is constant.
        constant: whether the train is the same at every step of every chunk.
        T: the number of time steps in this chunk.
        tape: the state that layers carry from chunk to chunk.
        exits: logits [B, K] of the early exits, first to last; only on the output of a `Branched` in training.
        number: position on the tape of the layer that returned the signal; it must be the same in every chunk.
        counts: the spikes in one byte each, which layers keep instead of a train or rate that is of spikes; None if unknown.
        plain: names of the fields that contain no tensors.
    """

    plain: ClassVar[tuple[str, ...]] = ("constant", "T", "tape", "number", "counts")

    train: Tensor
    constant: bool
    T: int
    tape: Tape
    exits: tuple[Tensor, ...] = field(default=(), kw_only=True)
    number: int = field(default=0, kw_only=True)
    counts: autograd.Counts | None = field(default=None, kw_only=True)

    def __init_subclass__(cls) -> None:
        pytree.register_pytree_node(cls, _leaves, partial(_grown, cls))

    def __post_init__(self) -> None:
        if self.tape.graph and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and _in_a_function():
            raise RuntimeError(
                "a part of the network ran inside an autograd function, which finds no tensor in a signal, so all layers "
                "before it would get no gradient: use torch.utils.checkpoint with use_reentrant=False"
            )

    @property
    def steps(self) -> Tensor:
        """[T, B, ...], the steps of this chunk, a view if the train is constant. Some kinds have a gradient here."""
        return self.expanded()

    def expanded(self) -> Tensor:
        """The steps [T, B, ...] for computations inside layers; unlike `steps` it never warns about gradients."""
        return self.train.expand(self.T, *self.train.shape[1:])

    @property
    @abstractmethod
    def rate(self) -> Tensor:
        """[B, ...], the mean over the time steps.

        Raises:
            RuntimeError: this signal is inside a network that runs in chunks, and knows only one chunk; use `tap`.
        """

    def _check_all_steps(self) -> None:
        if self.T != self.tape.T:
            raise RuntimeError(
                f"a rate is asked for inside a network that runs in chunks, after {self.T} of {self.tape.T} steps: it is "
                "the mean over all steps, so use signal.tap(), which is final when signal.complete"
            )

    @abstractmethod
    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> Signal:
        """Apply a function that commutes with the mean over time.

        Args:
            f: maps [N, ...] to [N, ...] sample by sample; its arguments are this signal and the `others`.
            others: further operands, of the same kind and T.
            at_rate: if `f` has weights: (value, rate) -> value, with the gradient of `f` at the rate. Default: compute
                `f(rate)`.
        """

    @abstractmethod
    def product(self, f: PerStep, other: Signal, at_rate: autograd.Product | None = None) -> Signal:
        """Apply a function of two signals that is linear in each of them to each step.

        Args:
            f: maps [N, ...], [N, ...] to [N, ...] sample by sample; its arguments are this signal and the `other`.
            other: of the same kind and T.
            at_rate: (value, rate, rate) -> value, with the gradient of `f` at the rates. Default: compute `f(rate, rate)`.
        """

    @abstractmethod
    def nonlinear(self, f: PerStep, at_rate: autograd.SampleNorm | None = None) -> Signal:
        """Apply a function [N, ...] -> [N, ...] to each step; it does not commute with the mean over time.

        Args:
            f: sample by sample.
            at_rate: if `f` divides by a statistic of each sample at each step. Default: the gradient is that of `f(rate)`.
        """

    @abstractmethod
    def normalize(self, norm: Normalization) -> Signal:
        """Normalise by the statistics of this signal over time steps, batch and space (batch norm in training)."""

    @abstractmethod
    def fire(self, neuron: Neuron) -> Signal:
        """The spikes of a neuron layer whose input currents are the steps of this signal."""

    @abstractmethod
    def tap(self) -> Tensor:
        """The rate [B, ...] over all steps of all chunks, for a branch of the network; final in the last chunk."""

    def joined(self, earlier: Sequence[Signal]) -> Signal:
        """This signal of the last chunk with the steps of those of the chunks before too."""
        train = torch.cat([y.expanded() for y in (*earlier, self)])
        return replace(self, train=train, constant=False, T=len(train))

    @property
    def complete(self) -> bool:
        """Whether this is the last chunk, so that the signal includes the last time step."""
        return self.tape.last

    @property
    def shape(self) -> torch.Size:
        """The shape [B, ...] without time, as a network written for tensors expects it."""
        return self.train.shape[1:]

    @property
    def samples(self) -> int:
        """B, the number of samples that get separate dropout masks."""
        return self.train.shape[1]

    def dim(self) -> int:
        """The number of axes without time."""
        return self.train.dim() - 1

    @property
    def ndim(self) -> int:
        """The number of axes without time."""
        return self.dim()

    def size(self, dim: int | None = None) -> Any:
        """The shape without time, or one axis of it."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def dtype(self) -> torch.dtype:
        return self.train.dtype

    @property
    def device(self) -> torch.device:
        return self.train.device

    def __len__(self) -> int:
        return self.shape[0]

    def __add__(self, other: Signal | float | Tensor) -> Signal:
        return METHODS["add"](self, other)

    def __radd__(self, other: float | Tensor) -> Signal:
        return METHODS["add"](self, other)

    def __sub__(self, other: Signal | float | Tensor) -> Signal:
        return METHODS["sub"](self, other)

    def __rsub__(self, other: float | Tensor) -> Signal:
        return METHODS["rsub"](self, other)

    def __mul__(self, other: Signal | float | Tensor) -> Signal:
        return METHODS["mul"](self, other)

    def __rmul__(self, other: float | Tensor) -> Signal:
        return METHODS["mul"](self, other)

    def __matmul__(self, other: Signal | Tensor) -> Signal:
        return METHODS["matmul"](self, other)

    def __rmatmul__(self, other: Tensor) -> Signal:
        return METHODS["__rmatmul__"](self, other)

    def __truediv__(self, other: float | Tensor) -> Signal:
        return METHODS["div"](self, other)

    def __neg__(self) -> Signal:
        return METHODS["neg"](self)

    def __pos__(self) -> Signal:
        return self

    def __getitem__(self, index: Any) -> Signal:
        return METHODS["__getitem__"](self, index)

    def relu(self) -> Any:
        """`torch.relu`: it has a rule where `spiking` has put a neuron in its place."""
        return torch.relu(self)  # type: ignore[arg-type]

    def relu_(self) -> Any:
        """As `relu`."""
        return torch.relu_(self)  # type: ignore[arg-type]

    __hash__ = object.__hash__
    __array_ufunc__: ClassVar[None] = None  # otherwise NumPy's numbers would treat a signal as one of their objects

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            return partial(METHODS[name], self)
        if not name.startswith("_") and hasattr(Tensor, name):
            raise TypeError(no_rule(f"Tensor.{name}"))
        raise AttributeError(f"{type(self).__name__} has no attribute {name}")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        verb = VERBS.get(func)
        first = args[0] if args else None
        if func in _OPERATORS and isinstance(first, Tensor):
            return NotImplemented  # so that Python asks for the operator of the signal, on the right
        if verb is None or not isinstance(first, Signal | list | tuple | str):  # einsum begins with a string
            raise TypeError(no_rule(getattr(func, "__name__", str(func))))
        return verb(*args, **(kwargs or {}))


_OPERATORS = {Tensor.add, Tensor.sub, Tensor.mul, Tensor.matmul}
"""What torch calls for an operator with a tensor on the left and a signal on the right."""


def _refused(name: str) -> Callable[..., Any]:
    def operator(*operands: Any) -> Any:
        raise TypeError(no_rule(f"Tensor.{name}"))

    return operator


# Refused, since Python itself would answer some of them wrongly, for instance x == 0.
_WITHOUT_RULE = (
    "abs and array bool complex contains delitem divmod eq float floordiv ge gt index int invert iter le lshift lt "
    "mod ne or pow rand rdivmod reversed rfloordiv rlshift rmod ror round rpow rrshift rshift "
    "rtruediv rxor setitem xor"
)
for _name in _WITHOUT_RULE.split():
    setattr(Signal, f"__{_name}__", _refused(f"__{_name}__"))


def _leaves(x: Signal) -> tuple[list[Any], tuple[dict[str, Any], tuple[int, int] | None]]:
    """The fields of a signal that contain tensors, and as context the other fields by name and the axes of the train."""
    axes = _axes(x.train) if isinstance(x.train, Tensor) else None
    plain = {name: getattr(x, name) for name in x.plain}
    return [getattr(x, f.name) for f in fields(x) if f.name not in x.plain], (plain, axes)


def _grown(kind: type[Signal], leaves: Iterable[Any], context: tuple[dict[str, Any], tuple[int, int] | None]) -> Signal:
    """The signal with these fields, which may also be placeholders instead of tensors."""
    plain, axes = context
    names = (f.name for f in fields(kind) if f.name not in kind.plain)
    values = dict(zip(names, leaves, strict=True))
    if axes is not None and isinstance(values["train"], Tensor) and _axes(values["train"]) != axes:
        raise ValueError(
            "the first axis of a signal's train is time: it can't be split, and torch.vmap can't use it as its own axis, "
            "so let the function under vmap return the signal's .rate"
        )
    return kind(**values, **plain)


def _axes(train: Tensor) -> tuple[int, int]:
    return train.dim(), len(train)


def _in_a_function() -> bool:
    """Whether this is called from the forward of a `torch.autograd.Function`."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not _APPLY:
        frame = frame.f_back
    return frame is not None


_APPLY = torch.autograd.Function.__dict__["apply"].__func__.__code__


@dataclass(frozen=True, eq=False)
class Stepwise(Signal):
    """The time steps carry the gradient; subclasses define what a neuron passes back through time."""

    @property
    def rate(self) -> Tensor:
        self._check_all_steps()
        return self.train.mean(0)

    def product(self, f: PerStep, other: Signal, at_rate: autograd.Product | None = None) -> Signal:
        return self.affine(f, other)  # where each step has its own gradient, it needs not commute with the mean

    def nonlinear(self: _Own, f: PerStep, at_rate: autograd.SampleNorm | None = None) -> _Own:
        return replace(self, train=mapped(f, (self,)))

    def normalize(self: _Own, norm: Normalization) -> _Own:
        y, _, _ = norm(self.train, self.T)
        return replace(self, train=y)

    def tap(self) -> Tensor:
        self.tape.meet("a tap")
        return self.tape.mean(self.train.mean(0), self.T)

    def _at_once(self: _Own, neuron: Neuron) -> _Own:
        """The spikes of a neuron layer; the gradient of each step goes to the input of that step only."""
        self.tape.meet("a neuron", neuron)
        if isinstance(neuron, Learns):
            spikes, state = neuron.at_once(self.expanded(), self.tape.resume(neuron, self.train))
            self.tape.leave(neuron, state)
            return self._fired(neuron, spikes)
        with torch.no_grad():
            before = self.tape.resume(neuron, self.train)
            spikes, slopes, state = _fused(_slopes, neuron, self.train, self.T, before)
        self.tape.leave(neuron, state)
        currents = self.expanded()
        if isinstance(neuron, Feedback):
            back = replace(self, train=neuron.returning(spikes, before), constant=False, counts=None)
            currents = currents + neuron.layer(back).expanded()
        return self._fired(neuron, autograd.scale(spikes, currents, slopes))

    def _fired(self: _Own, neuron: Neuron, spikes: Tensor) -> _Own:
        counts = autograd.Counts(spikes) if _binary(neuron) and not torch.compiler.is_compiling() else None
        return replace(self, train=spikes, constant=False, counts=counts)

    def _mapped(self, f: PerStep, others: Sequence[Signal], layer: autograd.Layer | None) -> Tensor:
        """The train of `f`, which keeps one byte of each spike for its gradient where it is a layer of spikes."""
        counts = autograd.kept_as(self.counts, self.train)
        # Autocast shares the weights that it casts between chunks, which are cast once for each layer here.
        shared = not self.tape.whole and autograd.autocast(self.train)
        if layer is None or counts is None or shared or not (torch.is_grad_enabled() and layer.takes(self.train)):
            return mapped(f, (self, *others))
        return layer(None, self.train.flatten(0, 1), counts).unflatten(0, self.train.shape[:2])


@dataclass(frozen=True, eq=False)
class Unrolled(Stepwise):
    """The gradient goes through every step: backpropagation through time, and inference."""

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> Unrolled:
        constant = all(s.constant for s in (self, *others))
        return replace(self, train=self._mapped(f, others, at_rate), constant=constant)

    def fire(self, neuron: Neuron) -> Unrolled:
        if self.tape.whole and self.tape.memory is None and not torch.is_grad_enabled():
            return replace(self, train=_fused(_spikes, neuron, self.train, self.T), constant=False)
        self.tape.meet("a neuron", neuron)
        spikes, state = unrolled(neuron, self.train, self.T, self.tape.resume(neuron, self.train))
        self.tape.leave(neuron, state)
        return self._fired(neuron, spikes)


@dataclass(frozen=True, eq=False)
class Spatial(Stepwise):
    """The gradient goes through the layers at each step but not through time: spatial learning through time (SLTT)."""

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> Spatial:
        constant = all(s.constant for s in (self, *others))
        return replace(self, train=self._mapped(f, others, at_rate), constant=constant)

    def fire(self, neuron: Neuron) -> Spatial:
        return self._at_once(neuron)


@dataclass(frozen=True, eq=False)
class Traced(Stepwise):
    """As `Spatial`, but gradients of weights use the trace of their input: online training through time (OTTT).

    The trace of an input is `a[t] = decay a[t-1] + input[t]`, which a leaky membrane without reset would have integrated.
    """

    plain = (*Signal.plain, "decay")

    decay: float = field(kw_only=True)

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> Traced:
        if at_rate is None:
            return replace(self, train=mapped(f, (self, *others)), constant=all(s.constant for s in (self, *others)))
        self.tape.meet(*_described(f, at_rate))
        with torch.no_grad():
            value = mapped(f, (self,)).expand(self.T, *[-1] * self.dim())
            traces = []
            trace = self.tape.resume(at_rate.weight, self.train)
            for x in self.expanded().unbind(0):
                trace = x if trace is None else self.decay * trace + x
                traces.append(trace)
            self.tape.leave(at_rate.weight, trace)
        inputs = anchor(torch.cat(traces).unflatten(0, (self.T, -1)), self.expanded())
        return replace(self, train=per_step(at_rate, value, inputs), constant=False)

    def fire(self, neuron: Neuron) -> Traced:
        return self._at_once(neuron)


@dataclass(frozen=True, eq=False)
class RateCoded(Signal):
    """The rate carries the gradient, the time steps carry none: rate-based backpropagation (Yu et al., NeurIPS 2024).

    A loss on the steps would train nothing; a warning in its backward pass says so.

    Attributes:
        average: the rate over all chunks; complete in the last chunk, and without meaning before.
        valued: whether `average` has the value of the rate and not only its gradient. With several chunks, the value is
            a sum that must be carried, and few layers need it: a neuron does not need that of its input.
    """

    plain = (*Signal.plain, "valued")

    average: Tensor = field(kw_only=True)
    valued: bool = field(default=True, kw_only=True)

    @property
    def rate(self) -> Tensor:
        self._check_all_steps()
        return self.average

    @property
    def steps(self) -> Tensor:
        if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and self.average.requires_grad):
            return self.expanded()
        return autograd.without_gradient(self.expanded(), self.average)

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> RateCoded:
        signals = (self, *others)
        check_together(signals)
        self.tape.meet(*_described(f, at_rate), [s.number for s in signals])
        with torch.no_grad():
            train = mapped(f, signals)
        constant = all(s.constant for s in signals)
        if at_rate is None:
            valued = all(s.valued for s in signals) or _has_weights(f, [s.average for s in signals])
            average = f(*(s._with_value() if valued else s.average for s in signals))
        else:
            rate, valued = self._with_value(), True
            average = at_rate(self._after_weights(f, train, constant, rate), rate, autograd.kept_as(self.counts, rate))
        return self._after(average, train, valued, constant)

    def _after_weights(self, f: PerStep, train: Tensor, constant: bool, rate: Tensor) -> Tensor:
        """The mean over all chunks after a layer; over several it is what the layer makes of the rate: no sum is carried."""
        with torch.no_grad():
            if self.tape.whole or constant:
                return _mean(train, self.T)
            return f(rate.detach()) if self.tape.last else _nothing(train)

    def product(self, f: PerStep, other: Signal, at_rate: autograd.Product | None = None) -> RateCoded:
        # One unit more of a at every step moves the mean of a b by the mean of b.
        signals = (self, other)
        check_together(signals)
        self.tape.meet("a product", f, [s.number for s in signals])
        with torch.no_grad():
            train = mapped(f, signals)
        constant = all(s.constant for s in signals)
        value, valued = self._value(train, constant)
        a, b = (s._with_value() for s in signals)
        average = anchor(value, f(a, b)) if at_rate is None else at_rate(value, a, b)
        return self._after(average, train, valued, constant)

    def nonlinear(self, f: PerStep, at_rate: autograd.SampleNorm | None = None) -> RateCoded:
        self.tape.meet("a nonlinear layer", f, self.number)
        with torch.no_grad():
            train = mapped(f, (self,))
        if at_rate is None:
            value, valued = self._value(train, self.constant)
            average = anchor(value, f(self._with_value()))
        else:
            with torch.no_grad():
                output, invstd = (self.tape.mean(mean, self.T) for mean in at_rate.means(self.train))
            average, valued = at_rate(output, self._with_value(), invstd).to(train.dtype), True
        return self._after(average, train, valued, self.constant)

    def normalize(self, norm: Normalization) -> RateCoded:
        self.tape.meet("a batch norm", norm.weight, norm.bias, norm.running_mean, self.number)
        input = self._with_value()
        with torch.no_grad():
            train, mean, invstd = norm(self.train, self.T)
            if self.tape.whole:
                # Normalisation is affine once its statistics are known, so the mean follows from that of the input.
                value = F.batch_norm(input, mean, invstd.pow(-2) - norm.eps, norm.weight, norm.bias, eps=norm.eps)
                valued = True
            else:
                value, valued = self._value(train, self.constant)
                # Single-step mode: the mean and the RECIPROCAL variance are averaged over the chunks.
                mean = self.tape.mean(mean, self.T)
                invstd = self.tape.mean(invstd.square(), self.T).sqrt()
        average = autograd.normalize(value, input, norm.weight, norm.bias, mean, invstd, norm.eps, norm.total)
        return self._after(average, train, valued, self.constant)

    def fire(self, neuron: Neuron) -> RateCoded:
        self.tape.meet("a neuron", neuron, self.number)
        if isinstance(neuron, Learns):
            return self._fire_learning(neuron, neuron.learned)
        with torch.no_grad():
            before = self._before(neuron)
            if self.tape.last:
                known = _rate_and_gain if self.tape.memory is None else _rate_gain_and_membrane
                spikes, value, gain, data, state = _fused(known, neuron, self.train, self.T, (before, self.tape.T))
            else:
                spent = None if self.tape.first else before  # what was given from outside is not written on
                spikes, state = _fused(_trace, neuron, self.train, self.T, (before, self.tape.T), spent)
                value, gain, data = *[_nothing(spikes)] * 2, None
            self.tape.leave(neuron, state)
        average = autograd.scale(value, self.average, gain)
        return self._after(average, spikes, True, False, self._counts(average, data))

    def _before(self, neuron: Neuron) -> Any:
        """What `Neuron.trace` goes on from: membranes of the call before, that have moved nothing yet, and empty sums."""
        state = self.tape.resume(neuron, self.train)
        if state is None or not self.tape.first:
            return state
        none = torch.zeros_like(self.train[0], dtype=torch.promote_types(self.dtype, torch.float32))
        return state, 0.0, none, none

    def _fire_learning(self, neuron: Neuron, learned: Mapping[str, Tensor]) -> RateCoded:
        """The spikes of a layer of neurons with values that are learned, by name, each with its own gain."""
        with torch.no_grad():
            before = self.tape.resume(neuron, self.train)
            if before is not None and self.tape.first:  # the membranes of the call before, which nothing has moved yet
                before = (before, {}, 0.0, {})
            if not self.tape.last:
                spikes, state = _fused(_traced, neuron, self.train, self.T, before)
                self.tape.leave(neuron, state)
                nothing = _nothing(spikes)
                return self._after(autograd.scale(nothing, self.average, nothing), spikes, True, False)
            stays = self.tape.memory is not None
            known = _fused(_rate_and_gains, neuron, self.train, self.T, (before, self.tape.T, stays))
            spikes, value, gains, data, membrane = known
            self.tape.leave(neuron, membrane)
        average = autograd.scale(value, self.average, gains["current"])
        for name, now in learned.items():
            average = average + gains[name] * (now - now.detach()).to(spikes.dtype)
        return self._after(average, spikes, True, False, self._counts(average, data))

    def _counts(self, average: Tensor, data: Tensor | None) -> autograd.Counts | None:
        """The counts of spikes by which the next layer keeps an average in a byte, where there are such."""
        return None if data is None or torch.compiler.is_compiling() else autograd.Counts(average, self.tape.T, data)

    def _after(
        self, average: Tensor, train: Tensor, valued: bool, constant: bool, counts: autograd.Counts | None = None
    ) -> RateCoded:
        """The signal that a layer returns."""
        number = self.tape.met
        return replace(self, train=train, constant=constant, average=average, valued=valued, counts=counts, number=number)

    def tap(self) -> Tensor:
        return self._with_value()

    def _with_value(self) -> Tensor:
        """The average with its value, right in the last chunk; its sum is carried from here on."""
        if self.valued:
            return self.average
        with torch.no_grad():
            value = self.tape.mean(_mean(self.train, self.T), self.T)
        return anchor(value, self.average)

    def _value(self, train: Tensor, constant: bool) -> tuple[Tensor, bool]:
        """The mean of a train over all chunks, and whether it is that: over several it takes a sum, so it is 0 instead."""
        if self.tape.whole or constant:
            return _mean(train, self.T), True
        return _nothing(train), False

    def joined(self, earlier: Sequence[Signal]) -> RateCoded:
        joined = super().joined(earlier)
        assert isinstance(joined, RateCoded)
        return replace(joined, average=anchor(joined.train.mean(0), self.average), valued=True)


@dataclass(frozen=True, eq=False)
class Normalization:
    """Batch normalisation in training: its parameters, and running statistics that each call updates.

    Attributes:
        weight, bias: [C] or None.
        running_mean, running_var: [C] or None.
        momentum: weight of the new statistics in the running ones.
        eps: added to the variance.
        total: sums a tensor over the processes whose batches are normalised as one batch; None for this process alone.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float
    eps: float
    total: autograd.Total | None = None

    def __call__(self, train: Tensor, T: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise [T or 1, B, C, ...] by its statistics over all axes except C.

        Returns:
            the normalised train, and the mean [C] and reciprocal standard deviation [C] of the input.
        """
        flat = train.flatten(0, 1)
        n: Any = T * train[0].numel() // flat.shape[1]
        if self.total is None:
            y, mean, invstd = torch.native_batch_norm(flat, self.weight, self.bias, None, None, True, 0.0, self.eps)
        else:
            y, mean, invstd = self._of_all(flat, self.total)
            n = self.total(mean.new_full((1,), n))
        if n < 2:
            raise ValueError(f"batch norm in training needs more than one value per channel, got {list(train.shape)}")
        if self.running_mean is not None and self.running_var is not None:
            if autograd.transformed():
                raise ValueError(
                    "batch norm in training changes its running statistics, which torch.func (vmap, grad) does not support: "
                    "call eval(), or remove them by torch.func.replace_all_batch_norm_modules_"
                )
            with torch.no_grad():
                variance = invstd.pow(-2) - self.eps
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_((variance * (n / (n - 1))).to(self.running_var.dtype), self.momentum)
        return y.unflatten(0, train.shape[:2]), mean, invstd

    def _of_all(self, x: Tensor, total: autograd.Total) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise [N, C, ...] by the statistics over all processes."""
        kept, others = (1, -1, *[1] * (x.dim() - 2)), [0, *range(2, x.dim())]
        with torch.no_grad():
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            size = wide.new_full((1,), x.numel() // x.shape[1])
            *sums, size = total(torch.cat([wide.sum(others), size])).split([x.shape[1], 1])
            mean = sums[0] / size
            variance = total((wide - mean.view(kept)).square().sum(others)) / size
            invstd = (variance + self.eps).rsqrt()
            y = F.batch_norm(wide, mean, variance, self.weight, self.bias, False, 0.0, self.eps).to(x.dtype)
        return autograd.normalize(y, x, self.weight, self.bias, mean, invstd, self.eps, total), mean, invstd


def is_constant(x: Tensor) -> bool:
    """Whether x [T, B, ...] is the same at every step (its stride is 0), and no step needs its own gradient."""
    return len(x) == 1 or (x.stride(0) == 0 and not (x.requires_grad and x.is_leaf))


def per_step(f: PerStep, *trains: Tensor) -> Tensor:
    """Apply `f` to [T, B, ...] as to a batch of T x B samples."""
    return f(*(x.flatten(0, 1) for x in trains)).unflatten(0, trains[0].shape[:2])


def _described(f: PerStep, layer: autograd.Layer | None) -> tuple[Any, ...]:
    """A description that identifies a layer."""
    return ("a layer", f) if layer is None else (f"a {type(layer).__name__.lower()} layer", layer.weight, layer.bias)


def check_together(signals: Sequence[Signal]) -> None:
    """Raise `ValueError` where signals are not all of one chunk of one forward pass."""
    if any(s.tape is not signals[0].tape for s in signals):
        raise ValueError(
            "a layer got signals of two forward passes, or of two chunks of one: each has its own time steps and rule, so "
            "use signals of the same call of a rule only"
        )


def mapped(f: PerStep, signals: Sequence[Signal]) -> Tensor:
    """The train of `f` applied to the signals, computed only once for all steps if they are constant.

    Raises:
        ValueError: the signals are not all of the same chunk of the same forward pass.
    """
    check_together(signals)
    if not all(s.constant for s in signals):
        return per_step(f, *(s.expanded() for s in signals))
    # Computed in the first chunk, and shared by the others.
    tape = signals[0].tape
    tape.meet("a layer", f)
    train = tape.recall()
    if train is None:
        train = per_step(f, *(s.train for s in signals))
    tape.keep(train)
    return train


def _has_weights(f: PerStep, inputs: Sequence[Tensor]) -> bool:
    """Whether a function has weights: their gradient depends on the value of its inputs."""
    with torch.enable_grad():
        return f(*(x.detach() for x in inputs)).requires_grad


def _nothing(train: Tensor) -> Tensor:
    """Zeros [B, ...] that take no memory: in place of a value that nobody asks for."""
    return train.new_zeros(()).expand(train.shape[1:])


def _binary(neuron: Neuron) -> bool:
    """Whether the spikes of a neuron are known to be 0 or 1."""
    return bool(getattr(type(neuron), "binary", False))


@torch.no_grad()
def _mean(train: Tensor, T: int) -> Tensor:
    """The mean of a train over time, [B, ...]."""
    return train[0] if len(train) == 1 else fused.run(_mean_of_steps, None, train, T)


def _fused(
    f: Callable[[Any, Tensor, Any], Any],
    neuron: Neuron,
    train: Tensor,
    T: int,
    state: Any = None,
    spent: Any = None,
    way: fused.Way | None = None,
) -> Any:
    """`f` of a neuron and the steps of a train, as one pass over memory where the neuron allows it."""
    if neuron.elementwise:
        return fused.run(f, neuron, train, T, state, spent, way)
    return f(neuron, train.expand(T, *train.shape[1:]), state)


def unrolled(neuron: Neuron, train: Tensor, T: int, state: Any, way: fused.Way | None = None) -> tuple[Tensor, Any]:
    """The spikes [T, B, ...] of a neuron with their gradient through time, and its state after the last step."""
    spikes, state = _fused(_unroll, neuron, train, T, state, way=way)
    return spikes, state


# What is done to a train in one pass over memory, as `fused.run` takes it. ----------------------------------------------


def _mean_of_steps(_: None, steps: Tensor, state: None) -> Tensor:
    return steps.mean(0)


_Outcome = tuple[Tensor, Tensor, Tensor, Tensor | None, Any]


def _rate_and_gain(neuron: Neuron, steps: Tensor, state: tuple[Any, int]) -> _Outcome:
    """The spikes of the last chunk; the rate and its gain over all T steps; the counts of spikes in a byte, if they fit."""
    return *_outcome(neuron, steps, state)[:-1], None


def _rate_gain_and_membrane(neuron: Neuron, steps: Tensor, state: tuple[Any, int]) -> _Outcome:
    """As `_rate_and_gain`, and the membranes, None for a neuron without, for the next call."""
    *known, own = _outcome(neuron, steps, state)
    if len(own) not in (0, 2):
        raise TypeError(
            f"{type(neuron).__name__} keeps a state of its own under RateBP, in which the membrane can't be told from the "
            "rest: continue a stream by BPTT(), or let its trace return (membrane, its derivative, spikes, gain)"
        )
    return *known, own[0] if own else None


def _outcome(neuron: Neuron, steps: Tensor, state: tuple[Any, int]) -> Any:
    before, T = state
    spikes, (*own, total, gain) = neuron.trace(steps, _unpacked(before, T, steps.dtype))
    return spikes, (total / T).to(spikes.dtype), (gain / T).to(spikes.dtype), _in_bytes(neuron, total, T), own


def _in_bytes(neuron: Neuron, count: Tensor, T: int) -> Tensor | None:
    """The counts of spikes over T steps in a byte each, if they fit."""
    return count.to(torch.uint8) if T <= _MOST_IN_A_BYTE and _binary(neuron) else None


def _traced(neuron: Neuron, steps: Tensor, state: Moved | None) -> tuple[Tensor, Moved]:
    """The spikes of a chunk that another one follows, of neurons that learn, and the state."""
    return neuron.trace(steps, state)


def _rate_and_gains(neuron: Neuron, steps: Tensor, state: tuple[Any, int, bool]) -> Any:
    """As `_rate_and_gain` of neurons that learn, with a gain for each name, and the membranes if they stay, else None."""
    before, T, stays = state
    spikes, (membrane, _, count, sums) = neuron.trace(steps, before)
    gains = {name: (moved / T).to(spikes.dtype) for name, moved in sums.items()}
    return spikes, (count / T).to(spikes.dtype), gains, _in_bytes(neuron, count, T), membrane if stays else None


def _trace(neuron: Neuron, steps: Tensor, state: tuple[Any, int]) -> tuple[Tensor, Any]:
    """The spikes of a chunk that another one follows, and the state in the least memory.

    Counts of spikes are whole numbers. Sums of gains become numbers of half the width where activations are those, too.
    """
    before, T = state
    spikes, (*own, total, gain) = neuron.trace(steps, _unpacked(before, T, steps.dtype))
    if _binary(neuron):
        total = total.to(torch.uint8 if T <= _MOST_IN_A_BYTE else torch.int32)
    if gain.is_floating_point() and steps.dtype.itemsize == 2:
        gain = (gain / T).to(torch.float16)
    return spikes, (*own, total, gain)


def _unpacked(state: Any, T: int, dtype: torch.dtype) -> Any:
    """What `_trace` has packed, as the neuron left it."""
    if state is None:
        return None
    *own, total, gain = state
    wide = torch.promote_types(dtype, torch.float32)
    if gain.dtype == torch.float16:
        gain = gain.to(wide) * T
    return (*own, total if total.is_floating_point() else total.to(wide), gain)


_MOST_IN_A_BYTE = 255


def _spikes(neuron: Neuron, steps: Tensor, state: None) -> Tensor:
    return neuron.spikes(steps)


def _unroll(neuron: Neuron, steps: Tensor, state: Any) -> tuple[Tensor, Any]:
    return neuron.unroll(steps, state)


def _slopes(neuron: Neuron, steps: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
    return neuron.slopes(steps, state)


def anchor(value: Tensor, path: Tensor) -> Tensor:
    """The value of one tensor with the gradient of another, of the same shape."""
    return value + (path - path.detach())


def no_rule(name: str) -> str:
    """What is said of something that has no rule."""
    return (
        f"{name} has no rule for a spiking signal: use LIF as the activation, and the layers listed in spikerate.operations "
        "(convolution, linear, pooling, batch norm, dropout, sums and products, and what rearranges elements of a sample)"
    )
