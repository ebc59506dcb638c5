"""A signal that keeps account: how often the neurons of each layer fire, and what its operations are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from spikerate import autograd
from spikerate.measure.energy import Energy, Operations
from spikerate.signal import Neuron, Normalization, PerStep, Signal, Tape, Unrolled, is_constant


@dataclass
class Ledger:
    """Spikes [T] of each neuron module, and its chances to spike at one step, over all batches so far.

    Of an ANN, its active units.
    """

    spikes: dict[Any, Tensor] = field(default_factory=dict)
    chances: dict[Any, int] = field(default_factory=dict)

    def note(self, neuron: Any, train: Tensor) -> None:
        fired = torch.stack([(step != 0).count_nonzero() for step in train.detach()])
        self.spikes[neuron] = self.spikes.get(neuron, 0) + fired
        self.chances[neuron] = self.chances.get(neuron, 0) + train[0].numel()

    def rates_at_step(self, network: nn.Module) -> dict[str, list[float]]:
        """Module path -> firing rate of the layer at each step."""
        return {
            name: (self.spikes[module].double() / self.chances[module]).tolist()
            for name, module in network.named_modules()
            if module in self.spikes
        }

    def rates(self, network: nn.Module) -> dict[str, float]:
        """Module path -> firing rate of the layer in spikes per neuron and step (of an ANN, the share of active units)."""
        return {name: fmean(rates) for name, rates in self.rates_at_step(network).items()}

    def totalled(self, total: Callable[[Tensor], Tensor]) -> Ledger:
        """The ledger of all processes; `total` sums a tensor over them."""
        both = {n: total(torch.stack([s, torch.full_like(s, self.chances[n])])) for n, s in self.spikes.items()}
        return Ledger({n: b[0] for n, b in both.items()}, {n: int(b[1, 0]) for n, b in both.items()})

    def mean_rate(self) -> float:
        """Spikes per neuron and step, over all neurons."""
        chances = sum(self.chances[neuron] * len(spikes) for neuron, spikes in self.spikes.items())
        return float(sum(spikes.sum() for spikes in self.spikes.values())) / max(1, chances)


@dataclass
class Trains:
    """What fired in one forward pass: neuron modules with their [T, B, ...], in the order of firing."""

    kept: list[tuple[Any, Tensor]] = field(default_factory=list)

    def note(self, neuron: Any, train: Tensor) -> None:
        self.kept.append((neuron, train))


@dataclass
class Tally:
    """Synaptic operations of each convolution and linear layer over all images so far, by NeuroBench's definitions.

    The zeros that a convolution pads an image with make no operation, and a bias makes none. Where the input is the same at
    every step (an image shown T times), operations count at every step, as on a chip that keeps no results.

    Attributes:
        names: weight -> module path; layers whose weight is computed from others stand together under "other weights".
        counts: module path -> effective operations, dense ones, and input values other than 0 and 1.
    """

    names: Mapping[Tensor, str]
    counts: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, network: nn.Module) -> Tally:
        """An empty one for a network."""
        return cls({weight: name.rpartition(".")[0] for name, weight in network.named_parameters()})

    def note(self, layer: autograd.Layer, x: Signal, y: Tensor) -> None:
        """Count the operations of a layer that makes `y` [T, B, ...] of a signal."""
        train = x.train.detach()
        active = torch.ne(train, 0, out=torch.empty_like(train))  # as numbers, whose sum is ten times as fast as of bools
        often = active.flatten(0, 1).sum(0, dtype=torch.float32).long() * (x.T // len(train))
        effective = (often * _fan_out(layer, lambda weight: weight != 0, train, y)).sum()
        dense = x.T * train.shape[1] * _fan_out(layer, torch.ones_like, train, y).sum()
        counts = torch.stack([effective, dense, (train != active).count_nonzero()])
        path = self.names.get(layer.weight, "other weights")
        self.counts[path] = self.counts.get(path, 0) + counts

    def totalled(self, total: Callable[[Tensor], Tensor]) -> Tally:
        """The tally of all processes; `total` sums a tensor over them."""
        return Tally(self.names, {path: total(counts) for path, counts in self.counts.items()})

    def energy(self, images: int, T: int) -> Energy:
        """What one image costs in T steps, the mean over so many."""
        layers = {}
        for path, counts in self.counts.items():
            effective, dense, others = counts.tolist()
            layers[path] = Operations(effective / images, dense // images, binary=others == 0)
        return Energy(layers, T)


def _fan_out(layer: autograd.Layer, used: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """To how many outputs of y [T, B, ...] each input of x [T, B, ...] goes by the weights that are `used`, [...].

    It is the gradient of the sum of the outputs where those weights are 1 and the others 0.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        one = torch.zeros_like(x[0, :1], dtype=torch.float32).requires_grad_()
        ones = torch.ones_like(y[0, :1], dtype=torch.float32)
        reached = replace(layer, weight=used(layer.weight.detach()).float(), bias=None)(ones, one)
        return torch.autograd.grad(reached, one, ones)[0][0].round().long()


@dataclass(frozen=True, eq=False)
class Metered(Signal):
    """An `Unrolled` signal whose firings are noted in a ledger, and its operations, where wanted, in a tally."""

    inner: Unrolled = field(kw_only=True)
    ledger: Ledger | Trains = field(kw_only=True)
    tally: Tally | None = field(kw_only=True)

    @property
    def rate(self) -> Tensor:
        return self.inner.rate

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> Metered:
        y = self.inner.affine(f, *others, at_rate=at_rate)
        if at_rate is not None and self.tally is not None:
            self.tally.note(at_rate, self, y.train)
        return self._around(y)

    def nonlinear(self, f: PerStep) -> Metered:
        return self._around(self.inner.nonlinear(f))

    def normalize(self, norm: Normalization) -> Metered:
        return self._around(self.inner.normalize(norm))

    def fire(self, neuron: Neuron) -> Metered:
        fired = self.inner.fire(neuron)
        self.ledger.note(neuron, fired.expanded())
        return self._around(fired)

    def tap(self) -> Tensor:
        return self.inner.tap()

    def _around(self, inner: Unrolled) -> Metered:
        return replace(self, train=inner.train, constant=inner.constant, inner=inner)


@dataclass(frozen=True)
class Meter:
    """A rule for evaluation: runs the network as `BPTT()` does, and keeps account of it.

    Args:
        ledger: where the firings of each layer are noted.
        tally: where its operations are counted, if they shall be: a sixth to a fifth more time on a CPU.
    """

    ledger: Ledger | Trains
    tally: Tally | None = None

    def __call__(self, network: Callable[[Signal], Signal], x: Tensor) -> Signal:
        T, constant = len(x), is_constant(x)
        inner = Unrolled(x[:1] if constant else x, constant, T, Tape(T))
        return network(Metered(inner.train, constant, T, inner.tape, inner=inner, ledger=self.ledger, tally=self.tally))
