"""The integer leaky integrate-and-fire neuron: trained with whole numbers of spikes a step, run in binary steps."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from spikerate import autograd
from spikerate.neuron import LIF
from spikerate.system.ranges import check_count

MOST_LEVELS = 255
"""Largest number of spikes a step; it fits into a byte."""


class ILIF(LIF):
    """Integer leaky integrate-and-fire neurons (I-LIF): up to D spikes in a step.

        v[t] = decay * u[t-1] + input[t],   s[t] = clip(round(v[t] / threshold), 0, D),   u[t] = v[t] - threshold * s[t]

    Halves are rounded up. The derivative of s with respect to v is taken as 1 / threshold where 0 <= v <= D threshold, and
    0 elsewhere. In inference each step is D binary ones: a neuron with s[t] spikes fires in the first s[t] of them, and the
    next layer, where it is linear, gets the sum of what it makes of each: T steps of training are T D binary steps of
    inference, and both agree to the last spike (`BinarySteps`). With decay=1 and T=1, training costs what the ANN's does.

    Args:
        decay: fraction of the membrane potential that remains after one step, in (0, 1].
        levels: D, the most spikes in a step.
        threshold: the membrane potential of one spike, > 0.
        detach_reset: whether the reset is a constant for the gradient.

    Raises:
        ValueError: a parameter is out of range or not a plain number.

    Reference: Luo et al., "Integer-valued training and spike-driven inference spiking neural network for high-performance
    and energy-efficient object detection" (SpikeYOLO), ECCV 2024, section 3: D = 4, threshold 1, decay 0.25.
    """

    levels: int
    binary: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    def __init__(self, decay: float = 0.25, levels: int = 4, threshold: float = 1.0, detach_reset: bool = True) -> None:
        super().__init__(decay, None, threshold, None, detach_reset)
        check_count("ILIF.levels", levels, "a number of spikes", MOST_LEVELS)
        self.levels = levels

    def extra_repr(self) -> str:
        detached = ", detached" if self.detach_reset else ""
        return f"decay={self.decay:g}, levels={self.levels}, threshold={self.threshold:g}{detached}"

    def _fired(self, v: Tensor) -> Tensor:
        # floor(v + 1/2), since torch.round takes halves to the next even number.
        return torch.floor(v / self.threshold + 0.5).clamp(0, self.levels)

    def _slope(self, v: Tensor) -> Tensor:
        return ((v >= 0) & (v <= self.levels * self.threshold)).to(v.dtype) / self.threshold

    def _fire(self, v: Tensor) -> Tensor:
        constant = v.detach()
        return autograd.scale(self._fired(constant), v, self._slope(constant))
