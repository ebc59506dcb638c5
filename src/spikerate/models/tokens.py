"""Common parts of the spiking transformers: tokens from images, layers of tokens, and the stages of their blocks.

Tokens stay where they are in the image, [B, C, H, W] with N = H W tokens of C channels, so a linear layer of tokens is a 1x1
convolution, and branches can leave from every stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from spikerate.models.staged import Activation, activate

GREATEST_PATCH = 16

DOUBLE = 2
"""Factor on the input of an attention's own neurons. The papers give these half the threshold of the others, 0.5 instead of
1; twice the input gives the same spikes, with neurons that are all alike; the surrogate of that layer is half as wide."""


class Residual(nn.Module):
    """x + branch(x), [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Any) -> Any:
        return x + self.branch(x)


def normalized(in_channels: int, out_channels: int, kernel: int = 1, bias: bool = False) -> list[nn.Module]:
    """A convolution that keeps the resolution, and its BN; with `kernel=1` it is a linear layer of each token.

    A bias is of no effect before BN; the published numbers of parameters include some, so the networks have these.
    """
    return [nn.Conv2d(in_channels, out_channels, kernel, 1, kernel // 2, bias=bias), nn.BatchNorm2d(out_channels)]


def projection(channels: int, activation: Activation, bias: bool = False) -> nn.Sequential:
    """A linear layer of each token - BN - activation, which keeps the shape."""
    return nn.Sequential(*normalized(channels, channels, bias=bias), activate(activation))


def halved() -> nn.Module:
    """Max-pooling to half the resolution, rounded up."""
    return nn.MaxPool2d(3, 2, 1)


def splitting(in_channels: int, width: int, patch: int, activation: Activation) -> list[list[nn.Module]]:
    """Patch splitting: four lists of layers, conv3x3 - BN - activation - max-pool, to `width` x (1, 2, 4, 8) channels.

    The last log2(`patch`) of them have the max-pool, so that a token stands for `patch` x `patch` pixels.

    Raises:
        ValueError: `patch` is none of 1, 2, 4, 8, 16.
    """
    check_patch(patch, 1)
    channels = [in_channels, *(width * 2**k for k in range(4))]
    pools = patch.bit_length() - 1
    return [
        [*normalized(before, after, 3), activate(activation), *([halved()] if k >= 4 - pools else [])]
        for k, (before, after) in enumerate(pairwise(channels))
    ]


def spiking_mlp(channels: int, activation: Activation) -> list[nn.Module]:
    """The layers linear - BN - activation - linear - BN - activation of each token, with 4 `channels` in between."""
    inner = 4 * channels
    return [
        *normalized(channels, inner, bias=True),
        activate(activation),
        *normalized(inner, channels, bias=True),
        activate(activation),
    ]


def token_stages(patches: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """stage1 is the splitting into patches; the blocks are divided among up to three more, later ones having more.

    So a network of any depth has at most three branches in self-distillation.
    """
    parts = min(len(blocks), 3)
    ends = [len(blocks) * k // parts for k in range(parts + 1)]
    groups = [blocks[start:end] for start, end in pairwise(ends)]
    return {"stage1": patches} | {f"stage{k}": nn.Sequential(*group) for k, group in enumerate(groups, 2)}


def check_heads(heads: int, channels: int) -> None:
    """Raise `ValueError` unless the channels of the tokens can be divided among the heads."""
    if heads < 1 or channels % heads:
        raise ValueError(f"heads is {heads}: give a divisor of {channels}, the number of channels of a token")


def check_patch(patch: int, least: int) -> None:
    """Raise `ValueError` unless the side of a patch is a power of 2 from `least` to `GREATEST_PATCH`."""
    allowed = [2**k for k in range(GREATEST_PATCH.bit_length()) if 2**k >= least]
    if patch not in allowed:
        raise ValueError(f"patch is {patch}: give the pixels of a token's side, one of {', '.join(map(str, allowed))}")
