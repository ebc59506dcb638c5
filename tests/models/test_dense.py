"""Fully connected networks: against loops, and what they take."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from spikerate import BPTT, LIF, OTTT, SLTT, RateBP, Recurrent, Staged, macs, mlp, recurrent_mlp
from spikerate.models.fold import fold_batch_norm
from spikerate.models.staged import stage_shapes
from spikerate.runs.config import Model, Neuron, Run
from spikerate.runs.kinds import with_kinds
from support.networks import gradients

MAKERS = [mlp, recurrent_mlp]
SOUND = (1, 1, 700)


def settled(make: Any, **sizes: int) -> tuple[Staged, torch.Tensor]:
    """A network in evaluation mode whose running statistics let it fire, and an input [T, B, 12]."""
    network = make(3, 12, 5, partial(LIF, decay=0.7, threshold=0.4), **sizes).double()
    x = torch.poisson(torch.full((6, 4, 12), 0.7)).double()
    with torch.no_grad():
        for _ in range(20):
            BPTT()(network, x)
    return network.eval(), x


@pytest.mark.parametrize("make", MAKERS)
def test_a_network_is_what_a_loop_over_steps_computes(make: Any) -> None:
    network, x = settled(make, depth=2)
    out = BPTT()(network, x)
    state: dict[str, Any] = {}
    logits = []
    for step in x:
        y = step
        for name, stage in network.stages.items():
            linear, norm, last = stage  # type: ignore[misc]
            current = norm(linear(y))
            v, fired = state.get(name, (torch.zeros(4, 5).double(), torch.zeros(4, 5).double()))
            if isinstance(last, Recurrent):
                current = current + fired @ last.layer.weight.T
            v = 0.7 * v + current
            y = (v >= 0.4).double()
            state[name] = v - 0.4 * y, y
        logits.append(network.head(y))
    assert 0 < sum(float(fired.sum()) for _, fired in state.values()) < 40
    torch.testing.assert_close(out.steps, torch.stack(logits))


@pytest.mark.parametrize("make", MAKERS)
def test_samples_have_any_shape_and_know_nothing_of_each_other(make: Any) -> None:
    network, x = settled(make)
    whole = BPTT()(network, x).steps
    torch.testing.assert_close(BPTT()(network, x.view(6, 4, 1, 3, 4)).steps, whole)
    torch.testing.assert_close(BPTT()(network, x[:, 2:3]).steps, whole[:, 2:3])
    torch.testing.assert_close(BPTT(chunk=1)(network, x).steps, whole)


def test_mlp_learns_the_same_by_rates_as_through_time_at_one_step() -> None:
    network, x = settled(mlp)
    weights = torch.randn(4, 3).double()
    both = [gradients(network, (rule(network, x[:1]).rate * weights).sum()) for rule in (BPTT(), RateBP())]
    for name, gradient in both[0].items():
        torch.testing.assert_close(both[1][name], gradient)
    assert all(float(g.abs().sum()) > 0 for g in both[0].values())


@pytest.mark.parametrize("rule", [BPTT(), SLTT(), OTTT(decay=0.7)])
def test_all_of_a_recurrent_network_learns(rule: Any) -> None:
    network, x = settled(recurrent_mlp)
    network.train()
    rule(network, x).steps.square().mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in network.parameters())


@pytest.mark.parametrize("make", MAKERS)
def test_operations_are_counted_and_batch_norm_is_folded(make: Any) -> None:
    network, x = settled(make)
    back = 25 * (make is recurrent_mlp)
    depth = 2 - (make is recurrent_mlp)
    found = macs(network, (1, 1, 12))
    assert list(found) == ["stem", *(f"stage{k + 1}" for k in range(depth)), "head"]
    assert sum(found.values()) == 12 * 5 + 25 * (depth - 1) + back + 15
    assert stage_shapes(network, (1, 1, 12)) == [(1, 5)] * depth
    folded = fold_batch_norm(network)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in folded.modules())
    torch.testing.assert_close(BPTT()(folded, x).steps, BPTT()(network, x).steps)


def test_rates_refuse_what_comes_back_before_a_run_begins() -> None:
    network, x = settled(recurrent_mlp)
    with pytest.raises(TypeError, match="Recurrent has no gradient through firing rates"):
        RateBP()(network, x)
    with pytest.raises(ValueError, match="rule is RateBP, and the spikes of recurrent come back to its neurons"):
        with_kinds(Run(), {"--network": "recurrent"})
    assert with_kinds(Run(), {"--network": "recurrent", "--rule": "bptt"}).rule == BPTT()


def test_the_settings_make_a_network_for_all_values_of_a_sample() -> None:
    for name, hidden in (("mlp", 2), ("recurrent", 1)):
        network = Model(name, 8).build(20, SOUND, Neuron())
        assert network.stages["stage1"][0].weight.shape == (8, 700)  # type: ignore[index,union-attr]
        assert len(network.stages) == hidden
        assert len(Model(name, 8, depth=3).build(10, (3, 4, 4), Neuron()).stages) == 3
    for wrong in ("width", "depth", "in_features", "num_classes"):
        with pytest.raises(ValueError, match=f"{wrong} is 0"):
            mlp(**{wrong: 0})
    with pytest.raises(TypeError, match=r"Recurrent.neuron is a ReLU"):
        recurrent_mlp(activation="relu")
