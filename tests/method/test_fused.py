"""Passes over memory that are compiled by themselves: equal to eager code, and compiled a counted number of times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch._inductor.metrics
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._inductor import cpu_vec_isa
from torch.utils.flop_counter import FlopCounterMode

from spikerate import (
    ALIF,
    BPTT,
    IF,
    ILIF,
    LIF,
    OTTT,
    PLIF,
    SLTT,
    ATan,
    Dspike,
    Learnable,
    ParametricLIF,
    RateBP,
    Rectangular,
    Synaptic,
    fused,
)
from spikerate.neuron import Rectifier
from spikerate.signal import _mean
from spikerate.system.environment import compiler_problem
from support.networks import golden_network

RULES = [RateBP(), RateBP(chunk=2), BPTT(), BPTT(chunk=2), BPTT(checkpoint=True), SLTT(), OTTT()]
NEURONS: dict[str, Callable[[], nn.Module]] = {
    "soft": LIF,
    "soft, attached": lambda: LIF(detach_reset=False, surrogate=ATan()),
    "hard": lambda: LIF(v_reset=-0.1, surrogate=Dspike(2.0)),
    "hard, attached": lambda: LIF(v_reset=0.0, detach_reset=False, surrogate=Rectangular()),
    "no leak": IF,
    "rectifier": Rectifier,
    "synaptic": lambda: Synaptic(0.4, 0.3),
    "synaptic, hard": lambda: Synaptic(0.4, 0.3, v_reset=0.0, detach_reset=False),
    "adaptive": ALIF,
    "adaptive, hard": lambda: ALIF(v_reset=-0.1, detach_reset=False),
    "learned": lambda: ParametricLIF(Learnable(0.4), Learnable(0.8), detach_reset=False),
}


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trains of every size are worth a kernel, and none is left of another test."""
    monkeypatch.setattr(fused, "_WORTH", 1)
    monkeypatch.setattr(fused, "_given_up", set())
    compiled = fused._compiled
    compiled.cache_clear()
    torch._dynamo.reset()
    yield
    compiled.cache_clear()


class Counted:
    """A compiler that compiles nothing, and counts its graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    real, counter = torch.compile, Counted()
    monkeypatch.setattr(torch, "compile", lambda f, **how: real(f, **how, backend=counter))
    monkeypatch.setattr(fused, "_works", lambda device: True)
    return counter


def network(neuron: Callable[[], nn.Module], channels: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), neuron(),
        nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), neuron(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 3),
    )  # fmt: skip


def step(rule: Any, net: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, the gradients and the buffers of a training step."""
    net.zero_grad()
    y = rule(net, x).rate
    y.square().sum().backward()
    return [
        y.detach(),
        *(p.grad.clone() for p in net.parameters() if p.grad is not None),
        *(b.clone() for b in net.buffers()),
    ]


