"""Residual networks for small images: ResNet-18 and ResNet-19."""

from __future__ import annotations

from typing import Any

from torch import nn

from spikerate.models.staged import Activation, Staged, activate, check_sizes
from spikerate.neuron import LIF


class BasicBlock(nn.Module):
    """conv3x3 - BN - activation - conv3x3 - BN, plus the shortcut, then the activation; [B, I, H, W] -> [B, O, H/s, W/s]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.activation1 = activate(activation)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.activation2 = activate(activation)

    def forward(self, x: Any) -> Any:
        y = self.activation1(self.bn1(self.conv1(x)))
        return self.activation2(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF) -> Staged:
    """ResNet-18 for small images of any size: a 3x3 stem, stages of `width` x (1, 2, 4, 8) channels, two blocks each.

    11,173,962 parameters with the defaults. Input [B, in_channels, H, W], output [B, num_classes]. Reference: He et al.,
    2016; this form, Yu et al., NeurIPS 2024.

    Raises:
        ValueError: a size is less than 1, or the activation is an unknown string.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
    channels = [width, 2 * width, 4 * width, 8 * width]
    body = _body(in_channels, channels, [2, 2, 2, 2], activation)
    return Staged(*body, _head(nn.Linear(channels[-1], num_classes)))


def resnet19(num_classes: int = 10, in_channels: int = 3, width: int = 128, activation: Activation = LIF) -> Staged:
    """ResNet-19: a 3x3 stem, stages of `width` x (1, 2, 4) channels with 3, 3, 2 blocks, a head with one hidden layer.

    Input [B, in_channels, H, W], output [B, num_classes]. Reference: Zheng et al., AAAI 2021; this form, Zhao et al.,
    NeurIPS 2025.

    Raises:
        ValueError: a size is less than 1, or the activation is an unknown string.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
    channels = [width, 2 * width, 4 * width]
    body = _body(in_channels, channels, [3, 3, 2], activation)
    hidden = 2 * width
    return Staged(*body, _head(nn.Linear(channels[-1], hidden), activate(activation), nn.Linear(hidden, num_classes)))


def _body(
    in_channels: int, channels: list[int], blocks: list[int], activation: Activation
) -> tuple[nn.Module, dict[str, nn.Module]]:
    stem = nn.Sequential(
        nn.Conv2d(in_channels, channels[0], 3, 1, 1, bias=False), nn.BatchNorm2d(channels[0]), activate(activation)
    )
    stages: dict[str, nn.Module] = {}
    before = channels[0]
    for k, (after, n) in enumerate(zip(channels, blocks, strict=True)):
        first = BasicBlock(before, after, 1 if k == 0 else 2, activation)
        rest = [BasicBlock(after, after, 1, activation) for _ in range(n - 1)]
        stages[f"stage{k + 1}"] = nn.Sequential(first, *rest)
        before = after
    return stem, stages


def _head(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)
