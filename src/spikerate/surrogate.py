"""Surrogate gradients: replacements for the derivative of the step function.

The spike is the Heaviside step `H(x)` of `x = v - threshold`; its derivative is replaced by `slope(x)`. Your own
surrogate is a class with one method:

    class Gaussian(Surrogate):
        def slope(self, x): return torch.exp(-x.square())
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikerate import autograd
from spikerate.system.ranges import check_positive


class Surrogate(ABC):
    """A replacement for the derivative of the step function."""

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """The derivative used in place of `H'(x)`, elementwise; `x = v - threshold`, any shape."""

    def spike(self, x: Tensor) -> Tensor:
        """`H(x)`, 1 where `x >= 0` and 0 elsewhere, with the gradient `slope(x)`."""
        constant = x.detach()
        return autograd.scale((constant >= 0).to(x.dtype), x, self.slope(constant))


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """`slope(x) = alpha p (1 - p)`, `p = sigmoid(alpha x)`; the papers' choice, `alpha = 4` (SpikingJelly's `Sigmoid`)."""

    alpha: float = 4.0

    def __post_init__(self) -> None:
        check_positive("Sigmoid.alpha", self.alpha)

    def primitive(self, x: Tensor) -> Tensor:
        """The smooth step whose derivative is `slope`."""
        return torch.sigmoid(self.alpha * x)

    def slope(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.alpha * x)
        return self.alpha * torch.addcmul(p, p, p, value=-1)  # one pass over memory for p (1 - p)


@dataclass(frozen=True)
class ATan(Surrogate):
    """`slope(x) = alpha / (2 (1 + (pi alpha x / 2)^2))` (Fang et al., ICCV 2021)."""

    alpha: float = 2.0

    def __post_init__(self) -> None:
        check_positive("ATan.alpha", self.alpha)

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
        check_positive("Triangular.width", self.width)

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
        check_positive("Rectangular.width", self.width)

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
        check_positive("FastSigmoid.alpha", self.alpha)

    def primitive(self, x: Tensor) -> Tensor:
        """The smooth step whose derivative is `slope`."""
        return x / (1 + self.alpha * x.abs())

    def slope(self, x: Tensor) -> Tensor:
        return 1 / (1 + self.alpha * x.abs()).square()


@dataclass(frozen=True)
class Dspike(Surrogate):
    """`slope(x) = b sech^2(b z) / (2 width tanh(b / 2))`, `z = x / width`, where `|z| <= 1/2`, else 0 (Li et al., 2021).

    The paper's function `a tanh(b (u - 1/2)) + 1/2`, `a = 1 / (2 tanh(b / 2))`, of the normalised potential `u = z + 1/2`
    in [0, 1] with the threshold in its middle; outside that range the function is clipped to 0 and 1. For b -> 0 it is the
    identity on [0, 1], for b -> infinity the step. It is the same for the soft and the hard reset, which follow the spike;
    if the reset is not detached, its gradient contains the slope, too.

    Args:
        temperature: b, > 0.
        width: width of the clip range in units of the membrane potential, > 0: from `threshold - width / 2` to
            `threshold + width / 2`. With `2 * threshold` the range is from 0 to twice the threshold.

    Raises:
        ValueError: an argument is out of range.

    Reference: Li, Guo, Zhang, Deng, Hai, Gu: Differentiable Spike, NeurIPS 2021, section 4.2. In `AdaptiveDspike` the
    temperature is a buffer.
    """

    temperature: float = 1.0
    width: float = 1.0

    def __post_init__(self) -> None:
        check_positive("Dspike.temperature", self.temperature)
        check_positive("Dspike.width", self.width)

    def primitive(self, x: Tensor) -> Tensor:
        """The smooth step whose derivative is `slope`."""
        b = self.temperature
        return torch.tanh(b * (x / self.width).clamp(-0.5, 0.5)) / (2 * math.tanh(b / 2)) + 0.5

    def slope(self, x: Tensor) -> Tensor:
        b = self.temperature
        return _dspike_slope(x, b, b / (2 * math.tanh(b / 2)), self.width)


class AdaptiveDspike(nn.Module, Surrogate):
    """`Dspike` whose temperature is a buffer, which is saved and moved with the network.

    Changing it by `temperature.fill_(b)` causes no recompilation.
    """

    temperature: Tensor

    def __init__(self, start: Dspike) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(start.temperature))
        self.width = start.width

    def extra_repr(self) -> str:
        return f"temperature={float(self.temperature):g}, width={self.width:g}"

    def slope(self, x: Tensor) -> Tensor:
        b = self.temperature
        return _dspike_slope(x, b, b / (2 * torch.tanh(b / 2)), self.width)


def _dspike_slope(x: Tensor, b: float | Tensor, peak: float | Tensor, width: float) -> Tensor:
    z = (x / width).abs()
    # sech^2 = 4 e / (1 + e)^2, since 1 - tanh^2 would lose all its digits where tanh is close to 1.
    e = torch.exp(-2 * b * z)
    return torch.where(z <= 0.5, peak / width * 4 * e / (1 + e).square(), 0)
