"""Ordinary networks made spiking: their activations replaced by neurons."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from spikerate.neuron import LIF

# Elementwise: what a neuron can stand in for.
ACTIVATIONS = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.RReLU,
    nn.SELU,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)

# What a signal goes through: the layers of the table in `spikerate.signal`.
LAYERS = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.Conv1d,
    nn.Conv2d,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Flatten,
    nn.Identity,
    nn.Linear,
    nn.MaxPool1d,
    nn.MaxPool2d,
)

CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList, nn.Sequential)


def spiking(module: nn.Module, neuron: Callable[[], nn.Module] = LIF) -> nn.Module:
    """A spiking copy of an ordinary network: every elementwise activation module becomes `neuron()`.

    The weights are copied, the original stays as it is. An activation that stands at several places becomes one neuron
    module at all of them; neurons keep their state in the signal, so each call of it is a layer of its own. Only torch's
    own layers are checked here: what a module of yours does in its `forward`, `F.relu` for instance, is checked by the
    signal when it runs.

    Args:
        module: a network in `torch.nn`, [B, ...] -> [B, K].
        neuron: makes one layer of neurons.

    Raises:
        TypeError: it has layers that a spiking signal can't go through; the sentence lists them all.
        ValueError: it has no activation module.
    """
    root = nn.Sequential(copy.deepcopy(module))  # one floor more, so that the module itself can be replaced
    neurons: dict[nn.Module, nn.Module] = {}
    refused: dict[str, nn.Module] = {}
    for path, layer in list(root.named_modules(remove_duplicate=False)):
        kind = _kind(layer)
        if issubclass(kind, ACTIVATIONS):
            if layer not in neurons:
                neurons[layer] = neuron().train(layer.training)
            root.set_submodule(path, neurons[layer])
        elif kind is not nn.Module and not issubclass(kind, LAYERS + CONTAINERS):
            inside = any(path.startswith(f"{outer}.") for outer in refused)
            refused |= {} if inside else {path: layer}
    if refused:
        named = ", ".join(f"{path[2:] or 'the module'} ({type(layer).__name__})" for path, layer in refused.items())
        raise TypeError(
            f"a spiking signal can't go through {named}: use the layers listed in spikerate.signal "
            "(convolution, linear, pooling, flatten, batch norm, dropout)"
        )
    if not neurons:
        raise ValueError(
            f"{type(module).__name__} has no activation module that a neuron could replace: give it nn.ReLU() where its "
            "neurons shall be, not F.relu"
        )
    return root[0]


def _kind(layer: nn.Module) -> type:
    """The class of torch's that a layer is or extends; `nn.Module` for a class that is all the user's own."""
    return next(c for c in type(layer).__mro__ if c.__module__.startswith("torch.nn.modules."))
