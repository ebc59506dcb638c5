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
    device: torch.device | None = None,
) -> Accuracy:
    """Run a spiking network in evaluation mode on all `images`, each shown for T steps.

    The network is left in the mode it was in, which is on `device`; by default, where the images are.
    """
    was_training = network.training
    network.eval()
    device = device or images.labels.device
    right = torch.zeros((), dtype=torch.int64, device=device)
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            for x, y in plain_batches(data, images, batch, device):
                right += (rule(network, x.expand(T, *x.shape)).rate.argmax(-1) == y).sum()
    finally:
        network.train(was_training)
    return Accuracy(int(right), len(images))
