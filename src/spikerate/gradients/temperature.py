"""The temperature of Dspike: searched for before every epoch, so that its gradient points where the loss really falls."""

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
"""Temperatures beyond are the identity and the step to every digit."""

_Module = TypeVar("_Module", bound=nn.Module)


def adapt(network: _Module) -> _Module:
    """Make the temperature of every `Dspike` in a network state of its own, in place; returns the network.

    Raises:
        ValueError: it has no neurons with a `Dspike`.
    """
    fixed = [(m, m.surrogate) for m in network.modules() if isinstance(m, LIF) and isinstance(m.surrogate, Dspike)]
    if not fixed:
        raise ValueError("the network has no neurons with a Dspike, so no temperature: give LIF(surrogate=Dspike(1.0))")
    for neuron, surrogate in fixed:
        neuron.surrogate = AdaptiveDspike(surrogate)
    return network


def temperatures(network: nn.Module) -> dict[str, float]:
    """Path of each neuron layer -> its temperature, where that is state."""
    return {
        name: round(float(m.surrogate.temperature), 6)
        for name, m in network.named_modules()
        if isinstance(m, LIF) and isinstance(m.surrogate, AdaptiveDspike)
    }


@dataclass(frozen=True)
class Search:
    """The search for the surrogate's temperature before every epoch (Li et al., NeurIPS 2021, Algorithm 1)."""

    step: float = 0.2
    """tried above and below the temperature that holds; 0 keeps it, and only measures its similarity"""
    per: Literal["network", "layer"] = "network"
    """one temperature for the network, or one for each layer, searched for in turn"""
    epsilon: float = 0.1
    """half the distance of the finite differences, in units of the weight"""
    samples: int = 32
    """training samples that the loss is measured on"""
    directions: int | None = None
    """random directions instead of every element of the weight: cheaper, and noisy"""
    layer: str | None = None
    """path of the layer whose weight is moved; by default the first"""

    def __post_init__(self) -> None:
        if not 0 <= self.step < HOTTEST:
            raise ValueError(f"search.step is {self.step}: give a number >= 0")
        if self.per not in ("network", "layer"):
            raise ValueError(f"search.per is {self.per!r}: give network or layer")
        check_positive("search.epsilon", self.epsilon)
        if self.samples < 2:
            raise ValueError(f"search.samples is {self.samples}: batch norm needs two at least")
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
        """Set the network's temperatures to the best of those tried; weights, buffers and random stream stay.

        The loss is the cross-entropy of the output's rate. Of each temperature tried, `rule` gives the gradient of the
        layer's weight; the best has the highest cosine similarity to the finite-difference gradient, and of equals it is
        the one that held before. With random directions, both are compared in the space that these span.

        Args:
            network: with `AdaptiveDspike` neurons (`adapt`), without branches.
            rule: the training rule.
            x: input [T, B, ...].
            labels: [B].
            seed: of the random directions.
            ranks: the processes that share the work; all have the same input.
            rates: `variant_rates`, compiled for instance.

        Returns:
            `temperature`, the mean over the layers, and its `similarity`; that of the temperatures that held before,
            `similarity/held`, and with one for the network of those tried, `similarity/up` and `similarity/down`.

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
        of_layers = [float(m.temperature) for m in dspikes]
        row = {"temperature": round(sum(of_layers) / len(of_layers), 6), "similarity": best, "similarity/held": held}
        return row | (tried if self.per == "network" else {})

    def check(self, network: nn.Module) -> tuple[list[AdaptiveDspike], nn.Parameter]:
        """The temperatures of a network, and the weight that is moved.

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
        """How many finite differences one search takes.

        Raises:
            ValueError: as `check`.
        """
        return self.directions or self.check(network)[1].numel()

    def _choose(
        self, group: Sequence[AdaptiveDspike], best: float, similarity: Callable[[], float]
    ) -> tuple[float, dict[str, float]]:
        """Set the temperature that a group shares to the best of three; its similarity, and those of the other two."""
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
