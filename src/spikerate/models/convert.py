"""Conversion of ordinary networks to spiking ones: activations are replaced by neurons."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

from torch import nn
from torch.nn import functional as F

from spikerate.models.functional import with_neurons
from spikerate.neuron import LIF
from spikerate.signal import METHODS, VERBS, Neuron

# The elementwise activations, which a neuron can replace.
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

# Those whose name is not that of the function they call.
_OTHERS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.Identity, nn.RMSNorm, nn.Upsample)

CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList, nn.Sequential)


def spiking(module: nn.Module, neuron: Callable[[], nn.Module] = LIF) -> nn.Module:
    """A spiking copy of an ordinary network: every elementwise activation becomes `neuron()`.

    The weights are copied; the original stays unchanged. An activation module that is used at several places becomes one
    neuron module, used at the same places. Neurons keep their state in the signal, so each call of it is a separate layer.
    Where a module's own code calls an activation as a function, `F.relu(x)`, `torch.relu(x)` or `x.relu()`, each such place
    becomes a neuron of its own, in the submodule `functional_neurons` of that module. The sigmoid, hard sigmoid and tanh as
    functions stay, since they are gates more often.
    Checked here are torch's own layers and their settings, and that no module has a backward hook, which a signal would
    never call. What else your own modules do in `forward` is checked by the signal when they run, or by `check`.

    Args:
        module: a network in `torch.nn`, [B, ...] -> [B, K].
        neuron: returns a new layer of neurons.

    Raises:
        TypeError: it has layers that a spiking signal can't go through, or modules with backward hooks; the message lists
            them all.
        ValueError: it has no activation.
    """
    root = nn.Sequential(copy.deepcopy(module))  # a container around it, so that the module itself can be replaced
    neurons: dict[nn.Module, nn.Module] = {}
    check_layers(module, ACTIVATIONS)
    for path, layer in list(root.named_modules(remove_duplicate=False)):
        if issubclass(_kind(layer), ACTIVATIONS):
            if layer not in neurons:
                neurons[layer] = neuron().train(layer.training)
            root.set_submodule(path, neurons[layer])
    functional = [with_neurons(layer, neuron) for layer in _outside_neurons(root[0], {})]
    if not neurons and not any(functional):
        raise ValueError(
            f"{type(module).__name__} has no activation that a neuron could replace: call nn.ReLU() or F.relu in a forward "
            "where the neurons should be"
        )
    return root[0]


def _outside_neurons(module: nn.Module, found: dict[nn.Module, None]) -> list[nn.Module]:
    """A module and all modules in it, each once, without neurons and what is in them."""
    if module not in found and not isinstance(module, Neuron):
        found[module] = None
        for child in module.children():
            _outside_neurons(child, found)
    return list(found)


def check_layers(module: nn.Module, others: tuple[type[nn.Module], ...] = ()) -> None:
    """Raise `TypeError` naming all of torch's layers in a network that a signal can't go through, except `others`."""
    refused: dict[str, str] = {}
    for path, layer in module.named_modules(remove_duplicate=False):
        why = _refusal(layer, others)
        if why and not any(path.startswith(f"{outer}.") or outer == "" for outer in refused):
            refused[path] = why
    if refused:
        named = ", ".join(f"{path or 'the module'} ({why})" for path, why in refused.items())
        raise TypeError(
            f"a spiking signal can't go through {named}: use the layers listed in spikerate.operations "
            "(convolution, linear, pooling, flatten, batch norm, dropout)"
        )


def _refusal(layer: nn.Module, others: tuple[type[nn.Module], ...]) -> str | None:
    """Why a signal can't go through a layer, not counting the layers inside it; None if it can."""
    kind = _kind(layer)
    if kind is not nn.Module and not (
        any(map(_goes_through, kind.__mro__)) or issubclass(kind, _OTHERS + CONTAINERS + others)
    ):
        return type(layer).__name__
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.padding_mode != "zeros":
        return f"{type(layer).__name__} with padding_mode={layer.padding_mode!r}"
    if isinstance(layer, nn.MaxPool1d | nn.MaxPool2d | nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d) and layer.return_indices:
        return f"{type(layer).__name__} with return_indices"
    if layer._backward_hooks or layer._backward_pre_hooks:
        return f"{type(layer).__name__} with a backward hook, which would never be called: hook the tensors instead"
    return None


def _goes_through(kind: type) -> bool:
    """Whether signals have a rule for the function that a layer of torch's calls: `conv2d` for `Conv2d`.

    A batch norm is the same function for every number of axes; other layers have a function for each.
    """
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
    functions = vars(F)
    if name not in functions:
        name = re.sub(r"[123]d$", "", name)
    return name in METHODS or (name in functions and functions[name] in VERBS)


def _kind(layer: nn.Module) -> type:
    """The class of torch that a layer is or extends; `nn.Module` for a user's own class."""
    return next(c for c in type(layer).__mro__ if c.__module__.startswith("torch.nn.modules."))
