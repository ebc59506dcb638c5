"""Losses: the teacher, the ablations as fields, and batches without a teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spikerate import TET, CrossEntropy, SelfDistillation
from spikerate.losses import accuracies, classes_of, reliable_teacher


def some(N: int = 3, B: int = 8, K: int = 5, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    g = torch.Generator().manual_seed(seed)
    outputs = [torch.randn(B, K, generator=g, dtype=torch.float64) * 2 for _ in range(N)]
    return [p.requires_grad_() for p in outputs], torch.randint(0, K, (B,), generator=g)


def by_the_paper(outputs: list[Tensor], labels: Tensor, alpha: float, beta: float, tau: float) -> tuple[float, float, float]:
    """Eq. 8 to 11, a sample at a time."""
    ce = sum(float(F.cross_entropy(p, labels)) for p in outputs)
    kls = []
    for b, label in enumerate(labels):
        right = [p[b] for p in outputs if p[b].argmax() == label]
        if right:
            teacher = (torch.stack(right).mean(0) / tau).softmax(0)
            kls.append(sum(float((teacher * (teacher.log() - (p[b] / tau).log_softmax(0))).sum()) * tau**2 for p in outputs))
    kl = sum(kls) / len(kls) if kls else 0.0
    return alpha * ce + beta * kl, alpha * ce, kl


@given(seed=st.integers(0, 2**31), N=st.integers(1, 4), B=st.integers(1, 9), tau=st.floats(0.5, 5), beta=st.floats(0, 2))
@settings(max_examples=40, deadline=None)
def test_terms_are_the_papers(seed: int, N: int, B: int, tau: float, beta: float) -> None:
    outputs, labels = some(N, B, 4, seed)
    terms = SelfDistillation(0.7, beta, tau)(outputs, labels)
    expected = by_the_paper([p.detach() for p in outputs], labels, 0.7, beta, tau)
    assert [float(terms[name]) for name in ("loss", "ce", "kl")] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_batch_without_a_reliable_sample_gives_0_and_not_nan() -> None:
    outputs = [torch.tensor([[2.0, 0.0, 0.0]] * 4, requires_grad=True) for _ in range(3)]
    terms = SelfDistillation()(outputs, torch.ones(4, dtype=torch.long))
    assert float(terms["kl"].detach()) == 0
    assert float(terms["reliable"]) == 0
    terms["loss"].backward()
    plain = torch.autograd.grad(sum(F.cross_entropy(p, torch.ones(4, dtype=torch.long)) for p in outputs), outputs)
    assert all(p.grad is not None and torch.allclose(p.grad, g) for p, g in zip(outputs, plain, strict=True))


def test_the_teacher_is_a_constant() -> None:
    outputs, labels = some()
    teacher, _ = reliable_teacher(torch.stack(outputs).detach(), labels)
    assert not teacher.requires_grad
    terms = SelfDistillation(alpha=0, beta=1)(outputs, labels)
    terms["loss"].backward()
    assert outputs[0].grad is not None
    assert torch.allclose(outputs[0].grad.sum(1), torch.zeros(8, dtype=torch.float64), atol=1e-12)


def test_each_ablation_is_one_field() -> None:
    outputs, labels = some()
    each = [float(F.cross_entropy(p, labels)) for p in outputs]

    def loss(**fields: Any) -> dict[str, float]:
        return {k: float(v) for k, v in SelfDistillation(**fields)(outputs, labels).items()}

    assert loss(alpha=0, final_alpha=1, teacher=None)["loss"] == pytest.approx(each[-1])
    assert loss(teacher=None)["loss"] == pytest.approx(sum(each))
    assert "kl" not in loss(teacher=None)
    assert loss(alpha=0.7, final_alpha=1.0)["ce"] == pytest.approx(0.7 * sum(each[:-1]) + each[-1])
    mean = (torch.stack(outputs).detach().mean(0) / 3).softmax(-1)
    every = sum(9 * (mean * (mean.log() - (p / 3).log_softmax(-1))).sum(-1).mean() for p in outputs)
    assert loss(teacher="all")["kl"] == pytest.approx(float(every))
    assert loss(teacher="all")["reliable"] == loss()["reliable"] < 1


def test_cross_entropy_takes_the_final_output() -> None:
    outputs, labels = some()
    assert torch.equal(CrossEntropy()(outputs, labels)["loss"], F.cross_entropy(outputs[-1].float(), labels))


def test_half_precision_logits_are_widened() -> None:
    outputs, labels = some()
    terms = SelfDistillation()([p.detach().to(torch.bfloat16) for p in outputs], labels)
    assert terms["loss"].dtype == torch.float32


def test_accuracies_name_the_exits_in_order() -> None:
    labels = torch.tensor([0, 1])
    a, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert {k: float(v) for k, v in accuracies([a, b, a], labels).items()} == {
        "accuracy": 0.5,
        "accuracy/exit1": 0.5,
        "accuracy/exit2": 1.0,
    }


@pytest.mark.parametrize("field", ["alpha", "beta", "final_alpha", "tau"])
def test_weights_out_of_range(field: str) -> None:
    for value in (-1.0, math.inf, math.nan):
        fields: dict[str, Any] = {field: value}
        with pytest.raises(ValueError, match=f"SelfDistillation.{field} is {value}"):
            SelfDistillation(**fields)


@given(seed=st.integers(0, 2**31), K=st.integers(2, 9), smoothing=st.floats(0, 0.9), scale=st.floats(0.05, 9))
@settings(max_examples=40, deadline=None)
def test_smoothing_and_scale_are_those_of_soft_targets(seed: int, K: int, smoothing: float, scale: float) -> None:
    """Of every loss, with the gradient, against the definition: targets a sample at a time, logits times the factor."""
    outputs, labels = some(3, 5, K, seed)

    def ce(logits: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row, label in zip(logits, labels, strict=True):
            target = torch.full((K,), smoothing / K, dtype=torch.float64)
            target[label] += 1 - smoothing
            total = total - (target * (scale * row).log_softmax(0)).sum()
        return total / len(labels)

    steps = torch.stack(outputs, 1)  # [B, T, K]
    each = [ce(p) for p in outputs]
    distilled = SelfDistillation(alpha=0.7, beta=0.4, tau=2.0, final_alpha=0.9)
    kl = distilled([scale * p for p in outputs], labels)["kl"]
    with_both = {"smoothing": smoothing, "scale": scale}
    final = CrossEntropy(**with_both)(outputs, labels)["loss"].double()
    assert float(final) == pytest.approx(float(each[-1]), rel=1e-4, abs=1e-6)
    pairs = [
        (TET(pull=0.2, target=0.5, **with_both)([steps], labels)["loss"],
         0.8 * sum(each) / 3 + 0.2 * (scale * steps - 0.5).square().mean()),
        (replace(distilled, **with_both)(outputs, labels)["loss"], 0.7 * (each[0] + each[1]) + 0.9 * each[2] + 0.4 * kl),
    ]  # fmt: skip
    for own, by_hand in pairs:
        torch.testing.assert_close(own, by_hand, rtol=1e-9, atol=1e-9)
        gradients = (torch.autograd.grad(value, outputs, retain_graph=True) for value in (own, by_hand))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("make", [CrossEntropy, TET, SelfDistillation])
def test_smoothing_and_scale_out_of_range(make: Any) -> None:
    for fields, words in (
        ({"smoothing": 1.0}, "smoothing is 1.0"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": math.inf}, "scale is inf"),
    ):
        with pytest.raises(ValueError, match=f"{make.__name__}.{words}"):
            make(**fields)


# mixed samples: labels [B, K] -------------------------------------------------------------------------------------------

EVERY = [CrossEntropy(), CrossEntropy(0.1, 0.5), TET(0.2, smoothing=0.1), SelfDistillation(0.7, smoothing=0.1)]


@pytest.mark.parametrize("loss", EVERY, ids=repr)
def test_a_label_alone_is_a_weight_of_1(loss: Any) -> None:
    """Value, terms and gradient, in the type of the logits."""
    outputs, labels = some(3, 7, 5, 1)
    if loss.per_step:
        outputs = [torch.randn(7, 4, 5, dtype=torch.float64, requires_grad=True)]
    weights = F.one_hot(labels, 5).float()
    hard, soft = loss(outputs, labels), loss(outputs, weights)
    assert hard.keys() == soft.keys()
    for name in hard:
        assert torch.allclose(hard[name].double(), soft[name].double(), rtol=1e-6), name
    for a, b in zip(*(torch.autograd.grad(of["loss"], outputs[-1]) for of in (hard, soft)), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("loss", EVERY[:3], ids=repr)
def test_the_loss_of_a_mixed_label_is_the_mixture_of_losses(loss: Any) -> None:
    outputs, one = some(1, 6, 5, 2)
    if loss.per_step:
        outputs = [torch.randn(6, 4, 5, dtype=torch.float64)]
    other, share = (one + 2) % 5, 0.3
    mixed = share * F.one_hot(one, 5).double() + (1 - share) * F.one_hot(other, 5).double()
    both = share * loss(outputs, one)["loss"] + (1 - share) * loss(outputs, other)["loss"]
    assert torch.allclose(loss(outputs, mixed)["loss"].double(), both.double(), rtol=1e-6)


def test_right_on_a_mixed_sample_is_the_class_of_the_greatest_weight() -> None:
    """For the accuracies and for the reliable teacher of self-distillation."""
    weights = torch.tensor([[0.6, 0.4, 0.0], [0.4, 0.0, 0.6], [0.0, 0.5, 0.5], [0.45, 0.3, 0.25]])
    assert classes_of(weights).tolist() == [0, 2, 1, 0]
    says = F.one_hot(torch.tensor([[0, 2, 1, 0], [1, 0, 2, 0]]), 3).double() * 5  # the second output takes the lesser class
    outputs = list(says)
    named = {name: float(value) for name, value in accuracies(outputs, weights).items()}
    assert named == {"accuracy": 0.25, "accuracy/exit1": 1.0}
    teacher, reliable = reliable_teacher(says, weights)
    assert bool(reliable.all())
    assert torch.equal(teacher, torch.cat([says[0, :3], says.mean(0)[3:]]))
    terms = SelfDistillation()(outputs, weights)
    same = SelfDistillation()(outputs, classes_of(weights))
    assert float(terms["reliable"]) == 1 and torch.equal(terms["kl"], same["kl"])
    assert not torch.equal(terms["ce"], same["ce"])
