"""Networks as models of the NeuroBench harness."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikerate.integer import ILIF
from spikerate.measure.evaluate import over_time
from spikerate.models import body_of
from spikerate.neuron import LIF, Rectifier
from spikerate.readout import Readout
from spikerate.signal import Feedback

if TYPE_CHECKING:
    from neurobench.models import NeuroBenchModel


def neurobench_model(network: nn.Module, T: int) -> NeuroBenchModel:
    """A copy of a network as a model of NeuroBench 2: images [B, C, H, W] or frames [B, T, C, H, W] -> classes [B].

    NeuroBench hooks on to each layer at each time step, so that the copy's neurons are `Stepping`, and an ANN's `nn.ReLU`.
    Its membrane updates are counted for snnTorch's neurons only, and so are 0.

    Args:
        network: a spiking network, or an ANN with `Rectifier`; of a `Branched` the body is taken.
        T: time steps, at most those of the frames.

    Raises:
        ValueError: T is less than 1, or the network has integer neurons, a recurrent layer or a readout.
        ImportError: NeuroBench is not installed.
    """
    from neurobench.models import NeuroBenchModel

    if T < 1:
        raise ValueError(f"T is {T}: give a number of time steps >= 1")
    body = body_of(network)
    if any(isinstance(m, ILIF) for m in body.modules()):
        raise ValueError(
            "NeuroBench would count the spikes of integer neurons (ILIF) as multiplications: spikerate eval counts them"
        )
    for path, module in body.named_modules():
        if isinstance(module, Feedback):
            raise ValueError(
                f"{path or 'the network'} is recurrent, and the copy for NeuroBench has feed-forward layers only: count its "
                "operations by spikerate.measure.meter.Meter"
            )
        if isinstance(module, Readout):
            raise ValueError(
                f"{path or 'the network'} is a readout, which NeuroBench has no copy of: count the network's operations by "
                "spikerate.measure.meter.Meter"
            )
    replaced: dict[int, Any] = {id(m): Stepping(copy.deepcopy(m)) for m in body.modules() if isinstance(m, LIF)}
    replaced |= {id(m): nn.ReLU() for m in body.modules() if isinstance(m, Rectifier)}
    stepping = copy.deepcopy(body, replaced).eval()

    class Model(NeuroBenchModel):  # type: ignore[misc]  # in here, since its base may not be installed
        def __init__(self) -> None:
            super().__init__()
            self.add_activation_module(Stepping)

        @torch.no_grad()
        def __call__(self, batch: Tensor) -> Tensor:
            for module in stepping.modules():
                if isinstance(module, Stepping):
                    module.membrane = None
            return torch.stack([stepping(x) for x in over_time(batch, T)]).mean(0).argmax(-1)

        def __net__(self) -> nn.Module:
            return stepping

    return Model()


class Stepping(nn.Module):
    """A `LIF` that takes its input currents [B, ...] step by step, as other libraries hand them over.

    It keeps its membrane from call to call; set it to None before the first step.
    """

    def __init__(self, neuron: LIF) -> None:
        super().__init__()
        self.neuron = neuron
        self.membrane: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        spikes, self.membrane = self.neuron.unroll(current.unsqueeze(0), self.membrane)
        return spikes[0]
