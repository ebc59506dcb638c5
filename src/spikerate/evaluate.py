"""Accuracy and firing rates of a trained network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikerate.data import Images, ImageSet, plain_batches
from spikerate.rules import BPTT
from spikerate.signal import Signal


@dataclass(frozen=True)
class Accuracy:
    """So many right of n."""

    right: int
    n: int

    @property
    def value(self) -> float:
        """The share that is right."""
        return self.right / self.n

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share: what another test set of this size could have given."""
        z, p, n = 1.959964, self.value, self.n
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return middle - half, middle + half


def accuracy(
    network: nn.Module,
    data: ImageSet,
    images: Images,
    T: int,
    precision: str = "fp32",
    rule: Callable[[Any, Tensor], Signal] = BPTT(),
    batch: int = 256,
) -> Accuracy:
    """Run a spiking network in evaluation mode on all `images`, each shown for T steps.

    The network is left in the mode it was in.
    """
    was_training = network.training
    network.eval()
    right = torch.zeros((), dtype=torch.int64, device=images.labels.device)
    try:
        with torch.no_grad(), torch.autocast(images.labels.device.type, torch.bfloat16, enabled=precision == "bf16"):
            for x, y in plain_batches(data, images, batch):
                right += (rule(network, x.expand(T, *x.shape)).rate.argmax(-1) == y).sum()
    finally:
        network.train(was_training)
    return Accuracy(int(right), len(images))
