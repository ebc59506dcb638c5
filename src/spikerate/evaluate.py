"""Accuracy and firing rates of a trained network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikerate.data import DataSet, Samples, Track, plain_batches, untracked
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


def over_time(x: Tensor, T: int) -> Tensor:
    """What a rule takes, [T, B, C, H, W]: images [B, C, H, W] shown T times as a view, or the frames of [B, T, C, H, W]."""
    return x.expand(T, *x.shape) if x.dim() == 4 else x.transpose(0, 1)[:T]


def accuracy(
    network: nn.Module,
    data: DataSet,
    samples: Samples,
    T: int,
    precision: str = "fp32",
    rule: Callable[[Any, Tensor], Signal] = BPTT(),
    batch: int = 256,
    device: torch.device | None = None,
    track: Track = untracked,
) -> list[Accuracy]:
    """Run a spiking network in evaluation mode on all `samples`, each for T steps.

    The network is left in the mode it was in, which is on `device`; by default, where the labels are. `track` shows who
    waits how far it is.

    Returns:
        of the mean of the logits over the first 1, 2, ..., T steps: what the network knows by then.
    """
    was_training = network.training
    network.eval()
    device = device or samples.labels.device
    right = torch.zeros(T, dtype=torch.int64, device=device)
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            batches = plain_batches(data, samples, batch, device)
            for x, y in track(batches, "testing", -(-len(samples) // batch)):
                right += (rule(network, over_time(x, T)).steps.cumsum(0, dtype=torch.float64).argmax(-1) == y).sum(1)
    finally:
        network.train(was_training)
    return [Accuracy(n, len(samples)) for n in right.tolist()]
