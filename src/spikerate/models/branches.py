"""Light ANN branches on the firing rates between stages, used in training only (enhanced self-distillation)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor, nn

from spikerate.models.resnet import BasicBlock
from spikerate.models.staged import Staged, mean_head, stage_shapes
from spikerate.signal import Signal


class DeepConv(nn.Module):
    """The building block of branches: two depthwise-separable convolutions with a shortcut, at half the resolution.

        [depthwise 3x3 stride 2, 1x1, BN, ReLU, depthwise 3x3, 1x1, BN, ReLU] + [1x1 stride 2, BN], ReLU

    [B, in_channels, H, W] -> [B, out_channels, ceil(H/2), ceil(W/2)]. Reference: Zhao et al., NeurIPS 2025.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, 2, 1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, in_channels, 1, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, in_channels, 3, 1, 1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.residual = nn.Conv2d(in_channels, out_channels, 1, 2, bias=False)
        self.res_bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.op[1:](self._halved(x)) + self.res_bn(self.residual(x)))

    def _halved(self, x: Tensor) -> Tensor:
        depthwise = self.op[0]
        if x.device.type != "cpu":
            return depthwise(x)
        # oneDNN has no fast input gradient for depthwise convolutions of stride 2 in bfloat16 (docs/log.md).
        with torch.autocast("cpu", enabled=False):
            return depthwise(x.to(torch.promote_types(x.dtype, torch.float32)))


class Branched(nn.Module):
    """A staged spiking network with branches in training mode; in evaluation mode it is the network alone.

    In training the output signal carries the branches' logits in `exits`, in the order of the stages. A branch gets the
    stage's firing rate [B, C, H, W], which is not detached: the loss of a branch also trains the body.

    Args:
        body: the network.
        branches: stage name -> branch, rate [B, C, H, W] -> logits [B, K].

    Raises:
        ValueError: a branch has a name that no stage has.
    """

    def __init__(self, body: Staged, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        unknown = set(branches) - set(body.stages)
        if unknown:
            raise ValueError(f"branches at {sorted(unknown)}, but the stages are {list(body.stages)}")
        self.body = body
        self.branches = nn.ModuleDict(branches)

    def forward(self, x: Signal) -> Signal:
        if not self.training:
            return self.body(x)
        taps = {}
        x = self.body.stem(x)
        for name, stage in self.body.stages.items():
            x = stage(x)
            if name in self.branches:
                taps[name] = x.tap()  # now, since keeping the signal would keep its time steps in memory
        x = self.body.head(x)
        if not x.complete:
            return x
        return replace(x, exits=tuple(self.branches[name](rate) for name, rate in taps.items()))


@overload
def body_of(network: Staged | Branched) -> Staged: ...


@overload
def body_of(network: nn.Module) -> nn.Module: ...


def body_of(network: nn.Module) -> nn.Module:
    """The network without branches: the body of a `Branched` network, and every other network itself."""
    return network.body if isinstance(network, Branched) else network


def deepconv_branches(
    body: Staged, in_shape: tuple[int, int, int], num_classes: int, residual: bool = False
) -> dict[str, nn.Module]:
    """A branch after every stage but the last: one `DeepConv` per later stage, global average pooling and a linear layer.

    The channels are those of the stages, which one run on the meta device finds. With ResNet-18 at its full width they
    have 1,213,214 parameters for K = 10, and 5.8 % of the body's operations at one time step.

    Args:
        body: the network.
        in_shape: shape (C, H, W) of one input sample.
        num_classes: K.
        residual: whether a residual block with ReLU follows each `DeepConv`, as in the ImageNet networks of Zhao et al.,
            NeurIPS 2025.

    Raises:
        ValueError: the body has one stage only, or a stage's output is not [B, C, H, W].
    """
    names, shapes = list(body.stages), stage_shapes(body, in_shape)
    if len(names) < 2:
        raise ValueError(f"the network has the stages {names}: branches start between stages, so give at least two")
    if any(len(shape) != 4 for shape in shapes):
        raise ValueError(f"the stages give {shapes}: DeepConv branches need [B, C, H, W]")
    channels = [shape[1] for shape in shapes]
    branches: dict[str, nn.Module] = {}
    for k, name in enumerate(names[:-1]):
        layers: list[nn.Module] = []
        for before, after in zip(channels[k:-1], channels[k + 1 :], strict=True):
            layers += [DeepConv(before, after)]
            layers += [BasicBlock(after, after, 1, "relu")] if residual else []
        branches[name] = nn.Sequential(*layers, *mean_head(nn.Linear(channels[-1], num_classes)))
    return branches
