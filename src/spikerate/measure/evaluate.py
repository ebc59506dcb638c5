"""Predictions of a trained network, and their accuracy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikerate.data import DataSet, Samples, plain_batches
from spikerate.measure.averaging import Averaging, views_of
from spikerate.measure.health import CheckFinite
from spikerate.rules import BPTT
from spikerate.signal import Signal
from spikerate.system.modes import autocast, mode
from spikerate.system.progress import Track, untracked


@dataclass(frozen=True)
class Accuracy:
    """`right` correct predictions among `n` samples."""

    right: int
    n: int

    @property
    def value(self) -> float:
        """The fraction of correct predictions."""
        return self.right / self.n

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval: what another test set of this size could have given."""
        z, p, n = 1.959964, self.value, self.n
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)  # rounding may exceed 0 and 1


@dataclass(frozen=True, eq=False)
class Answers:
    """The classes that a network predicts for samples.

    Attributes:
        found: [N, T] int64, predictions after each time step: the class of the highest mean logit over the steps so far.
        labels: [N] int64, the true classes.
        num_classes: K.
    """

    found: Tensor
    labels: Tensor
    num_classes: int

    @property
    def at_step(self) -> list[Accuracy]:
        """The accuracy after 1, 2, ..., T time steps."""
        right = (self.found == self.labels.unsqueeze(1)).sum(0)
        return [Accuracy(n, len(self.labels)) for n in right.tolist()]

    def confusion(self) -> Tensor:
        """The confusion matrix [K, K] int64 after all steps: rows are true classes, columns predicted ones."""
        K = self.num_classes
        return torch.bincount(self.labels * K + self.found[:, -1], minlength=K * K).view(K, K)

    def confusions(self) -> Tensor:
        """The confusion matrix as a sparse list, for many classes: [N, 3] int64, true class, predicted class, count > 0."""
        pairs, counts = torch.unique(self.labels * self.num_classes + self.found[:, -1], return_counts=True)
        return torch.stack([pairs // self.num_classes, pairs % self.num_classes, counts], 1)

    def some(self, n: int) -> Tensor:
        """Indices of n samples: if possible, half of them predicted correctly after all steps and half wrongly.

        Correct ones come first. Each half is spread evenly over the samples, which may be sorted by class.
        """
        right = self.found[:, -1] == self.labels
        good, bad = right.nonzero()[:, 0], (~right).nonzero()[:, 0]
        wrong = min(len(bad), max(n // 2, n - len(good)))
        return torch.cat([_spread(good, n - wrong), _spread(bad, wrong)])


def _spread(index: Tensor, n: int) -> Tensor:
    n = min(n, len(index))
    return index[torch.arange(n, device=index.device) * len(index) // max(1, n)]


def over_time(x: Tensor, T: int) -> Tensor:
    """The input of a rule, [T, B, C, H, W]: images [B, C, H, W] repeated T times (a view), or frames [B, T, C, H, W]."""
    return x.expand(T, *x.shape) if x.dim() == 4 else x.transpose(0, 1)[:T]


def answers(
    network: nn.Module,
    data: DataSet,
    samples: Samples,
    T: int,
    precision: str = "fp32",
    rule: Callable[[Any, Tensor], Signal] = BPTT(),
    batch: int = 256,
    device: torch.device | None = None,
    track: Track = untracked,
    check_finite: bool = False,
    averaging: Averaging | None = None,
) -> Answers:
    """Run a spiking network in evaluation mode on all `samples`, each for T time steps; its mode is restored afterwards.

    Args:
        device: where the network is; by default that of the labels.
        track: shows the progress.
        averaging: the views of each sample whose logits are averaged; None: the sample itself.

    Raises:
        NotFinite: with `check_finite`, a value in the network or the samples is infinite or not a number.
    """
    rule = CheckFinite(rule) if check_finite else rule
    device = device or samples.labels.device
    found: list[Tensor] = []
    with mode(network, training=False), torch.no_grad(), autocast(device, precision):
        batches = plain_batches(data, samples, batch, device)
        for x, _ in track(batches, "testing", -(-len(samples) // batch)):
            views = views_of(x, averaging)
            steps = torch.stack([w * rule(network, over_time(view, T)).steps.double() for w, view in views]).sum(0)
            # Not `cumsum`, which on a GPU may give other bits each time and is refused in a deterministic run.
            found.append(torch.stack([logits.argmax(-1) for logits in itertools.accumulate(steps)], 1))
    return Answers(torch.cat(found), samples.labels.to(device), len(data.classes))
