"""Signals that count: how often the neurons of each layer fire, and how many operations each layer does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spikerate import autograd, operations  # noqa: F401 - operations fill the table of signals
from spikerate.integer import ILIF
from spikerate.measure.energy import Energy, Operations
from spikerate.readout import Readout
from spikerate.signal import Feedback, Neuron, Normalization, PerStep, Signal, Tape, Unrolled, is_constant, per_step
from spikerate.stream import Calls

_Own = TypeVar("_Own", bound="Around")
PRODUCTS = "products of signals"


@dataclass
class Ledger:
    """The spikes counted over all batches so far; of an ANN, the active units.

    Attributes:
        spikes: neuron module -> number of spikes at each time step, [T].
        chances: neuron module -> the largest possible count at one step: neurons times samples, times the levels of `ILIF`.
    """

    spikes: dict[Any, Tensor] = field(default_factory=dict)
    chances: dict[Any, int] = field(default_factory=dict)

    def note(self, neuron: Any, train: Tensor) -> None:
        levels = neuron.levels if isinstance(neuron, ILIF) else 1
        count = Tensor.count_nonzero if levels == 1 else _whole_sum
        fired = torch.stack([count(step) for step in train.detach()])
        self.spikes[neuron] = self.spikes.get(neuron, 0) + fired
        self.chances[neuron] = self.chances.get(neuron, 0) + train[0].numel() * levels

    def rates_at_step(self, network: nn.Module) -> dict[str, list[float]]:
        """Module path -> firing rate of the layer at each time step."""
        return {
            name: (self.spikes[module].double() / self.chances[module]).tolist()
            for name, module in network.named_modules()
            if module in self.spikes
        }

    def rates(self, network: nn.Module) -> dict[str, float]:
        """Module path -> firing rate of the layer in spikes per neuron and step (ANN: the fraction of active units)."""
        return {name: fmean(rates) for name, rates in self.rates_at_step(network).items()}

    def totalled(self, total: Callable[[Tensor], Tensor]) -> Ledger:
        """The sum of the ledgers of all processes; `total` sums a tensor over the processes."""
        both = {n: total(torch.stack([s, torch.full_like(s, self.chances[n])])) for n, s in self.spikes.items()}
        return Ledger({n: b[0] for n, b in both.items()}, {n: int(b[1, 0]) for n, b in both.items()})

    def total(self) -> int:
        """Spikes of all neurons at all steps."""
        return int(sum(spikes.sum() for spikes in self.spikes.values()))

    def mean_rate(self) -> float:
        """Spikes per neuron and step, over all neurons."""
        chances = sum(self.chances[neuron] * len(spikes) for neuron, spikes in self.spikes.items())
        return float(self.total()) / max(1, chances)


@dataclass
class Trains:
    """The spike trains of one forward pass: neuron modules with their spikes [T, B, ...], in the order of their calls."""

    kept: list[tuple[Any, Tensor]] = field(default_factory=list)

    def note(self, neuron: Any, train: Tensor) -> None:
        self.kept.append((neuron, train))


@dataclass
class Tally:
    """Synaptic operations of each convolution and linear layer over all images so far, by NeuroBench's definitions.

    Products of two signals are counted together, as "products of signals". An operation is effective where both factors are
    other than 0. Where one of the factors is 0 or 1 it multiplies nothing, and counts as an accumulation: of two spikes it
    is an AND whose result is added up.

    Neither the zeros that a convolution pads an image with nor biases count as operations. If the input is the same at
    every step (an image shown T times), operations count at every step, as on a chip that keeps no results. A whole number
    that an `ILIF` neuron has fired is that many spikes, each an accumulation in a binary step of its own.

    Attributes:
        names: weight -> module path. Layers whose weight is computed from other weights are counted as "other weights".
        counts: module path -> number of effective operations, of dense ones, and of input values that are no spikes.
        whole: whether inputs may be whole numbers of spikes; else 0 or 1.
    """

    names: Mapping[Tensor, str]
    counts: dict[str, Tensor] = field(default_factory=dict)
    whole: bool = False

    @classmethod
    def of(cls, network: nn.Module) -> Tally:
        """An empty tally for a network."""
        names: dict[Tensor, str] = {weight: name.rpartition(".")[0] for name, weight in network.named_parameters()}
        return cls(names, whole=any(isinstance(module, ILIF) for module in network.modules()))

    def note(self, layer: autograd.Layer, x: Signal, y: Tensor) -> None:
        """Add the operations of a layer that turns the signal `x` into `y` [T, B, ...]."""
        train = x.train.detach()
        active = torch.ne(train, 0, out=torch.empty_like(train))  # as floats: their sum is ten times as fast as of bools
        others = (train != (train.clamp(min=0).round() if self.whole else active)).count_nonzero()
        spikes = torch.where(others == 0, train, active) if self.whole else active
        often = spikes.flatten(0, 1).sum(0, dtype=torch.float32).long() * (x.T // len(train))
        effective = (often * _fan_out(layer, lambda weight: weight != 0, train, y)).sum()
        dense = x.T * train.shape[1] * _fan_out(layer, torch.ones_like, train, y).sum()
        self._add(self.names.get(layer.weight, "other weights"), torch.stack([effective, dense, others]))

    def note_product(self, f: PerStep, *factors: Signal) -> None:
        """Add the operations of a product of two signals."""
        constant = all(x.constant for x in factors)
        trains = [(x.train if constant else x.expanded()).detach() for x in factors]
        active = [(train != 0).float() for train in trains]
        with torch.autocast(trains[0].device.type, enabled=False):
            pairs = [per_step(f, *ones).sum(dtype=torch.float64) for ones in (active, [a.new_ones(a.shape) for a in active])]
        effective, dense = (factors[0].T // len(trains[0]) * count.round().long() for count in pairs)
        others = torch.stack([(train != on).count_nonzero() for train, on in zip(trains, active, strict=True)])
        self._add(PRODUCTS, torch.stack([effective, dense, others.min()]))

    def _add(self, path: str, counts: Tensor) -> None:
        self.counts[path] = self.counts.get(path, 0) + counts

    def totalled(self, total: Callable[[Tensor], Tensor]) -> Tally:
        """The sum of the tallies of all processes; `total` sums a tensor over the processes."""
        return replace(self, counts={path: total(counts) for path, counts in self.counts.items()})

    def energy(self, images: int, T: int) -> Energy:
        """What one image costs in T steps: the mean over the number of `images` counted."""
        layers = {}
        for path, counts in self.counts.items():
            effective, dense, others = counts.tolist()
            layers[path] = Operations(effective / images, dense // images, binary=others == 0)
        return Energy(layers, T)


def _whole_sum(step: Tensor) -> Tensor:
    return step.sum(dtype=torch.float64).long()


def _fan_out(layer: autograd.Layer, used: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The number of outputs in y [T, B, ...] that each input in x [T, B, ...] is connected to by `used` weights, [...].

    Computed as the gradient of the sum of the outputs, with 1 for each used weight and 0 for the others.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        one = torch.zeros_like(x[0, :1], dtype=torch.float32).requires_grad_()
        ones = torch.ones_like(y[0, :1], dtype=torch.float32)
        reached = replace(layer, weight=used(layer.weight.detach()).float(), bias=None)(ones, one)
        return torch.autograd.grad(reached, one, ones)[0][0].round().long()


@dataclass(frozen=True, eq=False)
class Around(Signal):
    """A signal that wraps another one, behaves like it, and is notified of the spikes of each neuron layer."""

    inner: Signal = field(kw_only=True)

    @abstractmethod
    def fired(self, neuron: Neuron, spikes: Signal) -> None:
        """Called with a neuron layer and its spikes for this input."""

    @property
    def rate(self) -> Tensor:
        return self.inner.rate

    @property
    def steps(self) -> Tensor:
        return self.inner.steps

    def affine(self: _Own, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> _Own:
        inside = [other.inner if isinstance(other, Around) else other for other in others]
        return self._around(self.inner.affine(f, *inside, at_rate=at_rate))

    def product(self: _Own, f: PerStep, other: Signal, at_rate: autograd.Product | None = None) -> _Own:
        inside = other.inner if isinstance(other, Around) else other
        return self._around(self.inner.product(f, inside, at_rate))

    def nonlinear(self: _Own, f: PerStep, at_rate: autograd.SampleNorm | None = None) -> _Own:
        return self._around(self.inner.nonlinear(f, at_rate))

    def normalize(self: _Own, norm: Normalization) -> _Own:
        return self._around(self.inner.normalize(norm))

    def fire(self: _Own, neuron: Neuron) -> _Own:
        spikes = self.inner.fire(neuron)
        self.fired(neuron, spikes)
        return self._around(spikes)

    def tap(self) -> Tensor:
        return self.inner.tap()

    def _around(self: _Own, inner: Signal) -> _Own:
        return replace(self, train=inner.train, constant=inner.constant, number=inner.number, inner=inner)


@dataclass(frozen=True, eq=False)
class Metered(Around):
    """An `Unrolled` signal whose spikes are counted in a ledger and, optionally, its operations in a tally."""

    plain = (*Signal.plain, "ledger", "tally")

    ledger: Ledger | Trains = field(kw_only=True)
    tally: Tally | None = field(kw_only=True)

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> Metered:
        y = super().affine(f, *others, at_rate=at_rate)
        if at_rate is not None and self.tally is not None:
            self.tally.note(at_rate, self, y.train)
        return y

    def product(self, f: PerStep, other: Signal, at_rate: autograd.Product | None = None) -> Metered:
        y = super().product(f, other, at_rate)
        if self.tally is not None:
            self.tally.note_product(f, self, other)
        return y

    def fired(self, neuron: Neuron, spikes: Signal) -> None:
        if not isinstance(neuron, Readout):  # whose membranes are no spikes
            self.ledger.note(neuron, spikes.expanded())
        if isinstance(neuron, Feedback) and self.tally is not None:
            back = neuron.returning(spikes.expanded(), None)
            neuron.layer(self._around(replace(spikes, train=back, counts=None)))  # once more, for its operations


@dataclass(frozen=True, eq=False)
class Watched(Around):
    """A signal of any rule that passes the input and the spikes of each neuron layer to the function `look`."""

    plain = (*Signal.plain, "look")

    look: Callable[[Neuron, Signal, Signal], None] = field(kw_only=True)

    def fired(self, neuron: Neuron, spikes: Signal) -> None:
        self.look(neuron, self.inner, spikes)


def watched(network: Callable[[Signal], Any], look: Callable[[Neuron, Signal, Signal], None]) -> Callable[[Signal], Any]:
    """The network; as it runs, `look(neuron, input, spikes)` is called for each neuron layer."""

    def inside(y: Any) -> Any:
        return replace(y.inner, exits=y.exits) if isinstance(y, Watched) else y

    def run(x: Signal) -> Any:
        start = Watched(x.train, x.constant, x.T, x.tape, inner=x, look=look)
        return pytree.tree_map(inside, network(start), is_leaf=lambda y: isinstance(y, Signal))

    return run


@dataclass(frozen=True)
class FiringRates:
    """A rule that returns, besides the output, the firing rates of neuron layers with their gradient, for a loss on them.

    Under `RateBP` their gradient goes through the rates, like that of the output; under the other rules it goes through the
    time steps. With `RateBP(chunk=...)` the rates are those over all T steps.

    Call: `FiringRates(RateBP())(network, x)` with x as for the rule -> the output, and a dictionary: module path -> firing
    rates [B, ...]. The second call of a neuron module within a forward pass is listed as "path, call 2".

    Args:
        rule: `RateBP()`, `BPTT()`, ...
        layers: module paths of neurons, or of modules that contain them; None for all neurons.

    Raises:
        ValueError: there is no neuron at one of the paths; other errors as the rule.
    """

    rule: Callable[[Callable[[Signal], Any], Tensor], Any]
    layers: tuple[str, ...] | None = None

    def __call__(self, network: nn.Module, x: Tensor) -> tuple[Any, dict[str, Tensor]]:
        rates: dict[str, Tensor] = {}
        calls = Calls(network)

        def look(neuron: Neuron, inputs: Signal, spikes: Signal) -> None:
            path, name = calls.of(neuron)
            wanted = self.layers is None or any(holds(layer, path) for layer in self.layers)
            if wanted and not isinstance(neuron, Readout):
                rates[name] = spikes.tap()

        def chunk(signal: Signal) -> Any:
            calls.clear()
            return watched(network, look)(signal)

        output = self.rule(chunk, x)
        for layer in self.layers or ():
            if not any(holds(layer, path) for path in calls.paths):
                raise ValueError(f"FiringRates.layers has {layer!r}, where there is no neuron: neurons are at {calls.paths}")
        return output, rates


def holds(part: str, path: str) -> bool:
    """Whether there is a module of that path in a part of a network."""
    return path == part or path.startswith(f"{part}.")


@dataclass(frozen=True)
class Meter:
    """A rule for evaluation: runs the network as `BPTT()` does, and counts spikes and operations.

    Args:
        ledger: where the spikes of each layer are counted.
        tally: where the operations of each layer are counted; None to save that time, a sixth to a fifth on a CPU.
    """

    ledger: Ledger | Trains
    tally: Tally | None = None

    def __call__(self, network: Callable[[Signal], Signal], x: Tensor) -> Signal:
        T, constant = len(x), is_constant(x)
        inner = Unrolled(x[:1] if constant else x, constant, T, Tape(T))
        return network(Metered(inner.train, constant, T, inner.tape, inner=inner, ledger=self.ledger, tally=self.tally))
