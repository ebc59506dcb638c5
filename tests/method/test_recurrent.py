"""Recurrent neurons: values and gradients by each rule against slow loops, and where they are refused."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikerate import BPTT, LIF, OTTT, SLTT, RateBP, Recurrent, Sigmoid, StepNeuron, record
from spikerate.exchange.neurobench import neurobench_model
from spikerate.exchange.nir import to_nir
from spikerate.exchange.spikingjelly import to_spikingjelly
from spikerate.gradients.finite_difference import Elements, derivatives, rate_loss
from spikerate.measure.meter import Ledger, Meter, Tally
from support.networks import gradients

RULES: list[Any] = [BPTT(), BPTT(chunk=2), BPTT(checkpoint=True), SLTT(), SLTT(chunk=1), OTTT(), OTTT(chunk=2, decay=0.6)]
DECAY, THRESHOLD = 0.6, 0.3


def network() -> nn.Sequential:
    """[B, 6] -> [B, 3], two recurrent layers."""

    def recurrent(n: int) -> Recurrent:
        layer = nn.Linear(n, n)
        with torch.no_grad():
            layer.weight.mul_(2)
        return Recurrent(layer, LIF(DECAY, threshold=THRESHOLD))

    return nn.Sequential(nn.Linear(6, 5), recurrent(5), nn.Linear(5, 4), recurrent(4), nn.Linear(4, 3)).double()


def some(T: int = 5) -> tuple[nn.Sequential, Tensor]:
    return network(), 3 * torch.rand(T, 4, 6, dtype=torch.float64)


def by_loop(network: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and spikes of the first recurrent layer, step by step; its graph is backpropagation through time."""
    u: list[Any] = [0.0, 0.0]
    s = [torch.zeros(x.shape[1], n, dtype=x.dtype) for n in (5, 4)]
    outputs, first = [], []
    for current in x:
        for k in range(2):
            layer: Any = network[2 * k + 1].layer
            v = DECAY * u[k] + network[2 * k](current) + s[k] @ layer.weight.T + layer.bias
            s[k] = Sigmoid().spike(v - THRESHOLD)
            u[k] = v - THRESHOLD * s[k].detach()
            current = s[k]
        outputs.append(network[4](current))
        first.append(s[0])
    return torch.stack(outputs), torch.stack(first)


def online(network: nn.Sequential, x: Tensor, grad_out: Tensor, decay: float | None) -> dict[str, Tensor]:
    """The sums of SLTT's equations (no decay), or OTTT's: g[t] of the layers only, times input or trace at each weight."""
    layers: list[Any] = [network[0], network[2], network[4]]
    backs: list[Any] = [network[1].layer, network[3].layer]  # type: ignore[union-attr]
    grads = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    u: list[Any] = [0.0, 0.0]
    s = [torch.zeros(x.shape[1], n, dtype=x.dtype) for n in (5, 4)]
    traces: dict[str, Any] = dict.fromkeys(("0", "2", "4", "1.layer", "3.layer"), 0.0)
    with torch.no_grad():
        for t, current in enumerate(x):
            inputs, slopes = {}, []
            for k in range(2):
                inputs[f"{2 * k}"], inputs[f"{2 * k + 1}.layer"] = current, s[k]
                v = DECAY * u[k] + layers[k](current) + backs[k](s[k])
                slopes.append(Sigmoid().slope(v - THRESHOLD))
                current = s[k] = (v >= THRESHOLD).double()
                u[k] = v - THRESHOLD * s[k]
            inputs["4"] = current
            traces = {name: (0 if decay is None else decay) * traces[name] + given for name, given in inputs.items()}
            g = grad_out[t]
            for k in (2, 1, 0):
                for name in (f"{2 * k}",) if k == 2 else (f"{2 * k}", f"{2 * k + 1}.layer"):
                    at = g if k == 2 else g * slopes[k]
                    grads[f"{name}.weight"] += at.T @ traces[name]
                    grads[f"{name}.bias"] += at.sum(0)
                g = (g if k == 2 else g * slopes[k]) @ layers[k].weight
    return grads


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("static", [True, False])
def test_values_and_gradients_are_those_of_slow_loops(rule: Any, static: bool) -> None:
    torch.manual_seed(4)
    net, x = some()
    x = x[:1].expand(x.shape) if static else x
    weights = torch.randn(5, 4, 3, dtype=torch.float64)
    steps, first = by_loop(net, x)
    assert 0.1 < float(first.detach().mean()) < 0.9 and not torch.equal(first[0], first[1])
    out = rule(net, x)
    torch.testing.assert_close(out.steps.detach(), steps.detach())
    with torch.no_grad():
        torch.testing.assert_close(rule(net, x).steps, steps)
    found = gradients(net, (out.steps * weights).sum())
    if isinstance(rule, BPTT):
        wanted = gradients(net, (steps * weights).sum())
    else:
        wanted = online(net, x, weights, rule.decay if isinstance(rule, OTTT) else None)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])
        assert found[name].abs().max() > 0, name


def test_gradcheck_with_the_primitive_as_spike() -> None:
    class Smooth(Sigmoid):
        def spike(self, x: Tensor) -> Tensor:
            return self.primitive(x)

    neuron = Recurrent(nn.Linear(3, 3).double(), LIF(0.7, detach_reset=False, surrogate=Smooth()))
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    weight = neuron.layer.weight
    assert torch.autograd.gradcheck(lambda x, w: neuron.unroll(x, None)[0], (x, weight))


