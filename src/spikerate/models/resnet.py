"""Residual networks: ResNet-18 and ResNet-34, and for small images ResNet-19 and ResNet-20."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from spikerate.models.residual import ResidualBlock, Stem, residual_stages, residual_stem
from spikerate.models.staged import Activation, Staged, activate, check_sizes, mean_head
from spikerate.neuron import LIF


class BasicBlock(ResidualBlock):
    """conv3x3 - BN - activation - conv3x3 - BN, plus the shortcut, then the activation; [B, I, H, W] -> [B, O, H/s, W/s]."""

    def forward(self, x: Any) -> Any:
        y = self.activation1(self.bn1(self.conv1(x)))
        return self.activation2(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(
    num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF, stem: Stem = "3x3"
) -> Staged:
    """ResNet-18 for images of any size: stages of `width` x (1, 2, 4, 8) channels, two blocks each.

    11,173,962 parameters with the defaults; 11,689,512 for ImageNet, with stem="7x7" and num_classes=1000. Input
    [B, in_channels, H, W], output [B, num_classes]. Reference: He et al., CVPR 2016; with the 3x3 stem, Yu et al.,
    NeurIPS 2024. A projection shortcut has no activation of its own.

    Raises:
        ValueError: a size is less than 1, or the activation or the stem is an unknown string.
    """
    return _resnet((2, 2, 2, 2), num_classes, in_channels, width, activation, stem)


def resnet34(
    num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF, stem: Stem = "3x3"
) -> Staged:
    """ResNet-34: as `resnet18`, with 3, 4, 6, 3 blocks.

    21,282,122 parameters with the defaults; 21,797,672 for ImageNet, with stem="7x7" and num_classes=1000. Input
    [B, in_channels, H, W], output [B, num_classes]. Reference: He et al., CVPR 2016.

    Raises:
        ValueError: a size is less than 1, or the activation or the stem is an unknown string.
    """
    return _resnet((3, 4, 6, 3), num_classes, in_channels, width, activation, stem)


def resnet19(num_classes: int = 10, in_channels: int = 3, width: int = 128, activation: Activation = LIF) -> Staged:
    """ResNet-19: a 3x3 stem, stages of `width` x (1, 2, 4) channels with 3, 3, 2 blocks, a head with one hidden layer.

    Input [B, in_channels, H, W], output [B, num_classes]. Reference: Zheng et al., AAAI 2021; this form, Zhao et al.,
    NeurIPS 2025.

    Raises:
        ValueError: a size is less than 1, or the activation is an unknown string.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
    first = residual_stem("3x3", in_channels, width, activate(activation))
    stages = residual_stages(BasicBlock, width, (3, 3, 2), activation)
    hidden = 2 * width
    head = mean_head(nn.Linear(4 * width, hidden), activate(activation), nn.Linear(hidden, num_classes))
    return Staged(first, stages, head)


def resnet20(num_classes: int = 10, in_channels: int = 3, width: int = 16, activation: Activation = LIF) -> Staged:
    """ResNet-20 for small images: a 3x3 stem, stages of `width` x (1, 2, 4) channels, three blocks each.

    272,474 parameters with the defaults. Input [B, in_channels, H, W], output [B, num_classes]. Reference: He et al.,
    CVPR 2016, section 4.2. Difference: where the channels double, the shortcut is a 1x1 convolution with BN (their option
    B), not the identity padded with zeros.

    Raises:
        ValueError: a size is less than 1, or the activation is an unknown string.
    """
    return _resnet((3, 3, 3), num_classes, in_channels, width, activation, "3x3")


def _resnet(
    blocks: Sequence[int], num_classes: int, in_channels: int, width: int, activation: Activation, stem: Stem
) -> Staged:
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
    first = residual_stem(stem, in_channels, width, activate(activation))
    stages = residual_stages(BasicBlock, width, blocks, activation)
    return Staged(first, stages, mean_head(nn.Linear(width * 2 ** (len(blocks) - 1), num_classes)))
