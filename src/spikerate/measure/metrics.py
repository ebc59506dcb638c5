"""Metrics beside accuracy: of regression, of several labels at once, and of a class for each pixel."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_absolute_error(output: Tensor, target: Tensor) -> float:
    """The mean of |output - target|, both of the same shape [B, ...].

    Raises:
        ValueError: the shapes differ.
    """
    _same("mean_absolute_error", output, target)
    return float((output - target).abs().mean())


def f1(logits: Tensor, target: Tensor) -> float:
    """F1 of all labels of all samples together, 2 TP / (2 TP + FP + FN); 1 if there is no label and none is found.

    Args:
        logits: [B, K]; a label is found where its logit is above 0.
        target: [B, K] of 0 and 1.

    Raises:
        ValueError: the shapes differ.
    """
    _same("f1", logits, target)
    found, true = logits > 0, target > 0.5
    right, wrong = int((found & true).sum()), int((found ^ true).sum())
    return 2 * right / (2 * right + wrong) if right or wrong else 1.0


def exact_match(logits: Tensor, target: Tensor) -> float:
    """The fraction of samples all of whose labels are right; as for `f1`."""
    _same("exact_match", logits, target)
    return float(((logits > 0) == (target > 0.5)).flatten(1).all(1).double().mean())


def pixel_accuracy(logits: Tensor, target: Tensor, ignore: int = 255) -> float:
    """The fraction of pixels whose class is right.

    Args:
        logits: [B, K, H, W].
        target: [B, H, W] int64.
        ignore: a value of the target whose pixels do not count.

    Raises:
        ValueError: the shapes do not go together, or no pixel counts.
    """
    matrix = _confusion("pixel_accuracy", logits, target, ignore)
    return float(matrix.diag().sum() / matrix.sum())


def mean_iou(logits: Tensor, target: Tensor, ignore: int = 255) -> float:
    """Intersection over union of each class, TP / (TP + FP + FN), the mean over the classes that occur in target or answer.

    Args and errors: as `pixel_accuracy`.
    """
    matrix = _confusion("mean_iou", logits, target, ignore)
    right, union = matrix.diag(), matrix.sum(0) + matrix.sum(1) - matrix.diag()
    return float((right[union > 0] / union[union > 0]).mean())


def _confusion(name: str, logits: Tensor, target: Tensor, ignore: int) -> Tensor:
    """Pixels by class of the target (rows) and of the answer (columns), [K, K] float64."""
    if logits.dim() < 3 or tuple(target.shape) != (len(logits), *logits.shape[2:]):
        raise ValueError(
            f"{name} got logits {list(logits.shape)} and a target {list(target.shape)}: give [B, K, H, W] and [B, H, W]"
        )
    counts, K = target != ignore, logits.shape[1]
    if 0 <= ignore < K:
        raise ValueError(f"{name} ignores {ignore}, which is one of the {K} classes: give a number that is none")
    if not bool(counts.any()):
        raise ValueError(f"{name} got no pixel that counts: all of the target is {ignore}")
    known = target[counts]
    if int(known.min()) < 0 or int(known.max()) >= K:
        raise ValueError(
            f"{name} got a target with a class outside 0 to {K - 1}: give classes, or {ignore} for what does not count"
        )
    pairs = known * K + logits.argmax(1)[counts]
    return torch.bincount(pairs, minlength=K * K).view(K, K).double()


def _same(name: str, output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        raise ValueError(f"{name} got outputs {list(output.shape)} and a target {list(target.shape)}: give the same shape")
