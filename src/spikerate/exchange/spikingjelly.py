"""Conversion of networks to SpikingJelly and back, with equal spikes."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from spikerate.learnable import PLIF, ParametricLIF
from spikerate.models import body_of, check_layers
from spikerate.neuron import IF, LIF, Rectifier
from spikerate.signal import Feedback, Neuron
from spikerate.surrogate import ATan, Rectangular, Sigmoid, Surrogate, Triangular


def to_spikingjelly(network: nn.Module) -> nn.Module:
    """A copy of a network with neurons of SpikingJelly 2 that fire like its `LIF`.

    `LIF` becomes `LIFNode(decay_input=False)`, or `IFNode` if it has no leak, in single-step mode: run the copy on x
    [T, B, ...] by `functional.multi_step_forward(x, copy)`, after `functional.reset_net(copy)`. The other layers stay as
    they are; of a `Branched` the body is converted. A surrogate that SpikingJelly does not have is kept.

    Raises:
        ValueError: a layer has no counterpart in SpikingJelly, as all neurons but `LIF` and `ParametricLIF`, and what
            inherits from these; the message names it.
        ImportError: SpikingJelly is not installed.
    """
    from spikingjelly.activation_based import neuron

    body = body_of(network)
    replaced: dict[int, Any] = {}
    for path, module in body.named_modules():
        if isinstance(module, Rectifier):
            raise ValueError(f"{_at(path)} is a rectifier, so the network is an ANN: give one with LIF")
        if isinstance(module, Feedback):
            raise ValueError(
                f"{_at(path)} is recurrent, and only feed-forward networks are converted: write it in SpikingJelly"
            )
        if isinstance(module, Neuron):
            if type(module) not in (LIF, PLIF, ParametricLIF):
                kind = type(module).__name__
                raise ValueError(
                    f"{_at(path)} is of the kind {kind}, for which there is none there: give a network with LIF"
                )
            assert isinstance(module, LIF)
            values = [v.detach() if isinstance(v, Tensor) else v for v in (module.decay, module.threshold, module.v_reset)]
            if any(isinstance(value, Tensor) and value.numel() > 1 for value in values):
                raise ValueError(
                    f"{_at(path)} has values for each channel or neuron, and nodes of SpikingJelly have one for a layer: "
                    "give numbers, or one learned value a layer"
                )
            decay, threshold, v_reset = (None if value is None else float(value) for value in values)
            assert decay is not None and threshold is not None
            if v_reset:
                raise ValueError(
                    f"{_at(path)} is reset to {v_reset:g} and leaks to 0, which no neuron of SpikingJelly "
                    "does: its LIFNode leaks to v_reset, so train with v_reset=0, or None for the soft reset"
                )
            reset = None if v_reset is None else 0.0
            rest = (threshold, reset, _surrogate_there(module.surrogate), module.detach_reset)
            replaced[id(module)] = neuron.LIFNode(1 / (1 - decay), False, *rest) if decay < 1 else neuron.IFNode(*rest)
    return copy.deepcopy(body, replaced)


def from_spikingjelly(network: nn.Module) -> nn.Module:
    """A copy of a network of SpikingJelly 2 with neurons that fire like its `LIFNode`, `IFNode` and `ParametricLIFNode`.

    With `decay_input=True` the membrane potential is 1 / tau of that of a `LIF`, so threshold and surrogate become tau times
    as wide; where the decay is learned, tau is that of now. With a hard reset, potentials are relative to `v_reset`, the
    resting potential. Multi-step containers become `nn.Sequential`; other layers of SpikingJelly stay, in single-step mode,
    since a `Signal` hides the time axis.

    Raises:
        ValueError: a layer has no counterpart here; the message names it.
        TypeError: it has layers of torch that a spiking signal can't go through; the message lists them all.
        ImportError: SpikingJelly is not installed.
    """
    from spikingjelly.activation_based import base, layer, neuron

    replaced: dict[int, Any] = {}
    for path, module in reversed(list(network.named_modules())):  # children before the container that holds them
        if type(module) in (neuron.LIFNode, neuron.IFNode, neuron.ParametricLIFNode):
            replaced[id(module)] = _neuron_here(path, module)
        elif type(module) in (layer.Dropout, layer.Dropout2d):
            like = nn.Dropout if type(module) is layer.Dropout else nn.Dropout2d
            replaced[id(module)] = like(module.p).train(module.training)
        elif isinstance(module, layer.MultiStepContainer | layer.SeqToANNContainer | layer.StepModeContainer):
            children = ((name, copy.deepcopy(child, replaced)) for name, child in module.named_children())
            replaced[id(module)] = nn.Sequential(OrderedDict(children))
        elif isinstance(module, base.MemoryModule | base.MultiStepModule):
            raise ValueError(
                f"{_at(path)} is a {type(module).__name__} of SpikingJelly, which has no counterpart here: "
                "LIFNode, IFNode, ParametricLIFNode, Dropout and layers without memory have one"
            )
    made: nn.Module = copy.deepcopy(network, replaced)
    for module in made.modules():
        if isinstance(module, base.StepModule):
            module.step_mode = "s"
    check_layers(made)
    return made


class Spike(nn.Module):
    """The spike of a surrogate as a module, which SpikingJelly's neurons take: `x = v - threshold` -> H(x)."""

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        self.surrogate = surrogate

    def forward(self, x: Tensor) -> Tensor:
        return self.surrogate.spike(x)


