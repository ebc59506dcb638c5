"""Residual networks whose resolution is halved by max-pooling instead of strides of convolutions."""

from __future__ import annotations

from typing import Any

from torch import nn

from spikerate.models.membrane import MembraneBlock
from spikerate.models.preact import preactivated
from spikerate.models.residual import Stem
from spikerate.models.staged import Activation, Staged
from spikerate.neuron import LIF


class MaxBlock(MembraneBlock):
    """A `MembraneBlock` with a max-pool after its first BN: [B, I, H, W] -> [B, O, ceil(H/s), ceil(W/s)].

    The pool has the stride s, the convolutions have none; with s = 1 there is no pool. It chooses among currents, not among
    spikes, on the shortcut too, where it comes before the projection.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, activation: Activation) -> None:
        super().__init__(in_channels, out_channels, 1, activation)
        self.pool = nn.MaxPool2d(3, stride, 1) if stride != 1 else nn.Identity()

    def forward(self, x: Any) -> Any:
        y = self.activation2(self.pool(self.bn1(self.conv1(self.activation1(x)))))
        return self.bn2(self.conv2(y)) + self.shortcut(self.pool(x))


def max_resnet18(
    num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF, stem: Stem = "3x3"
) -> Staged:
    """Max-ResNet-18 for images of any size: stages of `width` x (1, 2, 4, 8) channels, two blocks each.

    11,173,962 parameters with the defaults, as ResNet-18 has. Its operations are three tenths more, since the first
    convolution of a stage still has the resolution of the stage before. Input [B, in_channels, H, W], output
    [B, num_classes].

    The paper's: a ResNet-18 of spiking neurons whose stem and down-sampling use max-pooling, because neurons pass low
    frequencies mostly, and strided convolutions and means do, too. Ours, where we do not know theirs: the membrane shortcut
    of `ms_resnet18`, pools of 3 x 3 on currents, their places in a block, and in the stem for small images a pool that
    keeps the resolution. Reference: Fang et al., "Spiking neural networks need high-frequency information", NeurIPS 2025,
    arXiv 2505.18608.

    Raises:
        ValueError: a size is less than 1, or the activation or the stem is an unknown string.
    """
    pool = (nn.MaxPool2d(3, 1, 1),) if stem == "3x3" else ()  # the other stem has one
    return preactivated(MaxBlock, (2, 2, 2, 2), num_classes, in_channels, width, activation, stem, *pool)
