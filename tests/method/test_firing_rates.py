"""Firing rates of layers as a loss, and what is not finite and hidden by spikes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikerate import BPTT, LIF, OTTT, SLTT, CheckFinite, FiringRates, NotFinite, RateBP, RatePenalty, Sigmoid, spiking
from spikerate.measure.meter import Ledger, Meter, Tally
from support.networks import Functional, golden_branched, gradients, small_network

RULES = [BPTT(), BPTT(chunk=1), RateBP(), RateBP(chunk=1), RateBP(chunk=2), SLTT(chunk=1), OTTT()]


def some(T: int = 3) -> tuple[nn.Sequential, Tensor]:
    return small_network(lambda: LIF(0.5, threshold=0.4)).double().eval(), torch.rand(T, 4, 2, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rates_of_layers_are_those_of_the_network_that_ends_there(rule: Any) -> None:
    network, x = some()
    out, rates = FiringRates(rule)(network, x)
    plain = rule(network, x)
    assert torch.equal(out.steps, plain.steps) and type(out) is type(plain)
    assert list(rates) == ["2", "5"]
    weights = {path: torch.randn(rate.shape[1:], dtype=torch.float64) for path, rate in rates.items()}
    loss = out.rate.square().sum() + sum((rates[path] * weights[path]).sum() for path in rates)
    upto = {path: rule(network[: int(path) + 1], x).rate for path in rates}
    assert all(torch.allclose(rates[path], upto[path], atol=1e-12) for path in rates)
    expected = plain.rate.square().sum() + sum((upto[path] * weights[path]).sum() for path in rates)
    found, wanted = gradients(network, loss), gradients(network, expected)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-12) for name in wanted)
    assert found["0.weight"].abs().sum() > 0


@pytest.mark.parametrize("chunk", [None, 1])
def test_the_penalty_has_value_and_gradient_of_a_loop_by_hand(chunk: int | None) -> None:
    """Under BPTT autograd through the neuron's equation; under RateBP the equations of the paper."""
    torch.manual_seed(1)
    linear, x = nn.Linear(5, 6).double(), 2 * torch.rand(4, 3, 5, dtype=torch.float64)
    network, penalty = nn.Sequential(linear, LIF(0.5)), RatePenalty(target=0.3, weight=2.0)
    u, spikes, reach, gain = torch.zeros(3, 6).double(), [], 0.0, 0.0
    for t in range(4):
        v = 0.5 * u + linear(x[t])
        s = Sigmoid().spike(v - 1)
        reach = 1 + 0.5 * reach
        gain = gain + Sigmoid().slope(v - 1).detach() * reach / 4
        u = v - s.detach()
        spikes.append(s)
    rate = torch.stack(spikes).mean(0)
    loss = 2.0 * (rate.mean() - 0.3) ** 2
    by_rate = 4.0 * (rate.mean() - 0.3).detach() * (gain * linear(x.mean(0))).mean()
    for rule, expected in ((BPTT(chunk), loss), (RateBP(chunk), by_rate)):
        _, rates = FiringRates(rule)(network, x)
        terms = penalty(rates)
        assert torch.allclose(terms["loss"], loss) and torch.allclose(terms["firing_rate"], rate.mean())
        found = torch.autograd.grad(terms["loss"], list(linear.parameters()))
        wanted = torch.autograd.grad(expected, list(linear.parameters()), retain_graph=True)
        assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))
        assert found[0].abs().sum() > 0


def test_layers_are_chosen_by_their_path_and_shared_neurons_told_apart() -> None:
    network, x = golden_branched(), torch.rand(2, 2, 3, 8, 8)
    _, rates = FiringRates(RateBP(), ("body.stages.layer1", "body.stem.2"))(network, x)
    assert list(rates) == ["body.stem.2", "body.stages.layer1.lif1", "body.stages.layer1.lif2"]
    out, _ = FiringRates(RateBP())(network, x)
    assert len(out.exits) == 2
    shared = nn.ReLU()
    twice = spiking(nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 4), shared))
    for chunk in (None, 1):
        _, rates = FiringRates(BPTT(chunk))(twice, torch.rand(3, 2, 3))
        assert {path: list(rate.shape) for path, rate in rates.items()} == {"1": [2, 3], "1, call 2": [2, 4]}
    with pytest.raises(
        ValueError, match=r"^FiringRates.layers has 'stage9', where there is no neuron: neurons are at \['1'\]"
    ):
        FiringRates(BPTT(), ("stage9",))(twice, torch.rand(3, 2, 3))


def test_training_with_a_penalty_reaches_the_target() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(8, 16), LIF(), nn.Linear(16, 2)), torch.rand(1, 32, 8).expand(4, 32, 8)
    optimizer, penalty = torch.optim.SGD(network.parameters(), lr=0.5), RatePenalty(target=0.25)
    for _ in range(60):
        terms = penalty(FiringRates(RateBP())(network, x)[1])
        terms["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(terms["firing_rate"].detach()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(("arguments", "words"), [({"target": -0.1}, "target is -0.1"), ({"weight": -1}, "weight is -1")])
def test_penalties_out_of_range(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=f"RatePenalty.{words}: give a number from 0"):
        RatePenalty(**arguments)
    with pytest.raises(ValueError, match="got no firing rates"):
        RatePenalty()({})


# what is not finite -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["0.weight", "1.bias", "1.running_var", "3.weight", "8.weight"])
def test_a_broken_number_of_the_network_is_said_with_its_layer(broken: str) -> None:
    network, x = some()
    network.state_dict()[broken].flatten()[0] = torch.nan
    for rule in (BPTT(), RateBP(chunk=1), Meter(Ledger(), Tally.of(network))):
        if broken == "0.weight":
            assert rule(network, x).train.isfinite().all(), "hidden without the check"
        layer, _, name = broken.partition(".")
        with pytest.raises(NotFinite, match=rf"the first is in the output of {layer} \(\w+\), whose {name} is not finite"):
            CheckFinite(rule)(network, x)


def test_a_broken_pixel_is_said() -> None:
    network, x = some()
    x[1, 2, 0, 3, 3] = torch.nan
    with pytest.raises(NotFinite, match=r"in the output of 0 \(Conv2d\), whose input is not finite already"):
        CheckFinite(BPTT())(network, x)
    with pytest.raises(NotFinite, match=r"the first is at a neuron that is no module of the network\. "):
        CheckFinite(BPTT())(Functional(lambda s: LIF()(s).flatten(1)), x)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_check_changes_nothing_where_all_is_finite(rule: Any) -> None:
    network, x = some()
    plain, checked = rule(network, x), CheckFinite(rule)(network, x)
    assert torch.equal(plain.steps, checked.steps) and type(plain) is type(checked)
    found, wanted = (gradients(network, y.rate.square().sum()) for y in (checked, plain))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