def _neuron_here(path: str, node: Any) -> LIF:
    """The neuron that fires like a `LIFNode`, `IFNode` or `ParametricLIFNode`."""
    from spikingjelly.activation_based import neuron

    learned = isinstance(node, neuron.ParametricLIFNode)
    leaky = learned or isinstance(node, neuron.LIFNode)
    tau = 1 / float(torch.sigmoid(node.w.detach())) if learned else node.tau if leaky else 1.0
    widened = tau if leaky and node.decay_input else 1.0
    surrogate = _surrogate_here(path, node.surrogate_function, widened)
    hard = node.v_reset is not None
    threshold = widened * (node.v_threshold - (node.v_reset if hard else 0.0))
    try:
        if learned:
            made = PLIF(1 - 1 / tau, threshold, 0.0 if hard else None, node.detach_reset, surrogate)
            made.w_decay = nn.Parameter(-node.w.detach())  # theirs is 1 - sigmoid(w)
            return made
        if leaky:
            return LIF(None, tau, threshold, 0.0 if hard else None, node.detach_reset, surrogate)
        return IF(threshold, 0.0 if hard else None, node.detach_reset, surrogate)
    except ValueError as error:
        raise ValueError(f"{_at(path)} can't be converted: {error}") from error


def _surrogate_there(surrogate: Surrogate) -> nn.Module:
    from spikingjelly.activation_based import surrogate as there

    match surrogate:
        case Sigmoid(alpha):
            return there.Sigmoid(alpha)
        case ATan(alpha):
            return there.ATan(alpha)
        case Triangular(width):
            return there.PiecewiseQuadratic(1 / width)
        case Rectangular(width):
            return there.Rect(1 / width)
        case _:
            return Spike(copy.deepcopy(surrogate))


def _surrogate_here(path: str, surrogate: Any, widened: float) -> Surrogate:
    """The surrogate for membrane potentials that are scaled by the factor `widened`."""
    from spikingjelly.activation_based import surrogate as there

    match surrogate:
        case there.Sigmoid(spiking=True, alpha=alpha):
            return Sigmoid(alpha / widened)
        case there.ATan(spiking=True, alpha=alpha):
            return ATan(alpha / widened)
        case there.PiecewiseQuadratic(spiking=True, alpha=alpha):
            return Triangular(widened / alpha)
        case there.Rect(spiking=True, alpha=alpha):
            return Rectangular(widened / alpha)
        case Spike(surrogate=own) if widened == 1:
            return copy.deepcopy(own)
        case _:
            raise ValueError(
                f"{_at(path)} has the surrogate {surrogate}, which has no counterpart here: "
                "give Sigmoid, ATan, PiecewiseQuadratic or Rect, with spiking=True"
            )


def _at(path: str) -> str:
    return path or "the network"
