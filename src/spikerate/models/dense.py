"""Fully connected networks, with and without spikes that come back: for sounds and other samples without pixels."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from spikerate.models.staged import Activation, Staged, activate, check_sizes
from spikerate.neuron import LIF
from spikerate.recurrent import Recurrent


def mlp(
    num_classes: int = 20, in_features: int = 700, width: int = 256, activation: Activation = LIF, depth: int = 2
) -> Staged:
    """A fully connected network: `depth` stages of linear layer - BN - activation, `width` units each, and a linear layer.

    The defaults are for the Spiking Heidelberg Digits. Input [B, ...] of `in_features` values, output [B, num_classes].

    Args:
        in_features: values of a sample at a step, in any shape.
        depth: number of hidden layers.

    Raises:
        ValueError: a size is less than 1, or the activation is an unknown string.
    """
    return _dense(num_classes, in_features, width, depth, lambda: activate(activation))


def recurrent_mlp(
    num_classes: int = 20, in_features: int = 700, width: int = 256, activation: Activation = LIF, depth: int = 1
) -> Staged:
    """As `mlp`, and the spikes of each hidden layer come back to it at the next step: `Recurrent`, by a linear layer.

    Input [B, ...] of `in_features` values, output [B, num_classes]. Trained by `BPTT`, `SLTT` or `OTTT`; `RateBP` refuses
    it. The recurrent network of Cramer et al., IEEE TNNLS 2020, has one hidden layer of this kind, of 128 neurons with a
    synaptic current, and no BN.

    Raises:
        ValueError: as `mlp`.
        TypeError: the activation makes no layer of neurons.
    """

    def hidden() -> nn.Module:
        return Recurrent(nn.Linear(width, width, bias=False), activate(activation))

    return _dense(num_classes, in_features, width, depth, hidden)


def _dense(num_classes: int, in_features: int, width: int, depth: int, activation: Callable[[], nn.Module]) -> Staged:
    check_sizes(num_classes=num_classes, in_features=in_features, width=width, depth=depth)
    inputs = [in_features, *[width] * (depth - 1)]
    stages = {
        f"stage{k}": nn.Sequential(nn.Linear(n, width, bias=False), nn.BatchNorm1d(width), activation())
        for k, n in enumerate(inputs, 1)
    }
    return Staged(nn.Flatten(), stages, nn.Linear(width, num_classes))
