"""Recurrent neurons: their spikes come back to them, at the next step, through a layer of weights."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from spikerate.signal import Feedback, Learns, Neuron, RuleRefused


class Recurrent(nn.Module, Feedback):
    """Neurons whose spikes are fed back to them at the next step.

        I[t] = input[t] + layer(s[t-1]),   s[0] = 0,   s[t] = neuron(I[t])

    | rule | gradient |
    | --- | --- |
    | `BPTT` | through every step, and through the layer from step to step |
    | `SLTT`, `OTTT` | the spikes that come back are constants; weights learn by `sum_t g[t] s[t-1]^T`, or OTTT's trace |
    | `RateBP` | refused: what comes back at a step depends on when it was fired, which no rate tells |

    Args:
        layer: what the spikes come back through, [B, ...] -> [B, ...] of the same shape, for instance `nn.Linear(N, N)`. It
            must not look at other steps or samples, so it has no batch norm, no dropout and no neurons in it.
        neuron: a layer of neurons, `LIF()` for instance.

    Raises:
        ValueError: the layer has a batch norm, dropout or neurons in it, or returns another shape than that of the spikes.
        TypeError: the neuron is none; `RuleRefused`, where the rule is `RateBP`, or the neuron learns and the rule is not
            `BPTT`.
    """

    elementwise: ClassVar[bool] = False

    def __init__(self, layer: nn.Module, neuron: nn.Module) -> None:
        super().__init__()
        if not isinstance(neuron, Neuron):
            raise TypeError(f"Recurrent.neuron is a {type(neuron).__name__}: give a layer of neurons, such as LIF()")
        for part in layer.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd | Neuron):
                raise ValueError(
                    f"Recurrent.layer has a {type(part).__name__}, and spikes can come back only through what treats each "
                    "step of each sample by itself: give layers such as nn.Linear and nn.Conv2d"
                )
        self.layer = layer
        self.neuron = neuron

    def forward(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            raise TypeError(
                "Recurrent got a plain tensor, which has no time axis: call the network by a rule, BPTT()(network, x)"
            )
        return x.fire(self)

    @torch.no_grad()
    def spikes(self, inputs: Tensor) -> Tensor:
        """Spikes [T, B, ...] from the start, without a graph, of the input currents [T, B, ...]."""
        return self.unroll(inputs, None)[0]

    def unroll(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Spikes [T, B, ...] with the gradient through every step; the neurons' state and their last spikes [B, ...]."""
        held, fired = _begun(inputs, state)
        spikes = []
        for current in inputs.unbind(0):
            train, held = self.neuron.unroll(self._charged(current, fired), held)
            spikes.append(train)
            fired = train[0]
        return torch.cat(spikes), (held, fired)

    def trace(self, inputs: Tensor, state: Any) -> NoReturn:
        """Raise `RuleRefused`: there is no gain."""
        raise RuleRefused(
            "Recurrent has no gradient through firing rates, since what comes back at a step depends on when it was fired: "
            "train and run the network by BPTT(), SLTT() or OTTT()"
        )

    @torch.no_grad()
    def slopes(self, inputs: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Spikes without a graph, the slope of each [T, B, ...]; the neurons' state and their last spikes [B, ...]."""
        if isinstance(self.neuron, Learns) and self.neuron.learned:
            raise RuleRefused(
                f"Recurrent has {type(self.neuron).__name__} as its neuron, whose parameter would get no gradient under "
                "SLTT and OTTT: use BPTT, or LIF"
            )
        held, fired = _begun(inputs, state)
        spikes, slopes = [], []
        kind = inputs.device.type
        # The weights that autocast casts here have no graph, and would be found in its cache by who needs one.
        with torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False):
            for current in inputs.unbind(0):
                train, slope, held = self.neuron.slopes(self._charged(current, fired), held)
                spikes.append(train)
                slopes.append(slope)
                fired = train[0]
        return torch.cat(spikes), torch.cat(slopes), (held, fired)

    def returning(self, spikes: Tensor, state: Any) -> Tensor:
        """The spikes of the step before each of these [T, B, ...]; `state` is that before the first."""
        _, fired = _begun(spikes, state)
        return torch.cat([fired.unsqueeze(0), spikes[:-1]])

    def _charged(self, current: Tensor, fired: Tensor) -> Tensor:
        """The currents [1, B, ...] of a step, with what has come back."""
        back = self.layer(fired)
        if back.shape != current.shape:
            raise ValueError(
                f"Recurrent.layer makes {list(back.shape)} of spikes {list(fired.shape)}, but they come back to the neurons "
                "that fired: give a layer of as many outputs as inputs"
            )
        return (current + back).unsqueeze(0)


def _begun(inputs: Tensor, state: Any) -> Any:
    """The state of the neurons, and the spikes of the step before the first."""
    return (None, torch.zeros_like(inputs[0])) if state is None else state
