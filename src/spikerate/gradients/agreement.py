"""How well gradients agree in each layer: those of the training rules with each other, and with finite differences."""

from __future__ import annotations

from dataclasses import dataclass

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
    weights,
)
from spikerate.models import body_of
from spikerate.rules import BPTT, RateBP
from spikerate.system.modes import autocast, mode
from spikerate.system.progress import Track, untracked
from spikerate.system.ranges import MOST_SAMPLES, check_count, check_positive, check_seed


@dataclass(frozen=True)
class Agreement:
    """How well one gradient agrees with another.

    Attributes:
        cosine: the cosine similarity; 0 where one of them is 0.
        ratio: the norm of the one, divided by that of the other; None where the other is 0.
    """

    cosine: float
    ratio: float | None

    @classmethod
    def between(cls, one: Tensor, other: Tensor) -> Agreement:
        """Of two gradients of the same shape, in float64."""
        norm = float(other.double().norm())
        return cls(cosine(one, other), float(one.double().norm()) / norm if norm else None)


@dataclass(frozen=True)
class Fidelity:
    """How well the gradients of a layer's weight agree.

    Attributes:
        layer: its path in the network.
        elements: of the weight.
        directions: along which finite differences were taken; all, where there are as many as elements.
        rate_bptt: `RateBP()` with `BPTT()`, over all elements.
        bptt_fdg: `BPTT()` with the finite-difference gradient, in the space of the directions.
        rate_fdg: `RateBP()` with the finite-difference gradient, in the space of the directions.
    """

    layer: str
    elements: int
    directions: int
    rate_bptt: Agreement
    bptt_fdg: Agreement
    rate_fdg: Agreement

    @property
    def pairs(self) -> dict[str, Agreement]:
        """The agreements by the names of the two, the one / the other."""
        return {"RateBP / BPTT": self.rate_bptt, "BPTT / FDG": self.bptt_fdg, "RateBP / FDG": self.rate_fdg}

    @property
    def noise(self) -> float:
        """The typical cosine (root of the mean square) of two random vectors in the space of the directions."""
        return self.directions**-0.5


@dataclass(frozen=True)
class Comparison:
    """Compares the gradients of each convolution's and linear layer's weight, on one batch in training mode.

    With few directions the figures of finite differences are noisy: their cosine strays from that of the full gradients by
    about `(1 - cosine^2) / sqrt(directions)`, so that unrelated gradients have one of about `Fidelity.noise`.

    Raises:
        ValueError: a number is out of its range.

    Reference: for finite differences Li et al., NeurIPS 2021, section 4.1; for RateBP with BPTT Yu et al., NeurIPS 2024.
    """

    samples: int = 32
    """training samples that the loss is measured on"""
    directions: int = 64
    """random directions along which each weight is moved, or as many as it has elements; fewer are cheaper, and noisy"""
    epsilon: float = 0.1
    """half the distance of the finite differences, in units of the weight"""
    seed: int = 0
    """seed of the directions"""

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples is {self.samples}: batch norm needs two at least")
        check_count("samples", self.samples, "a number of samples", MOST_SAMPLES)
        check_count("directions", self.directions, "a number", MOST_SAMPLES)
        check_positive("epsilon", self.epsilon)
        check_seed(self.seed)

    def __call__(
        self, network: nn.Module, x: Tensor, labels: Tensor, precision: str = "fp32", track: Track = untracked
    ) -> list[Fidelity]:
        """Of each layer, in the network's order.

        The loss is the cross-entropy of the output's rate. Weights, buffers, mode and random stream are left as they were.
        Of a `Branched` network, it is the body that is looked at.

        Args:
            network: of spiking neurons.
            x: input [T, B, ...].
            labels: [B].
            precision: bf16 runs the layers under autocast.
            track: shows who waits how far it is.

        Raises:
            ValueError: a gradient is not finite.
        """
        body = body_of(network)
        layers = weights(body)
        generator = torch.Generator().manual_seed(self.seed)
        loss = rate_loss(labels)

        def gradients(rule: BPTT | RateBP) -> tuple[Tensor, ...]:
            with untouched(body) as again, torch.enable_grad():
                again()
                with autocast(x.device, precision):  # entered anew each time, see there
                    value = loss(rule(body, x).rate)
                return torch.autograd.grad(value, list(layers.values()), allow_unused=True, materialize_grads=True)

        found = []
        with mode(body, training=True):
            of_rules = dict(zip(layers, zip(gradients(BPTT()), gradients(RateBP()), strict=True), strict=True))
            for layer, weight in track(iter(layers.items()), "moving weights", len(layers)):
                directions = self._directions(weight, generator)
                with autocast(x.device, precision):
                    fdg = derivatives(body, weight, x, loss, directions, self.epsilon)
                bptt, rate = of_rules[layer]
                if not all(bool(gradient.isfinite().all()) for gradient in (bptt, rate, fdg)):
                    raise ValueError(f"a gradient of layer {layer} is not finite: a smaller epsilon may help")
                pairs = ((rate, bptt), (directions.along(bptt), fdg), (directions.along(rate), fdg))
                found.append(Fidelity(layer, weight.numel(), len(directions), *(Agreement.between(*p) for p in pairs)))
        return found

    def _directions(self, weight: nn.Parameter, generator: torch.Generator) -> Directions:
        if weight.numel() <= self.directions:
            return Elements(weight.shape)
        return Few(weight.shape, self.directions, generator)
