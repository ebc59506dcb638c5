"""What is kept in memory: for the backward pass, from chunk to chunk, and at most at any moment. Bytes are counted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from spikerate import BPTT, IF, LIF, SLTT, RateBP, Signal, fused, preact_resnet18, resnet18, sew_resnet18, signal
from spikerate.recompute import Bits
from spikerate.signal import Tape


class Graded(nn.Module):
    """Neurons without memory whose spikes have sizes, drawn at random."""

    elementwise = False

    def forward(self, x: Signal) -> Signal:
        return x.fire(self)

    def unroll(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        return inputs.relu() * torch.rand_like(inputs), None


def convolutional(neuron: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        neuron(),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(8),
        nn.Dropout(0.3),
        neuron(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 1),
        neuron(),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: resnet18(width=2),
    "preact": lambda: preact_resnet18(width=2),
    "sew": lambda: sew_resnet18(width=2),
    "hard reset": lambda: convolutional(lambda: LIF(v_reset=0.0, detach_reset=False)),
    "graded": lambda: convolutional(Graded),
    "no leak": lambda: convolutional(IF),
}


def step(rule: BPTT, network: nn.Module, x: Tensor, **autocast: Any) -> list[Tensor]:
    """The rate, the gradients of all parameters and of the input, and the buffers."""
    own = copy.deepcopy(network)
    torch.manual_seed(1)
    with torch.autocast("cpu", **(autocast or {"enabled": False})):
        rate = rule(own, x).rate
    inputs = [*own.parameters(), *([x] if x.requires_grad else [])]
    return [rate, *torch.autograd.grad(rate.square().sum(), inputs), *own.buffers()]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("input", ["image", "events", "bf16"])
def test_checkpoints_change_no_bit_of_the_gradient(network: str, input: str) -> None:
    torch.manual_seed(0)
    side = 8 if NETWORKS[network]().__class__ is nn.Sequential else 16
    x = torch.randn(2, 3, side, side).expand(3, -1, -1, -1, -1) if input == "image" else torch.randn(3, 2, 3, side, side)
    made = NETWORKS[network]()
    autocast = {}
    if input == "bf16":
        autocast = {"dtype": torch.bfloat16}
    else:
        made, x = made.double(), x.double()
    if input == "events":
        x.requires_grad_()
    for one, other in zip(*(step(rule, made, x, **autocast) for rule in (BPTT(), BPTT(checkpoint=True))), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 5), (2, 3, 4, 4)])
def test_bits_give_the_train_back_in_its_order(shape: tuple[int, ...]) -> None:
    train = (torch.rand(shape) < 0.5).to(torch.bfloat16)
    if len(shape) == 4:
        train = train.to(memory_format=torch.channels_last)
    bits = Bits.of(train)
    assert bits is not None
    assert bits.data.nbytes == -(-train.numel() // 8)
    back = bits.unpacked()
    assert torch.equal(back, train) and back.dtype == train.dtype and back.stride() == train.stride()
    assert Bits.of(train * 0.5) is None or not train.any()


def test_the_graph_can_be_run_back_twice_and_refuses_other_weights() -> None:
    network, x = convolutional(LIF), torch.rand(3, 2, 3, 8, 8)
    loss = BPTT(checkpoint=True)(network, x).rate.square().sum()
    weight = next(network.parameters())
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.any()
    with torch.no_grad():
        weight.add_(1)
    loss = BPTT(checkpoint=True)(network, x).rate.square().sum()
    with torch.no_grad():
        network[3].weight.add_(1)  # type: ignore[operator, union-attr]
    with pytest.raises(RuntimeError, match="changed between the forward and the backward"):
        loss.backward()


def test_checkpoints_with_chunks_or_the_compiler_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk=None"):
        BPTT(chunk=2, checkpoint=True)
    with pytest.raises(Exception, match="can't be compiled"):
        torch.compile(BPTT(checkpoint=True), backend="eager", fullgraph=True)(convolutional(LIF), torch.rand(2, 2, 3, 8, 8))


def allocated(f: Callable[[], Any]) -> tuple[int, int]:
    """Bytes of memory that a call takes at most at any moment, and those that its result holds."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = f()
    now = most = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    del result
    return most, now


def training(rule: BPTT | RateBP, T: int, width: int = 8, batch: int = 4) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    network, image = resnet18(width=width), torch.rand(batch, 3, 32, 32)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    return lambda: rule(network, image.expand(T, *image.shape)).rate.sum()


def test_a_step_more_keeps_one_bit_of_each_neuron() -> None:
    neurons = 4 * 8 * (5 * 32**2 + 4 * 2 * 16**2 + 4 * 4 * 8**2 + 4 * 8 * 4**2)
    kept = {T: allocated(training(BPTT(checkpoint=True), T))[1] for T in (2, 4, 8)}
    logits = 4 * 4 * (8 * 8 + 10)  # what the last layer keeps of a step: its input, and the logits
    for a, b in ((2, 4), (4, 8)):
        assert neurons / 8 <= (kept[b] - kept[a]) / (b - a) <= neurons / 8 + 2 * logits
    assert kept[8] < 0.05 * allocated(training(BPTT(), 8))[1]


def test_checkpoints_take_two_fifths_of_the_memory_at_its_peak() -> None:
    def peak(rule: BPTT) -> int:
        loss = training(rule, 8)
        return allocated(lambda: loss().backward())[0]  # type: ignore[no-untyped-call]

    assert peak(BPTT(checkpoint=True)) < 0.41 * peak(BPTT())


