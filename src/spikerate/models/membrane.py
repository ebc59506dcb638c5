"""Residual networks with membrane shortcuts: a block adds currents to those that its input came with, and no spikes."""

from __future__ import annotations

from typing import Any

from spikerate.models.preact import preactivated
from spikerate.models.residual import ResidualBlock, Stem
from spikerate.models.staged import Activation, Staged
from spikerate.neuron import LIF


class MembraneBlock(ResidualBlock):
    """activation - conv3x3 - BN - activation - conv3x3 - BN, plus the shortcut; [B, I, H, W] -> [B, O, H/s, W/s].

    Every shortcut, a projection too, carries the currents of the block's input. In a `PreActBlock` a projection gets the
    first activation's spikes instead; their blocks without a projection are the same.
    """

    def forward(self, x: Any) -> Any:
        y = self.activation2(self.bn1(self.conv1(self.activation1(x))))
        return self.bn2(self.conv2(y)) + self.shortcut(x)


def ms_resnet18(
    num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF, stem: Stem = "3x3"
) -> Staged:
    """MS-ResNet-18 for images of any size: stages of `width` x (1, 2, 4, 8) channels, two blocks each.

    The stem has no activation; the head has one before its pooling. The output of a stage is a current, not spikes. Where
    the channels double, the shortcut is a 1x1 convolution with BN on currents, which multiplies. 11,689,512 parameters for
    ImageNet, with stem="7x7" and num_classes=1000. Input [B, in_channels, H, W], output [B, num_classes]. Reference: the
    membrane shortcut of Hu et al., "Advancing spiking neural networks toward deep residual learning", IEEE TNNLS 2024,
    arXiv 2112.08954. The 3x3 stem, for small images, is ours, and so is the start of the weights, which is PyTorch's.

    Raises:
        ValueError: a size is less than 1, or the activation or the stem is an unknown string.
    """
    return preactivated(MembraneBlock, (2, 2, 2, 2), num_classes, in_channels, width, activation, stem)


def ms_resnet34(
    num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF, stem: Stem = "3x3"
) -> Staged:
    """MS-ResNet-34: as `ms_resnet18`, with 3, 4, 6, 3 blocks.

    21,797,672 parameters for ImageNet, with stem="7x7" and num_classes=1000. Input [B, in_channels, H, W], output
    [B, num_classes]. Reference: Hu et al., IEEE TNNLS 2024.

    Raises:
        ValueError: a size is less than 1, or the activation or the stem is an unknown string.
    """
    return preactivated(MembraneBlock, (3, 4, 6, 3), num_classes, in_channels, width, activation, stem)
