"""Losses: each takes the logits of all outputs and the labels, and returns named terms.

A loss is called as `loss(outputs, labels)`, where `outputs` is a sequence of logits [B, K], those of the branches first and
those of the final head last, and `labels` [B] int64, or of mixed samples (Mixup, CutMix) [B, K], weights of the classes that
sum to 1. It returns a dict of scalars: `loss`, which is minimised, and its terms. A loss with `per_step` takes the final
head's logits of every time step, [B, T, K].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spikerate.system.codec import added
from spikerate.system.ranges import check_number, check_positive, check_share

Terms = dict[str, Tensor]


class Loss(ABC):
    """What is minimised. One of your own is a frozen dataclass that inherits from this.

    Attributes:
        per_step: whether it takes the final head's logits of every step, [B, T, K], instead of their mean.
        branches: whether the network gets branches in training, whose logits come before the final head's.
        scale: the factor on the logits before the softmax; confidences are computed with it, too.
    """

    per_step: ClassVar[bool] = False
    branches: ClassVar[bool] = False
    scale: float = 1.0

    @abstractmethod
    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Terms:
        """Scalars by name: `loss`, which is minimised, and the terms that the metrics show beside it.

        Args:
            outputs: logits [B, K] of the branches, in their order, and of the final head, which is the last.
            labels: [B] int64; of samples mixed by Mixup or CutMix [B, K] floats, the weights of the classes.
        """


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy of the final head: `{"loss"}`.

        L = CE(scale logits, (1 - smoothing) onehot(label) + smoothing / K)

    With mixed samples, the weights of the classes stand for `onehot(label)`, here and in the other losses.

    Args:
        smoothing: label smoothing, the share of the target that all K classes have equally, in [0, 1).
        scale: factor on the logits, > 0, the inverse of a temperature; the gradient of the logits has it, too.

    Raises:
        ValueError: a number is out of range.

    References: label smoothing, Szegedy et al., CVPR 2016; the factor, cifar10-airbench (1/9).
    """

    smoothing: float = added(0.0)
    scale: float = added(1.0)

    def __post_init__(self) -> None:
        check_share("CrossEntropy.smoothing", self.smoothing)
        check_positive("CrossEntropy.scale", self.scale)

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Terms:
        return {"loss": cross_entropy(self.scale * outputs[-1].float(), labels, self.smoothing)}


@dataclass(frozen=True)
class TET(Loss):
    """Temporal efficient training: cross-entropy at every step, and optionally a squared distance to a constant.

        L = (1 - pull) mean_t CE(logits[t]) + pull mean_t MSE(logits[t], target)

    Terms: `loss`; with `pull > 0` also `ce` and `mse`. It needs a gradient at each step, so it can't be used with `RateBP`.

    Args:
        pull: weight of the second term, in [0, 1); 0 leaves it out.
        target: the constant; in the paper the neuron's threshold.
        smoothing: as for `CrossEntropy`.
        scale: as for `CrossEntropy`; the distance is that of the scaled logits.

    Raises:
        ValueError: a number is out of range.

    Reference: Deng et al., ICLR 2022.
    """

    pull: float = 0.0
    target: float = 1.0
    smoothing: float = added(0.0)
    scale: float = added(1.0)
    per_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("TET.smoothing", self.smoothing)
        check_positive("TET.scale", self.scale)
        check_share("TET.pull", self.pull)
        check_number("TET.target", self.target)

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Terms:
        logits = self.scale * outputs[-1].to(torch.promote_types(outputs[-1].dtype, torch.float32))  # [B, T, K]
        ce = cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1], 0), self.smoothing)
        if self.pull == 0:
            return {"loss": ce}
        mse = (logits - self.target).square().mean()
        return {"loss": (1 - self.pull) * ce + self.pull * mse, "ce": ce, "mse": mse}


