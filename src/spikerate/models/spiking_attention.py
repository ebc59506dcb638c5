"""Spikformer: a transformer whose self-attention has spikes as queries, keys and values, and no softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spikerate.models.staged import Activation, Staged, activate, check_sizes, mean_head
from spikerate.models.tokens import (
    DOUBLE,
    Residual,
    check_heads,
    normalized,
    projection,
    spiking_mlp,
    splitting,
    token_stages,
)
from spikerate.neuron import LIF


class SpikingSelfAttention(nn.Module):
    """Spiking self-attention (SSA); [B, C, H, W] -> [B, C, H, W].

        Q, K, V = s(BN(W x))        y = s(BN(W_out s(scale Q K^T V)))        s: a layer of neurons

    Each of the heads has its own channels of Q, K and V. It is computed as Q (K^T V), whose inner product is
    [C / heads, C / heads] and does not grow with the number of tokens. Under `RateBP` that product is the mean of those of
    the steps: the gradient of Q is exact for a change that is the same at all steps, those of K and V leave out how they
    vary together with Q over time. Reference: Zhou et al., ICLR 2023, with a scale of 0.125.

    Raises:
        ValueError: the channels can't be divided among the heads.
    """

    scale = 0.125

    def __init__(self, channels: int, heads: int, activation: Activation) -> None:
        super().__init__()
        check_heads(heads, channels)
        self.heads = heads
        self.query = projection(channels, activation)
        self.key = projection(channels, activation)
        self.value = projection(channels, activation)
        self.attend = activate(activation)
        self.out = projection(channels, activation, bias=True)

    def forward(self, x: Any) -> Any:
        q, k, v = (self._by_heads(layer(x)) for layer in (self.query, self.key, self.value))
        # Tokens are in the columns, so this is the transposed of Q K^T V. The compiler does not know @ of signals.
        y = torch.matmul(torch.matmul(v, k.transpose(-2, -1)), q) * (DOUBLE * self.scale)
        return self.out(self.attend(y.reshape(x.shape)))

    def _by_heads(self, x: Any) -> Any:
        """[B, C, H, W] -> [B, heads, C / heads, N]."""
        return x.unflatten(1, (self.heads, -1)).flatten(3)


def spikformer(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 48,
    activation: Activation = LIF,
    depth: int = 4,
    heads: int = 8,
    patch: int = 4,
) -> Staged:
    """Spikformer: patch splitting to tokens of 8 `width` channels, a convolution for their relative positions, then blocks.

    A block is x + SSA(x) followed by x + MLP(x), where the MLP has four times the channels; what flows between blocks counts
    spikes. Input [B, in_channels, H, W] of any size, output [B, num_classes] from the mean over the tokens.

    9,320,122 parameters with the defaults (Spikformer-4-384; published with 12 heads, of which the number does not depend).
    For ImageNet patch=16, num_classes=1000: Spikformer-8-512 is width=64, depth=8. Reference: Zhou et al., ICLR 2023.

    Args:
        depth: number of blocks.
        heads: heads of the attention, a divisor of 8 `width`.
        patch: pixels of a token's side: 1, 2, 4, 8 or 16.

    Raises:
        ValueError: a size is less than 1, heads or patch don't fit, or the activation is an unknown string.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width, depth=depth)
    channels = 8 * width
    layers = [layer for part in splitting(in_channels, width, patch, activation) for layer in part]
    patches = nn.Sequential(*layers, Residual(*normalized(channels, channels, 3), activate(activation)))
    blocks = [
        nn.Sequential(
            Residual(SpikingSelfAttention(channels, heads, activation)), Residual(*spiking_mlp(channels, activation))
        )
        for _ in range(depth)
    ]
    return Staged(nn.Identity(), token_stages(patches, blocks), mean_head(nn.Linear(channels, num_classes)))
