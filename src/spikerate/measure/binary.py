"""A network of integer neurons in binary steps: what a chip does with a network that was trained with whole numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from spikerate import autograd
from spikerate.integer import ILIF
from spikerate.rules import check_input
from spikerate.signal import Neuron, Normalization, PerStep, Signal, Tape, Unrolled, per_step


@dataclass(frozen=True, eq=False)
class _Binary(Unrolled):
    """A train of T D binary steps, or of the currents that they cause: D of them together are one step of training.

    Attributes:
        levels: D.
        spikes: whether the train is binary, with the spikes of a step in its first binary steps.
    """

    plain = (*Unrolled.plain, "levels", "spikes")

    levels: int = field(kw_only=True)
    spikes: bool = field(kw_only=True)

    @property
    def rate(self) -> Tensor:
        return self.train.sum(0) * (self.levels / len(self.train))

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> _Binary:
        signals = (self, *others)
        y = per_step(f, *(s.train for s in signals))
        constant = f(*(torch.zeros_like(s.train[0]) for s in signals))  # a bias is added once a step, not D times
        return replace(self, train=y - constant * (1 - 1 / self.levels), spikes=False)

    def product(self, f: PerStep, other: Signal, at_rate: autograd.Product | None = None) -> _Binary:
        assert isinstance(other, _Binary)
        return replace(self, train=_spread(per_step(f, self._collected(), other._collected()), self.levels), spikes=False)

    def nonlinear(self, f: PerStep, at_rate: autograd.SampleNorm | None = None) -> _Binary:
        if self.spikes:
            return replace(self, train=per_step(f, self.train))
        return replace(self, train=_spread(per_step(f, self._collected()), self.levels))

    def normalize(self, norm: Normalization) -> _Binary:
        raise ValueError("a network runs in binary steps as it will be used: call eval() before")

    def fire(self, neuron: Neuron) -> _Binary:
        if not isinstance(neuron, ILIF):
            raise ValueError(
                f"a {type(neuron).__name__} has no binary steps: BinarySteps is for networks whose neurons are ILIF"
            )
        counts = neuron.spikes(self._collected())
        within = torch.arange(self.levels, device=counts.device).view(1, -1, *[1] * (counts.dim() - 1))
        train = (counts.unsqueeze(1) > within).to(counts.dtype).flatten(0, 1)
        return replace(self, train=train, spikes=True)

    def _collected(self) -> Tensor:
        """The sums over the binary steps of each step, [T, B, ...]."""
        return self.train.unflatten(0, (-1, self.levels)).sum(1)


def _spread(steps: Tensor, levels: int) -> Tensor:
    """[T, B, ...] -> [T D, B, ...]: all that a step brings comes in the first of its binary steps."""
    train = steps.new_zeros(len(steps), levels, *steps.shape[1:])
    train[:, 0] = steps
    return train.flatten(0, 1)


@dataclass(frozen=True)
class BinarySteps:
    """Inference of a network of `ILIF` neurons in binary steps: T steps of training are T D of them.

    In the D binary steps of a step, each neuron fires in the first s[t] ones, the layers after it are computed for each
    binary step alone, and the neurons after them fire once they have the sum of all D currents. An image is shown in the
    first of them. Where layers between neurons are affine, or a maximum of spikes, outputs and spikes are those of
    `BPTT()` on the same network, but for the order in which floating point numbers are added. A product of two signals is
    that of their sums over the D binary steps.

    Call: `BinarySteps()(network, x)` with x [T, B, ...], in evaluation mode, without gradient -> the output, a `Signal` with
    `steps` [T D, B, K], whose sums over D are the steps of training, and `rate` [B, K], theirs.

    Raises:
        ValueError: the network is in training, has no ILIF neurons, or others beside them, or ILIF of different D.
    """

    @torch.no_grad()
    def __call__(self, network: Callable[[Signal], Signal], x: Tensor) -> Signal:
        check_input(x)
        layers = [m for m in network.modules() if isinstance(m, ILIF)] if isinstance(network, nn.Module) else []
        levels = {layer.levels for layer in layers}
        if len(levels) != 1:
            found = f"D = {', '.join(map(str, sorted(levels)))}" if levels else "no ILIF neuron"
            raise ValueError(f"the network has {found}: binary steps need integer neurons, all of the same number of levels")
        (D,) = levels
        train = _spread(x, D)
        return network(_Binary(train, False, len(train), Tape(len(train)), levels=D, spikes=False))
