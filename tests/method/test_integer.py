"""The integer neuron: its equation, its gradient, and that its binary steps fire the same spikes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spikerate import BPTT, ILIF, LIF, OTTT, SLTT, RateBP, airbench, max_resnet18, ms_resnet18, resnet18, sew_resnet18, vgg11
from spikerate.exchange.neurobench import neurobench_model
from spikerate.exchange.spikingjelly import to_spikingjelly
from spikerate.measure.binary import BinarySteps
from spikerate.measure.meter import Ledger, Meter, Tally, watched
from spikerate.rules import forward
from spikerate.signal import Unrolled


def loop(x: Tensor, neuron: ILIF) -> Tensor:
    """The equation, value by value."""
    out = torch.zeros_like(x)
    for i in range(x[0].numel()):
        u = 0.0
        for t in range(len(x)):
            v = neuron.decay * u + float(x[t].flatten()[i])
            s = min(max(int((v / neuron.threshold + 0.5) // 1), 0), neuron.levels)
            u = v - neuron.threshold * s
            out[t].view(-1)[i] = s
    return out


@settings(max_examples=20, deadline=None)
@given(
    T=st.integers(1, 5),
    levels=st.integers(1, 6),
    decay=st.floats(0.1, 1),
    threshold=st.floats(0.3, 2),
    seed=st.integers(0, 99),
)
def test_spikes_are_those_of_the_equation_in_every_method(
    T: int, levels: int, decay: float, threshold: float, seed: int
) -> None:
    torch.manual_seed(seed)
    neuron = ILIF(decay, levels, threshold)
    x = 3 * torch.randn(T, 2, 3, dtype=torch.float64)
    expected = loop(x, neuron)
    assert torch.equal(neuron.spikes(x), expected)
    assert torch.equal(neuron.unroll(x, None)[0], expected)
    assert torch.equal(neuron.slopes(x, None)[0], expected)
    spikes, (*_, count, _gain) = neuron.trace(x, None)
    assert torch.equal(spikes, expected) and torch.equal(count, expected.sum(0))


def test_halves_are_rounded_up_and_the_slope_is_that_of_the_window() -> None:
    neuron = ILIF(levels=2)
    x = torch.tensor([[-0.1, 0.0, 0.49, 0.5, 1.5, 2.0, 2.01, 9.0]], dtype=torch.float64).requires_grad_()
    spikes, _ = neuron.unroll(x, None)
    assert spikes.tolist() == [[0, 0, 0, 1, 2, 2, 2, 2]]
    (slope,) = torch.autograd.grad(spikes.sum(), x)
    assert slope.tolist() == [[0, 1, 1, 1, 1, 1, 0, 0]]


def network(**neuron: Any) -> nn.Module:
    make = partial(ILIF, **neuron)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        make(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 2),
        make(),
        nn.Flatten(),
        nn.Linear(12, 3),
    ).double()


def images(T: int = 1, B: int = 3) -> Tensor:
    return 2 * torch.randn(T, B, 2, 8, 8, dtype=torch.float64)


def gradient(rule: Any, net: nn.Module, x: Tensor) -> list[Tensor]:
    loss = rule(net, x).rate.square().sum()
    return list(torch.autograd.grad(loss, list(net.parameters())))


@pytest.mark.parametrize("rule", [RateBP(), SLTT(), BPTT(checkpoint=True), RateBP(chunk=1)], ids=str)
def test_at_one_step_every_rule_is_backpropagation(rule: Any) -> None:
    net, x = network(), images()
    for a, b in zip(gradient(rule, net, x), gradient(BPTT(), net, x), strict=True):
        assert a.abs().sum() > 0
        torch.testing.assert_close(a, b)


def test_the_gain_over_time_is_what_a_current_that_grows_at_every_step_moves() -> None:
    """The linearised recursion: the derivative of the summed spikes by a current that all steps have in common."""
    neuron = ILIF(decay=0.5, levels=3, detach_reset=False)
    x = images(4)
    more = torch.zeros_like(x[0]).requires_grad_()
    spikes, _ = neuron.unroll(x + more, None)
    (expected,) = torch.autograd.grad(spikes.sum(), more)
    _, (*_, gain) = neuron.trace(x, None)
    torch.testing.assert_close(gain, expected)


def test_chunks_go_on_where_the_last_one_ended() -> None:
    net, x = network(decay=0.7).eval(), images(5)
    for rule in (BPTT, SLTT, partial(OTTT, decay=0.7), RateBP):
        whole, parts = rule()(net, x), rule(chunk=2)(net, x)
        torch.testing.assert_close(parts.train, whole.train)


# binary steps ---------------------------------------------------------------------------------------------------------


MAKERS = {
    "vgg11": partial(vgg11, width=4),
    "resnet18": partial(resnet18, width=4),
    "sew_resnet18": partial(sew_resnet18, width=4),
    "ms_resnet18": partial(ms_resnet18, width=4),
    "max_resnet18": partial(max_resnet18, width=4),
    "airbench": partial(airbench, width=4),
    "airbench-whitening": partial(airbench, width=4, stem="whitening"),
}


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_binary_steps_fire_the_same_spikes(make: Any, T: int) -> None:
    torch.manual_seed(T)
    net = make(in_channels=2, activation=partial(ILIF, levels=3)).double()
    x = torch.randn(T, 3, 2, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(4):
            BPTT()(net, x)
    net.eval()
    found: dict[str, list[Tensor]] = {"whole": [], "binary": []}

    def seen(name: str) -> Any:
        return watched(net, lambda neuron, inputs, spikes: found[name].append(spikes.expanded()))

    with torch.no_grad():
        whole = forward(seen("whole"), x, Unrolled)
        rule = BinarySteps()
        binary = rule(_Seen(net, seen("binary")), x)
    assert len(found["whole"]) == len(found["binary"]) > 4
    assert sum(float(w.sum()) for w in found["whole"]) > 0
    for w, b in zip(found["whole"], found["binary"], strict=True):
        assert set(b.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(b.unflatten(0, (T, 3)).sum(1), w)
    torch.testing.assert_close(binary.rate, whole.rate)
    torch.testing.assert_close(binary.steps.unflatten(0, (T, 3)).sum(1), whole.steps)


class Attention(nn.Module):
    """q (k^T v) of spikes, and spikes again."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.neurons = nn.ModuleList([ILIF(levels=3) for _ in range(4)])

    def forward(self, x: Any) -> Any:
        q, k, v = (neuron(f(x)) for f, neuron in zip(self.maps, self.neurons, strict=False))
        return self.neurons[3](q @ (k.transpose(-2, -1) @ v) * 0.5)


