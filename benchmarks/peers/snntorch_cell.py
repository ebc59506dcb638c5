"""A cell of `spikerate bench` with the neurons of snnTorch, whose layers between them see all time steps at once."""

from __future__ import annotations

import snntorch
import torch
from peer import bptt_step
from snntorch import surrogate
from torch import Tensor, nn

from spikerate.bench.worker import Cell, Step, serve


class Leaky(nn.Module):
    """snnTorch's leaky neurons over time; their reset comes one step later than spikerate's, at the same cost."""

    def __init__(self) -> None:
        super().__init__()
        self.leaky = snntorch.Leaky(beta=0.2, spike_grad=surrogate.sigmoid(slope=4))

    def forward(self, steps: Tensor) -> Tensor:
        membrane, spikes = torch.zeros_like(steps[0]), []
        for current in steps:
            spike, membrane = self.leaky(current, membrane)
            spikes.append(spike)
        return torch.cat(spikes).unflatten(0, (len(spikes), -1))


def step(cell: Cell) -> Step:
    """Backpropagation through time."""
    return bptt_step(cell, "snntorch", Leaky)


if __name__ == "__main__":
    serve(step)