@dataclass(frozen=True)
class SelfDistillation(Loss):
    """Enhanced self-distillation: cross-entropy on every output, and distillation from the outputs that are correct.

        L = alpha CE(branches) + final_alpha CE(final) + beta KL

    `CE` is summed over the outputs. `KL` is the sum over all N outputs p of `tau^2 KL(softmax(teacher / tau) ||
    softmax(p / tau))`, the mean over the samples that have a teacher; the teacher is a constant. If no sample of a batch
    has a teacher, `KL = 0`. On a mixed sample (Mixup, CutMix), an output is correct if its argmax is the class of the
    greatest label weight; the paper mixes none.

    Terms: `loss`, `ce` (weighted by the alphas), `kl` (not weighted), `reliable` (the fraction of samples that at least
    one output classifies correctly).

    Args:
        alpha: weight of the cross-entropy of the branches, >= 0.
        beta: weight of the distillation, >= 0.
        tau: temperature of the softmax, > 0.
        final_alpha: weight of the cross-entropy of the final head; `alpha` if None.
        teacher: "reliable": for each sample the mean of the logits of those outputs whose argmax is the label, and no
            teacher if there is none (the paper); "all": the mean of all outputs for every sample; None: no distillation.
        smoothing: label smoothing of each `CE`, as for `CrossEntropy`.
        scale: factor on the logits of all outputs, as for `CrossEntropy`; `KL` has it, too.

    Raises:
        ValueError: a number is out of range, or the teacher is unknown.

    Reference: Zhao, Yu, Yu, Liu, Wang, NeurIPS 2025, arXiv 2510.06254: Eq. 8 (teacher), 9 (CE), 10 (KL), 11 (total). The
    authors' code gives NaN on a batch without a reliable sample. It needs a network with branches; without them it
    distils the final head into itself.
    """

    alpha: float = 1.0
    beta: float = 0.3
    tau: float = 3.0
    final_alpha: float | None = None
    teacher: Literal["reliable", "all"] | None = "reliable"
    smoothing: float = added(0.0)
    scale: float = added(1.0)
    branches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        weights = {"alpha": self.alpha, "beta": self.beta, "final_alpha": self.final_alpha}
        for name, weight in weights.items():
            if weight is not None:
                check_number(f"SelfDistillation.{name}", weight, 0)
        if self.teacher not in ("reliable", "all", None):
            raise ValueError(f"SelfDistillation.teacher is {self.teacher!r}: give reliable, all or None")
        check_positive("SelfDistillation.tau", self.tau)
        check_share("SelfDistillation.smoothing", self.smoothing)
        check_positive("SelfDistillation.scale", self.scale)

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Terms:
        wide = [p.to(torch.promote_types(p.dtype, torch.float32)) for p in outputs]
        logits = self.scale * torch.stack(wide)  # [N, B, K]
        *branches, final = (cross_entropy(p, labels, self.smoothing) for p in logits)
        ce = (self.alpha if self.final_alpha is None else self.final_alpha) * final + self.alpha * sum(branches)
        teacher, reliable = reliable_teacher(logits.detach(), labels)
        share = reliable.to(logits.dtype).mean()
        if self.teacher is None:
            return {"loss": ce, "ce": ce, "reliable": share}
        if self.teacher == "all":
            teacher, reliable = logits.detach().mean(0), torch.ones_like(reliable)
        kl = self._distil(logits, teacher, reliable)
        return {"loss": ce + self.beta * kl, "ce": ce, "kl": kl, "reliable": share}

    def _distil(self, logits: Tensor, teacher: Tensor, reliable: Tensor) -> Tensor:
        target = F.log_softmax(teacher / self.tau, dim=-1)
        student = F.log_softmax(logits / self.tau, dim=-1)
        per_sample = (target.exp() * (target - student)).sum(dim=(0, 2))
        return self.tau**2 * (per_sample * reliable).sum() / reliable.sum().clamp(min=1)


@dataclass(frozen=True)
class RatePenalty:
    """Firing-rate regularisation: penalises the squared distance of each layer's mean firing rate from a target.

        L = weight mean_l (E[r_l] - target)^2,   E over the batch and the neurons of a layer

    Call: with the rates [B, ...] of layers, as `FiringRates` returns them. Terms: `loss`, to be added to the loss of the
    outputs, and `firing_rate`, the mean of the layers' rates.

    Args:
        target: spikes per neuron and step.
        weight: >= 0.

    Raises:
        ValueError: a number is out of range, or there are no rates.
    """

    target: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name, value in {"target": self.target, "weight": self.weight}.items():
            check_number(f"RatePenalty.{name}", value, 0)

    def __call__(self, rates: Mapping[Any, Tensor]) -> Terms:
        if not rates:
            raise ValueError("RatePenalty got no firing rates: give those of at least one layer")
        means = torch.stack([rate.to(torch.promote_types(rate.dtype, torch.float32)).mean() for rate in rates.values()])
        return {"loss": self.weight * (means - self.target).square().mean(), "firing_rate": means.mean()}


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy of logits [B, K] for labels [B], or for weights of the classes [B, K], with label smoothing."""
    targets = labels.to(logits.dtype) if labels.is_floating_point() else labels
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def classes_of(labels: Tensor) -> Tensor:
    """The class [B] of labels [B], or of weights [B, K] that of the greatest one, the first of several equal ones."""
    return labels.argmax(-1) if labels.is_floating_point() else labels


def reliable_teacher(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the logits of those outputs that classify a sample correctly (Zhao et al., Eq. 8).

    Args:
        logits: [N, B, K] of N outputs.
        labels: [B], or of mixed samples [B, K]: correct is the class of the greatest weight.

    Returns:
        the teacher [B, K], which is 0 if no output is correct, and whether at least one is correct [B].
    """
    right = logits.argmax(-1) == classes_of(labels)  # [N, B]
    count = right.sum(0)
    teacher = (logits * right.unsqueeze(-1)).sum(0) / count.clamp(min=1).unsqueeze(-1)
    return teacher, count > 0


def accuracies(outputs: Sequence[Tensor], labels: Tensor) -> Terms:
    """The accuracy of each output: `accuracy` of the final head, `accuracy/exit1`, `accuracy/exit2`, ... of the branches.

    On mixed samples, with labels [B, K], the class of the greatest weight is the right one.
    """
    rates = [p.mean(1) if p.dim() == 3 else p for p in outputs]
    right = [(p.argmax(-1) == classes_of(labels)).float().mean() for p in rates]
    return {"accuracy": right[-1]} | {f"accuracy/exit{k + 1}": value for k, value in enumerate(right[:-1])}
