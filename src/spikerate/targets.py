"""Losses for other targets than the class of a sample: numbers, several labels at once, a class for each pixel.

They are called like the others, `loss(outputs, target)`, on the rates of a network's outputs, and have a gradient under
every rule. The command line trains classifiers; these are for a loop of your own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spikerate.losses import Loss, Terms


class TargetLoss(Loss):
    """The mean over all outputs, those of branches included, of what one output [B, ...] is away from the target."""

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Terms:
        terms = []
        for output in outputs:
            self.check(output, labels)
            terms.append(self.of(output.to(torch.promote_types(output.dtype, torch.float32)), labels))
        return {"loss": torch.stack(terms).mean()}

    @abstractmethod
    def check(self, output: Tensor, target: Tensor) -> None:
        """Raise `ValueError` unless output and target go together."""

    @abstractmethod
    def of(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of one output, a scalar."""

    def _same_shape(self, output: Tensor, target: Tensor) -> None:
        if output.shape != target.shape or not target.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} got outputs {list(output.shape)} and a target {list(target.shape)} of {target.dtype}"
                ": give floating point of the outputs' shape"
            )


@dataclass(frozen=True)
class MSE(TargetLoss):
    """Mean squared error, for regression: outputs [B, ...] and a target of their shape. `{"loss"}`.

    Raises:
        ValueError: the target has another shape, or is not floating point.
    """

    def check(self, output: Tensor, target: Tensor) -> None:
        self._same_shape(output, target)

    def of(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target.to(output.dtype))


@dataclass(frozen=True)
class BinaryCrossEntropy(TargetLoss):
    """Cross-entropy of each of K labels by itself, for samples with any number of them: logits, target [B, K]. `{"loss"}`.

    Raises:
        ValueError: the target has another shape, is not floating point, or has a value outside [0, 1].
    """

    def check(self, output: Tensor, target: Tensor) -> None:
        self._same_shape(output, target)
        _check_values(
            ((target >= 0) & (target <= 1)).all(),
            "BinaryCrossEntropy got a target with a value outside [0, 1]: give 1 for each label of a sample",
        )

    def of(self, output: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, target.to(output.dtype))


@dataclass(frozen=True)
class PixelCrossEntropy(TargetLoss):
    """Cross-entropy of the class of each pixel, for segmentation: logits [B, K, H, W], target [B, H, W] int64. `{"loss"}`.

    Args:
        ignore: a value of the target whose pixels do not count; none of the K classes, which would not be learned.

    Raises:
        ValueError: the target has another shape or type, a class out of range, or no pixel that counts; or `ignore` is one
            of the classes.
    """

    ignore: int = 255

    def check(self, output: Tensor, target: Tensor) -> None:
        wanted = (len(output), *output.shape[2:])
        if output.dim() < 3 or tuple(target.shape) != wanted or target.dtype != torch.int64:
            raise ValueError(
                f"PixelCrossEntropy got logits {list(output.shape)} and a target {list(target.shape)} of {target.dtype}: "
                "give logits [B, K, H, W] and classes [B, H, W] in int64"
            )
        K = output.shape[1]
        if 0 <= self.ignore < K:
            raise ValueError(
                f"PixelCrossEntropy.ignore is {self.ignore}, which is one of the {K} classes and would not be "
                f"learned: give those pixels of the target another number, such as {max(K, 255)}, and that as ignore"
            )
        counts = target != self.ignore
        _check_values(
            ((target >= 0) & (target < K) | ~counts).all() & counts.any(),
            f"PixelCrossEntropy got a target with no class, or with one outside 0 to {K - 1}: give classes, or "
            f"{self.ignore} for pixels that do not count",
        )

    def of(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, ignore_index=self.ignore)


def _check_values(right: Tensor, sentence: str) -> None:
    """Raise `ValueError` unless the scalar `right` is true. A GPU is not waited for, and ends the process by itself."""
    if right.device.type == "cpu":
        if not bool(right):
            raise ValueError(sentence)
    else:
        torch._assert_async(right, sentence)