@pytest.mark.parametrize("rule", [BPTT(), BPTT(chunk=2), SLTT(), OTTT(), OTTT(chunk=1)], ids=str)
def test_streams_go_on_with_the_spikes_that_come_back(rule: Any) -> None:
    net, x = some(7)
    state, outs = None, []
    with record(net, "1") as recorded:
        for part in x.split(3):
            out, state = rule.continued(recorded, part, state)
            outs.append(out.steps)
    steps, first = by_loop(net, x)
    torch.testing.assert_close(torch.cat(outs).detach(), steps.detach())
    assert torch.equal(recorded["1"].spikes, first.detach())
    assert state is not None and {"1", "3"} <= state.keys()
    u, s = recorded["1"].membranes
    assert torch.equal(s, first.detach()) and torch.equal(u[-1], state["1"][0]) and torch.equal(s[-1], state["1"][1])


def test_images_come_back_through_a_convolution() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    net = nn.Sequential(Recurrent(conv, LIF(0.5, threshold=0.4)), nn.Flatten(), nn.Linear(48, 2)).double()
    x = torch.rand(4, 2, 3, 4, 4, dtype=torch.float64)
    spikes, u, s = [], torch.zeros(2, 3, 4, 4).double(), torch.zeros(2, 3, 4, 4).double()
    for current in x:
        v = 0.5 * u + current + conv(s)
        s = Sigmoid().spike(v - 0.4)
        u = v - 0.4 * s.detach()
        spikes.append(s)
    wanted = gradients(net, net[2](torch.stack(spikes).mean(0).flatten(1)).square().sum())
    for rule in (BPTT(), SLTT(), OTTT()):
        out = rule(net, x)
        assert torch.equal(BPTT()(net[:1], x).steps, torch.stack(spikes))
        found = gradients(net, out.rate.square().sum())
        torch.testing.assert_close(found["2.weight"], wanted["2.weight"]) if not isinstance(rule, OTTT) else None
        assert found["0.layer.weight"].abs().sum() > 0


def test_under_autocast_the_layer_learns_too() -> None:
    net, x = some()
    net, x = net.float(), x.float()
    for rule in (BPTT(), SLTT(), OTTT()):
        with torch.autocast("cpu", torch.bfloat16):
            out = rule(net, x)
        found = gradients(net, out.rate.float().square().sum())
        assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in found.values())


def test_its_operations_are_counted() -> None:
    net, x = some()
    ledger, tally = Ledger(), Tally.of(net)
    with torch.no_grad():
        Meter(ledger, tally)(net, x)
    _, first = by_loop(net, x)
    operations = tally.energy(4, 5).layers
    assert operations["1.layer"].acs == pytest.approx(5 * float(first[:-1].detach().sum()) / 4)
    assert set(ledger.rates(net)) == {"1", "3"} and ledger.rates(net)["1"] == pytest.approx(float(first.detach().mean()))


def test_what_can_not_come_back_is_refused() -> None:
    class Own(StepNeuron):
        def step(self, current: Tensor, state: Any) -> tuple[Tensor, Tensor]:
            v = current if state is None else 0.5 * state + current
            return Sigmoid().spike(v - 1), v

    net, x = some()
    for rule in (RateBP(), RateBP(chunk=1)):
        with pytest.raises(TypeError, match=r"^Recurrent has no gradient through firing rates.*by BPTT\(\), SLTT\(\)"):
            rule(net, x)
    for part in (nn.BatchNorm1d(5), nn.Dropout(), LIF(), Own()):
        with pytest.raises(ValueError, match=f"^Recurrent.layer has a {type(part).__name__}, and spikes can come back only"):
            Recurrent(nn.Sequential(nn.Linear(5, 5), part), LIF())
    with pytest.raises(TypeError, match=r"^Recurrent.neuron is a ReLU: give a layer of neurons, such as LIF\(\)$"):
        Recurrent(nn.Linear(5, 5), nn.ReLU())
    with pytest.raises(ValueError, match=r"^Recurrent.layer makes \[4, 1\] of spikes \[4, 6\], but they come back"):
        BPTT()(Recurrent(nn.Linear(6, 1), LIF()), x.float())
    with pytest.raises(TypeError, match=r"^Recurrent got a plain tensor"):
        Recurrent(nn.Linear(6, 6), LIF())(x[0])
    with pytest.raises(ValueError, match="there is no neuron of the network"), record(net, "1.neuron"):
        pass
    assert BPTT()(Recurrent(nn.Linear(6, 6), Own()), x.float()).steps.shape == x.shape


def test_finite_differences_are_of_layers_outside() -> None:
    net, x = some()
    torch.manual_seed(1)
    labels = torch.tensor([0, 1, 2, 0])
    first: Any = net[0].weight
    found = derivatives(net, first, x, rate_loss(labels), Elements(first.shape))
    for k in (0, 7):
        loss = []
        for sign in (0.1, -0.1):
            moved = copy.deepcopy(net)
            with torch.no_grad():
                moved.get_parameter("0.weight").view(-1)[k] += sign
                loss.append(rate_loss(labels)(BPTT()(moved, x).rate))
        torch.testing.assert_close(found[k], (loss[0] - loss[1]) / 0.2)
    weight: Any = net.get_parameter("1.layer.weight")
    with pytest.raises(ValueError, match="the weight that differs is that of a recurrent layer"):
        derivatives(net, weight, x, rate_loss(labels), Elements(weight.shape))


def test_what_has_no_counterpart_elsewhere_is_said() -> None:
    net, _ = some()
    with pytest.raises(ValueError, match=r"^1 \(Recurrent\) can't be exported, since NIR has no node for it"):
        to_nir(net, (6,))
    for package, convert in (("spikingjelly", to_spikingjelly), ("neurobench", lambda net: neurobench_model(net, 5))):
        if find_spec(package) is not None:
            with pytest.raises(ValueError, match=r"^1 is recurrent, and "):
                convert(net)