def _bytes(state: Any) -> int:
    if isinstance(state, tuple):
        return sum(map(_bytes, state))
    return state.nbytes if isinstance(state, Tensor) else 0


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes in the tape after each chunk."""
    found: list[int] = []
    close = Tape.close

    def counting(tape: Tape) -> None:
        close(tape)
        found.append(_bytes(tuple(tape.slots)))

    monkeypatch.setattr(Tape, "close", counting)
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_chunks_carry_the_least_and_nothing_in_the_end(carried: list[int], precision: str) -> None:
    """The membrane, the spikes counted in a byte, and the sum of gains, in half of the bits where activations are so."""
    with torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
        training(RateBP(chunk=1), 4)()
    neurons = 4 * 8 * (5 * 32**2 + 4 * 2 * 16**2 + 4 * 4 * 8**2 + 4 * 8 * 4**2)
    first = 4 * 8 * 32**2  # of an image that stays, the output of the first convolution and that of its batch norm
    statistics = 4 * 2 * sum(8 * n for n in (5 * [1] + 5 * [2] + 5 * [4] + 5 * [8]))
    small = 4 * (4 * 64 + 4 * 10)
    assert carried[0] == carried[1] == carried[2] and carried[3] == 0
    each, activation = (9, 4) if precision == "fp32" else (7, 2)
    assert carried[0] <= each * neurons + 2 * activation * first + statistics + small


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_chunks_halve_the_memory_at_its_peak(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_IN_CACHE", 2**14)  # small beside a layer, as it is in a network of the usual size

    def peak(chunk: int | None) -> int:
        with torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
            return allocated(training(RateBP(chunk), 8, 16, 32))[0]

    assert peak(1) < 0.7 * peak(None)


BINARY = [BPTT(), BPTT(chunk=2), SLTT(), RateBP(), RateBP(chunk=2)]


@pytest.mark.parametrize("rule", BINARY, ids=str)
@pytest.mark.parametrize("kind", ["fp64", "fp32", "bf16", "channels last"])
def test_spikes_and_rates_are_kept_in_a_byte_and_change_no_bit(
    rule: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), LIF(0.9, threshold=0.3), nn.Conv2d(4, 6, (2, 4), padding="same", groups=2),
        LIF(0.9, threshold=0.1, v_reset=0.0), nn.Flatten(2), nn.Conv1d(6, 3, 4, stride=2), LIF(threshold=0.1), nn.Flatten(),
        nn.Linear(3 * 17, 5), LIF(threshold=0.1), nn.Linear(5, 3),
    )  # fmt: skip
    x = torch.rand(4, 2, 2, 6, 6)
    if kind == "fp64":
        network, x = network.double(), x.double()
    if kind == "channels last":
        network[0].to(memory_format=torch.channels_last)
    known = signal._binary

    def step(kept: bool) -> tuple[list[Tensor], int]:
        monkeypatch.setattr(signal, "_binary", known if kept else lambda neuron: False)
        saved: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given out a second time

        def pack(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autocast("cpu", torch.bfloat16, kind == "bf16"), torch.autograd.graph.saved_tensors_hooks(pack, _same):
            loss = rule(network, x).rate.float().square().sum()
        return list(torch.autograd.grad(loss, list(network.parameters()))), sum(
            storage.nbytes() for storage in saved.values()
        )

    (bytewise, few), (plain, many) = step(True), step(False)
    for a, b in zip(bytewise, plain, strict=True):
        assert torch.equal(a, b)
    assert all(g.any() for g in bytewise[::2])
    inputs = 2 * (4 * 36 + 5)  # spikes that a convolution or a linear layer is given straight from a neuron
    size = {"fp64": 8, "bf16": 2}.get(kind, 4)
    steps = 1 if isinstance(rule, RateBP) else 0 if kind == "bf16" and rule.chunk is not None else 4
    assert many - few >= (size - 1) * inputs * steps


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Twice(LIF):
    """Neurons that fire twos."""

    def trace(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        spikes, (*own, count, gain) = super().trace(inputs, state)
        return 2 * spikes, (*own, 2 * count, 2 * gain)

    def unroll(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        spikes, state = super().unroll(inputs, state)
        return 2 * spikes, state


def test_spikes_of_a_neuron_that_makes_others_and_trains_that_were_replaced_are_kept_as_they_are() -> None:
    assert LIF.binary and not Twice.binary

    class Halved(nn.Module):
        def forward(self, x: Signal) -> Signal:
            return replace(x, train=x.train * 0.5)

    torch.manual_seed(0)
    for layers in ([Twice(threshold=0.2)], [LIF(threshold=0.2), Halved()]):
        network = nn.Sequential(nn.Linear(3, 4), *layers, nn.Linear(4, 2)).double()
        x = torch.rand(3, 2, 3, dtype=torch.float64)
        weight = network[-1].weight
        spikes = BPTT()(network[:-1], x).train.detach()
        (grad,) = torch.autograd.grad(BPTT()(network, x).train.sum(), weight)  # type: ignore[arg-type]
        torch.testing.assert_close(grad, spikes.sum((0, 1)).expand(2, -1))
    network = nn.Sequential(nn.Linear(3, 4), Twice(threshold=0.2), nn.Linear(4, 2)).double()
    rate = RateBP()(network[:-1], x).rate.detach()
    (grad,) = torch.autograd.grad(RateBP()(network, x).rate.sum(), network[-1].weight)  # type: ignore[arg-type]
    torch.testing.assert_close(grad, rate.sum(0).expand(2, -1))


def test_what_no_layer_asks_for_is_not_carried(carried: list[int]) -> None:
    network = nn.Sequential(nn.Linear(6, 8), LIF(), nn.Linear(8, 4), LIF())
    RateBP(chunk=1)(network, torch.rand(3, 2, 6))
    assert carried == [2 * (4 + 1 + 4) * (8 + 4)] * 2 + [0]
