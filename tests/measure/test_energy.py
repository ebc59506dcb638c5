"""Operations and energy: counted as NeuroBench defines them, by the values that came, on every layer that has weights."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

from spikerate import BPTT, LIF, max_resnet18, ms_resnet18, preact_resnet18, resnet18, sew_resnet18, spiking, vggsnn
from spikerate.cli.views import show_energy
from spikerate.data import Data, load, plain_batches
from spikerate.measure.energy import Energy, Operations, joules_in_words, nanojoules
from spikerate.measure.evaluate import over_time
from spikerate.measure.meter import Ledger, Meter, Tally
from spikerate.models import short_path
from spikerate.neuron import Rectifier
from spikerate.runs.config import Model, Rectified, Run
from spikerate.runs.experiment import measure
from spikerate.runs.train import build_network
from support.networks import small_network


def metered(network: Any, x: Tensor) -> Energy:
    """What an image of x [T, B, ...] costs."""
    tally = Tally.of(network)
    with torch.no_grad():
        Meter(Ledger(), tally)(network.eval(), x)
    return tally.energy(x.shape[1], len(x))


def eager(threshold: float = 0.1) -> LIF:
    return LIF(threshold=threshold)


def prune(network: nn.Module, share: float = 0.5) -> None:
    for p in network.parameters():
        p.data[torch.rand_like(p) < share] = 0


def spikes(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.4).float()


# definitions --------------------------------------------------------------------------------------------------------------


def by_hand(x: Tensor, conv: nn.Conv2d, padding: tuple[int, ...]) -> tuple[int, int]:
    """NeuroBench's definition in loops: effective and dense operations of one image [C, H, W]; padding and bias are none."""
    effective = dense = 0
    C, H, W = x.shape
    _, height, width = conv(x[None])[0].shape
    out_of_group, in_group = conv.out_channels // conv.groups, C // conv.groups
    axes = (range(conv.out_channels), range(height), range(width), range(in_group), *map(range, conv.kernel_size))
    for o, i, j, c, a, b in itertools.product(*axes):
        row = i * conv.stride[0] - padding[0] + a * conv.dilation[0]
        column = j * conv.stride[1] - padding[1] + b * conv.dilation[1]
        if 0 <= row < H and 0 <= column < W:
            dense += 1
            value = x[o // out_of_group * in_group + c, row, column]
            effective += bool(value != 0 and conv.weight[o, c, a, b] != 0)
    return effective, dense


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    share=st.sampled_from([0.0, 0.5]),
)
def test_a_convolution_is_counted_by_the_definition(
    kernel: tuple[int, int], stride: int, padding: int, dilation: int, groups: int, share: float
) -> None:
    conv = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups)
    prune(conv, share)
    x = spikes(2, 1, 2, 5, 6)
    (found,) = metered(nn.Sequential(conv, LIF()), x).layers.values()
    effective, dense = zip(*(by_hand(step[0], conv, (padding, padding)) for step in x), strict=True)
    assert (found.effective, found.dense) == (sum(effective), sum(dense))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_an_uneven_border_is_no_operation_either() -> None:
    conv = nn.Conv2d(1, 2, (2, 4), padding="same")
    x = spikes(1, 1, 1, 4, 5)
    (found,) = metered(conv, x).layers.values()
    assert (found.effective, found.dense) == by_hand(x[0, 0], conv, (0, 1))


def test_lines_and_linear_layers_on_the_last_axis() -> None:
    line, linear = nn.Conv1d(2, 3, 3), nn.Linear(6, 5)
    prune(linear)
    x = spikes(3, 2, 2, 8)
    cost = metered(nn.Sequential(line, LIF(threshold=1e-9), linear), x).layers
    assert cost["0"].dense == 3 * 6 * (2 * 3 * 3) and cost["0"].binary
    given = BPTT()(nn.Sequential(line, LIF(threshold=1e-9)), x).steps
    fan_out = (linear.weight != 0).sum(0)
    assert cost["2"].effective == float((given != 0).sum((0, 1, 2)) @ fan_out) / 2
    assert cost["2"].dense == 3 * 3 * 6 * 5


