"""How well gradients agree in each layer: the training rules with each other, and with finite differences."""

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
        cosine: the cosine similarity; 0 if one of the gradients is 0.
        ratio: the norm of the first divided by the norm of the second; None if the second is 0.
    """

    cosine: float
    ratio: float | None

    @classmethod
    def between(cls, one: Tensor, other: Tensor) -> Agreement:
        """The agreement of two gradients of the same shape, computed in float64."""
        norm = float(other.double().norm())
        return cls(cosine(one, other), float(one.double().norm()) / norm if norm else None)


@dataclass(frozen=True)
class Fidelity:
    """How well the gradients of a layer's weight agree.

    Attributes:
        layer: module path of the layer.
        elements: number of elements of the weight.
        directions: number of directions of the finite differences; if equal to `elements`, they span the whole space.
        rate_bptt: `RateBP()` with `BPTT()`, over all elements.
        bptt_fdg: `BPTT()` with the finite-difference gradient (FDG), projected on the directions.
        rate_fdg: `RateBP()` with the finite-difference gradient, projected on the directions.
    """

    layer: str
    elements: int
    directions: int
    rate_bptt: Agreement
    bptt_fdg: Agreement
    rate_fdg: Agreement

    @property
    def pairs(self) -> dict[str, Agreement]:
        """The three agreements by their names, "first / second"."""
        return {"RateBP / BPTT": self.rate_bptt, "BPTT / FDG": self.bptt_fdg, "RateBP / FDG": self.rate_fdg}

    @property
    def noise(self) -> float:
        """The typical cosine (root mean square) of two random vectors in the space of the directions."""
        return self.directions**-0.5


@dataclass(frozen=True)
class Comparison:
    """Compares the gradients of the weight of each convolution and linear layer, on one batch in training mode.

    With few directions the agreement with finite differences is noisy: the cosine deviates from that of the full gradients
    by about `(1 - cosine^2) / sqrt(directions)`. Unrelated gradients have a cosine of about `Fidelity.noise`.

    Raises:
        ValueError: a number is out of its range.

    Reference: for finite differences Li et al., NeurIPS 2021, section 4.1; for RateBP with BPTT Yu et al., NeurIPS 2024.
    """

    samples: int = 32
    """number of training samples in the batch"""
    directions: int = 64
    """random directions in which each weight is varied, at most one per element; fewer are faster but noisier"""
    epsilon: float = 0.1
    """half the step of the finite differences, in units of the weight"""
    seed: int = 0
    """seed of the directions"""

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples is {self.samples}: batch norm needs at least two")
        check_count("samples", self.samples, "a number of samples", MOST_SAMPLES)
        check_count("directions", self.directions, "a number", MOST_SAMPLES)
        check_positive("epsilon", self.epsilon)
        check_seed(self.seed)

    def __call__(
        self, network: nn.Module, x: Tensor, labels: Tensor, precision: str = "fp32", track: Track = untracked
    ) -> list[Fidelity]:
        """The agreement of the gradients of each layer, in the network's order.

        The loss is the cross-entropy of the output's rate. Weights, buffers, mode and random state are unchanged afterwards.
        Of a `Branched` network, only the body is measured.

        Args:
            network: a spiking network.
            x: input [T, B, ...].
            labels: [B].
            precision: "bf16" runs the layers under autocast.
            track: shows the progress.

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
                with autocast(x.device, precision):  # anew each time: it caches the weights that it has cast
                    value = loss(rule(body, x).rate)
                return torch.autograd.grad(value, list(layers.values()), allow_unused=True, materialize_grads=True)

        found = []
        with mode(body, training=True):
            rule_gradients = dict(zip(layers, zip(gradients(BPTT()), gradients(RateBP()), strict=True), strict=True))
            for layer, weight in track(iter(layers.items()), "finite differences", len(layers)):
                directions = self._directions(weight, generator)
                with autocast(x.device, precision):
                    fdg = derivatives(body, weight, x, loss, directions, self.epsilon)
                bptt, rate = rule_gradients[layer]
                if not all(bool(gradient.isfinite().all()) for gradient in (bptt, rate, fdg)):
                    raise ValueError(f"a gradient of layer {layer} is not finite: a smaller epsilon may help")
                pairs = ((rate, bptt), (directions.along(bptt), fdg), (directions.along(rate), fdg))
                found.append(Fidelity(layer, weight.numel(), len(directions), *(Agreement.between(*p) for p in pairs)))
        return found

    def _directions(self, weight: nn.Parameter, generator: torch.Generator) -> Directions:
        if weight.numel() <= self.directions:
            return Elements(weight.shape)
        return Few(weight.shape, self.directions, generator)
