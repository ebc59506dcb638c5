"""Networks of the operations of those of other libraries, in small: made spiking, they train as by BPTT at one step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from spikerate import BPTT, LIF, RateBP, check, spiking
from support.networks import gradients


def conv(i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: Any = nn.ReLU6) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(o), act(inplace=True)
    )


class InvertedResidual(nn.Module):
    """MobileNetV2's: 1x1, depthwise, 1x1 without activation, and a shortcut."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.use_res_connect = stride == 1 and i == o
        wide = 2 * i
        self.conv = nn.Sequential(
            conv(i, wide, 1), conv(wide, wide, 3, stride, wide), nn.Conv2d(wide, o, 1, bias=False), nn.BatchNorm2d(o)
        )

    def forward(self, x: Any) -> Any:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(3, 4, 3, 2), InvertedResidual(4, 4, 1), InvertedResidual(4, 6, 2), InvertedResidual(6, 6, 1), conv(6, 8, 1)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(8, 3))

    def forward(self, x: Any) -> Any:
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), (1, 1)), 1))


class Fire(nn.Module):
    """SqueezeNet's: a concatenation without batch norm."""

    def __init__(self, i: int, squeezed: int, o: int) -> None:
        super().__init__()
        self.squeeze, self.squeeze_activation = nn.Conv2d(i, squeezed, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand1x1_activation = nn.Conv2d(squeezed, o, 1), nn.ReLU(inplace=True)
        self.expand3x3, self.expand3x3_activation = nn.Conv2d(squeezed, o, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat([self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1)


def squeezenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(6, 4, 5),
        Fire(10, 4, 5),
        nn.Dropout(0.0),
        nn.Conv2d(10, 3, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(True),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(True),
        nn.AdaptiveAvgPool2d((4, 4)),
        nn.Flatten(),
        nn.Linear(96, 8),
        nn.ReLU(True),
        nn.Dropout(0.0),
        nn.Linear(8, 3),
    )


class RepVGGBlock(nn.Module):
    """timm's: batch norms of the input, of a 1x1 and of a 3x3 convolution are added in place."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(i) if i == o else None
        self.conv_1x1, self.conv_kxk = conv(i, o, 1)[:2], conv(i, o, 3)[:2]
        self.attn, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        if self.identity is None:
            x = self.conv_1x1(x) + self.conv_kxk(x)
        else:
            identity = self.identity(x)
            x = self.conv_1x1(x) + self.conv_kxk(x)
            x += identity
        return self.act(self.attn(x))


class DlaRoot(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)

    def forward(self, x_children: list[Any]) -> Any:
        x = self.bn(self.conv(torch.cat(x_children, 1)))
        x += x_children[0]
        return self.relu(x)


class DlaTree(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.downsample, self.project = nn.MaxPool2d(2, stride=2), nn.Sequential(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o))
        self.tree1, self.tree2, self.root = conv(i, o, 3, 2, act=nn.ReLU), conv(o, o, act=nn.ReLU), DlaRoot(2 * o + i, o)

    def forward(self, x: Any, children: list[Any] | None = None) -> Any:
        bottom = self.downsample(x)
        x1 = self.tree1(x) + self.project(bottom)
        return self.root([self.tree2(x1), x1, bottom])


class SqueezeExcitation(nn.Module):
    """The gate of EfficientNet, RegNet and MobileNetV3: each channel by what the mean over space says of it."""

    def __init__(self, c: int, gate: Any = torch.sigmoid) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gate = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1), gate

    def forward(self, x: Any) -> Any:
        return x * self.gate(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, layer norm over channels, two linear layers, and a learned factor for each channel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))
        self.scale = nn.Parameter(torch.full((c, 1, 1), 0.5))

    def forward(self, x: Any) -> Any:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + self.scale * y.permute(0, 3, 1, 2)


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, one block of attention with a softmax."""

    def __init__(self, c: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, c, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, c)), nn.Parameter(torch.randn(1, 17, c))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(c), nn.LayerNorm(c), nn.LayerNorm(c)
        self.qkv, self.out, self.heads = nn.Linear(c, 3 * c), nn.Linear(c, c), heads
        self.mlp, self.head = nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c)), nn.Linear(c, 3)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(0, 2, 3, 1, 4).unbind(1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(self.norm3(x + self.mlp(self.norm2(x)))[:, 0])


class Dense(nn.Module):
    """DenseNet's layers: the activation is a function, and what comes out is joined with what went in."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(c), nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, x: Any) -> Any:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class FullyConvolutional(nn.Module):
    """FCN's head: scores of a coarse map, resized to the image; their mean, since the test wants one answer an image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.score = conv(3, 6, stride=2, act=nn.ReLU), nn.Conv2d(6, 3, 1)

    def forward(self, x: Any) -> Any:
        y = self.score(self.body(x))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False).mean((2, 3))


def pooled(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


NETS: dict[str, Callable[[], nn.Module]] = {
    "MobileNetV2": MobileNetV2,
    "SqueezeNet": squeezenet,
    "VGG": vgg,
    "RepVGG": lambda: pooled(RepVGGBlock(3, 6), RepVGGBlock(6, 6)),
    "EfficientNet": lambda: pooled(conv(3, 6, act=nn.SiLU), SqueezeExcitation(6), conv(6, 6, groups=6, act=nn.SiLU)),
    "MobileNetV3": lambda: pooled(conv(3, 6, act=nn.Hardswish), SqueezeExcitation(6, F.hardsigmoid)),
    "RegNet": lambda: pooled(conv(3, 6, act=nn.ReLU), conv(6, 6, groups=2, act=nn.ReLU), SqueezeExcitation(6)),
    "ConvNeXt": lambda: pooled(nn.Conv2d(3, 6, 2, 2), ConvNeXtBlock(6)),
    "ViT": VisionTransformer,
    "DenseNet": lambda: pooled(Dense(3), Dense(6), nn.Conv2d(9, 6, 1)),
    "FCN": FullyConvolutional,
    "DLA": lambda: pooled(conv(3, 4, act=nn.ReLU), DlaTree(4, 6)),
}


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_bptts_at_one_step(name: str) -> None:
    torch.manual_seed(0)
    ann = NETS[name]()
    snn = spiking(ann, partial(LIF, threshold=0.3)).double()
    assert list(snn.state_dict()) == list(ann.state_dict())
    x, labels = 2 * torch.randn(1, 4, 3, 16, 16, dtype=torch.float64), torch.arange(4) % 3
    rate, bptt = (gradients(snn, F.cross_entropy(rule(snn, x).rate, labels)) for rule in (RateBP(), BPTT()))
    for key in rate:
        assert_close(rate[key], bptt[key], rtol=1e-9, atol=1e-12)
    assert sum(bool(value.any()) for value in rate.values()) > len(rate) / 2
    found = check(snn, x.expand(3, *x.shape[1:]))
    assert found.fine, found.faults
