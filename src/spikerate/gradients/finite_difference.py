"""Finite-difference gradients: how the loss of a spiking network really changes with a weight.

The loss is a step function of the weights: its derivative is 0 almost everywhere, and only finite differences are
informative. They involve no surrogate, and Dspike's temperature is chosen by them (Li et al., NeurIPS 2021, section 4.1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikerate import operations  # noqa: F401 - fills the table of signals
from spikerate.losses import cross_entropy
from spikerate.signal import VERBS, Feedback, Neuron, Normalization, PerStep, Signal, Stepwise, Tape, is_constant, mapped


@dataclass(frozen=True, eq=False)
class Variants(Stepwise):
    """A signal without gradient that runs n variants of a network at once, which differ in one weight.

    Before the layer of that weight the variants are equal and run once. From that layer on they are concatenated along the
    batch axis, [T, n B, ...]. Batch norm in training mode normalises each variant by its own statistics, and does not
    update the running statistics.

    Attributes:
        batch: B.
        weight: the parameter that differs, recognised by identity.
        changes: what is added to it in each variant, [n, *weight.shape].
    """

    plain = (*Signal.plain, "batch")

    batch: int = field(kw_only=True)
    weight: Tensor = field(kw_only=True)
    changes: Tensor = field(kw_only=True)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Signal:
        x, *rest = args
        if isinstance(x, Variants) and rest and rest[0] is x.weight:
            return x._diverge(VERBS[func], *rest[1:])
        return super().__torch_function__(func, types, args, kwargs)

    @property
    def samples(self) -> int:
        return self.batch

    def affine(self, f: PerStep, *others: Signal, at_rate: PerStep | None = None) -> Variants:
        signals: list[Any] = [self, *others]
        widest = max(s.train.shape[1] for s in signals)
        alike = [
            s if s.train.shape[1] == widest else replace(s, train=torch.cat([s.train] * (widest // self.batch), 1))
            for s in signals
        ]
        return replace(self, train=mapped(f, alike), constant=all(s.constant for s in alike))

    def normalize(self, norm: Normalization) -> Variants:
        alone = replace(norm, running_mean=None, running_var=None)
        parts = [alone(part, self.T)[0] for part in self.train.split(self.batch, 1)]
        return replace(self, train=parts[0] if len(parts) == 1 else torch.cat(parts, 1))

    def fire(self, neuron: Neuron) -> Variants:
        if isinstance(neuron, Feedback) and any(own is self.weight for own in neuron.layer.parameters()):
            raise ValueError(
                "the weight that differs is that of a recurrent layer, through which spikes come back: choose a layer "
                "outside of Recurrent for finite differences"
            )
        return replace(self, train=neuron.spikes(self.expanded()), constant=False)

    def _diverge(self, layer: Callable[..., Signal], *rest: Any) -> Variants:
        """The outputs of all variants of the layer with the weight."""
        parts = self.train.split(self.batch, 1)
        parts = parts * (len(self.changes) // len(parts))
        outputs: list[Any] = [
            layer(replace(self, train=part), self.weight + change, *rest)
            for part, change in zip(parts, self.changes, strict=True)
        ]
        return replace(outputs[0], train=torch.cat([y.train for y in outputs], 1))


class Directions(ABC):
    """Orthonormal directions in the space of a weight."""

    shape: torch.Size

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def part(self, wanted: slice) -> Tensor:
        """A slice of the directions, [k, *shape], on the CPU."""

    @abstractmethod
    def along(self, gradient: Tensor) -> Tensor:
        """The directional derivatives [K] that follow from a gradient [*shape]."""

    @abstractmethod
    def gradient(self, derivatives: Tensor) -> Tensor:
        """The gradient [*shape] with these directional derivatives [K]; for `Few` directions an unbiased estimate."""


@dataclass(frozen=True)
class Elements(Directions):
    """One direction for each element of the weight, as in the paper's formula."""

    shape: torch.Size

    def __len__(self) -> int:
        return self.shape.numel()

    def part(self, wanted: slice) -> Tensor:
        index = torch.arange(len(self))[wanted]
        return F.one_hot(index, len(self)).to(torch.get_default_dtype()).view(-1, *self.shape)

    def along(self, gradient: Tensor) -> Tensor:
        return gradient.flatten()

    def gradient(self, derivatives: Tensor) -> Tensor:
        return derivatives.view(self.shape)


@dataclass(frozen=True, eq=False)
class Few(Directions):
    """A few random directions, for weights with too many elements.

    Args:
        shape: shape of the weight.
        n: number of directions, at most that of the elements.
        generator: random number generator on the CPU.

    Raises:
        ValueError: n is out of range.
    """

    shape: torch.Size
    n: int
    generator: torch.Generator
    rows: Tensor = field(init=False)

    def __post_init__(self) -> None:
        elements = self.shape.numel()
        if not 1 <= self.n <= elements:
            raise ValueError(f"{self.n} directions for a weight of {elements} elements: give 1 to {elements}")
        columns = torch.linalg.qr(torch.randn(elements, self.n, generator=self.generator))[0]
        object.__setattr__(self, "rows", columns.T.contiguous())

    def __len__(self) -> int:
        return self.n

    def part(self, wanted: slice) -> Tensor:
        return self.rows[wanted].view(-1, *self.shape)

    def along(self, gradient: Tensor) -> Tensor:
        return self.rows.to(gradient) @ gradient.flatten()

    def gradient(self, derivatives: Tensor) -> Tensor:
        estimate = derivatives @ self.rows.to(derivatives)
        return estimate.view(self.shape) * (self.shape.numel() / self.n)


