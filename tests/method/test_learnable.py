"""Neurons with a learned decay: the gradient of it under every rule, against autograd of the written-out equation."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikerate import BPTT, LIF, OTTT, PLIF, SLTT, Learnable, LearningStepNeuron, ParametricLIF, RateBP, Recurrent, Sigmoid
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
            neuron.w_decay.fill_(w)
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
    (found,) = torch.autograd.grad((neuron.unroll(x, None)[0] * probe).sum(), neuron.w_decay)
    w = neuron.w_decay.detach().clone().requires_grad_()
    u, loss = torch.zeros_like(x[0]), torch.zeros((), dtype=torch.float64)
    for current, g in zip(x, probe, strict=True):
        v = torch.sigmoid(w) * u + current
        s = surrogate.spike(v - 1)
        kept = s.detach() if reset["detach_reset"] else s
        u = v - kept if reset["v_reset"] is None else v * (1 - kept) + reset["v_reset"] * kept
        loss = loss + (s * g).sum()
    torch.testing.assert_close(found, torch.autograd.grad(loss, w)[0])


EACH = torch.tensor([[0.3, 0.9, 0.5, 0.7, 0.2, 0.6, 0.8]]).double()
"""A value for each of seven neurons."""
LAYERS: dict[str, dict[str, Any]] = {
    "all, soft": {"decay": Learnable(0.6), "threshold": Learnable(0.8)},
    "all, hard": {"decay": Learnable(0.6), "threshold": Learnable(0.8), "v_reset": Learnable(-0.2)},
    "of each, soft": {"decay": Learnable(EACH[0]), "threshold": Learnable(EACH[0].flip(0) + 0.3)},
    "of each, hard": {"decay": EACH[0], "threshold": Learnable(EACH[0]), "v_reset": Learnable(-EACH[0])},
    "threshold alone": {"decay": 1.0, "threshold": Learnable(0.7), "v_reset": 0.0},
    "reset alone": {"decay": EACH[0], "threshold": EACH[0], "v_reset": Learnable(0.1)},
}


def parametric(name: str, detach_reset: bool = True) -> ParametricLIF:
    return ParametricLIF(**LAYERS[name], detach_reset=detach_reset).double()


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_bptts_gradient_of_each_value_is_that_of_the_written_out_equation(name: str, detach_reset: bool) -> None:
    torch.manual_seed(0)
    neuron, x, surrogate = parametric(name, detach_reset), currents(), Sigmoid()
    probe = torch.randn_like(x)
    weights = dict(neuron.named_parameters())
    found = torch.autograd.grad((neuron.unroll(x, None)[0] * probe).sum(), list(weights.values()))
    w = {key: value.detach().clone().requires_grad_() for key, value in weights.items()}
    decay = torch.sigmoid(w["w_decay"]) if "w_decay" in w else neuron.decay
    threshold = torch.nn.functional.softplus(w["w_threshold"]) if "w_threshold" in w else neuron.threshold
    reset = threshold - torch.nn.functional.softplus(w["w_v_reset"]) if "w_v_reset" in w else neuron.v_reset
    u, loss = torch.zeros_like(x[0]), torch.zeros((), dtype=torch.float64)
    for current, g in zip(x, probe, strict=True):
        v = decay * u + current
        s = surrogate.spike(v - threshold)
        kept = s.detach() if detach_reset else s
        u = v - threshold * kept if reset is None else v * (1 - kept) + reset * kept
        loss = loss + (s * g).sum()
    for a, b in zip(found, torch.autograd.grad(loss, list(w.values())), strict=True):
        torch.testing.assert_close(a, b)
        assert bool((a != 0).any())


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_the_trace_has_what_each_value_and_a_constant_current_move(name: str, detach_reset: bool) -> None:
    """Each sum of the trace is the derivative of the summed spikes, which autograd takes through every step."""
    torch.manual_seed(1)
    neuron, x = parametric(name, detach_reset), currents()
    _, (_, _, count, sums) = neuron.trace(x, None)
    added = {key: torch.zeros_like(x[0]).requires_grad_() for key in ("current", *neuron.learned)}
    moved = Added(neuron, added)
    spikes, _ = moved.unroll(x + added["current"], None)
    torch.testing.assert_close(count, spikes.detach().sum(0))
    for key, wanted in zip(added, torch.autograd.grad(spikes.sum(), list(added.values())), strict=True):
        torch.testing.assert_close(sums[key], wanted)


class Added(LIF):
    """A neuron with its values, to each of which something is added for each element."""

    def __init__(self, neuron: ParametricLIF, added: dict[str, Tensor]) -> None:
        super().__init__(detach_reset=neuron.detach_reset, surrogate=neuron.surrogate)
        self.values = {
            name: value if value is None else (value.detach() if isinstance(value, Tensor) else value) + added.get(name, 0)
            for name, value in ((name, getattr(neuron, name)) for name in ("decay", "threshold", "v_reset"))
        }

    def _charge(self, u: Tensor | None, current: Tensor) -> Tensor:
        return current + (0 if u is None else self.values["decay"] * u)

    def _fire(self, v: Tensor) -> Tensor:
        return self.surrogate.spike(v - self.values["threshold"])

    def _reset(self, v: Tensor, s: Tensor) -> Tensor:
        if self.values["v_reset"] is None:
            return v - self.values["threshold"] * s
        return v * (1 - s) + self.values["v_reset"] * s


@pytest.mark.parametrize("name", LAYERS)
def test_every_value_has_bptts_gradient_under_ratebp_for_a_constant_input(name: str) -> None:
    """As a function of values and current, the rate of a layer whose input is constant has an exact gradient."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(7, 7), parametric(name), nn.Linear(7, 2)).double()
    x = currents(1).expand(6, -1, -1)
    wanted = gradients(net, BPTT()(net, x).rate.square().sum())
    for rule in (RateBP(), RateBP(chunk=1), RateBP(chunk=4)):
        for key, value in gradients(net, rule(net, x).rate.square().sum()).items():
            torch.testing.assert_close(value, wanted[key])


