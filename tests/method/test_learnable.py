"""Neurons with a learned decay: the gradient of it under every rule, against autograd of the written-out equation."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikerate import BPTT, LIF, OTTT, PLIF, SLTT, RateBP, Recurrent, Sigmoid
from spikerate.exchange.nir import to_nir
from spikerate.exchange.spikingjelly import to_spikingjelly
from spikerate.runs.optim import AdamW
from support.networks import gradients

RESETS: list[dict[str, Any]] = [
    {"v_reset": v_reset, "detach_reset": detach} for v_reset, detach in itertools.product([None, 0.0, -0.3], [True, False])
]


def currents(T: int = 5) -> Tensor:
    return torch.randn(T, 3, 7, dtype=torch.float64) + 0.6


def network(**neuron: Any) -> nn.Sequential:
    make = partial(PLIF, **neuron)
    return nn.Sequential(nn.Linear(7, 6), make(0.7), nn.Linear(6, 5), make(0.4), nn.Linear(5, 2)).double()


def test_it_fires_as_a_lif_of_its_decay_and_stays_in_range() -> None:
    neuron, x = PLIF(0.3).double(), currents()
    assert float(neuron.decay.detach()) == pytest.approx(0.3)
    assert torch.equal(neuron.spikes(x), LIF(float(neuron.decay.detach())).spikes(x))
    with torch.no_grad():
        for w in (-50.0, 50.0):
            neuron.w.fill_(w)
            assert 0 <= float(neuron.decay) <= 1
    for decay in (0, 1, -0.1, 2):
        with pytest.raises(ValueError, match=f"PLIF.decay is {decay}|LIF.decay is"):
            PLIF(decay)
    with pytest.raises(ValueError, match=r"LIF\.other"):
        neuron.other = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("reset", RESETS, ids=str)
def test_bptts_gradient_is_that_of_the_written_out_equation(reset: dict[str, Any]) -> None:
    torch.manual_seed(0)
    neuron, x, surrogate = PLIF(0.6, **reset).double(), currents(), Sigmoid()
    probe = torch.randn_like(x)
    (found,) = torch.autograd.grad((neuron.unroll(x, None)[0] * probe).sum(), neuron.w)
    w = neuron.w.detach().clone().requires_grad_()
    u, loss = torch.zeros_like(x[0]), torch.zeros((), dtype=torch.float64)
    for current, g in zip(x, probe, strict=True):
        v = torch.sigmoid(w) * u + current
        s = surrogate.spike(v - 1)
        kept = s.detach() if reset["detach_reset"] else s
        u = v - kept if reset["v_reset"] is None else v * (1 - kept) + reset["v_reset"] * kept
        loss = loss + (s * g).sum()
    torch.testing.assert_close(found, torch.autograd.grad(loss, w)[0])


@pytest.mark.parametrize("reset", RESETS, ids=str)
def test_the_trace_has_what_the_decay_and_a_constant_current_move(reset: dict[str, Any]) -> None:
    """Each sum of the trace is the derivative of the summed spikes, which autograd takes through every step."""
    torch.manual_seed(1)
    neuron, x = PLIF(0.6, **reset).double(), currents()
    _, (*_, moved, count, gain) = neuron.trace(x, None)
    more = torch.zeros_like(x[0]).requires_grad_()
    spikes, _ = neuron.unroll(x + more, None)
    torch.testing.assert_close(count, spikes.detach().sum(0))
    torch.testing.assert_close(gain, torch.autograd.grad(spikes.sum(), more, retain_graph=True)[0])
    for at in itertools.product(range(3), range(7)):
        (one,) = torch.autograd.grad(spikes.sum(0)[at], neuron.w, retain_graph=True)
        torch.testing.assert_close(moved[at], one)


def test_under_ratebp_one_layer_has_bptts_gradient_for_a_constant_input() -> None:
    """The rate of a layer whose input is constant is a function of decay and current: its gradient is exact."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(7, 6), PLIF(0.7), nn.Linear(6, 2)).double()
    x = currents(1).expand(6, -1, -1)
    rate, bptt = (gradients(net, rule(net, x).rate.square().sum()) for rule in (RateBP(), BPTT()))
    assert abs(float(bptt["1.w"])) > 0
    for key, value in bptt.items():
        torch.testing.assert_close(rate[key], value)


