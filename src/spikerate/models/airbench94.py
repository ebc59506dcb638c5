"""A small convolutional network for fast training on small images: the shape of cifar10-airbench94, with neurons."""

from __future__ import annotations

from typing import Literal

from torch import nn

from spikerate.models.staged import Activation, Staged, activate, check_sizes, mean_head
from spikerate.models.whitening import Whitening
from spikerate.neuron import LIF

AirbenchStem = Literal["3x3", "whitening"]


def airbench(
    num_classes: int = 10, in_channels: int = 3, width: int = 64, activation: Activation = LIF, stem: AirbenchStem = "3x3"
) -> Staged:
    """The network of cifar10-airbench94, for images of 16 x 16 pixels and more: stages of `width` x (1, 4, 4) channels.

    A stage is conv3x3 - max-pool 2 - BN - activation - conv3x3 - BN - activation. Pooling comes before the neuron, and so
    chooses among currents, not among spikes. Convolutions start as the identity as far as they have channels for it
    (Dirac), and otherwise at random. The head is linear on the mean over space. 1,972,792 parameters with stem="whitening",
    288 of them frozen. Input [B, in_channels, H, W], output [B, num_classes].

    Args:
        stem: the first 8 in_channels features: "3x3", a learned convolution with BN; or "whitening", a frozen one to the
            principal components of 2 x 2 patches in both signs, `Whitening`, whose `fit` takes training images.

    Raises:
        ValueError: a size is less than 1, or the activation or the stem is an unknown string.

    Reference: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, section 3. Differences: neurons
    instead of GELU; BN has a learned scale; the head takes the mean over the last 3 x 3 pixels, there it is the maximum.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
    features = 8 * in_channels
    if stem == "whitening":
        first: list[nn.Module] = [Whitening(in_channels, features, kernel=2)]
    elif stem == "3x3":
        first = [nn.Conv2d(in_channels, features, 3, 1, 1, bias=False), nn.BatchNorm2d(features)]
    else:
        raise ValueError(f'stem is {stem!r}: give "3x3", or "whitening" for a frozen one that is fitted to the images')
    stages: dict[str, nn.Module] = {}
    before = features
    for k, times in enumerate((1, 4, 4)):
        after = times * width
        stages[f"stage{k + 1}"] = nn.Sequential(
            _convolution(before, after),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(after),
            activate(activation),
            _convolution(after, after),
            nn.BatchNorm2d(after),
            activate(activation),
        )
        before = after
    return Staged(nn.Sequential(*first, activate(activation)), stages, mean_head(nn.Linear(before, num_classes, bias=False)))


def _convolution(before: int, after: int) -> nn.Conv2d:
    layer = nn.Conv2d(before, after, 3, 1, 1, bias=False)
    nn.init.dirac_(layer.weight.data[:before])
    return layer