class Stepped(nn.Module):
    """A neuron on plain tensors, one step at a call."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron, self.state = eager(), None

    def forward(self, x: Tensor) -> Tensor:
        spikes, self.state = self.neuron.unroll(x[None], self.state)  # type: ignore[assignment]
        return spikes[0]


@pytest.mark.parametrize("pruned", [0.0, 0.3])
def test_neurobench_counts_the_same(pruned: float) -> None:
    pytest.importorskip("neurobench", reason="pip install --no-deps -r tests/peers.txt")
    from neurobench.metrics.workload import SynapticOperations
    from neurobench.models import TorchModel

    ours, theirs = small_network(eager).eval(), small_network(Stepped).eval()
    prune(ours, pruned)
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(4, 3, 2, 6, 6)
    model = TorchModel(theirs)
    model.register_hooks()
    with torch.no_grad():
        for step in x:
            model(step)
        found = SynapticOperations()(model, None, (x[0], None))
    cost = metered(ours, x)
    assert found == {
        "Effective_MACs": pytest.approx(cost.macs),
        "Effective_ACs": pytest.approx(cost.acs),
        "Dense": pytest.approx(sum(layer.dense for layer in cost.layers.values())),
    }
    assert [layer.binary for layer in cost.layers.values()] == [False, True, False] and cost.acs > 0


def test_an_image_counts_at_every_step_though_it_is_computed_once() -> None:
    network, image = small_network().eval(), torch.rand(3, 2, 6, 6)
    shown, frames = image.expand(4, *image.shape), image.repeat(4, 1, 1, 1, 1)
    assert metered(network, shown) == metered(network, frames)
    once = metered(network, shown[:1])
    assert metered(network, shown).layers["0"] == replace(
        once.layers["0"], effective=4 * once.layers["0"].effective, dense=4 * once.layers["0"].dense
    )


def test_batches_add_up_and_nothing_is_changed() -> None:
    network, x = small_network().eval(), torch.rand(3, 8, 2, 6, 6)
    tally = Tally.of(network)
    with torch.no_grad():
        for part in x.split([5, 3], 1):
            assert torch.equal(Meter(Ledger(), tally)(network, part).steps, BPTT()(network, part).steps)
    assert tally.energy(8, 3) == metered(network, x)
    x.requires_grad_()
    Meter(Ledger(), tally)(network, x).rate.sum().backward()
    assert x.grad is not None and all(not counts.requires_grad for counts in tally.counts.values())


@pytest.mark.parametrize("kind", ["double", "autocast", "inference"])
def test_other_precisions_and_modes_count_exactly(kind: str) -> None:
    """Where spikes are the same: in bfloat16 fan-outs and sums would be rounded."""
    network: Any = nn.Sequential(nn.Conv2d(3, 300, 3), nn.Flatten(), nn.Linear(300 * 36, 3))
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    x = spikes(2, 3, 3, 8, 8)
    expected = metered(network, x)
    if kind == "double":
        network, x = network.double(), x.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"), torch.inference_mode(kind == "inference"):
        assert metered(network, x.clone()) == expected


# what came in -------------------------------------------------------------------------------------------------------------


def real(network: Any, side: int = 32) -> set[str]:
    energy = metered(network, torch.rand(2, 3, side, side).expand(3, -1, -1, -1, -1))
    assert all((layer.macs == 0) == layer.binary == (layer.input == "binary") for layer in energy.layers.values())
    return {path for path, layer in energy.layers.items() if not layer.binary}


def test_inputs_are_judged_by_the_values_that_came() -> None:
    assert real(resnet18(width=4, activation=eager)) == {"stem.0", "head.2"}  # the image, and the mean over space
    assert real(resnet18(width=4, activation=eager), side=8) == {"stem.0"}  # the mean of one place
    assert real(preact_resnet18(width=4, activation=eager)) == {"stem.0", "head.3"}  # the stream goes into neurons only
    halved = {f"stages.stage{k}.1" for k in (2, 3, 4)}
    assert real(vggsnn(width=4, activation=eager)) == {"stages.stage1.0", "head.2"} | halved
    added = {f"stages.stage{s}.{b}.conv1" for s in (1, 2, 3, 4) for b in (0, 1)} - {"stages.stage1.0.conv1"}
    shortcuts = {f"stages.stage{k}.0.shortcut.0" for k in (2, 3, 4)}
    assert real(ms_resnet18(width=4, activation=eager)) == {"stem.0", "head.3"} | shortcuts
    assert real(max_resnet18(width=4, activation=eager)) == {"stem.0", "head.3"} | shortcuts
    assert real(sew_resnet18(width=4, activation=eager)) == {"stem.0", "head.2"} | added | shortcuts


def test_the_maximum_of_spikes_is_binary_and_each_spike_counts_once_for_each_window() -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1)
    network, x = nn.Sequential(LIF(), nn.MaxPool2d(3, 2, 1), conv, LIF()), 2 * spikes(4, 2, 2, 9, 6)
    seen: list[Tensor] = []
    network[1].register_forward_hook(lambda module, args, out: seen.append(out.steps))
    (found,) = metered(network, x).layers.values()
    (pooled,) = seen
    assert set(pooled.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(pooled, torch.stack([nn.functional.max_pool2d((step >= 1).float(), 3, 2, 1) for step in x]))
    assert found.binary and found.macs == 0
    assert found.effective == sum(by_hand(image, conv, (1, 1))[0] for image in pooled.flatten(0, 1)) / 2


def test_an_image_of_zeros_and_ones_is_binary() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), LIF())
    assert metered(network, spikes(2, 3, 1, 5, 5)).layers["0"].binary
    for other in (-1.0, 2.0, 0.5, float("nan")):
        x = spikes(2, 3, 1, 5, 5)
        x[1, 2, 0, 0, 0] = other
        assert not metered(network, x).layers["0"].binary


def test_an_ann_skips_the_zeros_of_its_rectifiers() -> None:
    network = small_network(Rectifier)
    cost = metered(network, torch.rand(1, 4, 2, 6, 6) + 0.1)
    assert cost.acs == 0 and cost.layers["3"].macs < cost.layers["3"].dense
    assert cost.layers["0"].effective == cost.layers["0"].dense
    assert cost.snn_nj < cost.ann_nj == nanojoules(sum(layer.dense for layer in cost.layers.values()), 0)


def test_weights_that_are_shared_or_computed() -> None:
    shared = nn.Linear(4, 4)
    network = nn.Sequential(shared, LIF(), shared, LIF(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    cost = metered(network, spikes(3, 2, 4)).layers
    assert list(cost) == ["0", "other weights"]
    assert cost["0"].dense == 2 * 3 * 16 and cost["other weights"].dense == 3 * 8


def test_a_users_network_is_counted_by_its_own_paths() -> None:
    network = spiking(nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())})["body"])
    assert list(metered(network, spikes(2, 3, 1, 5, 5)).layers) == ["0"]


# arithmetic ---------------------------------------------------------------------------------------------------------------


def test_the_estimate_by_hand() -> None:
    layers = {"conv": Operations(1000.0, 4000, binary=False), "linear": Operations(500.0, 8000, binary=True)}
    energy = Energy(layers, T=4)
    assert (energy.macs, energy.acs, energy.synaptic_operations) == (1000, 500, 1500)
    assert energy.snn_nj == pytest.approx(1000 * 4.6e-3 + 500 * 0.9e-3) == sum(c.nanojoules for c in layers.values())
    assert energy.ann_nj == pytest.approx(3000 * 4.6e-3)
    assert energy.record() == {
        "operations": {
            "conv": {"macs": 1000, "acs": 0, "dense_macs": 4000, "input": "real"},
            "linear": {"macs": 0, "acs": 500, "dense_macs": 8000, "input": "binary"},
        },
        "energy": {"snn_nj": energy.snn_nj, "ann_nj": energy.ann_nj, "synaptic_operations": 1500, "macs": 1000, "acs": 500},
    }


def test_rates_at_each_step() -> None:
    network, ledger = nn.Sequential(nn.Flatten(), LIF(decay=1.0), LIF(threshold=9.0)), Ledger()
    x = torch.full((2, 1, 3), 0.4).expand(5, 2, 1, 3)
    Meter(ledger)(network, x)
    assert ledger.rates_at_step(network) == {"1": [0, 0, 1, 0, 1], "2": [0, 0, 0, 0, 0]}
    assert ledger.rates(network) == {"1": 0.4, "2": 0.0}
    assert ledger.mean_rate() == 0.2


# runs ---------------------------------------------------------------------------------------------------------------------


def test_the_record_of_a_run() -> None:
    run = Run(model=Model(width=2), T=3, batch=50)
    digits = load(Data("digits"), 1)
    data = replace(digits, test=digits.test[torch.arange(70)])
    network = build_network(run, 10, data.shape, torch.device("cpu"))
    found = measure(network, data, run).record(network, {"epoch": 1})
    assert json.loads(json.dumps(found)) == found
    at_step = found["firing_rates_at_step"]
    assert at_step.keys() == found["firing_rates"].keys() and all(len(rates) == 3 for rates in at_step.values())
    for layer, rate in found["firing_rates"].items():
        assert rate == pytest.approx(sum(at_step[layer]) / 3)
    images, _ = next(plain_batches(data, data.test, 70, torch.device("cpu")))
    expected = metered(network, over_time(images, 3))
    assert found["operations"] == expected.record()["operations"]
    assert found["energy"] == pytest.approx(expected.record()["energy"])
    first = found["operations"]["stem.0"]
    assert first["input"] == "real" and first["macs"] == first["dense_macs"] == 3 * 2 * 22 * 22


def test_two_ranks_that_saw_the_same_give_the_same_means() -> None:
    """Real ranks are in test_ranks.py."""
    network, ledger, x = small_network().eval(), Ledger(), torch.rand(2, 7, 2, 6, 6)
    tally = Tally.of(network)
    Meter(ledger, tally)(network, x)
    assert tally.totalled(lambda t: 2 * t).energy(14, 2) == tally.energy(7, 2)
    both = ledger.totalled(lambda t: 2 * t)
    assert both.rates_at_step(network) == ledger.rates_at_step(network)
    assert both.chances == {neuron: 2 * n for neuron, n in ledger.chances.items()}


def test_eval_shows_operations_and_the_estimate(
    spikerate: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    trained = spikerate("train", "--epochs", "1", "--width", "2", "--batch", "400", "--T", "2", "--out", "run")
    assert trained.returncode == 0, trained.stderr
    shown = spikerate("eval", "run").stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["energy"]["acs"] > 0
    for layer, cost in result["operations"].items():
        row = next(line for line in shown.splitlines() if f" {short_path(layer)} " in line)
        assert cost["input"] in row and f"{cost['macs'] + cost['acs']:,.0f}" in row
    energy, said = result["energy"], " ".join(shown.replace("│", " ").split())
    counts = (f"{energy[name]:,.0f}" for name in ("macs", "acs", "synaptic_operations"))
    assert f"spiking {' '.join(counts)} {energy['snn_nj']:.3g} nJ" in said
    once = f"{sum(cost['dense_macs'] for cost in result['operations'].values()) / 2:,.0f}"
    assert f"ANN of the same shape {once} 0 {once} {energy['ann_nj']:.3g} nJ" in said
    assert "4.6 pJ a MAC and 0.9 pJ an AC: arithmetic alone" in said


@pytest.mark.parametrize(
    ("nanojoules", "words"),
    [(0, "0 pJ"), (0.464, "464 pJ"), (12.34, "12.3 nJ"), (999.6, "1 µJ"), (4560, "4.56 µJ"), (7.89e8, "789 mJ")],
)
def test_an_energy_in_words(nanojoules: float, words: str) -> None:
    assert joules_in_words(nanojoules) == words


def test_the_estimate_of_an_ann_in_words() -> None:
    console = Console(file=io.StringIO(), width=300)
    layers = {"conv": Operations(0.5e6, 1_000_000, binary=False), "head": Operations(0.0, 10, binary=True)}
    show_energy(console, Energy(layers, T=1), Run(T=1, neuron=Rectified()))
    said = " ".join(console.file.getvalue().replace("│", " ").split())  # type: ignore[attr-defined]
    assert "ANN, zeros skipped 500,000 0 500,000 2.3 µJ" in said
    assert "the same, zeros too 1,000,010 0 1,000,010 4.6 µJ" in said
    show_energy(console, Energy({}, T=1), Run())
    assert "0 pJ" in console.file.getvalue()  # type: ignore[attr-defined]
    show_energy(console, Energy({"head": Operations(1e9, 10**9, binary=False)}, T=1), Run())
    assert "4.6 mJ" in console.file.getvalue()  # type: ignore[attr-defined]
