"""A neuron, a surrogate, a rule, a loss, an optimiser, a schedule and a data set that spikerate has not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikerate import LIF, Loss, NeuronSettings, RateCoded, Rule, StepNeuron, Surrogate
from spikerate.data import DataReader, DataSet, Stored, Units
from spikerate.losses import Terms
from spikerate.rules import forward
from spikerate.runs.optim import OptimizerFactory
from spikerate.runs.schedule import Schedule


@dataclass(frozen=True)
class Gaussian(Surrogate):
    width: float = 1.0

    def slope(self, x: Tensor) -> Tensor:
        return torch.exp(-((x / self.width) ** 2))


class Slow(StepNeuron):
    def __init__(self, settings: Slowly) -> None:
        super().__init__()
        self.settings = settings

    def step(self, current: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        v = current if state is None else current + self.settings.decay * state
        spike = self.settings.surrogate.spike(v - 1)
        return spike, v - spike.detach()


@dataclass(frozen=True)
class Slowly(NeuronSettings):
    decay: float = 0.5
    surrogate: Surrogate = Gaussian()

    def build(self) -> nn.Module:
        return Slow(self)


@dataclass(frozen=True)
class Louder(Rule):
    """Rate-based, of an input that is scaled."""

    factor: float = 1.0
    per_step = False

    def __call__(self, network: Any, x: Tensor) -> Any:
        x = x * self.factor
        return forward(network, x, lambda *fields: RateCoded(*fields, average=x.mean(0)))

    def passes(self, T: int) -> float:
        return T + 2


louder = Louder(1.25)


@dataclass(frozen=True)
class Hinge(Loss):
    margin: float = 1.0

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Terms:
        hinge = F.multi_margin_loss(outputs[-1].float(), labels, margin=self.margin)
        return {"loss": hinge, "largest-logit": outputs[-1].detach().abs().max()}


@dataclass(frozen=True)
class NAdam(OptimizerFactory):
    lr: float = 1e-2

    def build(self, network: nn.Module) -> Sequence[torch.optim.Optimizer]:
        return [torch.optim.NAdam(network.parameters(), lr=self.lr)]


@dataclass(frozen=True)
class Root(Schedule):
    def __call__(self, step: int, steps: int) -> float:
        return float((1 + step) ** -0.5)


@dataclass(frozen=True)
class Bars(DataReader):
    n: int = 120

    def read(self, path: Path | None, T: int) -> DataSet:
        labels = torch.arange(self.n) % 2
        images = torch.randint(0, 60, (self.n, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        images[labels == 0, :, 3] = 255
        images[labels == 1, :, :, 3] = 255
        whole = Stored(images, labels)
        return DataSet("bars", whole, whole[:0], whole[:0], ("row", "column"), Units((0.2,), (0.3,)))


class Silent(NeuronSettings):
    """No dataclass."""

    def build(self) -> nn.Module:
        return LIF()


@dataclass(frozen=True)
class Priceless(Rule):
    """It lacks a method."""

    def __call__(self, network: Any, x: Tensor) -> Any:
        return network(x)


@dataclass(frozen=True)
class Dead(NeuronSettings):
    """Its layer is none of neurons."""

    def build(self) -> nn.Module:
        return nn.ReLU()


@dataclass(frozen=True)
class Unwritable(Rule):
    """It has a field that no file can hold."""

    weights: Any = torch.ones(2)

    def __call__(self, network: Any, x: Tensor) -> Any:
        return network(x)

    def passes(self, T: int) -> float:
        return 3 * T


class Stranger:
    """No part at all."""
