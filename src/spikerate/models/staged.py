"""The structure of all networks here: a stem, named stages and a head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from spikerate import operations  # noqa: F401 - fills the table of signals
from spikerate.signal import Signal, Tape, Unrolled

Activation = Callable[[], nn.Module] | Literal["relu"]
_Module = TypeVar("_Module", bound=nn.Module)


class Staged(nn.Module):
    """A network of a stem, named stages and a head. Branches of self-distillation start between stages.

    Args:
        stem: first layers, input [B, C, H, W].
        stages: name -> module, in order; each takes the output of the one before.
        head: the last stage's output -> logits [B, K].

    Raises:
        ValueError: there is no stage, or one is called stem or head.
    """

    def __init__(self, stem: nn.Module, stages: Mapping[str, nn.Module], head: nn.Module) -> None:
        super().__init__()
        if not stages:
            raise ValueError("Staged has no stages: give at least one")
        if {"stem", "head"} & set(stages):
            raise ValueError(f"the stages are {list(stages)}: stem and head are names of other parts, so rename the stage")
        self.stem = stem
        self.stages = nn.ModuleDict(stages)
        self.head = head

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for stage in self.stages.values():
            x = stage(x)
        return self.head(x)


def on_meta(network: _Module, in_shape: Sequence[int]) -> tuple[_Module, Signal]:
    """A copy of a spiking network on the meta device in evaluation mode, and an input of one time step of one sample.

    Args:
        network: the network.
        in_shape: shape of one input sample, without B.
    """
    ghost = copy.deepcopy(network).to("meta").eval()
    return ghost, Unrolled(torch.empty(1, 1, *in_shape, device="meta"), True, 1, Tape(1))


def short_path(layer: str) -> str:
    """A module path without its common prefix: "body.stages.stage1.0.conv1" -> "stage1.0.conv1"."""
    return layer.removeprefix("body.").removeprefix("stages.")


def stage_shapes(body: Staged, in_shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """The output shape [B, ...] of each stage of a spiking network for one sample (B = 1), from a run on the meta device.

    Args:
        body: the network.
        in_shape: shape (C, H, W) of one input sample.
    """
    ghost, x = on_meta(body, in_shape)
    x = ghost.stem(x)
    shapes = []
    for stage in ghost.stages.values():
        x = stage(x)
        shapes.append(tuple(x.shape))
    return shapes


def mean_head(*layers: nn.Module) -> nn.Sequential:
    """Global average pooling, [B, C, H, W] -> [B, C], followed by the layers."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)


def activate(activation: Activation) -> nn.Module:
    """A new activation module: the result of `activation()`, such as a `LIF`, or an `nn.ReLU` for "relu".

    Raises:
        ValueError: the activation is another string.
    """
    if callable(activation):
        return activation()
    if activation == "relu":
        return nn.ReLU()
    raise ValueError(f'activation is {activation!r}: give "relu", or a function that returns a module, such as LIF')


def check_sizes(**sizes: int) -> None:
    """Raise `ValueError` naming the first of `sizes` that is less than 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}: give a number >= 1")
