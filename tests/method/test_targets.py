"""Losses and metrics of other targets than classes, and the features of a network for heads outside."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikerate import BPTT, LIF, OTTT, SLTT, RateBP, resnet18
from spikerate.measure.metrics import exact_match, f1, mean_absolute_error, mean_iou, pixel_accuracy
from spikerate.models.features import Features
from spikerate.targets import MSE, BinaryCrossEntropy, PixelCrossEntropy, TargetLoss
from support.networks import gradients

IGNORED = 255


def pixels() -> tuple[Tensor, Tensor]:
    target = torch.randint(0, 3, (2, 5, 4))
    target[0, 0] = IGNORED
    return torch.randn(2, 3, 5, 4, dtype=torch.float64), target


def by_hand(loss: TargetLoss, output: Tensor, target: Tensor) -> float:
    total, n = 0.0, 0
    if isinstance(loss, PixelCrossEntropy):
        for b, h, w in target.ne(IGNORED).nonzero().tolist():
            scores = output[b, :, h, w]
            total, n = total - float(scores[target[b, h, w]] - scores.exp().sum().log()), n + 1
        return total / n
    for y, t in zip(output.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = torch.sigmoid(torch.tensor(y, dtype=torch.float64))
        entropy = float(-(t * p.log() + (1 - t) * (1 - p).log()))
        total, n = total + ((y - t) ** 2 if isinstance(loss, MSE) else entropy), n + 1
    return total / n


CASES: dict[str, tuple[TargetLoss, Any]] = {
    "regression": (MSE(), lambda: (torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64))),
    "labels": (BinaryCrossEntropy(), lambda: (torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3).round().double())),
    "pixels": (PixelCrossEntropy(), pixels),
}


@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_the_mean_of_what_each_value_gives(name: str) -> None:
    torch.manual_seed(0)
    loss, make = CASES[name]
    (output, target), (other, _) = make(), make()
    assert float(loss([output], target)["loss"]) == pytest.approx(by_hand(loss, output, target))
    both = (by_hand(loss, output, target) + by_hand(loss, other, target)) / 2
    assert float(loss([other, output], target)["loss"]) == pytest.approx(both)


@pytest.mark.parametrize("name", CASES)
def test_no_loss_waits_for_the_device(name: str) -> None:
    """On the meta device a value that is asked for is an error."""
    loss, make = CASES[name]
    output, target = (x.to("meta") for x in make())
    assert loss([output, output], target)["loss"].shape == ()


def test_a_class_that_would_be_ignored_is_refused() -> None:
    output, target = pixels()
    for ignore in (0, 2):
        with pytest.raises(ValueError, match=f"ignore is {ignore}, which is one of the 3 classes"):
            PixelCrossEntropy(ignore)([output], target)
        for metric in (pixel_accuracy, mean_iou):
            with pytest.raises(ValueError, match=f"ignores {ignore}, which is one of the 3 classes"):
                metric(output, target, ignore)
    with pytest.raises(ValueError, match=r"ignore is 255, which is one of the 300 classes .* such as 300"):
        PixelCrossEntropy()([torch.randn(2, 300, 5, 4)], target)


def test_gradients_reach_a_network_under_every_rule_and_agree_at_one_step() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), LIF(threshold=0.3), nn.ConvTranspose2d(4, 3, 1)).double()
    x, target = 2 * torch.randn(1, 2, 2, 5, 4, dtype=torch.float64), pixels()[1]
    wanted = gradients(net, PixelCrossEntropy()([BPTT()(net, x).rate], target)["loss"])
    assert all(bool(g.any()) for g in wanted.values())
    for rule in (RateBP(), SLTT(), OTTT()):
        found = gradients(net, PixelCrossEntropy()([rule(net, x).rate], target)["loss"])
        for key, g in wanted.items():
            torch.testing.assert_close(found[key], g)


@pytest.mark.parametrize(
    ("loss", "output", "target", "said"),
    [
        (MSE(), torch.rand(2, 3), torch.rand(2), r"MSE got outputs \[2, 3\] and a target \[2\]"),
        (MSE(), torch.rand(2, 3), torch.zeros(2, 3, dtype=torch.int64), "give floating point"),
        (BinaryCrossEntropy(), torch.rand(2, 3), torch.full((2, 3), 2.0), r"outside \[0, 1\]"),
        (PixelCrossEntropy(), torch.rand(2, 3, 4, 4), torch.zeros(2, 4, dtype=torch.int64), r"classes \[B, H, W\]"),
        (PixelCrossEntropy(), torch.rand(2, 3, 4, 4), torch.zeros(2, 4, 4), "int64"),
        (PixelCrossEntropy(), torch.rand(2, 3, 4, 4), torch.full((2, 4, 4), 3), "outside 0 to 2"),
        (PixelCrossEntropy(), torch.rand(2, 3, 4, 4), torch.full((2, 4, 4), IGNORED), "no class"),
    ],
)
def test_targets_that_do_not_fit_are_refused(loss: TargetLoss, output: Tensor, target: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loss([output], target)


def test_metrics_against_counting() -> None:
    torch.manual_seed(2)
    output, target = torch.randn(5, 4), torch.rand(5, 4).round()
    assert mean_absolute_error(output, target) == pytest.approx(float((output - target).abs().sum() / 20))
    pairs = [(y > 0, t == 1) for y, t in zip(output.flatten().tolist(), target.flatten().tolist(), strict=True)]
    hit, wrong = sum(y and t for y, t in pairs), sum(y != t for y, t in pairs)
    assert f1(output, target) == pytest.approx(2 * hit / (2 * hit + wrong))
    assert f1(-torch.ones(1, 2), torch.zeros(1, 2)) == 1
    rows = [all((y > 0) == (t == 1) for y, t in zip(a, b, strict=True)) for a, b in zip(output, target, strict=True)]
    assert exact_match(output, target) == pytest.approx(sum(rows) / 5)
    logits, classes = pixels()
    known = [(int(classes[i]), int(logits.argmax(1)[i])) for i in map(tuple, classes.ne(IGNORED).nonzero().tolist())]
    assert pixel_accuracy(logits, classes) == pytest.approx(sum(a == b for a, b in known) / len(known))
    ious = [sum(a == b == k for a, b in known) / sum(k in pair for pair in known) for k in range(3)]
    assert mean_iou(logits, classes) == pytest.approx(sum(ious) / 3)
    for metric in (mean_absolute_error, f1, exact_match):
        with pytest.raises(ValueError, match=f"{metric.__name__} got outputs"):
            metric(torch.rand(2, 3), torch.rand(2, 4))
    with pytest.raises(ValueError, match="no pixel that counts"):
        mean_iou(logits, torch.full_like(classes, IGNORED))
    with pytest.raises(ValueError, match="outside 0 to 2"):
        pixel_accuracy(logits, torch.full_like(classes, 3))
    with pytest.raises(ValueError, match="mean_iou got logits"):
        mean_iou(logits, classes[0])


@pytest.mark.parametrize("rule", [RateBP(), RateBP(chunk=1), BPTT(), SLTT()], ids=str)
def test_features_are_the_rates_of_stages_with_their_gradient(rule: Any) -> None:
    torch.manual_seed(3)
    network = resnet18(in_channels=2, width=2, activation=partial(LIF, threshold=0.3)).double()
    x = torch.randn(2, 3, 2, 16, 16, dtype=torch.float64)
    features = rule(Features(network, ["stage3", "stage1"]), x)
    assert {name: list(rate.shape) for name, rate in features.items()} == {"stage3": [3, 8, 4, 4], "stage1": [3, 2, 16, 16]}
    assert float(features["stage1"].detach().max()) <= 1
    sum(rate.square().sum() for rate in features.values()).backward()  # type: ignore[union-attr]
    reached = {name.split(".")[1] for name, p in network.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {"stage1", "stage2", "stage3"} <= reached and "stage4" not in reached


def test_a_stage_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no stage 'stage5': did you mean stage\d\?"):
        Features(resnet18(width=2), ["stage5"])
    with pytest.raises(ValueError, match="empty"):
        Features(resnet18(width=2), [])
