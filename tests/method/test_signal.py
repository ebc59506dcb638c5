"""Signals: what every layer keeps, which layers there are, and what is computed how often."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spikerate import BPTT, IF, LIF, OTTT, SLTT, Dspike, FiringRates, RateBP, Sigmoid, autograd
from spikerate.measure.meter import Ledger, Meter
from spikerate.signal import Normalization
from support.networks import Functional, Probe, every_layer, gradients

RULES = [BPTT(), BPTT(chunk=1), BPTT(chunk=2), RateBP(), RateBP(chunk=1), RateBP(chunk=2)]


def probed(layers: list[nn.Module]) -> tuple[nn.Sequential, list[Probe]]:
    probes = [Probe() for _ in layers]
    both = [m for pair in zip(layers, probes, strict=True) for m in pair]
    return nn.Sequential(*both).double(), probes


@given(
    seed=st.integers(0, 2**31),
    T=st.integers(1, 5),
    B=st.integers(2, 4),
    c=st.integers(1, 3),
    static=st.booleans(),
    training=st.booleans(),
    rule=st.sampled_from(RULES),
    v_reset=st.sampled_from([None, 0.0]),
    detach=st.booleans(),
    surrogate=st.sampled_from([Sigmoid(), Dspike()]),
)
@settings(max_examples=60, deadline=None)
def test_rate_is_the_mean_of_the_steps_after_every_layer(
    seed: int,
    T: int,
    B: int,
    c: int,
    static: bool,
    training: bool,
    rule: BPTT | RateBP,
    v_reset: float | None,
    detach: bool,
    surrogate: Any,
) -> None:
    torch.manual_seed(seed)
    neuron = lambda: LIF(0.5, None, 0.7, v_reset, detach, surrogate)  # noqa: E731
    network, probes = probed(every_layer(c, neuron))
    network.train(training)
    x = torch.rand(B, c, 8, 8, dtype=torch.float64).expand(T, B, c, 8, 8) if static else torch.rand(T, B, c, 8, 8).double()
    out = rule(network, x)
    assert out.steps.shape == (T, B, 3)
    assert torch.allclose(out.rate, out.steps.mean(0), rtol=1e-9, atol=1e-12)
    if rule.chunk is None or rule.chunk >= T:
        for probe in probes:
            assert probe.signal.steps.shape == (T, *probe.signal.rate.shape)
            assert torch.allclose(probe.signal.rate, probe.signal.steps.mean(0), rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 2**31), T=st.integers(1, 5), chunk=st.sampled_from([None, 1, 2]), static=st.booleans())
@settings(max_examples=30, deadline=None)
def test_spikes_of_both_rules_are_bit_identical(seed: int, T: int, chunk: int | None, static: bool) -> None:
    outputs = []
    for rule in (BPTT(chunk), RateBP(chunk)):
        torch.manual_seed(seed)
        network, probes = probed(every_layer(2, lambda: LIF(threshold=0.6)))
        x = torch.rand(3, 2, 8, 8).double().expand(T, 3, 2, 8, 8) if static else torch.rand(T, 3, 2, 8, 8).double()
        outputs.append((rule(network, x).steps, [p.signal.steps for p in probes], dict(network.named_buffers())))
    (a, steps_a, buffers_a), (b, steps_b, buffers_b) = outputs
    assert torch.equal(a, b)
    assert all(torch.equal(p, q) for p, q in zip(steps_a, steps_b, strict=True))
    assert all(torch.equal(buffers_a[name], buffers_b[name]) for name in buffers_a)


def test_one_dimensional_layers() -> None:
    layers = [nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), IF(), nn.MaxPool1d(2), nn.AvgPool1d(2)]
    network, _ = probed(
        [*layers, nn.AdaptiveAvgPool1d(1), nn.AdaptiveMaxPool1d(1), nn.Dropout1d(), nn.Flatten(), nn.Linear(4, 2)]
    )
    x = torch.rand(3, 5, 2, 12).double()
    for rule in RULES:
        out = rule(network, x)
        assert torch.allclose(out.rate, out.steps.mean(0))
        out.rate.sum().backward()


def conv_flops(network: nn.Module, run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("rule", [BPTT(), BPTT(chunk=1), BPTT(chunk=3), RateBP(), RateBP(chunk=1), RateBP(chunk=3)], ids=str)
def test_constant_input_goes_once_through_the_layers_before_the_first_neuron(rule: BPTT | RateBP) -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1), LIF())
    image = torch.rand(3, 2, 8, 8)
    with torch.no_grad():
        once = conv_flops(network, lambda: BPTT()(network, image.expand(1, *image.shape)))
        assert conv_flops(network, lambda: rule(network, image.expand(6, *image.shape))) == once
        rates = isinstance(rule, RateBP) and rule.chunk is not None  # go through the layers instead of sums that are carried
        assert conv_flops(network, lambda: rule(network, image.repeat(6, 1, 1, 1, 1))) == (6 + rates) * once


@pytest.mark.parametrize("T", [1, 2, 4])
def test_a_convolution_whose_value_is_known_is_not_computed_again(T: int) -> None:
    network = nn.Sequential(LIF(), nn.Conv2d(2, 4, 3), LIF(), nn.Flatten(), nn.Linear(4 * 36, 5))
    x = torch.rand(T, 3, 2, 8, 8)
    with torch.no_grad():
        forward = conv_flops(network, lambda: BPTT()(network, x))
    assert conv_flops(network, lambda: RateBP()(network, x)) == forward


def test_dropout_draws_one_mask_for_all_steps() -> None:
    for rule in RULES:
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
        steps = rule(network, torch.ones(4, 3, 1, 20)).steps
        assert 0 < float((steps == 0).float().mean()) < 1
        assert torch.equal(steps, steps[:1].expand_as(steps))
        assert torch.equal(rule(network.eval(), torch.ones(4, 3, 1, 20)).steps, torch.ones(4, 3, 20))


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (torch.relu, "relu"),
        (nn.ReLU(), "relu"),
        (nn.LayerNorm((3, 2, 8, 8)), "layer_norm over axis 0"),
        (nn.InstanceNorm2d(2, track_running_stats=True), "instance_norm with running statistics"),
        (lambda x: torch.softmax(x, 0), "softmax along axis 0"),
        (lambda x: x.roll(1), "roll along axis 0"),
        (lambda x: x.flip(0), "flip along axis 0"),
        (lambda x: x.repeat(2, 1, 1, 1), r"repeat by \[2, 1, 1, 1\]"),
        (lambda x: x.expand(5, 3, 2, 8, 8), "expand to"),
        (lambda x: x.amax(), "amax along axis 0"),
        (lambda x: torch.nn.functional.gelu(x), "gelu"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "pad"),
        (lambda x: x.mean((0, 2)), "mean along axis 0"),
        (lambda x: x.mean(), "mean along axis 0"),
        (lambda x: x.sum(), "sum along axis 0"),
        (lambda x: x.std(1), "Tensor.std"),
        (lambda x: x.view(-1, 8), r"reshaping to \[-1, 8\], which mixes the samples"),
        (lambda x: x.reshape(2, 3, 8, 8), r"reshaping to \[2, 3, 8, 8\], which mixes the samples"),
        (lambda x: x.view(torch.int32), "view as another type"),
        (lambda x: torch.flatten(x), "flatten along axis 0"),
        (lambda x: x.transpose(0, 1), "transpose along axis 0"),
        (lambda x: x.permute(1, 0, 2, 3), r"permute to \[1, 0, 2, 3\]"),
        (lambda x: x.squeeze(), "squeeze without an axis"),
        (lambda x: x.unsqueeze(0), "unsqueeze along axis 0"),
        (lambda x: x.split(1), "split along axis 0"),
        (lambda x: x.chunk(3, -4), "chunk along axis 0"),
        (lambda x: x[0], r"indexing by \[0\]"),
        (lambda x: x[:2], r"indexing by \[:2\]"),
        (lambda x: x[None], r"indexing by \[None\]"),
        (lambda x: x[:, 0, [0, 1]], r"indexing by \[:, 0, \[0, 1\]\]"),
        (lambda x: list(x), "Tensor.__iter__"),
        (lambda x: x * torch.ones(1, 1, 2, 1, 1), "multiplying by a tensor of 5 axes"),
        (lambda x: np.ones(3) * x, "multiplying by what is no signal"),
        (lambda x: x / x, "dividing by what is no signal"),
        (lambda x: torch.ones(2, 8) / x, "div"),
        (lambda x: x @ torch.ones(8), "matmul of a signal of 4 and a tensor of 1 axes"),
        (lambda x: 1 / x, "Tensor.__rtruediv__"),
        (lambda x: x**2, "Tensor.__pow__"),
        (lambda x: x == 0, "Tensor.__eq__"),
        (lambda x: x > 0, "Tensor.__gt__"),
        (lambda x: x or None, "Tensor.__bool__"),
        (lambda x: float(x), "Tensor.__float__"),
        (lambda x: x + x.flatten(2), "adding signals of 4 and 3 axes"),
        (lambda x: x.long(), "Tensor.long"),
        (lambda x: x.to(torch.int8), "to, with a type that is not floating point,"),
        (lambda x: x.relu_(), "relu_"),
        (lambda x: torch.einsum("bchw->bc", x), "einsum"),
        (lambda x: torch.nn.functional.pad(x, (1, 1), "circular"), "pad with mode 'circular'"),
        (lambda x: torch.nn.functional.avg_pool2d(x.mean((2, 3)), 2), "avg_pool2d of a signal of 2 axes"),
        (lambda x: torch.cat([x, x], 0), "cat along axis 0"),
        (lambda x: x.add("1"), "adding what is no signal"),
        (lambda x: torch.cat([x, torch.ones(2, 8)], 1), "cat of signals and tensors of unlike numbers of axes"),
        (nn.MaxPool2d(2, return_indices=True), "max_pool2d_with_indices"),
    ],
    ids=lambda f: f if isinstance(f, str) else "",
)
@pytest.mark.parametrize("rule", [BPTT(), RateBP()], ids=str)
def test_an_operation_without_a_rule_is_named(f: Callable[[Any], Any], name: str, rule: BPTT | RateBP) -> None:
    with pytest.raises(TypeError, match=f"{name}.* has no rule for a spiking signal"):
        rule(Functional(f), torch.rand(2, 3, 2, 8, 8))


def test_a_signal_looks_like_a_tensor_without_time() -> None:
    probe = Probe()
    BPTT()(probe, torch.rand(5, 3, 2, 8, 8))
    x = probe.signal
    assert (x.dim(), x.shape, x.size(1), x.size()) == (4, (3, 2, 8, 8), 2, (3, 2, 8, 8))
    with pytest.raises(AttributeError, match="no attribute nonsense"):
        _ = x.nonsense  # type: ignore[attr-defined]


def test_properties_that_a_signal_has_in_common_with_a_tensor() -> None:
    probe = Probe()
    BPTT()(probe, torch.rand(5, 3, 2, 8, 8))
    x = probe.signal
    assert (x.dtype, x.device, x.ndim, len(x), x.numel(), x.is_floating_point()) == (
        torch.float32, torch.device("cpu"), 4, 3, 384, True
    )  # fmt: skip


def test_the_operations_and_the_rates_of_layers_are_compiled_whole() -> None:
    def operations(x: Any) -> Any:
        a, b = x.view(len(x), 2, -1).unflatten(2, (6, 6)).chunk(2, 1)
        parts = [x.permute(0, 2, 3, 1)[:, :2].flatten(1) * 0.5, (a - b).mean((2, 3)), x[:, [1, 0]].reshape(-1, 72)]
        return torch.cat([*parts, torch.stack([-x, 1 - x], 2).flatten(1)], 1)

    network, x = nn.Sequential(Functional(operations), LIF(threshold=0.2)), torch.rand(3, 4, 2, 6, 6)
    rule = FiringRates(RateBP())
    compiled = torch.compile(rule, fullgraph=True, dynamic=False, backend="aot_eager")
    (out, rates), (same, of_layers) = compiled(network, x), rule(network, x)
    assert torch.equal(out.rate, same.rate) and torch.equal(rates["1"], of_layers["1"])


class Heads(nn.Module):
    """Two heads, in what a function of signals makes of them."""

    def __init__(self, pack: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.body, self.pack = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), LIF(threshold=0.3)), pack
        self.one, self.other = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Any) -> Any:
        y = self.body(x)
        return self.pack(self.one(y), self.other(y))


class Pair(NamedTuple):
    one: Any
    other: Any


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (lambda a, b: (a, b), lambda y: y),
        (lambda a, b: [a, b], lambda y: y),
        (lambda a, b: {"a": a, "b": b}, lambda y: (y["a"], y["b"])),
        (lambda a, b: {"heads": [a, (b, None)]}, lambda y: (y["heads"][0], y["heads"][1][0])),
        (Pair, lambda y: (y.one, y.other)),
    ],
)
@pytest.mark.parametrize("kind", [BPTT, RateBP, SLTT, OTTT])
@pytest.mark.parametrize("chunk", [1, 2])
def test_several_outputs_are_joined_each(kind: Any, chunk: int, pack: Any, unpack: Any) -> None:
    network, x = Heads(pack), torch.rand(3, 4, 2, 2, 2)
    (whole, parts) = (rule(network, x) for rule in (kind(), kind(chunk)))
    assert type(parts) is type(whole)
    for one, other in zip(unpack(whole), unpack(parts), strict=True):
        assert other.steps.shape[0] == 3 and torch.allclose(one.steps, other.steps, atol=1e-6)
        assert torch.allclose(other.rate, other.steps.mean(0), atol=1e-6)
    found, expected = (gradients(network, sum(y.rate.square().sum() for y in unpack(out))) for out in (parts, whole))
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in found)


def test_outputs_that_differ_from_chunk_to_chunk_are_refused() -> None:
    network = Functional(lambda x: [x, None] if x.complete else x)
    with pytest.raises(ValueError, match="returns a Unrolled in the first chunk of steps, and other outputs in the last"):
        BPTT(chunk=1)(network, torch.rand(3, 4, 2))
    y, tap = BPTT(chunk=1)(Functional(lambda x: (x, x.tap())), torch.rand(3, 4, 2))
    assert torch.allclose(y.rate, tap)


@pytest.mark.parametrize("rule", [BPTT(chunk=1), RateBP(chunk=1), SLTT(chunk=2)], ids=str)
def test_a_rate_inside_of_a_network_in_chunks_is_refused(rule: Any) -> None:
    """It would be that of some of the steps, or of no steps at all."""
    with pytest.raises(
        RuntimeError, match=r"after \d of 3 steps: .* use signal.tap\(\), which is final when signal.complete"
    ):
        rule(nn.Sequential(LIF(), Functional(lambda x: [x.rate, x][1])), torch.rand(3, 4, 2))


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_loss_on_the_steps_of_a_rate_coded_signal_warns(chunk: int | None) -> None:
    network = nn.Sequential(nn.Linear(4, 5), LIF(threshold=0.2), nn.Linear(5, 2))
    x = torch.rand(3, 2, 4)
    out = RateBP(chunk)(network, x)
    with pytest.warns(UserWarning, match="a loss uses the steps of a signal under RateBP.* trains nothing"):
        (out.rate.square().sum() + out.steps.square().sum()).backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    assert found.keys() == dict(network.named_parameters()).keys()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = gradients(network, RateBP(chunk)(network, x).rate.square().sum())
        BPTT(chunk)(network, x).steps.sum().backward()
        with torch.no_grad():
            assert not RateBP(chunk)(network, x).steps.requires_grad
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_batch_norm_needs_more_than_one_value() -> None:
    with pytest.raises(ValueError, match="more than one value per channel"):
        BPTT()(nn.Sequential(nn.BatchNorm1d(3)), torch.rand(1, 1, 3))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_of_a_constant_input_are_those_of_all_its_steps(
    rule: BPTT | RateBP, momentum: float | None
) -> None:
    image, T = torch.rand(3, 2, 4, 4, dtype=torch.float64), 4
    layers = [nn.BatchNorm2d(2, momentum=momentum).double() for _ in range(2)]
    rule(layers[0], image.expand(T, *image.shape))
    rule(layers[1], image.repeat(T, 1, 1, 1, 1))
    for a, b in zip(layers[0].buffers(), layers[1].buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9)


def by_torch(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def test_batch_norm_is_torchs_over_steps_and_batch() -> None:
    ours, theirs = nn.BatchNorm2d(2).double(), nn.BatchNorm2d(2).double()
    x = torch.rand(4, 3, 2, 5, 5, dtype=torch.float64)
    assert torch.allclose(BPTT()(ours, x).steps, by_torch(x, theirs))
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9)
    ours.eval(), theirs.eval()
    assert torch.allclose(BPTT()(ours, x).steps, by_torch(x, theirs))


# found by review --------------------------------------------------------------------------------------------------------


def test_bf16_rates_over_many_chunks_are_the_mean_of_the_steps() -> None:
    x = torch.full((600, 1, 1), 2.0).bfloat16()
    assert RateBP(chunk=1)(LIF(), x).rate == 1


@pytest.mark.parametrize("rule", [BPTT(), RateBP()], ids=str)
def test_a_forgotten_time_axis_is_named(rule: Any) -> None:
    images = torch.rand(4, 3, 8, 8)
    with pytest.raises(ValueError, match=r"\(without time\): .*x.expand\(T, \*x.shape\)"):
        rule(nn.Conv2d(3, 3, 3, padding=1), images)
    with pytest.raises(ValueError, match="the input is a ndarray"):
        rule(nn.Conv2d(3, 3, 3, padding=1), images.numpy())


def test_layers_before_the_first_neuron_run_once_in_every_rule_and_chunk() -> None:
    calls = []

    class Counted(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.nonlinear(lambda t: calls.append(len(t)) or t.square())

    network = nn.Sequential(Counted(), LIF())
    x = torch.rand(2, 3).expand(5, 2, 3)
    for rule in (BPTT(), BPTT(chunk=1), RateBP(chunk=2), Meter(Ledger())):
        calls.clear()
        rule(network, x)  # type: ignore[operator]
        assert [n for n in calls if n == 2] == calls
        assert len(calls) == 1 + isinstance(rule, RateBP) * 3  # and at the rate of each chunk


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("padding", "kernel"), [("same", 3), ("valid", 3), ("same", (2, 4))])
def test_named_paddings_are_not_computed_twice(padding: str, kernel: Any) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, kernel, padding=padding, dilation=(1, 2)), LIF()).double()
    x = torch.rand(3, 2, 2, 9, 9).double()
    flops = []
    for rule in (BPTT(), RateBP()):
        with FlopCounterMode(display=False) as counter:
            rule(network, x)  # type: ignore[operator]
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1]
    one, other = (gradients(network, rule(network, x[:1]).rate.square().sum()) for rule in (BPTT(), RateBP()))
    assert all(torch.allclose(one[name], other[name]) for name in one)


def test_each_step_of_an_expanded_leaf_has_its_own_gradient() -> None:
    images = torch.rand(2, 3, dtype=torch.float64) * 2
    gradients = []
    for x in (images.expand(3, 2, 3).requires_grad_(), images.repeat(3, 1, 1).requires_grad_()):
        BPTT()(LIF(), x).rate.sum().backward()
        gradients.append(x.grad)
    assert torch.equal(gradients[0], gradients[1])


def test_functions_with_the_signal_elsewhere_are_refused() -> None:
    class Odd(nn.Module):
        def forward(self, x: Any) -> Any:
            return nn.functional.linear(torch.ones(1, 3), x)

    with pytest.raises(TypeError, match="linear has no rule"):
        BPTT()(Odd(), torch.rand(2, 4, 3))


@pytest.mark.parametrize("kind", [Normalization, autograd.Convolution, autograd.Linear, autograd.Product])
def test_what_is_made_and_called_in_a_forward_pass_has_a_hash_before_it_is_filled(kind: type) -> None:
    """The compiler of PyTorch 2.11 asks for it, and compiled nothing here without."""
    assert hash(kind.__new__(kind)) is not None
