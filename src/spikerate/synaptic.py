"""Second-order neurons: a synaptic current that decays, before the membrane."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from spikerate.neuron import LIF, wide
from spikerate.signal import State
from spikerate.surrogate import Sigmoid, Surrogate
from spikerate.system.ranges import check_plain, check_share


class Synaptic(LIF):
    """Leaky integrate-and-fire neurons of second order: their input is smoothed by a synaptic current i.

        i[t] = alpha * i[t-1] + input[t],   v[t] = decay * u[t-1] + i[t],   s[t] = H(v[t] - threshold),   i[0] = u[0] = 0

    and u[t] after a soft or hard reset as of `LIF`; a spike leaves the current as it is. With alpha = 0 it is `LIF`. Its
    state is (u, i).

    The gain under `RateBP`: one unit more of the input at every step raises i[t] by c[t] = 1 + alpha c[t-1], c[0] = 0, so

        gain = E_t[slope(v[t]) reach[t]],   reach[t] = c[t] + (d v[t] / d v[t-1]) reach[t-1],   reach[0] = 0

    with d v[t] / d v[t-1] as of `LIF` for each reset. With a detached soft reset it grows to 1 / ((1 - alpha) (1 - decay))
    times the slope, and the gradient grows with it from layer to layer: choose both small for deep networks. Under `SLTT`
    and `OTTT` current and membrane before a step are constants; OTTT's trace of the inputs has one decay, that of a membrane
    without a synaptic current.

    Args:
        decay: fraction of the membrane potential that remains after one step, in (0, 1]; snnTorch's `beta`.
        alpha: fraction of the synaptic current that remains after one step, in [0, 1). The others as for `LIF`.

    Raises:
        ValueError: a parameter is out of range or not a plain number.
        TypeError: called on a tensor instead of a `Signal`.

    Reference: `snntorch.Synaptic(alpha, beta, reset_delay=False)` fires the same spikes, where `v_reset` is None
    ("subtract") or 0 ("zero"); NIR's `CubaLIF`.
    """

    binary: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def __init__(
        self,
        decay: float = 0.2,
        alpha: float = 0.2,
        threshold: float = 1.0,
        v_reset: float | None = None,
        detach_reset: bool = True,
        surrogate: Surrogate = Sigmoid(),
    ) -> None:
        super().__init__(decay, None, threshold, v_reset, detach_reset, surrogate)
        check_plain("Synaptic.alpha", alpha)
        check_share("Synaptic.alpha", alpha)
        self.alpha = alpha

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, {super().extra_repr()}"

    @torch.no_grad()
    def spikes(self, inputs: Tensor) -> Tensor:
        return super().spikes(self._smoothed(inputs, None)[0]).to(inputs.dtype)

    def unroll(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        u, i = state or (None, None)
        currents, i = self._smoothed(inputs, i)
        spikes, u = super().unroll(currents, u)
        return spikes.to(inputs.dtype), (u, i)

    @torch.no_grad()
    def trace(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Spikes [T, B, ...] without a graph, and the state.

        It is (u, i); what a unit more of the current at every step moves these by, (decay d u / d c, c); and the sums over
        all steps so far of s and of slope * reach. All are [B, ...], or a number where it is the same for all neurons.
        """
        before, moved, *sums = state or (None, None, None, None)
        u, i = before or (None, None)
        carried, c = moved if isinstance(moved, tuple) else (0.0, 0.0)  # a stream goes on from states that nothing has moved
        currents, i = self._smoothed(inputs, i)
        drives = []
        for _ in range(len(inputs)):
            c = 1 + self.alpha * c
            drives.append(c)
        spikes, (u, carried, *sums) = self._traced(currents, drives, (u, carried, *sums))
        return spikes.to(inputs.dtype), ((u, i), (carried, c), *sums)

    @torch.no_grad()
    def slopes(self, inputs: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        u, i = state or (None, None)
        currents, i = self._smoothed(inputs, i)
        spikes, slopes, u = super().slopes(currents, u)
        return spikes.to(inputs.dtype), slopes.to(inputs.dtype), (u, i)

    def _smoothed(self, inputs: Tensor, i: Tensor | None) -> tuple[Any, Tensor | None]:
        """The synaptic current after each of the T steps, and the last one again, which is the state.

        Each is [B, ...], in float32 or wider. They are a list, since the loops of `LIF` take one step after the other: a
        train [T, B, ...] would be written to memory only to be taken apart.
        """
        currents = []
        for current in wide(inputs).unbind(0):
            i = current if i is None else torch.add(current, i, alpha=self.alpha)
            currents.append(i)
        return currents, i
