"""The online rules and the loss at every step, against their equations written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikerate import BPTT, LIF, OTTT, SLTT, TET, CrossEntropy, RateBP, resnet18
from support.networks import gradients, small_network

RULES: list[Any] = [SLTT(), SLTT(chunk=1), OTTT(), OTTT(chunk=2)]


def two_layers(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), LIF(), nn.Linear(5, 4), LIF(), nn.Linear(4, 3)).to(dtype)


def by_hand(network: nn.Sequential, x: Tensor, grad_out: Tensor, traced: bool) -> dict[str, Tensor]:
    """The sums over time of the equations, step by step: x [T, B, I], grad_out [T, B, K]."""
    layers = [network[0], network[2], network[4]]
    lif: Any = network[1]
    membranes: list[Any] = [0.0, 0.0]
    traces: list[Any] = [0.0, 0.0, 0.0]
    grads = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for t in range(len(x)):
        inputs, slopes = [x[t]], []
        for k in range(2):
            v = lif.decay * membranes[k] + layers[k](inputs[-1]).detach()
            s = (v >= lif.threshold).double()
            slopes.append(lif.surrogate.slope(v - lif.threshold))
            membranes[k] = v - lif.threshold * s
            inputs.append(s)
        traces = [lif.decay * a + i for a, i in zip(traces, inputs, strict=True)]
        g = grad_out[t]
        for k in (2, 1, 0):
            grads[f"{2 * k}.weight"] += g.T @ (traces[k] if traced else inputs[k])
            grads[f"{2 * k}.bias"] += g.sum(0)
            if k:
                g = (g @ layers[k].weight.detach()) * slopes[k - 1]
    return grads


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("static", [True, False])
def test_the_gradient_is_that_of_the_equations(rule: Any, static: bool) -> None:
    network, T = two_layers(), 5
    x = 3 * torch.rand(T, 4, 6, dtype=torch.float64)
    if static:
        x = x[:1].expand(T, 4, 6)
    out = rule(network, x)
    assert torch.equal(out.steps, BPTT()(network, x).steps)
    assert 0 < float(BPTT()(network[:2], x).rate.detach().mean()) < 1
    weights = torch.rand(T, 4, 3, dtype=torch.float64)
    found = gradients(network, (out.steps * weights).sum())
    expected = by_hand(network, x, weights, isinstance(rule, OTTT))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_at_one_step_it_is_backpropagation(rule: Any) -> None:
    network = small_network().double()
    x = torch.rand(1, 3, 2, 6, 6, dtype=torch.float64)
    labels = torch.arange(3)
    one, other = (gradients(network, F.cross_entropy(r(network, x).rate, labels)) for r in (rule, BPTT()))
    for name in one:
        torch.testing.assert_close(one[name], other[name])


@pytest.mark.parametrize("rule", [SLTT(), OTTT()], ids=str)
def test_real_networks_learn_from_it(rule: Any) -> None:
    network = resnet18(width=2)
    x = torch.rand(4, 3, 32, 32).expand(2, 4, 3, 32, 32)
    torch.testing.assert_close(rule(network.eval(), x).steps, BPTT()(network, x).steps)
    loss = F.cross_entropy(rule(network.train(), x).rate, torch.arange(4))
    assert all(bool(g.isfinite().all()) and float(g.abs().max()) > 0 for g in gradients(network, loss).values())


def test_online_rules_are_checked() -> None:
    with pytest.raises(ValueError, match=r"OTTT\.decay"):
        OTTT(decay=0)
    for rule in (SLTT, OTTT):
        with pytest.raises(ValueError, match="chunk"):
            rule(chunk=0)


def test_tet_is_the_mean_cross_entropy_of_the_steps() -> None:
    logits, labels = torch.randn(5, 4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    terms = TET()([logits], labels)
    expected = torch.stack([F.cross_entropy(logits[:, t], labels) for t in range(4)]).mean()
    torch.testing.assert_close(terms["loss"], expected)
    pulled = TET(pull=0.25, target=0.5)([logits], labels)
    torch.testing.assert_close(pulled["ce"], expected)
    torch.testing.assert_close(pulled["loss"], 0.75 * expected + 0.25 * (logits - 0.5).square().mean())
    torch.testing.assert_close(
        TET()([logits[:, :1]], labels)["loss"], CrossEntropy()([logits[:, 0]], labels)["loss"].double()
    )
    with pytest.raises(ValueError, match="pull"):
        TET(pull=1)
    assert TET.per_step
    assert not CrossEntropy.per_step


def test_rate_based_steps_have_no_gradient_for_tet() -> None:
    network = small_network()
    out = RateBP()(network, torch.rand(2, 3, 2, 6, 6))
    with pytest.warns(UserWarning, match="a loss uses the steps"):
        found = gradients(network, TET()([out.steps.transpose(0, 1)], torch.arange(3))["loss"])
    assert not any(gradient.any() for gradient in found.values())