def variant_rates(network: nn.Module, x: Tensor, weight: nn.Parameter, changes: Tensor) -> Tensor:
    """The output rates [n, B, K] of n variants of a network, in which `changes` [n, *weight.shape] are added to the weight.

    Raises:
        ValueError: the signal goes through no layer with that weight.
    """
    T, batch = x.shape[:2]
    constant = is_constant(x)
    start = Variants(x[:1] if constant else x, constant, T, Tape(T), batch=batch, weight=weight, changes=changes)
    rates = network(start).rate.unflatten(0, (-1, batch))
    if len(rates) != len(changes):
        raise ValueError("the weight belongs to no convolution or linear layer that the signal goes through")
    return rates


def derivatives(
    network: nn.Module,
    weight: nn.Parameter,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    directions: Directions,
    epsilon: float = 0.1,
    wanted: slice = slice(None),
    at_once: int | None = None,
    rates: Callable[..., Tensor] = variant_rates,
) -> Tensor:
    """Central differences `(L(w + epsilon d) - L(w - epsilon d)) / (2 epsilon)` along each direction d, [K].

    The network runs in its current mode. Running statistics and random state are unchanged afterwards, and dropout uses the
    same masks for all variants. Several variants of the network run together, as one batch.

    Args:
        network: a spiking network without plain tensors inside (such as those of branches).
        weight: the parameter of one of its convolutions or linear layers.
        x: input [T, B, ...].
        loss: rate of the output [B, K] -> scalar.
        directions: `Elements(weight.shape)` for the full gradient.
        epsilon: half the step of the differences.
        wanted: compute only these directions; the others are 0.
        at_once: number of variants (two for each direction) that run together. By default one on a CPU, since more would
            exceed its caches, and on a GPU as many as fit into half of its free memory.
        rates: `variant_rates` or an equivalent function, for instance compiled.

    Raises:
        ValueError: epsilon is not positive, or the weight belongs to no layer of the network.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}: give a positive number")
    if not any(weight is own for own in weights(network).values()):
        raise ValueError("the weight belongs to no convolution or linear layer of the network")
    found = torch.zeros(len(directions), device=x.device, dtype=torch.promote_types(weight.dtype, torch.float32))
    chosen = range(len(directions))[wanted]
    with untouched(network) as again, torch.no_grad():

        def rates_of(changes: Tensor) -> Tensor:
            again()
            return rates(network, x, weight, changes)

        def differences(first: int, together: int) -> Tensor:
            size = max(1, together // 2)
            few = directions.part(slice(first, min(first + size, chosen.stop)))
            moved = epsilon * F.pad(few.to(weight).flatten(1), (0, 0, 0, size - len(few)))
            changes = torch.cat([moved, -moved]).view(-1, *weight.shape)
            up, down = torch.cat([rates_of(some) for some in changes.split(together)]).chunk(2)
            return torch.stack([loss(u) - loss(d) for u, d in zip(up[: len(few)], down, strict=False)]) / (2 * epsilon)

        together = at_once or _fitting(x.device, lambda: differences(chosen.start, 1), 2 * len(chosen))
        for first in chosen[:: max(1, together // 2)]:
            part = differences(first, together)
            found[first : first + len(part)] = part
    return found


def _fitting(device: torch.device, one: Callable[[], Any], most: int) -> int:
    """How many variants fit into half of the free memory, judged by the memory of one."""
    if device.type != "cuda" or most == 0:
        return 1
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    one()
    taken = torch.cuda.max_memory_allocated(device) - before
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(most, free // (2 * taken)))


@contextmanager
def untouched(network: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore buffers and random state at the end of the block. Yields a function that resets the random state at once."""
    before = [buffer.clone() for buffer in network.buffers()]
    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        seed = torch.initial_seed()

        def again() -> None:
            torch.manual_seed(seed)

        try:
            yield again
        finally:
            with torch.no_grad():
                for buffer, value in zip(network.buffers(), before, strict=True):
                    buffer.copy_(value)


def weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """Module path of each convolution and linear layer -> its weight, in the network's order."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    return {name: network.get_parameter(f"{name}.weight") for name, m in network.named_modules() if isinstance(m, kinds)}


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine similarity of two gradients of the same shape; 0 if one of them is 0."""
    a, b = a.detach().flatten().double(), b.detach().flatten().double()
    return float(a @ b / (a.norm() * b.norm()).clamp(min=torch.finfo(torch.float64).tiny))


def rate_loss(labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The cross-entropy loss of an output rate [B, K] with labels [B] or [B, K], computed in float32 or float64."""
    return lambda rate: cross_entropy(rate.to(torch.promote_types(rate.dtype, torch.float32)), labels)