@pytest.mark.parametrize("name", LAYERS)
def test_values_stay_in_their_range_whatever_is_learned(name: str) -> None:
    neuron = parametric(name)
    for w in (-40.0, 3.0, 40.0):
        with torch.no_grad():
            for parameter in neuron.parameters():
                parameter.fill_(w)
            values = (neuron.decay, neuron.threshold, 0 if neuron.v_reset is None else neuron.v_reset)
            decay, threshold, reset = map(torch.as_tensor, values)
            assert bool(((decay >= 0) & (decay <= 1)).all()) and bool((threshold > 0).all())
            assert neuron.v_reset is None or bool((reset <= threshold).all())
            assert bool(BPTT()(neuron, currents()).rate.isfinite().all())


def test_a_value_of_each_channel_is_that_of_layers_of_one_channel() -> None:
    torch.manual_seed(3)
    values = torch.tensor([0.3, 0.8]).double()
    neuron, x = (
        ParametricLIF(Learnable(values.view(2, 1, 1)), values.view(2, 1, 1) + 0.2),
        torch.randn(5, 3, 2, 4, 4).double(),
    )
    for rule in (BPTT(), RateBP(), SLTT()):
        rate = rule(neuron.double(), x).rate
        for c in range(2):
            one = ParametricLIF(float(values[c]), float(values[c]) + 0.2).double()
            torch.testing.assert_close(rate[:, c], rule(one, x[:, :, c]).rate)
    assert "decay=[2, 1, 1] from 0.3 to 0.8 learned, threshold=[2, 1, 1] from 0.5 to 1" in repr(neuron)
    with pytest.raises(ValueError, match=r"decay has the shape \[2, 1, 1\], which does not go with a sample of \[3, 4, 4\]"):
        BPTT()(neuron, torch.rand(2, 1, 3, 4, 4))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"decay": Learnable(1.0)}, "decay is 1: give a number between 0 and 1, where a learned decay can begin"),
        ({"decay": 0.0}, r"decay is 0: give a number in \(0, 1\]"),
        ({"decay": torch.tensor([0.5, 1.5])}, r"decay is \[2\] from 0.5 to 1.5: give a number in \(0, 1\]"),
        ({"threshold": Learnable(-1.0)}, "threshold is -1: give a number > 0"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": "1"}, "threshold is '1': give a number, a tensor"),
        ({"decay": nn.Parameter(torch.tensor(0.5))}, r"decay is a parameter: give Learnable\(tensor\)"),
        ({"v_reset": 1.0}, "v_reset is 1: give None .* below the threshold"),
        ({"v_reset": Learnable(2.0)}, "v_reset is 2"),
        ({"v_reset": 0.5, "threshold": Learnable(1.0)}, "v_reset is 0.5: .* not above 0 where that is learned"),
    ],
)
def test_a_value_out_of_its_range_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"ParametricLIF.{words}"):
        ParametricLIF(**values)


