"""Backpropagation through time that keeps spikes as bits and computes the rest again in the backward pass.

Autograd saves what its operations need. Here each layer's saved tensors are dropped, and when the backward pass asks for
the first of them, the layer runs again on the values of its inputs. Those are computed again too, back to the nearest
trains that are kept: spikes, one bit each. So only the layers between two neurons are in memory at a time. The graph is
the same as without, and so are the gradients.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks

from spikerate import autograd, fused
from spikerate.signal import Neuron, Normalization, PerStep, Signal, Stepwise, check_together, mapped, per_step, unrolled

_MOST_LAYERS = 2
"""Layers with weights that are run again for one value; beyond, as along the shortcuts of a PreAct-ResNet, it is kept."""


@dataclass(frozen=True, eq=False)
class Bits:
    """A tensor of zeros and ones, eight of them in a byte.

    Attributes:
        data: the bytes; element i of the n, in the order of the axes in memory, is bit `i // ceil(n / 8)` of one of them.
        order: the axes as they lie in memory, which is how a convolution wants to find them again.
        shape: of the axes in that order.
        dtype: of the tensor.
    """

    data: Tensor
    order: list[int]
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, train: Tensor) -> Bits | None:
        """The bits of a train; None where it has other numbers in it, as graded spikes are."""
        strides = train.stride()
        order = sorted(range(train.dim()), key=lambda axis: -strides[axis])
        ordered = train.permute(order)
        fired = ordered != 0
        if not torch.equal(fired.to(train.dtype), ordered):
            return None
        rows = F.pad(fired.reshape(-1), (0, -train.numel() % 8)).view(torch.uint8).view(8, -1)
        data = rows[0].clone()
        for place in range(1, 8):
            data |= rows[place] << place
        return cls(data, order, ordered.shape, train.dtype)

    def unpacked(self) -> Tensor:
        rows = torch.empty(8, len(self.data), dtype=self.dtype, device=self.data.device)
        for place in range(8):
            rows[place] = (self.data >> place) & 1
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return rows.view(-1)[: self.shape.numel()].view(self.shape).permute(inverse)


class Kept:
    """A train that is kept for the backward pass.

    Attributes:
        held: the train, or its bits.
        layers: with weights that have to run for its value.
    """

    layers: int = 0

    def __init__(self, held: Tensor | Bits) -> None:
        self.held = held

    def value(self) -> Tensor:
        return self.held.unpacked() if isinstance(self.held, Bits) else self.held


class Run:
    """How a layer gave its train: what it takes to run it again.

    Args:
        layer: trains -> train; called again, it changes nothing but what it returns.
        origins: of its inputs.
        inputs: their trains.
        weighted: whether the layer has weights.
    """

    def __init__(
        self, layer: Callable[..., Tensor], origins: Sequence[Origin], inputs: Sequence[Tensor], weighted: bool
    ) -> None:
        self.layers: int = int(weighted) + sum(origin.layers for origin in origins)
        self._layer, self._origins = layer, origins
        self._wanted = [x.requires_grad for x in inputs]
        kind = inputs[0].device.type
        self._autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        self._random = _random_state(inputs[0].device)
        self._count = 0
        self._saved: dict[int, Tensor] = {}

    def watched(self) -> saved_tensors_hooks:
        """What is saved within this context is dropped, and comes from another run of the layer."""
        return saved_tensors_hooks(self._drop, self._get)

    def value(self) -> Tensor:
        """The train, from another run; what the layer saves is ready then."""
        return self._again(early=False)

    def _drop(self, tensor: Tensor) -> tuple[int, Tensor | None, int]:
        self._count += 1
        # A parameter is there anyway. So is what has a graph of its own only where another run would make it again.
        own = tensor if isinstance(tensor, torch.nn.Parameter) else None
        return self._count - 1, own, tensor._version

    def _get(self, packed: tuple[int, Tensor | None, int]) -> Tensor:
        place, own, version = packed
        if own is not None:
            if own._version != version:
                raise RuntimeError(
                    "a parameter was changed between the forward and the backward pass, which needs it as it was: under "
                    "BPTT(checkpoint=True) too, call backward() before optimizer.step()"
                )
            return own
        if place not in self._saved:
            self._again(early=True)
        return self._saved.pop(place)

    def _again(self, early: bool) -> Tensor:
        """Run the layer, to the end or until all that it saves is there."""
        inputs = [origin.value() for origin in self._origins]

        def collect(tensor: Tensor) -> None:
            self._saved[len(found)] = tensor.detach()
            found.append(None)
            if early and len(found) == self._count:
                raise _Enough

        found: list[None] = []
        kind, dtype, enabled = self._autocast
        before = _random_state(inputs[0].device)
        _set_random_state(inputs[0].device, self._random)
        try:
            with torch.enable_grad(), torch.autocast(kind, dtype, enabled, cache_enabled=False):
                fresh = [x.detach().requires_grad_(wanted) for x, wanted in zip(inputs, self._wanted, strict=True)]
                with saved_tensors_hooks(collect, _never):
                    return self._layer(*fresh).detach()
        except _Enough:
            return inputs[0]
        finally:
            _set_random_state(inputs[0].device, before)


Origin = Kept | Run


class _Enough(BaseException):
    """All saved tensors are there. It is no `Exception`, which would be taken for a fault of the compiler."""


def _never(packed: None) -> Tensor:
    raise AssertionError("nobody differentiates the second run itself")


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Of the generators that a neuron of a user's own could draw from."""
    states = (torch.get_rng_state(),)
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


