"""The search for Dspike's temperature before every epoch: its gradient shall agree with how the loss really changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from spikerate.gradients.finite_difference import (
    Directions,
    Elements,
    Few,
    cosine,
    derivatives,
    rate_loss,
    untouched,
    variant_rates,
    weights,
)
from spikerate.neuron import LIF
from spikerate.rules import Rule
from spikerate.surrogate import AdaptiveDspike, Dspike
from spikerate.system.dist import Ranks
from spikerate.system.ranges import MOST_SAMPLES, check_count, check_positive

COLDEST, HOTTEST = 1e-3, 1e3
"""Beyond these, Dspike equals the identity or the step function within rounding."""

_Module = TypeVar("_Module", bound=nn.Module)


def adapt(network: _Module) -> _Module:
    """Replace every `Dspike` in a network by an `AdaptiveDspike`, whose temperature is a buffer; returns the network.

    Raises:
        ValueError: the network has no neurons with a `Dspike`.
    """
    fixed = [(m, m.surrogate) for m in network.modules() if isinstance(m, LIF) and isinstance(m.surrogate, Dspike)]
    if not fixed:
        raise ValueError("the network has no neurons with a Dspike, so no temperature: give LIF(surrogate=Dspike(1.0))")
    for neuron, surrogate in fixed:
        neuron.surrogate = AdaptiveDspike(surrogate)
    return network


def temperatures(network: nn.Module) -> dict[str, float]:
    """Module path -> temperature of each neuron layer with an `AdaptiveDspike`."""
    return {
        name: round(float(m.surrogate.temperature), 6)
        for name, m in network.named_modules()
        if isinstance(m, LIF) and isinstance(m.surrogate, AdaptiveDspike)
    }


@dataclass(frozen=True)
class Search:
    """The search for the surrogate's temperature before every epoch (Li et al., NeurIPS 2021, Algorithm 1)."""

    step: float = 0.2
    """distance of the two temperatures to try, above and below the current one; 0 only measures the similarity"""
    per: Literal["network", "layer"] = "network"
    """one temperature for the whole network, or one for each layer, searched for in turn"""
    epsilon: float = 0.1
    """half the step of the finite differences, in units of the weight"""
    samples: int = 32
    """number of training samples in the batch that the gradients are computed on"""
    directions: int | None = None
    """number of random directions for the finite differences instead of every element of the weight: faster but noisier"""
    layer: str | None = None
    """module path of the layer whose weight is varied; by default the first layer"""

    def __post_init__(self) -> None:
        if not 0 <= self.step < HOTTEST:
            raise ValueError(f"search.step is {self.step}: give a number >= 0")
        if self.per not in ("network", "layer"):
            raise ValueError(f"search.per is {self.per!r}: give network or layer")
        check_positive("search.epsilon", self.epsilon)
        if self.samples < 2:
            raise ValueError(f"search.samples is {self.samples}: batch norm needs at least two")
        check_count("search.samples", self.samples, "a number of samples", MOST_SAMPLES)
        if self.directions is not None:
            check_count("search.directions", self.directions, "a number, or None for all elements,", MOST_SAMPLES)

    def __call__(
        self,
        network: nn.Module,
        rule: Rule,
        x: Tensor,
        labels: Tensor,
        seed: int = 0,
        ranks: Ranks = Ranks(),
        rates: Callable[..., Tensor] = variant_rates,
    ) -> dict[str, float]:
        """Set the network's temperatures to the best of those tried; weights, buffers and random state stay.

        The loss is the cross-entropy of the output's rate. For each temperature tried, `rule` computes the gradient of the
        layer's weight. The best temperature is the one with the highest cosine similarity to the finite-difference
        gradient; on a tie the previous temperature stays. With random directions, both gradients are projected on them.

        Args:
            network: a network with `AdaptiveDspike` neurons (see `adapt`), without branches.
            rule: the training rule.
            x: input [T, B, ...].
            labels: [B].
            seed: seed of the random directions.
            ranks: the processes that share the work; all must have the same input.
            rates: `variant_rates` or an equivalent function, for instance compiled.

        Returns:
            `temperature`, the mean over the layers; `similarity`, its cosine similarity; `similarity/held`, that of the
            previous temperatures; with one temperature for the network also `similarity/up` and `similarity/down`, those
            of the temperatures tried.

        Raises:
            ValueError: as `check`.
        """
        dspikes, weight = self.check(network)
        directions = self._directions(weight, seed)

        loss = rate_loss(labels)
        measured = ranks.total(
            derivatives(
                network,
                weight,
                x,
                loss,
                directions,
                self.epsilon,
                wanted=ranks.share(len(directions)),
                rates=rates,
            )
        )

        def similarity() -> float:
            with untouched(network) as again, torch.enable_grad():
                again()
                (gradient,) = torch.autograd.grad(loss(rule(network, x).rate), weight)
            return cosine(directions.along(gradient), measured)

        groups = [dspikes] if self.per == "network" else [[m] for m in dspikes]
        held = best = similarity()
        tried: dict[str, float] = {}
        for group in groups:
            best, tried = self._choose(group, best, similarity)
        chosen = [float(m.temperature) for m in dspikes]
        row = {"temperature": round(sum(chosen) / len(chosen), 6), "similarity": best, "similarity/held": held}
        return row | (tried if self.per == "network" else {})

    def check(self, network: nn.Module) -> tuple[list[AdaptiveDspike], nn.Parameter]:
        """The surrogates of a network whose temperatures are searched for, and the weight that is varied.

        Raises:
            ValueError: the network has no temperatures or no such layer, or its weight has fewer elements than directions.
        """
        dspikes = [m for m in network.modules() if isinstance(m, AdaptiveDspike)]
        if not dspikes:
            raise ValueError("the network has no temperatures to search for: call adapt(network) first")
        found = weights(network)
        name = self.layer or next(iter(found), "")
        if name not in found:
            raise ValueError(f"search.layer is {name!r}: give one of {', '.join(found)}")
        if self.directions is not None and self.directions > found[name].numel():
            raise ValueError(
                f"search.directions is {self.directions}, but the weight of {name} has {found[name].numel()} elements: "
                "give fewer, or None for all of them"
            )
        return dspikes, found[name]

    def differences(self, network: nn.Module) -> int:
        """The number of finite differences in one search.

        Raises:
            ValueError: as `check`.
        """
        return self.directions or self.check(network)[1].numel()

    def _choose(
        self, group: Sequence[AdaptiveDspike], best: float, similarity: Callable[[], float]
    ) -> tuple[float, dict[str, float]]:
        """Set the temperature of a group to the best of three; returns its similarity, and those of the two tried."""
        held = chosen = float(group[0].temperature)
        tried: dict[str, float] = {}
        for name, moved in (("up", held + self.step), ("down", held - self.step)):
            if moved == held or not COLDEST <= moved <= HOTTEST:
                continue
            _set(group, moved)
            tried[f"similarity/{name}"] = found = similarity()
            if found > best:
                best, chosen = found, moved
        _set(group, chosen)
        return best, tried

    def _directions(self, weight: nn.Parameter, seed: int) -> Directions:
        if self.directions is None:
            return Elements(weight.shape)
        return Few(weight.shape, self.directions, torch.Generator().manual_seed(seed))


def _set(group: Sequence[AdaptiveDspike], temperature: float) -> None:
    for dspike in group:
        dspike.temperature.fill_(round(temperature, 6))
