"""Streams: windows that go on from each other are the whole, in values and, by each rule's own equation, in gradients."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spikerate import BPTT, IF, LIF, OTTT, SLTT, RateBP, Sigmoid, StepNeuron, fused, spiking
from spikerate.neuron import Rectifier
from support.networks import Functional, gradients, small_network

RULES: list[Any] = [
    BPTT(),
    BPTT(chunk=2),
    SLTT(),
    OTTT(decay=0.5),
    OTTT(chunk=2),
    RateBP(),
    RateBP(chunk=1),
    RateBP(chunk=2),
]
RESETS: list[tuple[float | None, bool]] = [(None, True), (None, False), (0.0, True), (-0.1, False)]


class Leaky(StepNeuron):
    """A neuron of a user's own."""

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        v = current if state is None else 0.7 * state + current
        s = Sigmoid().spike(v - 0.4)
        return s, v - 0.4 * s.detach()


def some(T: int, neuron: Any = lambda: LIF(0.5, None, 0.4), B: int = 2) -> tuple[nn.Sequential, Tensor]:
    return small_network(neuron).double().eval(), 2 * torch.rand(T, B, 2, 6, 6, dtype=torch.float64)


def windows(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """x [T, B, ...] cut into windows of these sizes in turn, the last one as it comes."""
    return x.tensor_split([end for end in accumulate(list(sizes) * len(x)) if end < len(x)])


def streamed(rule: Any, network: Any, parts: Sequence[Tensor], detach: bool = True) -> tuple[list[Any], dict[str, Any]]:
    """The outputs of a stream, and its state at the end."""
    outs, state = [], None
    for part in parts:
        out, state = rule.continued(network, part, state, detach)
        outs.append(out)
    assert state is not None
    return outs, state


@given(
    seed=st.integers(0, 2**31),
    T=st.integers(1, 9),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    B=st.integers(1, 3),
    rule=st.sampled_from(RULES),
    reset=st.sampled_from(RESETS),
    decay=st.floats(0.1, 1),
    static=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_a_stream_in_windows_is_the_whole(
    seed: int, T: int, sizes: list[int], B: int, rule: Any, reset: tuple[float | None, bool], decay: float, static: bool
) -> None:
    torch.manual_seed(seed)
    network, x = some(T, lambda: LIF(decay, None, 0.4, *reset), B)
    x = x[:1].expand(x.shape) if static else x
    whole = rule(network, x)
    outs, state = streamed(rule, network, windows(x, sizes))
    torch.testing.assert_close(torch.cat([out.steps.detach() for out in outs]), whole.steps.detach())
    rate = sum(len(out.steps) * out.rate.detach() for out in outs) / T
    torch.testing.assert_close(rate, whole.rate.detach())
    assert {"2", "5"} <= state.keys() and not any(u.requires_grad for u in state.values())
    with torch.no_grad():
        again, _ = streamed(rule, network, windows(x, sizes))
    assert all(torch.equal(one.steps, other.steps) for one, other in zip(outs, again, strict=True))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("neuron", [lambda: LIF(0.5, None, 0.4), Leaky, lambda: IF(0.6, v_reset=0.0)])
def test_no_spike_differs(rule: Any, size: int, neuron: Any) -> None:
    torch.manual_seed(size)
    network, x = some(14, neuron)
    for upto in (3, 6):
        whole = rule(network[:upto], x).steps
        parts, state = streamed(rule, network[:upto], windows(x, [size]))
        assert 0 < float(whole.detach().mean()) < 1
        assert torch.equal(torch.cat([part.steps for part in parts]), whole)
        assert list(state) == [name for name in state if name in {"0", "2", "3", "5"}]


@given(seed=st.integers(0, 2**31), T=st.integers(2, 8), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3))
@settings(max_examples=12, deadline=None)
def test_an_undetached_state_gives_the_gradient_of_the_whole(seed: int, T: int, sizes: list[int]) -> None:
    torch.manual_seed(seed)
    network, x = some(T)
    weights = torch.randn(T, 2, 3, dtype=torch.float64)
    wanted = gradients(network, (BPTT()(network, x).steps * weights).sum())
    outs, _ = streamed(BPTT(), network, windows(x, sizes), detach=False)
    found = gradients(network, (torch.cat([out.steps for out in outs]) * weights).sum())
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


@pytest.mark.parametrize("rule", [SLTT(), OTTT(decay=0.5), OTTT(chunk=2, decay=0.3)], ids=str)
@pytest.mark.parametrize("size", [1, 3])
def test_windows_of_the_online_rules_add_up(rule: Any, size: int) -> None:
    network, x = some(7)
    weights = torch.randn(7, 2, 3, dtype=torch.float64)
    wanted = gradients(network, (rule(network, x).steps * weights).sum())
    total = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    state = None
    for part, weight in zip(windows(x, [size]), windows(weights, [size]), strict=True):
        out, state = rule.continued(network, part, state)
        for name, gradient in gradients(network, (out.steps * weight).sum()).items():
            total[name] += gradient
    for name in wanted:
        torch.testing.assert_close(total[name], wanted[name])


def by_hand(linear: nn.Linear, parts: Sequence[Tensor], weights: Tensor) -> tuple[list[Any], list[Any]]:
    """Gradients of linear - LIF in slow loops: truncated backpropagation through time; and the rate's, window by window.

    `weights` [B, O] of a loss on the rate of each window.
    """
    u = torch.zeros(parts[0].shape[1], linear.out_features, dtype=torch.float64)
    through_time, through_rates = [], []
    for part in parts:
        spikes, reach, gain = [], 0.0, 0.0
        u = u.detach()
        for current in part:
            v = 0.5 * u + linear(current)
            reach = 1 + 0.5 * reach
            gain = gain + Sigmoid().slope(v.detach() - 0.8) * reach / len(part)
            spikes.append(Sigmoid().spike(v - 0.8))
            u = v - 0.8 * spikes[-1].detach()
        loss = (torch.stack(spikes).mean(0) * weights).sum()
        through_time.append(torch.autograd.grad(loss, list(linear.parameters())))
        through_rates.append(torch.autograd.grad((gain * linear(part.mean(0)) * weights).sum(), list(linear.parameters())))
    return through_time, through_rates


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_a_detached_window_has_the_gradient_of_a_loop_by_hand(chunk: int | None) -> None:
    linear, x = nn.Linear(5, 6).double(), 2 * torch.rand(8, 3, 5, dtype=torch.float64)
    network, weights, parts = nn.Sequential(linear, LIF(0.5, threshold=0.8)), torch.randn(3, 6).double(), windows(x, [3])
    for rule, wanted in zip((BPTT(chunk), RateBP(chunk)), by_hand(linear, parts, weights), strict=True):
        outs, _ = streamed(rule, network, parts)
        for out, expected in zip(outs, wanted, strict=True):
            found = torch.autograd.grad((out.rate * weights).sum(), list(linear.parameters()))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other)


