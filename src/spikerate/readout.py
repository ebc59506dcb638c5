"""A readout: leaky integrators without spikes, as the last layer of a network."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from spikerate.neuron import StepNeuron
from spikerate.signal import RuleRefused, State
from spikerate.system.ranges import check_plain

Output = Literal["mean", "last", "max"]


class Readout(StepNeuron):
    """Leaky integrators that never fire, one for each element of the input: the last layer of a network, after its weights.

        v[t] = decay * v[t-1] + input[t],   v[0] = 0

    The `rate` of the signal that comes out is the mean of v over the steps, its last value, or its maximum. For the mean the
    `steps` are v itself. For the others a step is what one more step adds, `t m[t] - (t - 1) m[t-1]` with m[t] = v[t], or
    max(v[1], ..., v[t]): so the mean of the first t steps is m[t], for every t, and chunks and windows of a stream go on
    from each other. Use the mean with a loss on each step.

    | rule | mean | last, maximum |
    | --- | --- | --- |
    | `BPTT` | through every step | through every step |
    | `SLTT`, `OTTT` | of each step to its own input, d v[t] / d input[t] = 1 | refused |
    | `RateBP` | gain `E_t[reach[t]]`, `reach[t] = 1 + decay reach[t-1]` | refused |

    The membrane is linear in its input, so the gain is exact for a change that is the same at every step: it does not depend
    on the input, and no surrogate is in it.

    Args:
        decay: fraction of the membrane potential that remains after one step, in (0, 1].
        output: "mean", "last" or "max" over time.

    Raises:
        ValueError: a parameter is out of range or not a plain number.
        TypeError: called on a tensor instead of a `Signal`; `RuleRefused`, the last value or the maximum under another rule
            than `BPTT`.
    """

    def __init__(self, decay: float = 0.9, output: Output = "mean") -> None:
        super().__init__()
        check_plain("Readout.decay", decay)
        if not 0 < decay <= 1:
            raise ValueError(f"Readout.decay is {decay}: give a number in (0, 1]")
        if output not in get_args(Output):
            raise ValueError(f"Readout.output is {output!r}: give mean, last or max")
        self.decay = decay
        self.output = output

    def extra_repr(self) -> str:
        return f"decay={self.decay:g}, output={self.output}"

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        if self.output == "mean":
            v = current if state is None else self.decay * state + current
            return v, v
        if state is None:
            return current, (current, current, torch.ones_like(current))
        v, before, t = state
        v = self.decay * v + current
        now = v if self.output == "last" else torch.maximum(before, v)
        return (t + 1) * now - t * before, (v, now, t + 1)

    def trace(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        self._check_mean()
        return super().trace(inputs, state)

    def slopes(self, inputs: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        self._check_mean()
        return super().slopes(inputs, state)

    def _check_mean(self) -> None:
        if self.output != "mean":
            raise RuleRefused(
                f"Readout.output is {self.output!r}, whose gradient goes back through time from single steps, and RateBP, "
                "SLTT and OTTT have no such: train and run the network by BPTT(), or give output='mean'"
            )