def test_products_of_binary_steps_are_those_of_the_whole_numbers() -> None:
    net, x = Attention().double().eval(), 3 * torch.randn(2, 3, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        whole = BPTT()(net, x)
        assert float(whole.steps.sum()) > 0
        torch.testing.assert_close(BinarySteps()(net, x).rate, whole.rate)


class _Seen(nn.Module):
    """A network whose spikes are looked at."""

    def __init__(self, net: nn.Module, run: Any) -> None:
        super().__init__()
        self.net, self.run = net, run

    def forward(self, x: Any) -> Any:
        return self.run(x)


def test_what_has_no_binary_steps_is_refused() -> None:
    x = images()
    with pytest.raises(ValueError, match="no ILIF neuron"):
        BinarySteps()(nn.Sequential(nn.Flatten(), nn.Linear(128, 2), LIF()).double(), x)
    with pytest.raises(ValueError, match="D = 2, 4"):
        BinarySteps()(nn.Sequential(nn.Flatten(), ILIF(levels=2), ILIF()).double().eval(), x)
    with pytest.raises(ValueError, match="a LIF has no binary steps"):
        BinarySteps()(nn.Sequential(nn.Flatten(), LIF(), ILIF()).double().eval(), x)
    with pytest.raises(ValueError, match="eval"):
        BinarySteps()(network(), x)


# energy, exchange -------------------------------------------------------------------------------------------------------


def test_operations_and_spikes_are_those_of_the_binary_steps() -> None:
    """Counted on whole numbers, they are what the same counters find in the binary trains."""
    net, x = network(levels=4).eval(), images(2, 5)
    ledger, tally = Ledger(), Tally.of(net)
    with torch.no_grad():
        Meter(ledger, tally)(net, x)
    energy = tally.energy(5, 2)
    trains: list[Tensor] = []
    run = watched(net, lambda neuron, inputs, spikes: trains.append(spikes.expanded()))
    with torch.no_grad():
        BinarySteps()(_Seen(net, run), x)
    fired, second = (int(train.sum()) for train in trains)
    assert ledger.total() == fired + second
    assert ledger.mean_rate() == pytest.approx(float(torch.cat([t.flatten() for t in trains]).mean()))
    linear = energy.layers["7"]
    assert linear.binary and linear.acs == pytest.approx(second * 3 / 5)
    pooled = nn.functional.max_pool2d(trains[0].flatten(0, 1), 2)
    reached = nn.functional.conv_transpose2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert energy.layers["4"].acs == pytest.approx(float((pooled * reached).sum()) * 3 / 5)
    assert not energy.layers["0"].binary  # the image


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 0}, "ILIF.levels is 0"),
        ({"levels": 2.5}, "levels is 2.5"),
        ({"decay": 0}, "decay is 0"),
        ({"threshold": -1}, "threshold"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ILIF(**settings)


def test_other_libraries_have_no_such_neuron_and_say_so() -> None:
    pytest.importorskip("spikingjelly")
    with pytest.raises(ValueError, match="of the kind ILIF, for which there is none there"):
        to_spikingjelly(network())
    pytest.importorskip("neurobench")
    with pytest.raises(ValueError, match="integer neurons"):
        neurobench_model(network(), 1)
