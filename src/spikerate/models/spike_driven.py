"""The spike-driven transformer: attention by masks and sums of spikes, and shortcuts that carry membrane potentials."""

from __future__ import annotations

from typing import Any

from torch import nn

from spikerate.models.staged import Activation, Staged, activate, check_sizes, mean_head
from spikerate.models.tokens import DOUBLE, Residual, normalized, projection, spiking_mlp, splitting, token_stages
from spikerate.neuron import LIF


class SpikeDrivenAttention(nn.Module):
    """Spike-driven self-attention (SDSA) behind a layer of neurons; [B, C, H, W] -> [B, C, H, W].

        Q, K, V = s(BN(W s(x)))        y = BN(W_out (s(sum over tokens of Q * K) * V))        s: a layer of neurons

    The sum is one number for each channel, whose spike lets the values of the channel through or not: there is no product of
    matrices, and each channel is a head of its own. Reference: Yao et al., NeurIPS 2023.
    """

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        self.spikes = activate(activation)
        self.query = projection(channels, activation)
        self.key = projection(channels, activation)
        self.value = projection(channels, activation)
        self.attend = activate(activation)
        self.out = nn.Sequential(*normalized(channels, channels, bias=True))

    def forward(self, x: Any) -> Any:
        spikes = self.spikes(x)
        matches = (self.query(spikes) * self.key(spikes)).sum((2, 3), keepdim=True)
        return self.out(self.attend(matches * DOUBLE) * self.value(spikes))


def spike_driven_transformer(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    activation: Activation = LIF,
    depth: int = 2,
    patch: int = 4,
) -> Staged:
    """The spike-driven transformer: as `spikformer`, with SDSA and membrane shortcuts.

    Each residual branch begins with neurons and ends with BN, so that the shortcuts carry real values and every convolution
    but the first gets spikes. Input [B, in_channels, H, W] of any size, output [B, num_classes], from the mean over the
    tokens.

    10,279,588 parameters with the defaults and num_classes=100 (SDT-2-512). For ImageNet patch=16, num_classes=1000:
    SDT-8-512 is depth=8. Reference: Yao et al., NeurIPS 2023.

    Args:
        depth: number of blocks.
        patch: pixels of a token's side: 1, 2, 4, 8 or 16.

    Raises:
        ValueError: a size is less than 1, the patch does not fit, or the activation is an unknown string.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width, depth=depth)
    channels = 8 * width
    *first, last = splitting(in_channels, width, patch, activation)
    conv, norm, _, *pool = last  # its neurons are the first of the branches
    positions = Residual(activate(activation), *normalized(channels, channels, 3))
    patches = nn.Sequential(*(layer for part in first for layer in part), conv, norm, *pool, positions)
    blocks = [
        nn.Sequential(Residual(SpikeDrivenAttention(channels, activation)), Residual(*_mlp(channels, activation)))
        for _ in range(depth)
    ]
    head = nn.Sequential(activate(activation), *mean_head(nn.Linear(channels, num_classes)))
    return Staged(nn.Identity(), token_stages(patches, blocks), head)


def _mlp(channels: int, activation: Activation) -> list[nn.Module]:
    """The layers of `spiking_mlp`, with the last neurons in front."""
    *layers, neurons = spiking_mlp(channels, activation)
    return [neurons, *layers]
