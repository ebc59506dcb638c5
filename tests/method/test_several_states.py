"""Neurons of several states, `Synaptic` and `ALIF`: spikes, gradients and gains against loops in float64."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spikerate import ALIF, BPTT, LIF, OTTT, SLTT, ATan, RateBP, Recurrent, Sigmoid, Synaptic, adapt, record
from spikerate.exchange.nir import from_nir, to_nir
from spikerate.exchange.spikingjelly import to_spikingjelly
from spikerate.report.activity import membranes
from spikerate.runs.config import AdaptiveNeuron, Run, SynapticNeuron
from spikerate.surrogate import Dspike
from support import ROOT
from support.networks import gradients

RESETS = list(itertools.product([None, 0.0, -0.3], [True, False]))
RULES: list[Any] = [BPTT(), BPTT(chunk=2), SLTT(), OTTT(decay=0.6), RateBP(), RateBP(chunk=1), RateBP(chunk=3)]
KINDS: list[Any] = [
    lambda reset=(None, True): Synaptic(0.6, 0.4, 0.9, *reset),
    lambda reset=(None, True): ALIF(0.6, 0.3, 0.8, 0.9, *reset),
]
THETA, ALPHA, BETA, RHO, DECAY = 0.9, 0.4, 0.3, 0.8, 0.6
both = pytest.mark.parametrize("kind", KINDS, ids=["synaptic", "alif"])
resets = pytest.mark.parametrize("reset", RESETS, ids=str)


def currents(T: int = 6, n: int = 30) -> Tensor:
    return torch.randn(T, 2, n, dtype=torch.float64) * 0.8 + 0.5


def network(kind: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(7, 6), kind(), nn.Linear(6, 5), kind(), nn.Linear(5, 2)).double()


def after_reset(v: Tensor, s: Tensor, reset: tuple[float | None, bool]) -> Tensor:
    v_reset, detach = reset
    kept = s.detach() if detach else s
    return v - THETA * kept if v_reset is None else v * (1 - kept) + v_reset * kept


def by_the_equation(x: Tensor, alif: bool, reset: tuple[float | None, bool]) -> Tensor:
    """The spikes in a loop that autograd goes through."""
    u = i = a = torch.zeros_like(x[0])
    spikes = []
    for current in x:
        i = (0 if alif else ALPHA) * i + current
        v = DECAY * u + i
        s = Sigmoid().spike(v - THETA - (BETA * a if alif else 0))
        u, a = after_reset(v, s, reset), RHO * a + s
        spikes.append(s)
    return torch.stack(spikes)


def gain_by_hand(x: Tensor, alif: bool, reset: tuple[float | None, bool]) -> Tensor:
    """The sum over the steps of what a shift of all currents moves a spike by: the recursions in the docstrings."""
    u = i = a = du = di = da = total = torch.zeros_like(x[0])
    for current in x:
        i, di = (0 if alif else ALPHA) * i + current, 1 + (0 if alif else ALPHA) * di
        v, reach = DECAY * u + i, di + DECAY * du
        theta, raised = (THETA + BETA * a, BETA * da) if alif else (THETA, 0.0)
        s = (v >= theta).double()
        g = Sigmoid().slope(v - theta) * (reach - raised)
        v_reset, detach = reset
        moved = 0 if detach else g
        du = reach - THETA * moved if v_reset is None else (1 - s) * reach + (v_reset - v) * moved
        u, a, da, total = after_reset(v, s, reset), RHO * a + s, RHO * da + g, total + g
    return total


@both
@resets
def test_spikes_and_bptts_gradient_are_those_of_the_written_out_equation(kind: Any, reset: Any) -> None:
    neuron, x = kind(reset), currents().requires_grad_()
    wanted, found = by_the_equation(x, isinstance(neuron, ALIF), reset), BPTT()(neuron, x).steps
    assert torch.equal(found, wanted) and 0.1 < float(wanted.detach().mean()) < 0.9
    probe = torch.randn_like(x)
    grads = [torch.autograd.grad((spikes * probe).sum(), x)[0] for spikes in (found, wanted)]
    torch.testing.assert_close(*grads)


@given(seed=st.integers(0, 2**31), T=st.integers(1, 8), k=st.integers(0, 1), reset=st.sampled_from(RESETS))
@settings(max_examples=30, deadline=None)
def test_the_gain_is_the_recursion_and_what_a_shift_of_all_steps_moves(seed: int, T: int, k: int, reset: Any) -> None:
    torch.manual_seed(seed)
    neuron, x = KINDS[k](reset), currents(T, 8)
    _, (*_, count, gain) = neuron.trace(x, None)
    shift = torch.zeros_like(x[0]).requires_grad_()
    spikes = by_the_equation(x + shift, k == 1, reset)
    torch.testing.assert_close(count, spikes.detach().sum(0))
    torch.testing.assert_close(gain, torch.autograd.grad(spikes.sum(), shift)[0])
    torch.testing.assert_close(gain, gain_by_hand(x, k == 1, reset))


@both
def test_under_ratebp_one_layer_has_bptts_gradient_for_a_constant_input(kind: Any) -> None:
    net = nn.Sequential(nn.Linear(7, 6), kind(), nn.Linear(6, 2)).double()
    x = torch.randn(1, 3, 7, dtype=torch.float64).expand(6, -1, -1)
    rate, bptt = (gradients(net, rule(net, x).rate.square().sum()) for rule in (RateBP(), BPTT()))
    assert float(bptt["0.weight"].abs().max()) > 0
    for name, value in bptt.items():
        torch.testing.assert_close(rate[name], value)


@both
@pytest.mark.parametrize("rule", [*RULES, BPTT(checkpoint=True)], ids=str)
def test_at_one_step_every_rule_is_backpropagation(kind: Any, rule: Any) -> None:
    net, x = network(kind), 2 * torch.randn(1, 3, 7, dtype=torch.float64)
    wanted = gradients(net, BPTT()(net, x).rate.square().sum())
    for name, value in gradients(net, rule(net, x).rate.square().sum()).items():
        torch.testing.assert_close(value, wanted[name])


@both
def test_sltt_has_the_slope_of_each_step(kind: Any) -> None:
    neuron, x = kind(), currents().requires_grad_()
    (found,) = torch.autograd.grad(SLTT()(neuron, x).steps.sum(), x)
    state, slopes = None, []
    for current in x.detach():
        own = current.clone().requires_grad_()
        s, after = neuron.unroll(own.unsqueeze(0), state)
        slopes += torch.autograd.grad(s.sum(), own)
        state = tuple(z.detach() for z in after)
    torch.testing.assert_close(found, torch.stack(slopes))


@both
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_chunks_and_windows_go_on_from_both_states(kind: Any, rule: Any) -> None:
    net, x = network(kind).eval(), 2 * torch.randn(7, 3, 7, dtype=torch.float64)
    whole, state, steps = BPTT()(net, x).steps, None, []
    torch.testing.assert_close(rule(net, x).train, whole)
    with record(net, "1") as recorded:
        for window in x.split(3):
            out, state = rule.continued(recorded, window, state)
            steps.append(out.train)
    torch.testing.assert_close(torch.cat(steps), whole)
    assert [list(z.shape) for z in state["1"]] == [[3, 6], [3, 6]]  # type: ignore[index]
    held = recorded["1"].membranes
    assert "membrane" in membranes(recorded, "1", (0, 5))
    assert len(held) == 2 and all(torch.equal(z[-1], last) for z, last in zip(held, state["1"], strict=True))  # type: ignore[index]


@both
def test_chunks_of_ratebp_have_the_gradient_of_the_whole(kind: Any) -> None:
    net, x = network(kind), 2 * torch.randn(7, 3, 7, dtype=torch.float64)
    whole, parts = (gradients(net, RateBP(chunk)(net, x).rate.square().sum()) for chunk in (None, 2))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)


def test_without_their_second_state_they_are_lif() -> None:
    x = currents()
    wanted, (*_, gain) = LIF(0.6, threshold=0.9).trace(x, None)
    for neuron in (Synaptic(0.6, 0.0, 0.9), ALIF(0.6, 0.0, 0.8, 0.9)):
        found, (*_, same) = neuron.trace(x, None)
        assert torch.equal(found, wanted)
        torch.testing.assert_close(same, gain)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_snntorchs_synaptic_fires_the_same_spikes(reset: str) -> None:
    snntorch = pytest.importorskip("snntorch")
    theirs = snntorch.Synaptic(0.75, 0.8125, threshold=2.5, reset_mechanism=reset, reset_delay=False).double()
    ours = Synaptic(0.8125, 0.75, 2.5, None if reset == "subtract" else 0.0)
    x = torch.rand(40, 4, 25, dtype=torch.float64)
    i, u = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    spikes, held = [], []  # its constants are in float32, which has these
    for current in x:
        s, i, u = theirs(current, i, u)
        spikes.append(s.double())
        held.append(u)
    with record(ours) as recorded, torch.no_grad():
        found = BPTT()(recorded, x).steps
    assert torch.equal(found, torch.stack(spikes)) and 0.1 < float(found.mean()) < 0.9
    torch.testing.assert_close(recorded[""].membranes[0], torch.stack(held).detach())


def alpha_of_the_page() -> Any:
    """`Alpha` of the page for those who come from snnTorch, made from its text."""
    page = (ROOT / "docs" / "howto" / "from-the-papers.md").read_text()
    made: dict[str, Any] = {}
    exec(next(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Alpha" in code), made)
    return made["Alpha"]


def test_snntorchs_alpha_is_a_step_of_ones_own() -> None:
    """Its spikes and its gradient by BPTT, equal to all steps, from the dozen lines of the page."""
    snntorch = pytest.importorskip("snntorch")
    surrogate = snntorch.surrogate.atan(alpha=2.0)
    theirs = snntorch.Alpha(alpha=0.75, beta=0.5, threshold=0.6, spike_grad=surrogate).double()
    x = torch.rand(40, 4, 25, dtype=torch.float64, requires_grad=True)
    exc = inh = mem = torch.zeros_like(x[0])
    spikes = []
    for current in x:
        s, exc, inh, mem = theirs(current, exc, inh, mem)
        spikes.append(s)
    weights = torch.rand(40, 4, 25, dtype=torch.float64)
    wanted = torch.autograd.grad((torch.stack(spikes) * weights).sum(), x)
    found = BPTT()(alpha_of_the_page()(0.75, 0.5, 0.6, ATan(2.0)), x).steps
    assert torch.equal(found, torch.stack(spikes)) and 0.1 < float(found.detach().mean()) < 0.9
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), x), wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_pages_alpha_goes_by_every_rule(rule: Any) -> None:
    def kind() -> Any:
        return alpha_of_the_page()(0.75, 0.5, 0.3)

    net, one, more = network(kind), *(2 * torch.rand(T, 3, 7, dtype=torch.float64) for T in (1, 6))
    exact, by_rule = (gradients(net, r(net, one).rate.square().sum()) for r in (BPTT(), rule))
    for name, value in exact.items():
        torch.testing.assert_close(by_rule[name], value)
    with torch.no_grad():
        assert torch.equal(rule(net, more).rate, BPTT()(net, more).rate)
    whole, parts = (
        gradients(net, r(net, more).rate.square().sum()) for r in (replace(rule, chunk=None), replace(rule, chunk=2))
    )
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)


def test_nir_has_the_synaptic_neuron_and_others_are_refused() -> None:
    pytest.importorskip("nir")
    x = 2 * torch.rand(9, 4, 5)
    net = nn.Sequential(nn.Linear(5, 6), Synaptic(0.6, 0.4, 0.3, 0.0), nn.Linear(6, 3), Synaptic(0.5, 0.0, 0.2, -0.1)).eval()
    graph = to_nir(net, (5,))
    assert [type(node).__name__ for node in graph.nodes.values()].count("CubaLIF") == 2
    again = from_nir(graph)
    assert torch.equal(BPTT()(again, x).steps, BPTT()(net, x).steps) and BPTT()(net, x).steps.any()
    assert [m.alpha for m in again.modules() if isinstance(m, Synaptic)] == pytest.approx([0.4, 0.0])
    graph.nodes["_1"].w_in *= 2
    (wide, _) = (m for m in from_nir(graph).modules() if isinstance(m, Synaptic))
    assert wide.threshold == pytest.approx(0.15)
    for neuron, words in (
        (Synaptic(), "NIR resets the membrane to a value"),
        (Synaptic(1.0, 0.5, v_reset=0.0), "this node of NIR has a leak, and the layer has none"),
        (ALIF(v_reset=0.0), "NIR has no node for it"),
    ):
        with pytest.raises(ValueError, match=rf"^1 \({type(neuron).__name__}\) can't be exported.*{words}"):
            to_nir(nn.Sequential(nn.Linear(5, 6), neuron), (5,))
    if find_spec("spikingjelly") is not None:
        with pytest.raises(ValueError, match=r"^1 is of the kind ALIF, for which there is none there"):
            to_spikingjelly(nn.Sequential(nn.Linear(5, 6), ALIF()))


@both
def test_they_go_into_a_recurrent_layer_and_have_a_temperature(kind: Any) -> None:
    layer = Recurrent(nn.Linear(5, 5), kind()).double()
    x = currents(6, 5)
    for rule in (BPTT(), SLTT()):
        assert any(bool(g.any()) for g in gradients(layer, rule(layer, x).rate.sum()).values())
    neuron: Any = kind()
    neuron.surrogate = Dspike(2.0)
    adapt(nn.Sequential(neuron))
    assert float(neuron.surrogate.temperature) == 2


def test_half_precision_keeps_states_in_float32() -> None:
    for kind in KINDS:
        with torch.autocast("cpu", torch.bfloat16):
            for rule in (BPTT(), SLTT(), RateBP()):
                out, state = rule.continued(network(kind).float(), torch.randn(4, 3, 7))
                assert out.train.dtype == torch.bfloat16 and all(z.dtype == torch.float32 for z in state["1"])


def test_settings_build_them() -> None:
    assert repr(SynapticNeuron(alpha=0.3).build()) == repr(Synaptic(alpha=0.3))
    assert repr(AdaptiveNeuron(beta=0.3, v_reset=0.0).build()) == repr(ALIF(0.5, 0.3, v_reset=0.0))


def test_bad_input_is_one_sentence() -> None:
    for make, words in (
        (lambda: Synaptic(alpha=1.0), r"^Synaptic.alpha is 1.0: give a number in \[0, 1\)"),
        (lambda: Synaptic(alpha=torch.tensor(0.5)), "^Synaptic.alpha is a Tensor: give a plain number"),  # type: ignore[arg-type]
        (lambda: Synaptic(decay=0.0), "^Synaptic.decay is 0.0: give a number"),
        (lambda: Synaptic(v_reset=1.5), "^Synaptic.v_reset is 1.5: give None"),
        (lambda: ALIF(beta=-1.0), "^ALIF.beta is -1.0: give a number from 0"),
        (lambda: ALIF(rho=float("nan")), "^ALIF.rho is nan: give a number"),
        (lambda: ALIF(threshold=0.0), "^ALIF.threshold is 0.0"),
        (lambda: setattr(ALIF(), "beta", nn.Parameter(torch.ones(()))), "^ALIF.beta is a Parameter: give a plain number"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    with pytest.raises(TypeError, match=r"^ALIF got a plain tensor"):
        ALIF()(torch.rand(2, 3))


@pytest.mark.parametrize("rule", [RateBP(), SLTT()], ids=str)
def test_what_autograd_finds_step_by_step_is_not_compiled(rule: Any) -> None:
    net, x = network(lambda: alpha_of_the_page()(0.75, 0.5, 0.3)), torch.rand(3, 2, 7, dtype=torch.float64)
    whole: Any = torch.compile(lambda x: rule(net, x).rate, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="Alpha is written as one step, whose slopes and gain autograd finds"):
        whole(x)


@pytest.mark.parametrize("rule", [BPTT(), RateBP(), SLTT()], ids=str)
def test_they_are_compiled(rule: Any) -> None:
    net, x = nn.Sequential(nn.Linear(4, 5), ALIF(), nn.Linear(5, 5), Synaptic(), nn.Linear(5, 2)), torch.randn(3, 2, 4)
    whole: Any = torch.compile(lambda x: rule(net, x).rate, fullgraph=True, backend="aot_eager")
    wanted = gradients(net, rule(net, x).rate.square().sum())
    for name, value in gradients(net, whole(x).square().sum()).items():
        torch.testing.assert_close(value, wanted[name])
    assert Run(neuron=SynapticNeuron(), rule=rule, compile=True).neuron.build().alpha == 0.2  # type: ignore[attr-defined]