class Parametric(LearningStepNeuron):
    """`ParametricLIF` with all values learned of each neuron, and a hard reset, written as one step."""

    def __init__(self, like: ParametricLIF) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(p.detach().clone()) for p in (like.w_decay, like.w_threshold, like.w_v_reset))

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        threshold = torch.nn.functional.softplus(self.b)
        u, _ = state or (0.0, None)
        v = current + torch.sigmoid(self.a) * u
        s = Sigmoid().spike(v - threshold)
        kept = s.detach()
        return s, (v * (1 - kept) + (threshold - torch.nn.functional.softplus(self.c)) * kept, v)


@pytest.mark.parametrize("rule", [BPTT(), RateBP(), RateBP(chunk=1), RateBP(chunk=2), BPTT(chunk=2)], ids=str)
def test_a_neuron_of_ones_own_learns_as_the_one_with_its_equations_by_hand(rule: Any) -> None:
    torch.manual_seed(4)
    hand = ParametricLIF(Learnable(EACH[0]), Learnable(EACH[0]), Learnable(-EACH[0])).double()
    first, last = nn.Linear(7, 7).double(), nn.Linear(7, 3).double()
    x = currents()
    found, wanted = (
        list(gradients(net, rule(net, x).rate.square().sum()).values())
        for net in (nn.Sequential(first, neuron, last) for neuron in (Parametric(hand), hand))
    )
    assert all(bool((g != 0).any()) for g in wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_a_neuron_of_ones_own_learns_at_each_step_under_sltt_and_goes_on_as_a_stream() -> None:
    torch.manual_seed(5)
    hand = ParametricLIF(Learnable(EACH[0]), Learnable(EACH[0]), Learnable(-EACH[0])).double()
    own, plain = Parametric(hand), ParametricLIF(Learnable(EACH[0]), Learnable(EACH[0]), -EACH[0]).double()
    x = currents()
    probe = torch.randn_like(x)
    found = torch.autograd.grad((SLTT()(own, x).steps * probe).sum(), [own.a, own.b])
    wanted = torch.autograd.grad((SLTT()(plain, x).steps * probe).sum(), [plain.w_decay, plain.w_threshold])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    for rule in (RateBP(), RateBP(chunk=1), BPTT()):
        state, steps = None, []
        for window in x.split(2):
            out, state = rule.continued(own, window, state)
            steps.append(out.train.detach())
        torch.testing.assert_close(torch.cat(steps), rule(own, x).train.detach())
    with pytest.raises(ValueError, match=r"Parametric.a has the shape \[7\], which does not go with a sample of \[5\]"):
        BPTT()(own, torch.rand(2, 3, 5))


def test_lif_says_what_takes_a_tensor_and_a_learned_reset_is_refused_where_it_has_no_gradient() -> None:
    for value in (torch.tensor([0.5, 0.6]), Learnable(0.5)):
        with pytest.raises(ValueError, match="ParametricLIF"):
            LIF(value)  # type: ignore[arg-type]
    for rule in (SLTT(), OTTT()):
        with pytest.raises(ValueError, match="v_reset of a ParametricLIF is learned, and acts on later steps alone"):
            rule(parametric("reset alone"), currents())


def test_under_ratebp_one_layer_has_bptts_gradient_for_a_constant_input() -> None:
    """The rate of a layer whose input is constant is a function of decay and current: its gradient is exact."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(7, 6), PLIF(0.7), nn.Linear(6, 2)).double()
    x = currents(1).expand(6, -1, -1)
    rate, bptt = (gradients(net, rule(net, x).rate.square().sum()) for rule in (RateBP(), BPTT()))
    assert abs(float(bptt["1.w_decay"])) > 0
    for key, value in bptt.items():
        torch.testing.assert_close(rate[key], value)


@pytest.mark.parametrize("rule", [RateBP(), SLTT(), OTTT(decay=0.7), BPTT(checkpoint=True)], ids=str)
def test_at_one_step_every_rule_is_backpropagation(rule: Any) -> None:
    torch.manual_seed(3)
    net, x = network(), currents(1)
    wanted = gradients(net, BPTT()(net, x).rate.square().sum())
    for key, value in gradients(net, rule(net, x).rate.square().sum()).items():
        torch.testing.assert_close(value, wanted[key])
    assert float(wanted["1.w_decay"]) == 0


def test_checkpoints_keep_the_gradient_of_the_decay() -> None:
    torch.manual_seed(4)
    net, x = network(), currents()
    whole, again = (gradients(net, rule(net, x).rate.square().sum()) for rule in (BPTT(), BPTT(checkpoint=True)))
    for key, value in whole.items():
        torch.testing.assert_close(again[key], value)
    assert float(whole["1.w_decay"]) != 0


@pytest.mark.parametrize("kind", [RateBP, SLTT, BPTT])
def test_chunks_have_the_gradient_of_the_whole(kind: Any) -> None:
    torch.manual_seed(5)
    net, x = network(), currents()
    whole, parts = (gradients(net, rule(net, x).rate.square().sum()) for rule in (kind(), kind(chunk=2)))
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value)
    assert float(whole["3.w_decay"]) != 0


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
    (found,) = torch.autograd.grad((SLTT()(neuron, x).steps * probe).sum(), neuron.w_decay)
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
    group = next(g for g in optimizer.param_groups if any(p is net[1].w_decay for p in g["params"]))
    assert group["weight_decay"] == 0
    before, losses = float(net[1].w_decay.detach()), []
    for _ in range(20):
        loss = (RateBP()(net, x).rate - 1).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] and float(net[1].w_decay.detach()) != before


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
    (found,) = torch.autograd.grad(BPTT()(net, currents()).rate.square().sum(), net.neuron.w_decay)  # type: ignore[arg-type]
    assert float(found) != 0
    for rule in (SLTT(), OTTT()):
        with pytest.raises(TypeError, match="Recurrent has PLIF as its neuron, whose parameter would get no gradient"):
            rule(net, currents())


@pytest.mark.parametrize("rule", [BPTT(), RateBP(), RateBP(chunk=1), SLTT()], ids=str)
def test_they_are_compiled(rule: Any) -> None:
    kinds = [PLIF(), ParametricLIF(Learnable(0.4), Learnable(0.7), -0.1), ParametricLIF(Learnable(torch.full((5,), 0.5)))]
    net = nn.Sequential(*(layer for kind in kinds for layer in (nn.Linear(5, 5), kind)), nn.Linear(5, 2)).double()
    x = 3 * torch.randn(3, 2, 5, dtype=torch.float64)
    whole: Any = torch.compile(lambda x: rule(net, x).rate, fullgraph=True, backend="aot_eager")
    wanted = gradients(net, rule(net, x).rate.square().sum())
    for name, value in gradients(net, whole(x).square().sum()).items():
        torch.testing.assert_close(value, wanted[name])
