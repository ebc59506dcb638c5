"""Spike-element-wise residual networks: a block adds its spikes to those of its shortcut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from spikerate.models.residual import ResidualBlock, Stem, residual_stages, residual_stem
from spikerate.models.staged import Activation, Staged, activate, check_sizes, mean_head
from spikerate.neuron import LIF


class SEWBlock(ResidualBlock):
    """conv3x3 - BN - activation - conv3x3 - BN - activation, plus the shortcut; [B, I, H, W] -> [B, O, H/s, W/s].

    A projection shortcut has an activation of its own. The output counts spikes: 0, 1, 2, ... at each step.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, activation: Activation) -> None:
        super().__init__(in_channels, out_channels, stride, activation)
        if isinstance(self.shortcut, nn.Sequential):
            self.shortcut.append(activate(activation))

    def forward(self, x: Any) -> Any:
        y = self.activation1(self.bn1(self.conv1(x)))
        return self.activation2(self.bn2(self.conv2(y))) + self.shortcut(x)


def sew_resnet18(
    num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF, stem: Stem = "3x3"
) -> Staged:
    """SEW-ResNet-18 (ADD) for images of any size: stages of `width` x (1, 2, 4, 8) channels, two blocks each.

    11,689,512 parameters for ImageNet, with stem="7x7" and num_classes=1000. Input [B, in_channels, H, W], output
    [B, num_classes]. Reference: Fang et al., NeurIPS 2021, with g(a, s) = a + s; they use the 7x7 stem only.

    Raises:
        ValueError: a size is less than 1, or the activation or the stem is an unknown string.
    """
    return _sew((2, 2, 2, 2), num_classes, in_channels, width, activation, stem)


def sew_resnet34(
    num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF, stem: Stem = "3x3"
) -> Staged:
    """SEW-ResNet-34 (ADD): as `sew_resnet18`, with 3, 4, 6, 3 blocks.

    21,797,672 parameters for ImageNet, with stem="7x7" and num_classes=1000. Input [B, in_channels, H, W], output
    [B, num_classes]. Reference: Fang et al., NeurIPS 2021; with rates, Yu et al., NeurIPS 2024.

    Raises:
        ValueError: a size is less than 1, or the activation or the stem is an unknown string.
    """
    return _sew((3, 4, 6, 3), num_classes, in_channels, width, activation, stem)


def _sew(
    blocks: Sequence[int], num_classes: int, in_channels: int, width: int, activation: Activation, stem: Stem
) -> Staged:
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
    first = residual_stem(stem, in_channels, width, activate(activation))
    stages = residual_stages(SEWBlock, width, blocks, activation)
    return Staged(first, stages, mean_head(nn.Linear(8 * width, num_classes)))
