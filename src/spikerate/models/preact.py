"""Residual networks with pre-activation: neurons are inside the residual blocks, and the shortcuts carry real values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from spikerate.models.residual import ResidualBlock, Stem, residual_stages, residual_stem
from spikerate.models.staged import Activation, Staged, activate, check_sizes, mean_head
from spikerate.neuron import LIF


class PreActBlock(ResidualBlock):
    """activation - conv3x3 - BN - activation - conv3x3 - BN, plus the shortcut; [B, I, H, W] -> [B, O, H/s, W/s].

    The input of a projection shortcut is the first activation's output, so that its convolution, too, gets spikes; the input
    of an identity shortcut is the block's input.
    """

    def forward(self, x: Any) -> Any:
        spikes = self.activation1(x)
        y = self.activation2(self.bn1(self.conv1(spikes)))
        kept = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(spikes)
        return self.bn2(self.conv2(y)) + kept


def preact_resnet18(
    num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF, stem: Stem = "3x3"
) -> Staged:
    """PreAct-ResNet-18 for images of any size: stages of `width` x (1, 2, 4, 8) channels, two blocks each.

    The stem has no activation; the head has one before its pooling. The output of a stage is real-valued, not spikes.
    Input [B, in_channels, H, W], output [B, num_classes]. Reference: He et al., ECCV 2016; spiking, Yu et al., NeurIPS
    2024. Difference from He et al.: BN follows each convolution here, while theirs precedes each activation.

    Raises:
        ValueError: a size is less than 1, or the activation or the stem is an unknown string.
    """
    return preactivated(PreActBlock, (2, 2, 2, 2), num_classes, in_channels, width, activation, stem)


def preact_resnet34(
    num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF, stem: Stem = "3x3"
) -> Staged:
    """PreAct-ResNet-34: as `preact_resnet18`, with 3, 4, 6, 3 blocks.

    Input [B, in_channels, H, W], output [B, num_classes]. Reference: He et al., ECCV 2016; spiking and with stem="7x7", on
    ImageNet, Yu et al., NeurIPS 2024, and Zhao et al., NeurIPS 2025.

    Raises:
        ValueError: a size is less than 1, or the activation or the stem is an unknown string.
    """
    return preactivated(PreActBlock, (3, 4, 6, 3), num_classes, in_channels, width, activation, stem)


def preactivated(
    block: Callable[[int, int, int, Activation], ResidualBlock],
    blocks: Sequence[int],
    num_classes: int,
    in_channels: int,
    width: int,
    activation: Activation,
    stem: Stem,
    *pool: nn.Module,
) -> Staged:
    """A network of four stages of blocks that begin with their activation: no activation in the stem, one in the head.

    Args:
        block: makes a block of (channels before, channels after, stride, activation).
        blocks: number of blocks of each stage.
        num_classes, in_channels, width, activation, stem: as for `preact_resnet18`.
        pool: what follows the batch norm of the stem, if anything.

    Raises:
        ValueError: a size is less than 1, or the activation or the stem is an unknown string.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
    first = residual_stem(stem, in_channels, width, *pool)
    stages = residual_stages(block, width, blocks, activation)
    head = nn.Sequential(activate(activation), *mean_head(nn.Linear(8 * width, num_classes)))
    return Staged(first, stages, head)
