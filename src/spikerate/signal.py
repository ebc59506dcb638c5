"""What flows through a spiking network, and where its gradient goes.

A network is written for tensors [B, ...]; time is a hidden axis of the `Signal` that flows through it. Layers reach a
signal through `__torch_function__`: the table at the end of this file turns each of them into one of the four verbs
`affine`, `nonlinear`, `normalize` and `fire`, and a training rule is a signal's four answers. A function that is not in
the table raises `TypeError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from spikerate import autograd, fused

PerStep = Callable[..., Tensor]
_Own = TypeVar("_Own", bound="Stepwise")


class Neuron(Protocol):
    """What a signal asks of a neuron; `spikerate.LIF` says it in full."""

    def spikes(self, inputs: Tensor) -> Tensor: ...

    def unroll(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]: ...

    def trace(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]: ...

    def slopes(self, inputs: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]: ...


class Tape:
    """What the layers remember from chunk to chunk of one forward pass: one slot for each, in order of execution.

    Args:
        T: steps in all chunks together.
        whole: whether one chunk holds them all, so that there is nothing to remember.
    """

    def __init__(self, T: int, whole: bool = True) -> None:
        self.T = T
        self.whole = whole
        self.last = whole
        self.closed = False
        self.slots: list[Any] = []
        self.position = 0

    def rewind(self, last: bool) -> None:
        """Start the next chunk from the first layer; `last` says that no other follows."""
        self.position = 0
        self.last = last

    def close(self) -> None:
        """No layer may run on this tape again, unless it holds nothing."""
        self.closed = not self.whole

    def recall(self) -> Any:
        """What this layer kept in the chunk before; None in the first one.

        Raises:
            RuntimeError: a layer runs again after its chunk, as activation checkpointing makes it do.
        """
        if self.closed:
            raise RuntimeError(
                "a layer ran again after the forward pass, but with chunk < T it can be run once only: "
                "use chunk=None together with activation checkpointing"
            )
        return self.slots[self.position] if self.position < len(self.slots) else None

    def keep(self, state: Any) -> None:
        """Remember `state` for this layer, and go on to the next one."""
        if self.whole:
            return
        if self.position == len(self.slots):
            self.slots.append(state)
        else:
            self.slots[self.position] = state
        self.position += 1

    def mean(self, x: Tensor, n: int) -> Tensor:
        """The mean over time of all chunks, right in the last one; `x` is that over the `n` steps of this chunk."""
        if self.whole:
            return x
        past = self.recall()
        here = x.to(torch.promote_types(x.dtype, torch.float32)) * n
        total = here if past is None else past + here
        self.keep(total)
        return (total / self.T).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Signal(ABC):
    """Spikes or currents over time, and their mean, the rate: always `rate == steps.mean(0)`.

    Attributes:
        train: [T, B, ...], or [1, B, ...] where it is constant.
        constant: whether the train is the same at every step of every chunk.
        T: the number of time steps in this chunk.
        tape: what the layers remember from chunk to chunk.
        exits: logits [B, K] of the early exits, first to last; only on the output of a `Branched` in training.
    """

    train: Tensor
    constant: bool
    T: int
    tape: Tape
    exits: tuple[Tensor, ...] = field(default=(), kw_only=True)

    @property
    def steps(self) -> Tensor:
        """[T, B, ...]; a view where the train is constant."""
        return self.train.expand(self.T, *self.train.shape[1:])

    @property
    @abstractmethod
    def rate(self) -> Tensor:
        """[B, ...], the mean over the steps."""

    @abstractmethod
    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> Signal:
        """Apply a function that commutes with the mean over time.

        Args:
            f: maps [N, ...] to [N, ...], sample by sample; of this signal and the `others`.
            others: further operands, of the same kind and T.
            at_rate: where `f` has weights: (value, rate) -> value with the gradient of `f` at the rate; by default
                `f(rate)` is computed.
        """

    @abstractmethod
    def nonlinear(self, f: PerStep) -> Signal:
        """Apply a function [N, ...] -> [N, ...] without memory that does not commute with the mean over time."""

    @abstractmethod
    def normalize(self, norm: Normalization) -> Signal:
        """Normalise with the statistics of this signal over its steps, the batch and space (batch norm in training)."""

    @abstractmethod
    def fire(self, neuron: Neuron) -> Signal:
        """Integrate the steps as input currents, and return the spikes."""

    @abstractmethod
    def tap(self) -> Tensor:
        """The rate [B, ...] over all steps of all chunks, for a branch of the network; final in the last chunk."""

    @property
    def complete(self) -> bool:
        """Whether the signal reaches to the last of all steps."""
        return self.tape.last

    @property
    def shape(self) -> torch.Size:
        """[B, ...]: what a network written for tensors sees."""
        return self.train.shape[1:]

    @property
    def samples(self) -> int:
        """B, the samples that a layer with masks of its own tells apart."""
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

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Signal:
        return _flatten(self, start_dim, end_dim)

    def __add__(self, other: Signal) -> Signal:
        return _add(self, other)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(Tensor, name):
            raise TypeError(_no_rule(f"Tensor.{name}"))
        raise AttributeError(f"{type(self).__name__} has no attribute {name}")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Signal:
        verb = VERBS.get(func)
        first = args[0] if args else None
        if verb is None or not isinstance(first, Signal | list | tuple):
            raise TypeError(_no_rule(getattr(func, "__name__", str(func))))
        return verb(*args, **(kwargs or {}))


@dataclass(frozen=True, eq=False)
class Stepwise(Signal):
    """The steps carry the gradient; how much of it a neuron hands back through time is left to the kinds."""

    @property
    def rate(self) -> Tensor:
        return self.train.mean(0)

    def nonlinear(self: _Own, f: PerStep) -> _Own:
        return replace(self, train=mapped(f, (self,)))

    def normalize(self: _Own, norm: Normalization) -> _Own:
        y, _, _ = norm(self.train, self.T)
        return replace(self, train=y)

    def tap(self) -> Tensor:
        return self.tape.mean(self.rate, self.T)

    def _at_once(self: _Own, neuron: Neuron) -> _Own:
        """Fire, with the gradient of each step going to that step alone."""
        spikes, slopes, state = fused.run(_slopes, neuron, self.train, self.T, self.tape.recall())
        self.tape.keep(state)
        return replace(self, train=autograd.scale(spikes, self.steps, slopes), constant=False)


@dataclass(frozen=True, eq=False)
class Unrolled(Stepwise):
    """The gradient goes through every step: backpropagation through time, and inference."""

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> Unrolled:
        return replace(self, train=mapped(f, (self, *others)), constant=all(s.constant for s in (self, *others)))

    def fire(self, neuron: Neuron) -> Unrolled:
        if self.tape.whole and not torch.is_grad_enabled():
            return replace(self, train=fused.run(_spikes, neuron, self.train, self.T), constant=False)
        spikes, state = fused.run(_unroll, neuron, self.train, self.T, self.tape.recall())
        self.tape.keep(state)
        return replace(self, train=spikes, constant=False)


@dataclass(frozen=True, eq=False)
class Spatial(Stepwise):
    """The gradient goes through the layers at each step, and not through time: spatial learning through time (SLTT)."""

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> Spatial:
        return replace(self, train=mapped(f, (self, *others)), constant=all(s.constant for s in (self, *others)))

    def fire(self, neuron: Neuron) -> Spatial:
        return self._at_once(neuron)


@dataclass(frozen=True, eq=False)
class Traced(Stepwise):
    """As `Spatial`, but weights meet the trace of their input: online training through time (OTTT).

    The trace of an input is `a[t] = decay a[t-1] + input[t]`: all that a leaky membrane has had of it by then.
    """

    decay: float = field(kw_only=True)

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> Traced:
        if at_rate is None:
            return replace(self, train=mapped(f, (self, *others)), constant=all(s.constant for s in (self, *others)))
        with torch.no_grad():
            value = mapped(f, (self,)).expand(self.T, *[-1] * self.dim())
            traces = []
            trace = self.tape.recall()
            for x in self.steps.unbind(0):
                trace = x if trace is None else self.decay * trace + x
                traces.append(trace)
            self.tape.keep(trace)
        inputs = _anchor(torch.cat(traces).unflatten(0, (self.T, -1)), self.steps)
        return replace(self, train=_per_step(at_rate, value, inputs), constant=False)

    def fire(self, neuron: Neuron) -> Traced:
        return self._at_once(neuron)


@dataclass(frozen=True, eq=False)
class RateCoded(Signal):
    """The steps carry no gradient, the rate carries all of it: rate-based backpropagation (Yu et al., NeurIPS 2024).

    With a tape, the rate is that of all chunks in the last of them, and has no meaning before.
    """

    average: Tensor = field(kw_only=True)

    @property
    def rate(self) -> Tensor:
        return self.average

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> RateCoded:
        signals = (self, *others)
        with torch.no_grad():
            train = mapped(f, signals)
        if at_rate is None:
            average = f(*(s.rate for s in signals))
        else:
            average = at_rate(self.tape.mean(_mean(train, self.T), self.T), self.average)
        return replace(self, train=train, constant=all(s.constant for s in signals), average=average)

    def nonlinear(self, f: PerStep) -> RateCoded:
        with torch.no_grad():
            train = mapped(f, (self,))
        value = self.tape.mean(_mean(train, self.T), self.T)
        return replace(self, train=train, average=_anchor(value, f(self.average)))

    def normalize(self, norm: Normalization) -> RateCoded:
        with torch.no_grad():
            train, mean, invstd = norm(self.train, self.T)
            if self.tape.whole:
                # Normalisation is affine once its statistics are known, so the mean follows from that of the input.
                value = F.batch_norm(self.average, mean, invstd.pow(-2) - norm.eps, norm.weight, norm.bias, eps=norm.eps)
            else:
                value = self.tape.mean(_mean(train, self.T), self.T)
                # Single-step mode: the mean and the RECIPROCAL variance are averaged over the chunks.
                mean = self.tape.mean(mean, self.T)
                invstd = self.tape.mean(invstd.square(), self.T).sqrt()
        average = autograd.normalize(value, self.average, norm.weight, norm.bias, mean, invstd, norm.eps, norm.total)
        return replace(self, train=train, average=average)

    def fire(self, neuron: Neuron) -> RateCoded:
        if self.tape.whole:
            spikes, value, gain = fused.run(_rate_and_gain, neuron, self.train, self.T)
        else:
            spikes, state = fused.run(_trace, neuron, self.train, self.T, self.tape.recall())
            self.tape.keep(state)
            value, gain = ((total / self.tape.T).to(spikes.dtype) for total in state[-2:])
        return replace(self, train=spikes, constant=False, average=autograd.scale(value, self.average, gain))

    def tap(self) -> Tensor:
        return self.average


@dataclass(frozen=True)
class Normalization:
    """Batch normalisation in training: parameters, and running statistics, which a call updates.

    Attributes:
        weight, bias: [C] or None.
        running_mean, running_var: [C] or None.
        momentum: the share of the new statistics in the running ones.
        eps: added to the variance.
        total: sums a tensor over the processes whose batches are normalised as one; None for this process alone.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float
    eps: float
    total: autograd.Total | None = None

    def __call__(self, train: Tensor, T: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise [T or 1, B, C, ...] by its statistics over all axes but C.

        Returns:
            the normalised train, its mean [C] and its reciprocal standard deviation [C].
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
    """Whether x [T, B, ...] is one image at every step, known by its stride; not where each step wants its own gradient."""
    return len(x) == 1 or (x.stride(0) == 0 and not (x.requires_grad and x.is_leaf))


def _per_step(f: PerStep, *trains: Tensor) -> Tensor:
    """Apply `f` to [T, B, ...] as to a batch of T B samples."""
    return f(*(x.flatten(0, 1) for x in trains)).unflatten(0, trains[0].shape[:2])


def mapped(f: PerStep, signals: Sequence[Signal]) -> Tensor:
    """The train of `f` of the signals: once for all steps where they are constant."""
    if not all(s.constant for s in signals):
        return _per_step(f, *(s.steps for s in signals))
    # Computed in the first chunk, and shared by the others.
    tape = signals[0].tape
    train = tape.recall()
    if train is None:
        train = _per_step(f, *(s.train for s in signals))
    tape.keep(train)
    return train


@torch.no_grad()
def _mean(train: Tensor, T: int) -> Tensor:
    """The mean of a train over time, [B, ...]."""
    return train[0] if len(train) == 1 else fused.run(_mean_of_steps, None, train, T)


# What is done to a train in one pass over memory, as `fused.run` takes it. ----------------------------------------------


def _mean_of_steps(_: None, steps: Tensor, state: None) -> Tensor:
    return steps.mean(0)


def _rate_and_gain(neuron: Neuron, steps: Tensor, state: None) -> tuple[Tensor, Tensor, Tensor]:
    spikes, (*_, total, gain) = neuron.trace(steps, None)
    return spikes, (total / len(steps)).to(spikes.dtype), (gain / len(steps)).to(spikes.dtype)


def _trace(neuron: Neuron, steps: Tensor, state: Any) -> tuple[Tensor, Any]:
    return neuron.trace(steps, state)


def _spikes(neuron: Neuron, steps: Tensor, state: None) -> Tensor:
    return neuron.spikes(steps)


def _unroll(neuron: Neuron, steps: Tensor, state: Any) -> tuple[Tensor, Any]:
    return neuron.unroll(steps, state)


def _slopes(neuron: Neuron, steps: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
    return neuron.slopes(steps, state)


def _anchor(value: Tensor, path: Tensor) -> Tensor:
    """The value of one tensor with the gradient of another."""
    return value + (path - path.detach())


def _no_rule(name: str) -> str:
    return (
        f"{name} has no rule for a spiking signal: use LIF as the activation, and the layers listed in spikerate.signal "
        "(convolution, linear, pooling, flatten, add, cat, batch norm, dropout)"
    )


# The verb of each torch function that a signal can go through. ---------------------------------------------------------


def _conv(f: Callable[..., Tensor]) -> Callable[..., Signal]:
    def verb(
        x: Signal,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Signal:
        def conv(t: Tensor) -> Tensor:
            return f(t, weight, bias, stride, padding, dilation, groups)

        if x.dim() != weight.dim():
            raise ValueError(
                f"a convolution of kernel {list(weight.shape)} got a signal of {list(x.shape)} without time: the input of a "
                "rule is [T, B, C, ...]; for static images [B, C, ...], x.expand(T, *x.shape)"
            )
        space = weight.dim() - 2
        strides, dilations = ([n] * space if isinstance(n, int) else list(n) for n in (stride, dilation))
        reaches = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
        if isinstance(padding, str):
            paddings = [reach // 2 if padding == "same" else 0 for reach in reaches]
        else:
            paddings = [padding] * space if isinstance(padding, int) else list(padding)
        # "same" has a zero more at the end of an uneven axis; F.pad takes the last axis first.
        uneven = [reach % 2 for reach in reversed(reaches)] if padding == "same" else []
        border = [zeros for more in uneven for zeros in (0, more)] if any(uneven) else []
        return x.affine(conv, at_rate=autograd.Convolution(weight, bias, strides, paddings, dilations, groups, border))

    return verb


def _linear(x: Signal, weight: Tensor, bias: Tensor | None = None) -> Signal:
    return x.affine(lambda t: F.linear(t, weight, bias), at_rate=autograd.Linear(weight, bias))


def _pool(f: Callable[..., Tensor]) -> Callable[..., Signal]:
    return lambda x, *args, **kwargs: x.affine(lambda t: f(t, *args, **kwargs))


def _max_pool(f: Callable[..., Tensor]) -> Callable[..., Signal]:
    return lambda x, *args, **kwargs: x.nonlinear(lambda t: f(t, *args, **kwargs))


def _flatten(x: Signal, start_dim: int = 0, end_dim: int = -1) -> Signal:
    if start_dim % x.dim() == 0:
        raise TypeError(_no_rule("flatten from axis 0, which mixes the samples of a batch,"))
    return x.affine(lambda t: t.flatten(start_dim, end_dim))


def _add(x: Signal, y: Signal, *, alpha: float = 1) -> Signal:
    if not (isinstance(x, Signal) and isinstance(y, Signal)):
        raise TypeError(_no_rule("adding something that is no signal"))
    return x.affine(lambda a, b: torch.add(a, b, alpha=alpha), y)


def _cat(signals: Sequence[Signal], dim: int = 0) -> Signal:
    if not all(isinstance(x, Signal) for x in signals) or dim % signals[0].dim() == 0:
        raise TypeError(_no_rule("cat along axis 0, or with something that is no signal,"))
    return signals[0].affine(lambda *ts: torch.cat(ts, dim), *signals[1:])


def _batch_norm(
    x: Signal,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Signal:
    if training:
        return x.normalize(Normalization(weight, bias, running_mean, running_var, momentum, eps))
    return x.affine(lambda t: F.batch_norm(t, running_mean, running_var, weight, bias, False, momentum, eps))


def _dropout(f: Callable[..., Tensor]) -> Callable[..., Signal]:
    """One mask for all steps: a mask for each would be noise that the rate does not see."""

    def verb(x: Signal, p: float = 0.5, training: bool = True, inplace: bool = False) -> Signal:
        if not training or p == 0:
            return x

        mask = x.tape.recall()
        if mask is None:
            mask = f(torch.ones_like(x.train[0, : x.samples]), p, True)
        x.tape.keep(mask)
        return x.affine(lambda t: (t.unflatten(0, (-1, mask.shape[0])) * mask).flatten(0, 1))

    return verb


VERBS: dict[Any, Callable[..., Signal]] = {
    F.conv1d: _conv(F.conv1d),
    F.conv2d: _conv(F.conv2d),
    F.linear: _linear,
    F.avg_pool1d: _pool(F.avg_pool1d),
    F.avg_pool2d: _pool(F.avg_pool2d),
    F.adaptive_avg_pool1d: _pool(F.adaptive_avg_pool1d),
    F.adaptive_avg_pool2d: _pool(F.adaptive_avg_pool2d),
    F.max_pool1d: _max_pool(F.max_pool1d),
    F.max_pool2d: _max_pool(F.max_pool2d),
    F.adaptive_max_pool1d: _max_pool(F.adaptive_max_pool1d),
    F.adaptive_max_pool2d: _max_pool(F.adaptive_max_pool2d),
    F.batch_norm: _batch_norm,
    F.dropout: _dropout(F.dropout),
    F.dropout1d: _dropout(F.dropout1d),
    F.dropout2d: _dropout(F.dropout2d),
    torch.flatten: _flatten,
    torch.add: _add,
    torch.cat: _cat,
    torch.concat: _cat,
}
