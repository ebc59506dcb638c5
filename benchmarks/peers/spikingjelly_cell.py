"""A cell of `spikerate bench` with the neurons of SpikingJelly, which chooses the fastest it has for the device."""

from __future__ import annotations

from peer import bptt_step
from spikingjelly.activation_based import functional, neuron, surrogate

from spikerate.bench.worker import Cell, Step, serve


def lif() -> neuron.LIFNode:
    """The neuron that spikerate has by default: decay 0.2, soft reset, detached."""
    sigmoid = surrogate.Sigmoid(alpha=4.0)
    return neuron.LIFNode(1.25, False, 1.0, None, surrogate_function=sigmoid, detach_reset=True, step_mode="m")


def step(cell: Cell) -> Step:
    """Backpropagation through time."""
    return bptt_step(cell, "spikingjelly", lif, functional.reset_net)


if __name__ == "__main__":
    serve(step)
