"""Batch normalisation folded into the layer before it, for inference."""

from __future__ import annotations

import copy
from collections import Counter

from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from spikerate.models.graph import layer_graph


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy for inference in which each batch norm is merged into the convolution or linear layer right before it.

    The copy is in evaluation mode, with an `nn.Identity` in place of each batch norm. A batch norm stays if it follows
    another kind of layer, has no running statistics, or if it or the layer before it is called more than once. The inputs
    of neurons equal the original ones up to rounding, so a membrane potential very close to the threshold may fire
    differently.

    Raises:
        ValueError: the layers that the network calls depend on the values that flow through it.
    """
    folded = copy.deepcopy(network).eval()
    graph = layer_graph(folded)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.all_input_nodes[0] if node.op == "call_module" else None
        if before is None or before.op != "call_module":
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