class _Held(Function):
    """The train itself. What is kept of it is saved here as autograd's own, so that who counts or moves that sees it."""

    @staticmethod
    def forward(train: Tensor, held: Tensor) -> Tensor:
        return train.view_as(train)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@dataclass(frozen=True, eq=False)
class Recomputed(Stepwise):
    """As `Unrolled`, with spikes kept as bits, and all between neurons computed again in the backward pass.

    Attributes:
        origin: of the train; with a weak reference to that train, since others may have replaced it.
    """

    plain = (*Signal.plain, "origin")

    origin: tuple[Origin, weakref.ref[Tensor]] | None = field(default=None, kw_only=True)

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> Recomputed:
        signals = (self, *others)
        if all(s.constant for s in signals):
            return replace(self, train=mapped(f, signals))
        T = self.T  # a layer that holds a signal would hold its train

        def layer(*trains: Tensor) -> Tensor:
            return per_step(f, *(train.expand(T, *train.shape[1:]) for train in trains))

        return self._through(layer, *others, weighted=at_rate is not None)

    def nonlinear(self, f: PerStep, at_rate: autograd.SampleNorm | None = None) -> Recomputed:
        return replace(self, train=mapped(f, (self,))) if self.constant else self._through(lambda x: per_step(f, x))

    def normalize(self, norm: Normalization) -> Recomputed:
        if self.constant:
            return super().normalize(norm)
        again = replace(norm, running_mean=None, running_var=None)  # which have moved already
        T = self.T
        return self._through(lambda x: norm(x, T)[0], again=lambda x: again(x, T)[0])

    def fire(self, neuron: Neuron) -> Recomputed:
        T, way = self.T, fused.Way()  # eager and compiled passes do not save the same tensors

        def layer(train: Tensor) -> Tensor:
            return unrolled(neuron, train, T, None, way)[0]

        y = self._through(layer)
        return y._kept(Bits.of(y.train.detach()) or y.train.detach())

    def _through(
        self,
        layer: Callable[..., Tensor],
        *others: Signal,
        weighted: bool = False,
        again: Callable[..., Tensor] | None = None,
    ) -> Recomputed:
        """The train of a layer of this signal and others; `again` is what runs in the backward pass."""
        check_together((self, *others))
        signals = [self, *(s for s in others if isinstance(s, Recomputed))]
        trains = [s.train for s in signals]
        run = Run(again or layer, [s._origin_of_train() for s in signals], trains, weighted)
        with run.watched():
            train = layer(*trains)
        y = replace(self, train=train, constant=False, origin=(run, weakref.ref(train)))
        return y if run.layers <= _MOST_LAYERS else y._kept(train.detach())

    def _origin_of_train(self) -> Origin:
        if self.origin is not None and self.origin[1]() is self.train:
            return self.origin[0]
        return Kept(self.train.detach())

    def _kept(self, held: Tensor | Bits) -> Recomputed:
        data = held.data if isinstance(held, Bits) else held
        train: Tensor = _Held.apply(self.train, data)  # type: ignore[no-untyped-call]
        return replace(self, train=train, origin=(Kept(held), weakref.ref(train)))
