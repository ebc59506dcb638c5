"""The readout without spikes: mean, last and maximum of its membrane, under every rule, against loops in float64."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spikerate import BPTT, LIF, OTTT, SLTT, FiringRates, RateBP, Readout, check, record
from spikerate.exchange.neurobench import neurobench_model
from spikerate.exchange.nir import from_nir, to_nir
from spikerate.exchange.spikingjelly import to_spikingjelly
from spikerate.measure.meter import Ledger, Meter
from spikerate.report.activity import raster
from support.networks import gradients

OUTPUTS: list[Any] = ["mean", "last", "max"]
RULES: list[Any] = [BPTT(), BPTT(chunk=2), BPTT(checkpoint=True), SLTT(), OTTT(decay=0.9), RateBP(), RateBP(chunk=1)]


def network(output: Any = "mean", decay: float = 0.8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), LIF(0.5, threshold=0.4), nn.Linear(6, 3), Readout(decay, output)).double()


def some(T: int = 6) -> Tensor:
    return 2 * torch.randn(T, 4, 5, dtype=torch.float64)


def membranes(currents: Tensor, decay: float) -> Tensor:
    """[T, B, ...] by the equation."""
    v, held = torch.zeros_like(currents[0]), []
    for current in currents:
        v = decay * v + current
        held.append(v)
    return torch.stack(held)


def shown(v: Tensor, output: str) -> Tensor:
    return {"mean": v.mean(0), "last": v[-1], "max": v.amax(0)}[output]


@given(
    T=st.integers(1, 9), decay=st.floats(0.05, 1), chunk=st.sampled_from([None, 1, 2, 3]), output=st.sampled_from(OUTPUTS)
)
@settings(max_examples=20, deadline=None)
def test_value_and_gradient_are_those_of_a_loop_whatever_the_chunk(T: int, decay: float, chunk: Any, output: Any) -> None:
    torch.manual_seed(T)
    net, x, weights = network(output, decay), some(T), torch.randn(4, 3).double()
    out = BPTT(chunk)(net, x)
    wanted = shown(membranes(BPTT()(net[:3], x).steps, decay), output)
    torch.testing.assert_close(out.rate, wanted)
    found, expected = (gradients(net, (y * weights).sum()) for y in (out.rate, wanted))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    for t in range(1, T + 1):
        held = membranes(BPTT()(net[:3], x).steps[:t], decay)
        torch.testing.assert_close(out.steps[:t].mean(0), shown(held, output))


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_under_ratebp_the_gain_is_the_mean_of_the_reach(chunk: Any) -> None:
    layer, x = nn.Linear(5, 3).double(), some()
    net = nn.Sequential(layer, Readout(0.7))
    reach = membranes(torch.ones(6, dtype=torch.float64), 0.7)
    rate = RateBP(chunk)(net, x).rate
    torch.testing.assert_close(rate, membranes(layer(x), 0.7).mean(0))
    weights = torch.randn_like(rate)
    found = gradients(net, (rate * weights).sum())
    torch.testing.assert_close(found["0.weight"], reach.mean() * weights.T @ x.mean(0))
    # Exact for a shift of all steps: the bias is one.
    torch.testing.assert_close(found["0.bias"], gradients(net, (BPTT()(net, x).rate * weights).sum())["0.bias"])


def test_sltt_has_the_gradient_of_each_step_to_its_own_input() -> None:
    layer, x, weights = nn.Linear(5, 3).double(), some(), torch.randn(4, 3).double()
    found = gradients(layer, (SLTT()(nn.Sequential(layer, Readout(0.7)), x).rate * weights).sum())
    torch.testing.assert_close(found["weight"], torch.einsum("bk,bi->ki", weights, x.mean(0)))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_at_one_step_every_rule_is_backpropagation(rule: Any) -> None:
    net, x = network(), some(1)
    wanted = gradients(net, BPTT()(net, x).rate.square().sum())
    for name, value in gradients(net, rule(net, x).rate.square().sum()).items():
        torch.testing.assert_close(value, wanted[name])


STREAMS = [(rule, "mean") for rule in RULES if rule != BPTT(checkpoint=True)]
STREAMS += [(rule, output) for rule in RULES[:2] for output in ("last", "max")]


@pytest.mark.parametrize(("rule", "output"), STREAMS, ids=str)
def test_windows_of_a_stream_go_on(rule: Any, output: Any) -> None:
    net, x = network(output), some(7)
    state, steps = None, []
    with record(net, "3") as recorded:
        for window in x.split(3):
            out, state = rule.continued(recorded, window, state)
            steps.append(out.train.detach())
    torch.testing.assert_close(torch.cat(steps), BPTT()(net, x).steps.detach())
    with record(net) as all_of_it:
        rule(all_of_it, x)
    assert ">1: " in raster(all_of_it) and ">3: " not in raster(all_of_it)
    held = recorded["3"].membranes if output == "mean" else recorded["3"].membranes[0]
    torch.testing.assert_close(held, membranes(BPTT()(net[:3], x).steps, 0.8).detach())


@pytest.mark.parametrize("rule", [SLTT(), OTTT(), RateBP(), RateBP(chunk=1)], ids=str)
@pytest.mark.parametrize("output", ["last", "max"])
def test_what_hangs_on_single_steps_is_refused_but_under_bptt(rule: Any, output: Any) -> None:
    words = rf"^Readout.output is '{output}', whose gradient goes back through time.*: train and run .* by BPTT\(\), or"
    with pytest.raises(TypeError, match=words):
        rule(network(output), some())


def test_it_has_no_spikes_to_count() -> None:
    net, x = network(), some()
    ledger = Ledger()
    with torch.no_grad():
        Meter(ledger)(net, x)
    assert set(ledger.rates(net)) == {"1"}
    assert set(FiringRates(RateBP())(net, x)[1]) == {"1"}
    found = check(net, x)
    assert found.fine and [row.rate is None for row in found.rows] == [True, False, True, True]


def test_elsewhere_it_is_nirs_leaky_integrator_or_refused() -> None:
    pytest.importorskip("nir")
    net, x = nn.Sequential(nn.Linear(5, 3), Readout(0.8)).eval(), some().float()
    again = from_nir(to_nir(net, (5,)))
    torch.testing.assert_close(BPTT()(again, x).steps, BPTT()(net, x).steps)
    for layer, words in ((Readout(0.8, "max"), "its output is 'max', and NIR's"), (Readout(1.0), "a leak, and the layer")):
        with pytest.raises(ValueError, match=rf"^1 \(Readout\) can't be exported: .*{words}"):
            to_nir(nn.Sequential(nn.Linear(5, 3), layer), (5,))
    graph = to_nir(net, (5,))
    graph.nodes["_1"].r *= 2
    with pytest.raises(ValueError, match="its input is scaled by 2, and that of a Readout is not"):
        from_nir(graph)
    for package, convert in (("spikingjelly", to_spikingjelly), ("neurobench", lambda net: neurobench_model(net, 5))):
        if find_spec(package) is not None:
            with pytest.raises(ValueError, match=r"^1 is (of the kind R|a r)eadout, "):
                convert(net)


def test_half_precision_integrates_in_float32() -> None:
    net, x = network().float(), some().bfloat16()
    for rule in (BPTT(), SLTT(), RateBP()):
        with torch.autocast("cpu", torch.bfloat16):
            out, state = rule.continued(net, x)
        assert out.steps.dtype == torch.bfloat16 and state["3"].dtype == torch.float32


def test_bad_input_is_one_sentence() -> None:
    for decay in (0, 1.1, -0.5, float("nan")):
        with pytest.raises(ValueError, match=f"^Readout.decay is {decay}: give a number"):
            Readout(decay)
    with pytest.raises(ValueError, match=r"^Readout.decay is a Tensor: give a plain number"):
        Readout(torch.tensor(0.5))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Readout.output is 'sum': give mean, last or max"):
        Readout(0.5, "sum")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Readout got a plain tensor, which has no time axis"):
        Readout()(torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"^Readout\.other is a Parameter: give a plain number"):
        Readout().other = nn.Parameter(torch.ones(1))
