"""The graph of a network's layers: the order of their calls, and the inputs of each."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from spikerate.signal import Neuron
from spikerate.system.modes import mode


class _Layers(fx.Tracer):
    """Traces into containers and blocks, but not into neurons and torch's own layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Neuron) or super().is_leaf_module(m, module_qualified_name)


def layer_graph(network: nn.Module) -> fx.Graph:
    """The calls of a network in evaluation mode: layers (`call_module`, with the module path as target) and functions.

    Raises:
        ValueError: the layers that it calls depend on the values that flow through it.
    """
    try:
        with mode(network, training=False):
            return _Layers().trace(network)
    except (fx.proxy.TraceError, TypeError) as error:
        problem: Any = str(error).split("\n")[0]
        raise ValueError(
            f"the layers of {type(network).__name__} can't be listed ({problem}): in its forward, call the same layers for "
            "every input"
        ) from error
