"""Neurons whose parameters are learned with the weights."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from spikerate.neuron import LIF
from spikerate.signal import Learns, State
from spikerate.surrogate import Sigmoid, Surrogate


class PLIF(LIF, Learns):
    """`LIF` neurons with a decay that is learned, one for the layer (PLIF).

        decay = sigmoid(w),   so that it stays in (0, 1)

    The gradient of w: under `BPTT` through every step; under `SLTT` and `OTTT` that of each step, with the membrane before
    it as a constant; under `RateBP` d rate / d w = E_t[slope(v[t]) e[t]] with e[t] = d v[t] / d w, whose trace is
    `e[t] = (d v[t] / d v[t-1]) e[t-1] + u[t-1] decay (1 - decay)`, e[1] = 0. At T = 1 the decay does nothing, and w has no
    gradient. One step after the other is run eagerly, which takes longer than `LIF`.

    Args:
        decay: at the start, in (0, 1). The others as for `LIF`.

    Raises:
        ValueError: a parameter is out of range.

    Reference: Fang et al., "Incorporating learnable membrane time constant", ICCV 2021, equations 7 and 8. There the decay
    is 1 - sigmoid(w), the same with the sign of w changed, and the input may be scaled by sigmoid(w); here it is not.
    """

    elementwise: ClassVar[bool] = False
    binary: ClassVar[bool] = True

    def __init__(
        self,
        decay: float = 0.5,
        threshold: float = 1.0,
        v_reset: float | None = None,
        detach_reset: bool = True,
        surrogate: Surrogate = Sigmoid(),
    ) -> None:
        super().__init__(decay, None, threshold, v_reset, detach_reset, surrogate)

    @property  # type: ignore[override]
    def decay(self) -> Tensor:
        """The decay as it is now, a scalar with the gradient of w."""
        return torch.sigmoid(self.w)

    @decay.setter
    def decay(self, value: float) -> None:
        if not 0 < value < 1:
            raise ValueError(f"PLIF.decay is {value}: give a number between 0 and 1, where a learned decay can begin")
        self.w = nn.Parameter(torch.tensor(math.log(value / (1 - value))))

    @property
    def learned(self) -> Tensor:
        return self.w

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Raise `ValueError` for any other parameter than w."""
        if name != "w":
            super().register_parameter(name, param)
        nn.Module.register_parameter(self, name, param)

    def at_once(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        spikes = []
        for current in inputs.unbind(0):
            v = self._charge(state, current)
            s = self._fire(v)
            spikes.append(s.to(current.dtype))
            state = self._reset(v, s).detach()
        assert state is not None
        return torch.cat(spikes).unflatten(0, (len(spikes), -1)), state

    @torch.no_grad()
    def trace(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """As `LIF.trace`; the state has before its last two what w moves: the summed `slope(v[t]) e[t]`."""
        spikes: list[Tensor] = []
        u, carried, moving, moved, count, total = state or (None, 0.0, 0.0, 0.0, 0.0, 0.0)
        slope_of_decay = self.decay * (1 - self.decay)
        for current in inputs.unbind(0):
            v = self._charge(u, current)
            s, slope = self._fired(v), self._slope(v)
            reach = 1 + carried
            e = torch.zeros_like(v) if u is None else moving + u * slope_of_decay
            moved, count, total = moved + slope * e, count + s, total + slope * reach
            passed_on = self._passed_on(v, s, slope)
            carried, moving = passed_on * reach, passed_on * e
            u = self._reset(v, s)
            spikes.append(s.to(current.dtype))
        return torch.cat(spikes).unflatten(0, (len(spikes), -1)), (u, carried, moving, moved, count, total)

    def _charge(self, u: Tensor | None, current: Tensor) -> Tensor:
        return super()._charge(None, current) + (0 if u is None else self.decay * u)
