"""A cell of `spikerate bench` with SpikingJelly's neurons and its `memopt`, which trades time for memory.

Its level 1 is measured, with the whole budget and compression. The residual blocks, or the neurons where there are none, run
again in the backward pass, and their input is kept as one bit per spike. Levels 2 to 4 search for more by the peak memory of
a GPU, and raise `RuntimeError` without one. What memopt keeps is not all autograd's, so the peak tells its memory, not what
is saved.
"""

from __future__ import annotations

from dataclasses import replace

from peer import OverTime, bptt_step
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.memopt import optimize_memory
from spikingjelly_cell import lif
from torch import Tensor, nn

from spikerate.bench.worker import Cell, Step, serve
from spikerate.models.residual import ResidualBlock


def optimized(network: nn.Module, x: Tensor) -> nn.Module:
    """The network with all its blocks checkpointed, or its neurons where it has no blocks."""
    blocks = any(isinstance(module, ResidualBlock) for module in network.modules())
    functional.reset_net(network)
    return optimize_memory(network, ResidualBlock if blocks else OverTime, lambda ready: ready(x), level=1)


def step(cell: Cell) -> Step:
    """Backpropagation through time."""
    as_it_comes = replace(cell, setting=replace(cell.setting, compile=False))
    made = bptt_step(as_it_comes, "spikingjelly", lif, functional.reset_net, optimized)
    return replace(made, note=f"{made.note}, memopt of level 1, which is not compiled")


if __name__ == "__main__":
    serve(step)
