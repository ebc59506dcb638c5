"""QKFormer: a hierarchical spiking transformer whose attention has queries and keys only, at a cost linear in the tokens."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from spikerate.models.spiking_attention import SpikingSelfAttention
from spikerate.models.staged import Activation, Staged, activate, check_sizes, mean_head
from spikerate.models.tokens import DOUBLE, Residual, check_heads, check_patch, halved, normalized, projection, spiking_mlp
from spikerate.neuron import LIF

Along = Literal["token", "channel"]


class QKAttention(nn.Module):
    """Q-K attention: spikes of the queries choose the tokens, or the channels, of the keys; [B, C, H, W] -> [B, C, H, W].

        Q, K = s(BN(W x))        y = s(BN(W_out (s(sum of Q) * K)))        s: a layer of neurons

    For "token" the sum is over the channels of each head, so that its spike lets a token through; for "channel" it is over
    the tokens, and lets a channel through. Reference: Zhou et al., NeurIPS 2024.

    Raises:
        ValueError: the channels can't be divided among the heads, or `along` is another word.
    """

    def __init__(self, channels: int, heads: int, activation: Activation, along: Along = "token") -> None:
        super().__init__()
        check_heads(heads, channels)
        if along not in ("token", "channel"):
            raise ValueError(f'attention is {along!r}: give "token" or "channel"')
        self.heads, self.along = heads, along
        self.query = projection(channels, activation)
        self.key = projection(channels, activation)
        self.attend = activate(activation)
        self.out = projection(channels, activation, bias=True)

    def forward(self, x: Any) -> Any:
        q, k = self.query(x), self.key(x)
        if self.along == "channel":
            return self.out(self.attend(q.sum((2, 3), keepdim=True) * DOUBLE) * k)
        q, k = (y.unflatten(1, (self.heads, -1)) for y in (q, k))
        chosen = self.attend(q.sum(2, keepdim=True) * DOUBLE) * k
        return self.out(chosen.flatten(1, 2))


class PatchEmbedding(nn.Module):
    """Patch embedding with a deformed shortcut; [B, I, H, W] -> [B, O, H, W], or [B, O, ceil(H/2), ceil(W/2)] if it halves.

        conv3x3 - BN - max-pool - activation - conv3x3 - BN - activation, plus 1x1 stride 2 - BN - activation

    Without halving it has the second of both convolutions only, and no max-pool. Reference: Zhou et al., NeurIPS 2024.
    """

    def __init__(self, in_channels: int, out_channels: int, halve: bool, activation: Activation) -> None:
        super().__init__()
        first: list[nn.Module] = []
        if halve:
            first = [*normalized(in_channels, out_channels, 3), halved(), activate(activation)]
        before = out_channels if halve else in_channels
        self.main = nn.Sequential(*first, *normalized(before, out_channels, 3), activate(activation))
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, 2 if halve else 1, bias=False),
            nn.BatchNorm2d(out_channels),
            activate(activation),
        )

    def forward(self, x: Any) -> Any:
        return self.main(x) + self.shortcut(x)


def qkformer(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 48,
    activation: Activation = LIF,
    depth: int = 4,
    heads: int = 8,
    patch: int = 4,
    attention: Along = "token",
) -> Staged:
    """QKFormer: three stages of `width` x (2, 4, 8) channels, each a patch embedding and blocks, at a decreasing resolution.

    A block is x + attention(x) followed by x + MLP(x). The blocks of the first two stages have Q-K attention, those of the
    last one spiking self-attention. Of the blocks one is in the first stage, one in five (at least one) in the second, the
    others in the third: 1, 1, 2 for the CIFAR form, 1, 2, 7 for that of ImageNet. Input [B, in_channels, H, W] of any size,
    output [B, num_classes] from the mean over the tokens.

    6,740,884 parameters with the defaults and num_classes=100. For ImageNet patch=16, num_classes=1000, depth=10:
    HST-10-384 is width=48, HST-10-768 width=96. Reference: Zhou et al., NeurIPS 2024. The layers of the first patch
    embedding are inferred from the published numbers of parameters.

    Args:
        depth: number of blocks, at least 3.
        heads: heads of the last stage, a divisor of 8 `width`; the stages before have a half and a quarter of it.
        patch: pixels of the side of a token in the last stage: 4, 8 or 16.
        attention: what the first two stages choose by their queries.

    Raises:
        ValueError: a size is out of range, heads or patch don't fit, or the activation or attention is an unknown string.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width, depth=depth)
    if depth < 3:
        raise ValueError(f"depth is {depth}: give at least 3, a block for each stage")
    check_patch(patch, 4)
    middle = max(1, depth // 5)
    pool = [halved()] if patch == 16 else []
    stem = nn.Sequential(*normalized(in_channels, width, 3), *pool, activate(activation))
    stages: dict[str, nn.Module] = {}
    for k, blocks in enumerate((1, middle, depth - 1 - middle), 1):
        channels, own = width * 2**k, max(1, heads // 2 ** (3 - k))
        stage: list[nn.Module] = [PatchEmbedding(channels // 2, channels, k > 1 or patch > 4, activation)]
        for _ in range(blocks):
            mixing: nn.Module = (
                SpikingSelfAttention(channels, own, activation)
                if k == 3
                else QKAttention(channels, own, activation, attention)
            )
            stage += [Residual(mixing), Residual(*spiking_mlp(channels, activation))]
        stages[f"stage{k}"] = nn.Sequential(*stage)
    return Staged(stem, stages, mean_head(nn.Linear(8 * width, num_classes)))
