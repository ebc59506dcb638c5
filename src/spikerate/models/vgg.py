"""Convolutional networks without shortcuts: VGG-11, VGG-13, VGG-16 and VGGSNN."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from spikerate.models.staged import Activation, Staged, activate, check_sizes, mean_head
from spikerate.neuron import LIF


def vgg11(num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF) -> Staged:
    """VGG-11 with BN, for images of any size: stages of `width` x (1, 2, 4, 8, 8) channels with 1, 1, 2, 2, 2 layers.

    A layer is conv3x3 - BN - activation. Input [B, in_channels, H, W], output [B, num_classes]. Reference: Simonyan and
    Zisserman, ICLR 2015; spiking, Yu et al., NeurIPS 2024. Differences from the former: BN, no biases before BN, average
    pooling instead of max pooling, and one linear layer after global average pooling instead of three.

    Raises:
        ValueError: a size is less than 1, or the activation is an unknown string.
    """
    return _vgg((1, 1, 2, 2, 2), num_classes, in_channels, width, activation)


def vgg13(num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF) -> Staged:
    """VGG-13: as `vgg11`, with 2, 2, 2, 2, 2 layers.

    Input [B, in_channels, H, W], output [B, num_classes].

    Raises:
        ValueError: a size is less than 1, or the activation is an unknown string.
    """
    return _vgg((2, 2, 2, 2, 2), num_classes, in_channels, width, activation)


def vgg16(num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF) -> Staged:
    """VGG-16: as `vgg11`, with 2, 2, 3, 3, 3 layers.

    Input [B, in_channels, H, W], output [B, num_classes].

    Raises:
        ValueError: a size is less than 1, or the activation is an unknown string.
    """
    return _vgg((2, 2, 3, 3, 3), num_classes, in_channels, width, activation)


def vggsnn(
    num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF, size: int = 32
) -> Staged:
    """VGGSNN: four stages of two layers, and a linear layer on the flattened output of the last one.

    Channels `width` x (1, 2), (4, 4), (8, 8), (8, 8), with average pooling after each stage. The defaults are for CIFAR;
    for CIFAR10-DVS take in_channels=2, size=48. Input [B, in_channels, size, size], output [B, num_classes].
    Reference: Deng et al., ICLR 2022. Difference: no biases before BN.

    Args:
        size: height and width of the images, a multiple of 16.

    Raises:
        ValueError: a size is less than 1, `size` is no multiple of 16, or the activation is an unknown string.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width, size=size)
    if size % 16:
        raise ValueError(f"size is {size}: give a multiple of 16, since the image is halved four times")
    w = width
    stages = _stages(in_channels, [[w, 2 * w], [4 * w, 4 * w], [8 * w, 8 * w], [8 * w, 8 * w]], activation)
    head = nn.Sequential(_halve(), nn.Flatten(), nn.Linear(8 * w * (size // 16) ** 2, num_classes))
    return Staged(nn.Identity(), stages, head)


def _vgg(layers: Sequence[int], num_classes: int, in_channels: int, width: int, activation: Activation) -> Staged:
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
    channels = [[width * times] * n for times, n in zip((1, 2, 4, 8, 8), layers, strict=True)]
    head = mean_head(nn.Linear(8 * width, num_classes))
    return Staged(nn.Identity(), _stages(in_channels, channels, activation), head)


def _stages(in_channels: int, channels: Sequence[Sequence[int]], activation: Activation) -> dict[str, nn.Module]:
    """One stage for each list of channels. Pooling begins the next stage, so that the output of each stage is spikes."""
    stages: dict[str, nn.Module] = {}
    before = in_channels
    for k, afters in enumerate(channels):
        layers: list[nn.Module] = [_halve()] if k else []
        for after in afters:
            layers += [nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), activate(activation)]
            before = after
        stages[f"stage{k + 1}"] = nn.Sequential(*layers)
    return stages


def _halve() -> nn.Module:
    # Odd sizes are rounded up, so that an image of any size goes through.
    return nn.AvgPool2d(2, ceil_mode=True)
