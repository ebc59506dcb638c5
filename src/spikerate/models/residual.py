"""Common parts of the residual networks: the layers of a block, the stems, and the stages of blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import nn

from spikerate.models.staged import Activation, activate

Stem = Literal["3x3", "7x7"]


class ResidualBlock(nn.Module, ABC):
    """Two 3x3 convolutions with BN, two activations and a shortcut; [B, I, H, W] -> [B, O, ceil(H/s), ceil(W/s)].

    The shortcut is the identity if the shapes allow it, else a 1x1 convolution of the same stride with BN. The families of
    networks differ only in the order of these layers, so their parameters have the same names.
    """

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

    @abstractmethod
    def forward(self, x: Any) -> Any: ...


def residual_stem(kind: Stem, in_channels: int, out_channels: int, *then: nn.Module) -> nn.Module:
    """Convolution, BN and what comes then. The "7x7" stem, for ImageNet, ends in a max-pool at 1/4 resolution.

    Raises:
        ValueError: the stem is another string.
    """
    pool: list[nn.Module] = []
    if kind == "3x3":
        conv = nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False)
    elif kind == "7x7":
        conv = nn.Conv2d(in_channels, out_channels, 7, 2, 3, bias=False)
        pool = [nn.MaxPool2d(3, 2, 1)]
    else:
        raise ValueError(f'stem is {kind!r}: give "3x3" for small images or "7x7" for those of ImageNet')
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), *then, *pool)


def residual_stages(
    block: Callable[[int, int, int, Activation], ResidualBlock], width: int, blocks: Sequence[int], activation: Activation
) -> dict[str, nn.Module]:
    """stage1, stage2, ... of `blocks` blocks each: each but the first doubles the channels and halves the resolution."""
    stages: dict[str, nn.Module] = {}
    before = width
    for k, n in enumerate(blocks):
        after = width * 2**k
        first = block(before, after, 1 if k == 0 else 2, activation)
        rest = [block(after, after, 1, activation) for _ in range(n - 1)]
        stages[f"stage{k + 1}"] = nn.Sequential(first, *rest)
        before = after
    return stages
