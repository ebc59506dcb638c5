"""Surrogate gradients: what stands in for the derivative of the step function, as frozen values.

The spike is the Heaviside step `H(x)` of `x = v - threshold`; its derivative is replaced by `slope(x)`. A surrogate of
your own is a class with one method:

    class Gaussian(Surrogate):
        def slope(self, x): return torch.exp(-x.square())
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from spikerate import known


class Surrogate(ABC):
    """A stand-in for the derivative of the step function."""

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """The derivative used in place of `H'(x)`, elementwise; `x = v - threshold`, any shape."""

    def spike(self, x: Tensor) -> Tensor:
        """`H(x)`, 1 where `x >= 0` and 0 elsewhere, with the gradient `slope(x)`."""
        constant = x.detach()
        return known.scale((constant >= 0).to(x.dtype), x, self.slope(constant))


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """`slope(x) = alpha p (1 - p)`, `p = sigmoid(alpha x)`; the papers' choice, `alpha = 4` (SpikingJelly's `Sigmoid`)."""

    alpha: float = 4.0

    def __post_init__(self) -> None:
        _positive("Sigmoid.alpha", self.alpha)

    def primitive(self, x: Tensor) -> Tensor:
        """The smooth step whose derivative is `slope`."""
        return torch.sigmoid(self.alpha * x)

    def slope(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.alpha * x)
        return self.alpha * p * (1 - p)


@dataclass(frozen=True)
class ATan(Surrogate):
    """`slope(x) = alpha / (2 (1 + (pi alpha x / 2)^2))` (Fang et al., ICCV 2021)."""

    alpha: float = 2.0

    def __post_init__(self) -> None:
        _positive("ATan.alpha", self.alpha)

    def primitive(self, x: Tensor) -> Tensor:
        """The smooth step whose derivative is `slope`."""
        return torch.atan(math.pi / 2 * self.alpha * x) / math.pi + 0.5

    def slope(self, x: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * x).square())


@dataclass(frozen=True)
class Triangular(Surrogate):
    """`slope(x) = max(0, 1 - |x| / width) / width` (Bellec et al., NeurIPS 2018)."""

    width: float = 1.0

    def __post_init__(self) -> None:
        _positive("Triangular.width", self.width)

    def primitive(self, x: Tensor) -> Tensor:
        """The smooth step whose derivative is `slope`."""
        z = (x / self.width).clamp(-1, 1)
        return 0.5 + z - 0.5 * z * z.abs()

    def slope(self, x: Tensor) -> Tensor:
        return (1 - x.abs() / self.width).clamp(min=0) / self.width


@dataclass(frozen=True)
class Rectangular(Surrogate):
    """`slope(x) = 1 / width` where `|x| < width / 2`, else 0 (Wu et al., 2018)."""

    width: float = 1.0

    def __post_init__(self) -> None:
        _positive("Rectangular.width", self.width)

    def primitive(self, x: Tensor) -> Tensor:
        """The smooth step whose derivative is `slope`."""
        return (x / self.width + 0.5).clamp(0, 1)

    def slope(self, x: Tensor) -> Tensor:
        return (x.abs() < self.width / 2).to(x.dtype) / self.width


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """`slope(x) = 1 / (1 + alpha |x|)^2` (Zenke and Ganguli, 2018; snnTorch's `fast_sigmoid(slope=alpha)`)."""

    alpha: float = 25.0

    def __post_init__(self) -> None:
        _positive("FastSigmoid.alpha", self.alpha)

    def primitive(self, x: Tensor) -> Tensor:
        """The smooth step whose derivative is `slope`."""
        return x / (1 + self.alpha * x.abs())

    def slope(self, x: Tensor) -> Tensor:
        return 1 / (1 + self.alpha * x.abs()).square()


@dataclass(frozen=True)
class Dspike(Surrogate):
    """`slope(x) = b sech^2(b x) / (2 tanh(b / 2))` where `|x| <= 1/2`, else 0 (Li et al., NeurIPS 2021).

    The paper's function `a tanh(b (u - 1/2)) + 1/2`, `a = 1 / (2 tanh(b / 2))`, of the potential `u = x + 1/2` in [0, 1]
    with the threshold in the middle. `temperature` b -> 0 is the identity on [0, 1], b -> infinity the step. The window is
    one unit of the potential wide, whatever the threshold. The temperature is fixed here.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        _positive("Dspike.temperature", self.temperature)

    def primitive(self, x: Tensor) -> Tensor:
        """The smooth step whose derivative is `slope`."""
        b = self.temperature
        return torch.tanh(b * x.clamp(-0.5, 0.5)) / (2 * math.tanh(b / 2)) + 0.5

    def slope(self, x: Tensor) -> Tensor:
        b = self.temperature
        inside = (x.abs() <= 0.5).to(x.dtype)
        return b / (2 * math.tanh(b / 2)) * (1 - torch.tanh(b * x).square()) * inside


def _positive(field: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{field} is {value}: give a positive, finite number")