@pytest.mark.parametrize("rule", [RateBP(), SLTT(), OTTT(decay=0.7), BPTT(checkpoint=True)], ids=str)
def test_at_one_step_every_rule_is_backpropagation(rule: Any) -> None:
    torch.manual_seed(3)
    net, x = network(), currents(1)
    wanted = gradients(net, BPTT()(net, x).rate.square().sum())
    for key, value in gradients(net, rule(net, x).rate.square().sum()).items():
        torch.testing.assert_close(value, wanted[key])
    assert float(wanted["1.w"]) == 0


def test_checkpoints_keep_the_gradient_of_the_decay() -> None:
    torch.manual_seed(4)
    net, x = network(), currents()
    whole, again = (gradients(net, rule(net, x).rate.square().sum()) for rule in (BPTT(), BPTT(checkpoint=True)))
    for key, value in whole.items():
        torch.testing.assert_close(again[key], value)
    assert float(whole["1.w"]) != 0


@pytest.mark.parametrize("kind", [RateBP, SLTT, BPTT])
def test_chunks_have_the_gradient_of_the_whole(kind: Any) -> None:
    torch.manual_seed(5)
    net, x = network(), currents()
    whole, parts = (gradients(net, rule(net, x).rate.square().sum()) for rule in (kind(), kind(chunk=2)))
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value)
    assert float(whole["3.w"]) != 0


@pytest.mark.parametrize("rule", [RateBP(), SLTT(), BPTT()], ids=str)
def test_a_stream_goes_on_from_the_membranes(rule: Any) -> None:
    net, x = network(), currents()
    state, steps = None, []
    for window in x.split(2):
        out, state = rule.continued(net, window, state)
        steps.append(out.train.detach())
    torch.testing.assert_close(torch.cat(steps), rule(net, x).train.detach())


def test_sltt_takes_the_membrane_before_as_a_constant() -> None:
    torch.manual_seed(6)
    neuron, x = PLIF(0.6).double(), currents()
    probe = torch.randn_like(x)
    (found,) = torch.autograd.grad((SLTT()(neuron, x).steps * probe).sum(), neuron.w)
    u, expected, decay = torch.zeros_like(x[0]), 0.0, float(neuron.decay.detach())
    for current, g in zip(x, probe, strict=True):
        v = decay * u + current
        expected += float((Sigmoid().slope(v - 1) * u * decay * (1 - decay) * g).sum())
        u = v - (v >= 1).double()
    assert float(found) == pytest.approx(expected)


def test_it_learns_without_weight_decay() -> None:
    torch.manual_seed(7)
    net, x = network(), currents()
    (optimizer,) = AdamW(lr=0.05, weight_decay=0.5).build(net)
    group = next(g for g in optimizer.param_groups if any(p is net[1].w for p in g["params"]))
    assert group["weight_decay"] == 0
    before, losses = float(net[1].w.detach()), []
    for _ in range(20):
        loss = (RateBP()(net, x).rate - 1).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] and float(net[1].w.detach()) != before


def test_other_libraries_get_the_decay_as_it_is() -> None:
    pytest.importorskip("spikingjelly")
    pytest.importorskip("nir")
    net, x = network(v_reset=0.0), currents().float()
    their = to_spikingjelly(net.float())
    from spikingjelly.activation_based import functional

    with torch.no_grad():
        torch.testing.assert_close(functional.multi_step_forward(x, their), BPTT()(net, x).steps)
    graph = to_nir(net, (7,))
    (tau,) = {float(t) for t in next(n for n in graph.nodes.values() if type(n).__name__ == "LIF").tau.flat}
    assert tau == pytest.approx(1e-4 / (1 - float(net[1].decay.detach())), rel=1e-5)


def test_where_a_recurrent_layer_would_not_learn_its_decay_it_is_refused() -> None:
    net = Recurrent(nn.Linear(7, 7), PLIF(0.6)).double()
    (found,) = torch.autograd.grad(BPTT()(net, currents()).rate.square().sum(), net.neuron.w)  # type: ignore[arg-type]
    assert float(found) != 0
    for rule in (SLTT(), OTTT()):
        with pytest.raises(TypeError, match="Recurrent has PLIF as its neuron, whose parameter would get no gradient"):
            rule(net, currents())