def test_the_state_is_the_membranes_by_name_and_can_be_saved() -> None:
    network, x = some(6)
    _, state = BPTT().continued(network, x[:4])
    assert {name: list(u.shape) for name, u in state.items()} == {"2": [2, 4, 6, 6], "5": [2, 5, 3, 3]}
    u = torch.zeros(2, 4, 6, 6, dtype=torch.float64)
    for current in BPTT()(network[:2], x[:4]).steps:
        v = 0.5 * u + current
        u = v - 0.4 * (v >= 0.4)
    torch.testing.assert_close(state["2"], u)
    file = io.BytesIO()
    torch.save(state, file)
    assert file.tell() < 2 * sum(u.nbytes for u in state.values()) + 4096, "no window of steps is saved with it"
    file.seek(0)
    read = torch.load(file, weights_only=True)
    before = {name: u.clone() for name, u in state.items()}
    for rule in RULES:
        if not isinstance(rule, OTTT):
            a, b = (rule.continued(network, x[4:], given)[0].steps for given in (state, read))
            assert torch.equal(a, b)
    assert all(torch.equal(state[name], before[name]) for name in before), "a call writes on no state"


def test_a_state_does_not_change_with_the_input_that_it_came_from() -> None:
    network, buffer = nn.Sequential(nn.Linear(3, 4), Leaky()), torch.rand(1, 2, 3)
    _, state = OTTT().continued(network, buffer)
    before = {name: u.clone() for name, u in state.items()}
    buffer.zero_()
    assert set(state) == {"0", "1"} and all(torch.equal(state[name], before[name]) for name in before)


def test_shared_neurons_functions_and_units_without_memory() -> None:
    neuron, x = LIF(0.5, threshold=0.3), torch.rand(5, 2, 3)
    twice = nn.Sequential(nn.Linear(3, 3), neuron, nn.Linear(3, 4), neuron, Rectifier())
    for network, names in (
        (twice, ["1", "1, call 2"]),
        (lambda s: neuron(s), ["a neuron that is no module of the network"]),
    ):
        for rule in (BPTT(), RateBP(chunk=1)):
            whole = rule(network, x).steps
            outs, state = streamed(rule, network, windows(x, [2]))
            torch.testing.assert_close(torch.cat([out.steps for out in outs]), whole)
            assert list(state) == names
    relu = spiking(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), Rectifier)
    assert BPTT().continued(relu, x)[1] == {} == RateBP().continued(relu, x, {})[1]


