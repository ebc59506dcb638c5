"""A signal that keeps a ledger: how often the neurons of each layer fire, or the units of an ANN are active."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from spikerate.signal import Neuron, Normalization, PerStep, Signal, Tape, Unrolled, is_constant


@dataclass
class Ledger:
    """Spikes and chances to spike of each neuron module, over all batches so far; of an ANN, its active units."""

    spikes: dict[Any, Tensor] = field(default_factory=dict)
    chances: dict[Any, int] = field(default_factory=dict)

    def note(self, neuron: Any, train: Tensor) -> None:
        self.spikes[neuron] = self.spikes.get(neuron, 0) + train.detach().count_nonzero()
        self.chances[neuron] = self.chances.get(neuron, 0) + train.numel()

    def rates(self, network: nn.Module) -> dict[str, float]:
        """Module path -> firing rate of the layer in spikes per neuron and step (of an ANN, the share of active units)."""
        return {
            name: float(self.spikes[module]) / self.chances[module]
            for name, module in network.named_modules()
            if module in self.spikes
        }

    def totalled(self, total: Callable[[Tensor], Tensor]) -> Ledger:
        """The ledger of all processes; `total` sums a tensor over them."""
        both = {n: total(torch.stack([s, torch.full_like(s, self.chances[n])])) for n, s in self.spikes.items()}
        return Ledger({n: b[0] for n, b in both.items()}, {n: int(b[1]) for n, b in both.items()})

    def mean_rate(self) -> float:
        """Spikes per neuron and step, over all neurons."""
        return float(sum(self.spikes.values())) / max(1, sum(self.chances.values()))


@dataclass(frozen=True, eq=False)
class Metered(Signal):
    """An `Unrolled` signal whose firings are noted in a ledger."""

    inner: Unrolled = field(kw_only=True)
    ledger: Ledger = field(kw_only=True)

    @property
    def rate(self) -> Tensor:
        return self.inner.rate

    def affine(self, f: PerStep, *others: Signal, at_rate: PerStep | None = None) -> Metered:
        return self._around(self.inner.affine(f, *others, at_rate=at_rate))

    def nonlinear(self, f: PerStep) -> Metered:
        return self._around(self.inner.nonlinear(f))

    def normalize(self, norm: Normalization) -> Metered:
        return self._around(self.inner.normalize(norm))

    def fire(self, neuron: Neuron) -> Metered:
        fired = self.inner.fire(neuron)
        self.ledger.note(neuron, fired.steps)
        return self._around(fired)

    def tap(self) -> Tensor:
        return self.inner.tap()

    def _around(self, inner: Unrolled) -> Metered:
        return replace(self, train=inner.train, constant=inner.constant, inner=inner)


@dataclass(frozen=True)
class Meter:
    """A rule for evaluation: runs the network as `BPTT()` does, and notes in `ledger` how often each layer fires."""

    ledger: Ledger

    def __call__(self, network: Callable[[Signal], Signal], x: Tensor) -> Signal:
        T, constant = len(x), is_constant(x)
        inner = Unrolled(x[:1] if constant else x, constant, T, Tape(T))
        return network(Metered(inner.train, constant, T, inner.tape, inner=inner, ledger=self.ledger))