def same(rule: Any, neuron: Callable[[], nn.Module], x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    net, x = network(neuron).to(x.dtype), x.to(memory_format=torch.preserve_format)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    ours = step(rule, net, x)
    assert not fused._given_up
    with monkeypatch.context() as patch:
        patch.setattr(fused, "_WORTH", 2**60)
        net.load_state_dict(start)
        eager = step(rule, net, x)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("moving", [True, False])
def test_flat_trains_give_the_same(rule: Any, neuron: str, moving: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = []

    def uncompiled(f: Callable[..., Any]) -> Callable[..., Any]:
        flat.append(f)
        return fused._on_flat(f)

    monkeypatch.setattr(fused, "_compiled", uncompiled)
    monkeypatch.setattr(fused, "_works", lambda device: True)
    x = torch.rand(4, 3, 2, 4, 4, dtype=torch.float64)
    same(rule, NEURONS[neuron], x if moving else x[:1].expand(4, -1, -1, -1, -1), monkeypatch)
    assert flat or (neuron == "learned" and isinstance(rule, SLTT | OTTT))  # which differentiate it step by step


@pytest.mark.parametrize("rule", [RateBP(), BPTT(), BPTT(checkpoint=True)], ids=str)
def test_the_compilers_kernels_give_the_same(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiler_problem(torch.device("cpu")):
        pytest.skip("there is no compiler here")
    same(rule, LIF, torch.rand(4, 3, 2, 4, 4, dtype=torch.float64), monkeypatch)


def test_the_golden_network_goes_through_it(counted: Counted) -> None:
    net = golden_network().double()
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    first = step(RateBP(), net, x.expand(4, *x.shape))
    assert counted.graphs <= 6 and not fused._given_up and len(first) > 20


def test_a_neuron_is_one_pass_over_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    if compiler_problem(torch.device("cpu")):
        pytest.skip("there is no compiler here")
    x = torch.rand(4, 2, 3, 5)
    torch._inductor.metrics.reset()
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        RateBP()(LIF(), x)
    assert torch._inductor.metrics.generated_kernel_count == 1


@pytest.mark.parametrize("rule", [RateBP(), BPTT()], ids=str)
@pytest.mark.parametrize("neuron", ["soft", "learned"])
def test_one_kernel_serves_all_sizes_and_orders(neuron: str, rule: Any, counted: Counted) -> None:
    graphs = []
    for channels, batch, last in ((4, 3, False), (8, 5, False), (8, 2, True)):
        net, x = network(NEURONS[neuron], channels), torch.rand(batch, 2, 4, 4)
        if last:
            net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        step(rule, net, x.expand(4, *x.shape))
        graphs.append(counted.graphs)
    assert graphs[0] == graphs[1] == graphs[2] > 0 and not fused._given_up


@pytest.mark.parametrize("neuron", NEURONS)
def test_one_kernel_serves_all_chunks(neuron: str, counted: Counted) -> None:
    graphs = []
    for T in (4, 12):
        step(RateBP(chunk=1), network(NEURONS[neuron]), torch.rand(T, 3, 2, 4, 4))
        graphs.append(counted.graphs)
    # Each graph has the number of all steps in it, so 12 chunks have as many of their own as 4, and no more.
    assert 0 < graphs[1] <= 2 * graphs[0] and not fused._given_up


def test_what_inherits_from_a_neuron_is_not_flattened_unless_it_says_so() -> None:
    """It may see other neurons."""
    for kind in (LIF, ILIF, PLIF, ParametricLIF, Synaptic, ALIF, Rectifier):
        other: Any = type("Other", (kind,), {})
        same: Any = type("Same", (kind,), {"elementwise": True})
        assert kind().elementwise and same().elementwise and not other().elementwise


def test_neurons_with_a_value_of_each_are_not_flattened() -> None:
    assert ParametricLIF(Learnable(0.4), 0.8, Learnable(0.0)).elementwise
    for each in (torch.full((4, 1, 1), 0.4), Learnable(torch.full((4, 1, 1), 0.4))):
        assert not ParametricLIF(each).elementwise


def test_each_number_of_steps_is_compiled_once(counted: Counted) -> None:
    net, graphs = network(LIF), []
    for T in (1, 2, 3, 4, 1, 2, 3, 4):
        RateBP()(net, torch.rand(T, 3, 2, 4, 4))
        with torch.no_grad():
            BPTT()(net.eval(), torch.rand(T, 3, 2, 4, 4))
        net.train()
        graphs.append(counted.graphs)
    assert graphs[3:] == graphs[3:4] * 5 and not fused._given_up


@pytest.mark.parametrize("moment", ["never", "forward", "backward"])
def test_checkpoints_run_a_neuron_again_in_the_same_way(moment: str, counted: Counted) -> None:
    torch.manual_seed(1)
    net, x = network(LIF).double(), torch.rand(4, 3, 2, 4, 4, dtype=torch.float64)
    found = []
    for rule in (BPTT(), BPTT(checkpoint=True)):
        net.zero_grad()
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes  # noqa: B023
            return tensor

        counter = FlopCounterMode(display=False) if moment == "forward" else nullcontext()
        with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = rule(net, x).rate.square().sum()
        with FlopCounterMode(display=False) if moment == "backward" else nullcontext():
            loss.backward()
        found.append((sum(kept.values()), [p.grad.clone() for p in net.parameters() if p.grad is not None]))
    (whole, ours), (bits, again) = found
    for a, b in zip(ours, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert bits < 0.2 * whole
    assert (counted.graphs > 0) is (moment != "forward") and not fused._given_up


def test_what_counts_operations_sees_them_all(counted: Counted) -> None:
    with FlopCounterMode(display=False) as counter:
        RateBP()(network(LIF), torch.rand(4, 3, 2, 4, 4))
    assert counted.graphs == 0 and counter.get_total_flops() > 0


def test_long_trains_and_small_ones_stay_eager(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    RateBP()(LIF(), torch.rand(fused._LONGEST + 1, 2, 3))
    monkeypatch.setattr(fused, "_WORTH", 2**19)
    RateBP()(LIF(), torch.rand(4, 2, 3))
    assert counted.graphs == 0


def test_no_program_is_compiled_to_try_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    if compiler_problem(torch.device("cpu")):
        pytest.skip("there is no compiler here")
    tried: list[object] = []
    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", lambda isa, code: tried.append(isa) or True)
    cpu_vec_isa.valid_vec_isa_list.cache_clear()
    fused._works.cache_clear()
    assert fused._works("cpu")
    found = cpu_vec_isa.valid_vec_isa_list()
    assert not tried
    fused._give_up("cpu", LIF(), RuntimeError("no such instruction"))
    assert cpu_vec_isa.valid_vec_isa_list.cache_info().currsize == 0, "the next one tries them out"
    assert cpu_vec_isa.valid_vec_isa_list() == found
    assert len({str(isa) for isa in found}) == len(found)


@pytest.mark.parametrize("variable", ["1", ""])
def test_what_turns_torchs_compiler_off_turns_it_off(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", variable)
    fused._works.cache_clear()
    assert fused._works("cpu") is (not variable and compiler_problem(torch.device("cpu")) is None)
    fused._works.cache_clear()


def test_a_compiler_that_fails_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no such luck")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: real(f, **how, backend=broken))
    monkeypatch.setattr(fused, "_works", lambda device: True)
    x = torch.rand(4, 2, 3)
    for _ in range(2):
        assert torch.equal(RateBP()(LIF(), x).rate, LIF().spikes(x).mean(0))
        assert torch.equal(_mean(x, 4), x.mean(0))
    said = [record.getMessage() for record in caplog.records if record.name == "spikerate.fused"]
    assert len(said) == 2 and said[0].startswith("LIF is not compiled, so that its steps take longer:")
    assert said[1].startswith("the mean over time is not compiled, so that its steps take longer:")


@given(st.permutations(range(1, 5)), st.lists(st.integers(1, 3), min_size=4, max_size=4), st.integers(1, 3))
def test_the_order_in_memory_comes_back(order: list[int], sizes: list[int], T: int) -> None:
    axes = [0, *order]
    train = torch.rand(T, *(sizes[axis - 1] for axis in order)).permute([axes.index(k) for k in range(5)])
    found = fused.Order.of(train)
    assert found is not None
    flat = found.flat(train)
    assert flat.dim() == 2 and flat.data_ptr() == train.data_ptr()
    assert torch.equal(found.unflat(flat, train), train)
    assert fused.Order.of(torch.rand(T, 4, 6)[:, :, ::2]) is None


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("neuron", NEURONS)
def test_blocks_that_fit_into_the_cache_change_nothing(rule: Any, neuron: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_WORTH", 2**60)
    torch.manual_seed(1)
    net, x = network(NEURONS[neuron]).double(), torch.rand(4, 5, 2, 4, 4, dtype=torch.float64)
    net.to(memory_format=torch.channels_last)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    whole = step(rule, net, x)
    monkeypatch.setattr(fused, "_IN_CACHE", 2 * 4 * 4 * 4)
    net.load_state_dict(start)
    for a, b in zip(step(rule, net, x), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    fired = BPTT()(net[:3].eval(), x.float().double()).train  # type: ignore[operator]
    assert fired.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