def test_half_precision_keeps_membranes_in_float32() -> None:
    network, x = nn.Sequential(nn.Linear(3, 8), LIF(0.5, threshold=0.3)), torch.rand(6, 2, 3)
    for rule in (BPTT(), RateBP(), RateBP(chunk=1)):
        with torch.autocast("cpu", torch.bfloat16):
            whole = rule(network, x).steps
            outs, state = streamed(rule, network, windows(x, [1, 2]))
        assert state["1"].dtype == torch.float32 and torch.equal(torch.cat([out.steps for out in outs]), whole)


def test_large_layers_go_on_a_few_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = some(6, B=5)
    for rule in (BPTT(), SLTT(), RateBP(), RateBP(chunk=1)):
        wanted, before = streamed(rule, network, windows(x, [2]))
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(fused, "_IN_CACHE", 2 * 4 * 6 * 6)
            found, after = streamed(rule, network, windows(x, [2]))
        assert all(torch.equal(one.steps, other.steps) for one, other in zip(found, wanted, strict=True))
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_windows_are_compiled_whole() -> None:
    rule = RateBP()
    network, x = nn.Sequential(nn.Linear(3, 8), LIF(0.5, threshold=0.3), nn.Linear(8, 2)), torch.rand(4, 2, 3)

    def run(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        out, state = rule.continued(network, x, state)
        return out.steps, state

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    one = other = None
    for part in x.split(2):
        steps, one = compiled(part, one)
        wanted, other = run(part, other)
        torch.testing.assert_close(steps, wanted)
    torch.testing.assert_close(one, other)


# bad input --------------------------------------------------------------------------------------------------------------


def test_states_that_do_not_belong_are_refused_in_a_sentence() -> None:
    network, x = some(4)
    network, x = network.float(), x.float()
    _, state = BPTT().continued(network, x)
    _, traced = OTTT().continued(network, x)

    def refused(words: str, given: Any, x: Tensor = x, rule: Any = BPTT(), by: Any = network) -> None:
        with pytest.raises(ValueError, match=words):
            rule.continued(by, x, given)

    refused("^the state is a list: give the dictionary", [state])
    refused(re.escape("the state of '2' is [2, 4, 6, 6], and the input has a batch of 1: a stream goes on"), state, x[:, :1])
    refused(re.escape("the state of '2' is [2, 4, 6, 6], and its input [2, 4, 8, 8]"), state, torch.rand(1, 2, 2, 8, 8))
    refused("^the state of '2' is float32 on cpu, and the network computes in float64", state, x.double(), by=some(1)[0])
    refused(r"^the state has \['8'\], which no layer asks for and lacks \['5'\]: it is", {"2": state["2"], "8": state["2"]})
    refused(r"^the state has \['5'\], which no layer asks for: it is of another network or rule", state, by=network[:3])
    refused(r"lacks \['0', '3', '8'\]: it is of another network or rule", state, rule=OTTT())
    refused(r"has \['0', '3', '8'\], which no layer asks for", traced, rule=RateBP())
    refused(r"shape \[0, 2, 2, 6, 6\]: give floating point \[T, B, ...\] with T >= 1", state, x[:0])
    refused("^BPTT.checkpoint is True: continue a stream by BPTT()", state, rule=BPTT(checkpoint=True))


def test_what_can_not_go_on_is_refused() -> None:
    class Known(LIF):
        def trace(self, inputs: Tensor, state: Any) -> Any:
            spikes, (u, reach, *sums) = super().trace(inputs, state)
            return spikes, (u, u, reach, *sums)

    network, x = small_network(Known).eval(), torch.rand(2, 3, 2, 6, 6)
    RateBP()(network, x)
    with pytest.raises(TypeError, match=r"^Known keeps a state of its own under RateBP.*: continue a stream by BPTT"):
        RateBP().continued(network, x)
    plain = small_network().eval()
    again = Functional(lambda s: checkpoint(plain, s, use_reentrant=False))
    out, _ = BPTT().continued(again, x)
    with pytest.raises(RuntimeError, match="use no activation checkpointing in a stream"):
        out.rate.sum().backward()
    plain[0].register_full_backward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="there is a backward hook on a Conv2d"):
        SLTT().continued(plain, x)
