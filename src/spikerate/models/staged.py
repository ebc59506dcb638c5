"""What every model here is: a stem, named stages and a head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from spikerate.signal import Signal, Tape, Unrolled

Activation = Callable[[], nn.Module] | Literal["relu"]
_Module = TypeVar("_Module", bound=nn.Module)


class Staged(nn.Module):
    """A stem, stages between which branches may leave, and a head.

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
    """A copy of a spiking network on the meta device, for evaluation, and its input: one step of one sample.

    Args:
        in_shape: of one input sample, without B.
    """
    ghost = copy.deepcopy(network).to("meta").eval()
    return ghost, Unrolled(torch.empty(1, 1, *in_shape, device="meta"), True, 1, Tape(1))


def short_path(layer: str) -> str:
    """A module path without what the paths of most layers begin with: "stage1.0.conv1" of "body.stages.stage1.0.conv1"."""
    return layer.removeprefix("body.").removeprefix("stages.")


def stage_shapes(body: Staged, in_shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """The output shape [B, ...] of each stage of a spiking network for one sample (B = 1), by a run on the meta device.

    Args:
        in_shape: of one input sample, (C, H, W).
    """
    ghost, x = on_meta(body, in_shape)
    x = ghost.stem(x)
    shapes = []
    for stage in ghost.stages.values():
        x = stage(x)
        shapes.append(tuple(x.shape))
    return shapes


def mean_head(*layers: nn.Module) -> nn.Sequential:
    """The mean over space [B, C, H, W] -> [B, C], then the layers."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)


def activate(activation: Activation) -> nn.Module:
    """A new activation module: what `activation()` makes, a `LIF` for instance, or an `nn.ReLU` for "relu".

    Raises:
        ValueError: another string.
    """
    if callable(activation):
        return activation()
    if activation == "relu":
        return nn.ReLU()
    raise ValueError(f'activation is {activation!r}: give "relu", or a function that makes a module, such as LIF')


def check_sizes(**sizes: int) -> None:
    """Raise `ValueError` naming the first of `sizes` that is less than 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}: give a number >= 1")
