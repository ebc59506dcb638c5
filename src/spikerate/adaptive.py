"""Neurons with an adaptive threshold: each spike makes the next one harder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from spikerate.neuron import LIF, stack
from spikerate.signal import State
from spikerate.surrogate import Sigmoid, Surrogate
from spikerate.system.ranges import check_number, check_plain, check_share


class ALIF(LIF):
    """Adaptive leaky integrate-and-fire neurons: the threshold rises with each spike, and comes back slowly.

        v[t] = decay * u[t-1] + input[t],   s[t] = H(v[t] - threshold - beta * a[t-1]),   a[t] = rho * a[t-1] + s[t]

    with u[0] = a[0] = 0, and u[t] after a reset as of `LIF`, by the threshold without its adaptation. With beta = 0 it is
    `LIF`. Its state is (u, a). The gradient goes through the adaptation, whether the reset is detached or not.

    The gain under `RateBP`: with g[t] = d s[t] / d c and r[t] = d a[t] / d c, where a current c is added at every step,

        gain = E_t[g[t]],   g[t] = slope[t] (reach[t] - beta r[t-1]),   r[t] = rho r[t-1] + g[t],   r[0] = 0
        reach[t] = d v[t] / d c = 1 + decay d u[t-1] / d c

    where slope[t] is taken at v[t] - threshold - beta a[t-1], and d u[t] / d c is, by the reset: soft and detached reach[t];
    soft reach[t] - threshold g[t]; hard and detached (1 - s[t]) reach[t]; hard (1 - s[t]) reach[t] + (v_reset - v[t]) g[t].
    So the gain knows that a neuron which fires more gets a higher threshold. Under `SLTT` and `OTTT` the adaptation before a
    step is a constant.

    Args:
        decay: fraction of the membrane potential that remains after one step, in (0, 1].
        beta: by how much a spike raises the threshold, >= 0.
        rho: fraction of the adaptation that remains after one step, in [0, 1). The others as for `LIF`.

    Raises:
        ValueError: a parameter is out of range or not a plain number.
        TypeError: called on a tensor instead of a `Signal`.

    Reference: Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons", Nature
    Communications 2020, whose neurons are also refractory.
    """

    binary: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def __init__(
        self,
        decay: float = 0.5,
        beta: float = 0.2,
        rho: float = 0.9,
        threshold: float = 1.0,
        v_reset: float | None = None,
        detach_reset: bool = True,
        surrogate: Surrogate = Sigmoid(),
    ) -> None:
        super().__init__(decay, None, threshold, v_reset, detach_reset, surrogate)
        check_number("ALIF.beta", beta, low=0)
        check_plain("ALIF.rho", rho)
        check_share("ALIF.rho", rho)
        self.beta = beta
        self.rho = rho

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, rho={self.rho:g}, {super().extra_repr()}"

    @torch.no_grad()
    def spikes(self, inputs: Tensor) -> Tensor:
        return self.unroll(inputs, None)[0]

    def unroll(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        spikes = []
        u, a = state or (None, 0.0)
        fire = self._fire if torch.is_grad_enabled() else self._fired
        for current in inputs.unbind(0):
            v = self._charge(u, current)
            s = fire(v - self.beta * a)
            spikes.append(s.to(current.dtype))
            u, a = self._settled(v, s), self.rho * a + s
        return stack(spikes), (u, a)

    @torch.no_grad()
    def trace(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Spikes [T, B, ...] without a graph, and the state.

        It is (u, a); what a unit more of the current at every step moves these by, (d u / d c, r); and the sums over all
        steps so far of s and of g. All are [B, ...].
        """
        spikes = []
        before, moved, count, total = state or (None, None, 0.0, 0.0)
        u, a = before or (None, 0.0)
        du, r = moved if isinstance(moved, tuple) else (0.0, 0.0)  # a stream goes on from states that nothing has moved yet
        for current in inputs.unbind(0):
            v = self._charge(u, current)
            x = v - self.beta * a
            s = self._fired(x)
            reach = 1 + self.decay * du
            g = self._slope(x) * (reach - self.beta * r)
            du = self._after_reset(v, s, reach, g)
            u, a, r = self._reset(v, s), self.rho * a + s, self.rho * r + g
            count, total = count + s, total + g
            spikes.append(s.to(current.dtype))
        return stack(spikes), ((u, a), (du, r), count, total)

    @torch.no_grad()
    def slopes(self, inputs: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        spikes, slopes = [], []
        u, a = state or (None, 0.0)
        for current in inputs.unbind(0):
            v = self._charge(u, current)
            x = v - self.beta * a
            s = self._fired(x)
            spikes.append(s.to(current.dtype))
            slopes.append(self._slope(x).to(current.dtype))
            u, a = self._reset(v, s), self.rho * a + s
        return stack(spikes), stack(slopes), (u, a)
