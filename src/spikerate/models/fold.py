"""Batch normalisation folded into the layer before it, for inference."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from spikerate.models.graph import layer_graph


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy for inference whose batch norms are part of the convolution or linear layer right before them.

    The copy is in evaluation mode; where a batch norm was, there is an `nn.Identity`. One that follows something else, or
    has no running statistics, or shares its layer with another call, stays. Its currents are those of the original up to
    rounding, so that a membrane that comes within rounding of the threshold may fire otherwise.

    Raises:
        ValueError: what the network calls depends on the values that flow through it.
    """
    folded = copy.deepcopy(network).eval()
    graph = layer_graph(folded)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before: Any = node.args[0] if node.args else None
        if node.op != "call_module" or getattr(before, "op", None) != "call_module":
            continue
        norm, layer = folded.get_submodule(node.target), folded.get_submodule(before.target)
        once = len(before.users) == calls[node.target] == calls[before.target] == 1
        if not once or not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_var is None:
            continue
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            folded.set_submodule(before.target, fuse_conv_bn_eval(layer, norm))
        elif isinstance(layer, nn.Linear):
            folded.set_submodule(before.target, fuse_linear_bn_eval(layer, norm))
        else:
            continue
        folded.set_submodule(node.target, nn.Identity())
    return folded
