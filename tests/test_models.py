"""Networks: published sizes, shapes, branches, and the same names as an ANN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from spikerate import BPTT, LIF, Branched, RateBP, Staged, deepconv_branches, resnet18, resnet19
from spikerate.models import stage_shapes


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    body = resnet18()
    assert parameters(body) == 11_173_962
    assert parameters(*deepconv_branches(body, (3, 32, 32), 10).values()) == 1_213_214


@pytest.mark.parametrize("make", [resnet18, resnet19])
@pytest.mark.parametrize("size", [8, 17, 32])
def test_width_channels_classes_and_size_are_free(make: Any, size: int) -> None:
    network = make(num_classes=7, in_channels=2, width=3)
    x = torch.rand(2, 4, 2, size, size)
    assert BPTT()(network, x).steps.shape == (2, 4, 7)


@pytest.mark.parametrize("make", [resnet18, resnet19])
def test_an_ann_has_the_same_parameter_names(make: Any) -> None:
    ann, snn = make(width=4, activation="relu"), make(width=4)
    assert list(ann.state_dict()) == list(snn.state_dict())
    ann.load_state_dict(snn.state_dict())
    assert ann(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    assert not any(isinstance(m, LIF) for m in ann.modules())
    assert list(make(width=4, activation=nn.ReLU).state_dict()) == list(ann.state_dict())


def test_resnet19_has_its_blocks_and_its_hidden_layer() -> None:
    body = resnet19(width=4)
    assert [len(stage) for stage in body.stages.values()] == [3, 3, 2]  # type: ignore[arg-type]
    assert [type(m).__name__ for m in body.head] == ["AdaptiveAvgPool2d", "Flatten", "Linear", "LIF", "Linear"]  # type: ignore[union-attr]
    assert [len(b) - 3 for b in deepconv_branches(body, (3, 32, 32), 10).values()] == [2, 1]  # type: ignore[arg-type]


def test_stage_shapes_leave_the_network_alone() -> None:
    body = resnet18(width=4)
    before = {k: v.clone() for k, v in body.state_dict().items()}
    assert [s[1:] for s in stage_shapes(body, (3, 33, 20))] == [(4, 33, 20), (8, 17, 10), (16, 9, 5), (32, 5, 3)]
    assert all(torch.equal(before[k], v) for k, v in body.state_dict().items())


def any_staged() -> Staged:
    """A network that is not ours: odd channels, a pool, stages without a stride."""
    stages = {
        "a": nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), LIF()),
        "b": nn.Sequential(nn.Conv2d(5, 7, 1), nn.BatchNorm2d(7), LIF(), nn.MaxPool2d(2)),
        "c": nn.Sequential(nn.Conv2d(7, 6, 3, 2), nn.BatchNorm2d(6), LIF()),
    }
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    return Staged(nn.Conv2d(1, 4, 1), stages, head)


@pytest.mark.parametrize("rule", [RateBP(), RateBP(chunk=1), RateBP(chunk=2), BPTT(), BPTT(chunk=1)], ids=str)
def test_branches_of_any_staged_network(rule: Any) -> None:
    body = any_staged()
    network = Branched(body, deepconv_branches(body, (1, 12, 12), 4))
    x = torch.rand(3, 2, 1, 12, 12)
    out = rule(network, x)
    assert [e.shape for e in out.exits] == [(2, 4), (2, 4)]
    sum(e.square().sum() for e in out.exits).backward()
    stem = body.stem.weight
    assert stem.grad is not None and stem.grad.abs().sum() > 0, "a branch's loss trains the body"  # type: ignore[union-attr]
    network.eval()
    plain = rule(body.eval(), x)
    assert rule(network, x).exits == ()
    assert torch.equal(rule(network, x).steps, plain.steps)


def test_branches_see_the_rate_over_all_chunks() -> None:
    body = any_staged().eval()
    x = torch.rand(5, 2, 1, 12, 12)
    whole = Branched(body, {"a": nn.Flatten()})
    whole.training = True
    expected = BPTT()(whole, x).exits[0]
    for rule in (RateBP(), RateBP(chunk=2), BPTT(chunk=2), BPTT(chunk=1)):
        assert torch.allclose(rule(whole, x).exits[0], expected)


def test_what_can_not_be_branched() -> None:
    body = any_staged()
    with pytest.raises(ValueError, match=r"branches at \['z'\], but the stages are \['a', 'b', 'c'\]"):
        Branched(body, {"z": nn.Identity()})
    with pytest.raises(ValueError, match="give at least two"):
        deepconv_branches(Staged(nn.Identity(), {"a": LIF()}, nn.Flatten()), (1, 4, 4), 2)
    with pytest.raises(ValueError, match=r"need \[B, C, H, W\]"):
        deepconv_branches(Staged(nn.Flatten(), {"a": LIF(), "b": LIF()}, nn.Identity()), (1, 4, 4), 2)
    with pytest.raises(ValueError, match="no stages"):
        Staged(nn.Identity(), {}, nn.Identity())


@pytest.mark.parametrize(("field", "value"), [("width", 0), ("num_classes", 0), ("in_channels", -1)])
def test_sizes_out_of_range(field: str, value: int) -> None:
    for make in (resnet18, resnet19):
        with pytest.raises(ValueError, match=f"{field} is {value}"):
            make(**{field: value})
    with pytest.raises(ValueError, match="activation is 'gelu'"):
        resnet18(width=2, activation="gelu")  # type: ignore[arg-type]


def test_branches_train_under_autocast() -> None:
    body = any_staged()
    network = Branched(body, deepconv_branches(body, (1, 12, 12), 4))
    with torch.autocast("cpu", torch.bfloat16):
        out = RateBP()(network, torch.rand(3, 2, 1, 12, 12))
    sum(e.float().sum() for e in out.exits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.branches.parameters())
