"""Networks of SpikingJelly, there and back, with equal spikes; and NeuroBench's metrics of ours."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spikerate import BPTT, IF, LIF, RateBP, qkformer, resnet18, sew_resnet18, vgg11
from spikerate.exchange.neurobench import neurobench_model
from spikerate.exchange.spikingjelly import from_spikingjelly, to_spikingjelly
from spikerate.gradients.temperature import adapt
from spikerate.measure.meter import Ledger, Meter
from spikerate.neuron import Rectifier
from spikerate.surrogate import ATan, Dspike, FastSigmoid, Rectangular, Sigmoid, Surrogate, Triangular
from support import ROOT
from support.networks import golden_branched, small_network

T = 5


def jelly() -> Any:
    their = pytest.importorskip("spikingjelly.activation_based")
    for part in ("functional", "layer", "neuron", "surrogate"):
        importlib.import_module(f"{their.__name__}.{part}")
    return their


def over_steps(network: nn.Module, x: Tensor) -> Tensor:
    """A network of SpikingJelly in single-step mode on x [T, B, ...]."""
    functional = jelly().functional
    functional.reset_net(network)
    return functional.multi_step_forward(x, network)


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [None, 0.2])
def test_a_parametric_node_becomes_one_with_the_same_spikes_and_gradient_of_its_parameter(
    decay_input: bool, v_reset: float | None
) -> None:
    torch.manual_seed(5)
    their = jelly()
    node = their.neuron.ParametricLIFNode(1.7, decay_input, 0.9, v_reset, their.surrogate.Sigmoid(4.0), True).double()
    ours = from_spikingjelly(node).double()
    assert_same_neuron(ours, node)
    x, weight = 2 * torch.randn(T, 3, 40, dtype=torch.double), torch.randn(T, 3, 40, dtype=torch.double)
    if decay_input or v_reset:
        return  # there the parameter scales the input too, or potentials are relative to the reset
    (wanted,) = torch.autograd.grad((over_steps(node, x) * weight).sum(), node.w)
    (found,) = torch.autograd.grad((BPTT()(ours, x).steps * weight).sum(), ours.w_decay)
    torch.testing.assert_close(found, -wanted)


def with_gradient(run: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = run(x)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    return y, gradient


def assert_same_neuron(ours: nn.Module, theirs: nn.Module) -> None:
    x, weight = 4 * torch.randn(T, 3, 40, dtype=torch.double), torch.randn(T, 3, 40, dtype=torch.double)
    spikes, gradient = with_gradient(lambda x: BPTT()(ours, x).steps, x, weight)
    their_spikes, their_gradient = with_gradient(lambda x: over_steps(theirs, x), x, weight)
    assert torch.equal(spikes, their_spikes)
    assert 0 < spikes.mean() < 1
    torch.testing.assert_close(gradient, their_gradient)


# to SpikingJelly --------------------------------------------------------------------------------------------------------

widths = st.floats(0.3, 4)


@pytest.mark.parametrize("kind", [Sigmoid, ATan, Triangular, Rectangular, FastSigmoid, Dspike])
@settings(deadline=None, max_examples=5)
@given(st.sampled_from((0.2, 0.5, 0.9, 1.0)), st.floats(0.3, 1.5), st.sampled_from((None, 0.0)), st.booleans(), widths)
def test_a_neuron_there_and_back(
    kind: Callable[[float], Surrogate], decay: float, threshold: float, v_reset: float | None, detach: bool, width: float
) -> None:
    jelly()
    ours = LIF(decay, None, threshold, v_reset, detach, kind(width))
    theirs = to_spikingjelly(ours)
    assert_same_neuron(ours, theirs)
    back = from_spikingjelly(theirs)
    assert_same_neuron(back, theirs)
    assert (back.threshold, back.v_reset, back.detach_reset) == (threshold, v_reset, detach)
    assert back.decay == pytest.approx(decay)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: resnet18(width=4),
    "vgg": lambda: vgg11(width=4, activation=lambda: LIF(0.5, v_reset=0.0)),
    "sew": lambda: sew_resnet18(width=4, activation=IF),
    "branched": golden_branched,
    "qkformer": lambda: qkformer(width=2, depth=3),
    "dspike": lambda: adapt(resnet18(width=4, activation=lambda: LIF(surrogate=Dspike(2.0)))),
}


def settled(network: nn.Module, x: Tensor) -> nn.Module:
    """In evaluation mode, with running statistics by which its layers fire."""
    with torch.no_grad():
        for _ in range(5):
            BPTT()(network, x)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_there_and_back(name: str) -> None:
    jelly()
    x = torch.randn(4, 2, 3, 32, 32, dtype=torch.double)
    network = settled(NETWORKS[name]().double(), x)
    theirs = to_spikingjelly(network)
    assert not any(isinstance(module, LIF) for module in theirs.modules())
    ledger, fired = Ledger(), dict[str, Tensor]()
    for path, node in theirs.named_modules():
        if isinstance(node, jelly().neuron.BaseNode):
            node.register_forward_hook(lambda _m, _i, y, path=path: fired.update({path: fired.get(path, 0) + y.sum()}))
    with torch.no_grad():
        logits = Meter(ledger)(network, x).steps
        assert torch.equal(over_steps(theirs, x), logits)
        back = from_spikingjelly(theirs)
        assert torch.equal(BPTT()(back, x).steps, logits)
    modules = network.named_modules()
    spikes = {path.removeprefix("body."): float(ledger.spikes[m].sum()) for path, m in modules if m in ledger.spikes}
    assert {path: float(n) for path, n in fired.items()} == spikes
    assert sum(spikes.values()) > 0
    body = {k.removeprefix("body."): v for k, v in network.state_dict().items() if not k.startswith("branches.")}
    copied = back.state_dict()
    assert copied.keys() == body.keys()
    assert all(
        torch.equal(copied[k], body[k]) and copied[k].data_ptr() != body[k].data_ptr() for k in body if body[k].numel()
    )


def test_what_spikingjelly_has_not() -> None:
    jelly()
    with pytest.raises(ValueError, match=r"^2 is reset to 0.5 and leaks to 0, .*: its LIFNode leaks to v_reset"):
        to_spikingjelly(small_network(lambda: LIF(v_reset=0.5)))
    with pytest.raises(ValueError, match=r"^the network is reset to -1 and leaks"):
        to_spikingjelly(LIF(v_reset=-1))
    with pytest.raises(ValueError, match=r"^2 is a rectifier, so the network is an ANN"):
        to_spikingjelly(small_network(Rectifier))


# from SpikingJelly ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Sigmoid", "ATan", "PiecewiseQuadratic", "Rect"])
@pytest.mark.parametrize("decay_input", [False, True])
@settings(deadline=None, max_examples=5)
@given(st.floats(1.05, 5), st.floats(0.3, 1.5), st.sampled_from((None, 0.0, -0.4, 0.2)), st.booleans(), widths)
def test_a_neuron_of_theirs(
    decay_input: bool, kind: str, tau: float, threshold: float, v_reset: float | None, detach: bool, alpha: float
) -> None:
    their = jelly()
    stand_in = getattr(their.surrogate, kind)(alpha=alpha)
    leaky = their.neuron.LIFNode(tau, decay_input, threshold, v_reset, stand_in, detach)
    assert_same_neuron(from_spikingjelly(leaky), leaky)
    whole = their.neuron.IFNode(threshold, v_reset, stand_in, detach)
    assert_same_neuron(from_spikingjelly(whole), whole)


def their_network(node: Callable[[], nn.Module], *more: nn.Module, p: float = 0.0) -> nn.Sequential:
    """In multi-step mode, as they train: [T, B, 2, 6, 6] -> [T, B, 3]."""
    layer, functional = jelly().layer, jelly().functional
    network = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        node(),
        layer.SeqToANNContainer(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.MaxPool2d(2)),
        layer.MultiStepContainer(node(), nn.AvgPool2d(3)),
        layer.Flatten(),
        layer.Dropout(p),
        layer.StepModeContainer(False, "m", layer.Linear(5, 3)),
        *more,
    )
    functional.set_step_mode(network, "m")
    return network.double()


def test_a_network_of_theirs_in_training() -> None:
    """Values, running statistics and the gradients of backpropagation through time, and that after a step of theirs."""
    their = jelly()
    theirs = their_network(lambda: their.neuron.LIFNode(surrogate_function=their.surrogate.ATan()))
    x, weight = torch.rand(T, 4, 2, 6, 6, dtype=torch.double), torch.randn(T, 4, 3, dtype=torch.double)
    ours = from_spikingjelly(theirs)
    for _ in range(2):
        theirs.zero_grad()
        their.functional.reset_net(theirs)
        logits = theirs(3 * x)
        (logits * weight).sum().backward()
        out = BPTT()(ours, 3 * x).steps
        (out * weight).sum().backward()
        torch.testing.assert_close(out, logits)
        # Inside the containers the neurons are stepwise too, and the batch norm sees all the steps.
        for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, msg=name)
        torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
        ours = from_spikingjelly(theirs)  # their neurons hold a membrane that has a graph
    assert not any(isinstance(module, their.base.MemoryModule) for module in ours.modules())


def test_their_dropout_has_one_mask_for_all_steps() -> None:
    their = jelly()
    ours = from_spikingjelly(their_network(their.neuron.IFNode, p=0.5))
    assert isinstance(ours[6], nn.Dropout) and ours[6].p == 0.5 and ours[6].training
    assert isinstance(from_spikingjelly(their.layer.Dropout2d(0.3).eval()), nn.Dropout2d)


def test_their_voting_layer_is_taken_over() -> None:
    their = jelly()
    theirs = their_network(lambda: their.neuron.IFNode(0.3), their.layer.VotingLayer(3)).eval()
    their.functional.set_step_mode(theirs, "m")
    ours, x = from_spikingjelly(theirs), torch.rand(T, 4, 2, 6, 6, dtype=torch.double)
    for rule in (BPTT(), RateBP(chunk=2)):
        torch.testing.assert_close(rule(ours, x).steps, theirs(x))
        their.functional.reset_net(theirs)


def test_layers_of_theirs_that_a_signal_can_not_go_through_are_named() -> None:
    their = jelly()
    more = nn.LocalResponseNorm(2), nn.ReLU(), their.layer.Conv2d(3, 3, 1, padding_mode="circular")
    with pytest.raises(
        TypeError, match=r"through 8 \(LocalResponseNorm\), 9 \(ReLU\), 10 \(Conv2d with padding_mode='circular'\): use"
    ):
        from_spikingjelly(their_network(their.neuron.IFNode, *more))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda their: their.neuron.QIFNode(),
            "^8 is a QIFNode of SpikingJelly, which has no counterpart",
        ),
        (lambda their: their.neuron.NonSpikingLIFNode(), "^8 is a NonSpikingLIFNode of SpikingJelly"),
        (lambda their: nn.Sequential(their.layer.SynapseFilter(2.0)), r"^8\.0 is a SynapseFilter of SpikingJelly"),
        (
            lambda their: their.layer.TLastMultiStepContainer(nn.Identity()),
            "^8 is a TLastMultiStepContainer of SpikingJelly",
        ),
        (
            lambda their: their.neuron.IFNode(surrogate_function=their.surrogate.Erf()),
            r"^8 has the surrogate Erf\(alpha=2.0, spiking=True\), which has no counterpart here: give Sigmoid",
        ),
        (
            lambda their: their.neuron.IFNode(surrogate_function=their.surrogate.Sigmoid(spiking=False)),
            r"^8 has the surrogate Sigmoid\(alpha=4.0, spiking=False\)",
        ),
        (lambda their: their.neuron.IFNode(0.5, 0.5), "^8 can't be converted: LIF.threshold is 0.0: give a positive"),
    ],
)
def test_what_spikerate_has_not(make: Callable[[Any], nn.Module], words: str) -> None:
    their = jelly()
    with pytest.raises(ValueError, match=words):
        from_spikingjelly(their_network(their.neuron.IFNode, make(their)))


def test_a_surrogate_of_ours_comes_back_unless_the_membrane_is_another() -> None:
    their = jelly()
    node = to_spikingjelly(LIF(surrogate=FastSigmoid(7.0)))
    assert from_spikingjelly(node).surrogate == FastSigmoid(7.0)
    node.decay_input = True
    with pytest.raises(ValueError, match=r"^the network has the surrogate Spike"):
        from_spikingjelly(node)
    assert isinstance(node, their.neuron.LIFNode)


# NeuroBench -------------------------------------------------------------------------------------------------------------


def benchmark(model: Any, x: Tensor, labels: Tensor) -> dict[str, Any]:
    workload = pytest.importorskip("neurobench.metrics.workload")
    metrics = [workload.ClassificationAccuracy, workload.ActivationSparsity, workload.SynapticOperations]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=4)
    harness = pytest.importorskip("neurobench.benchmarks").Benchmark(model, loader, [], [], [[], metrics])
    return harness.run(quiet=True)


def unpadded(neuron: Callable[[], nn.Module]) -> nn.Sequential:
    """Without padding, whose zeros NeuroBench does not count: [B, 3, 8, 8] -> [B, 4], 6 x 6 and then 4 x 4 positions."""
    convs = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), neuron(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), neuron()
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(80, 4))


MACS = 36 * 4 * 27 + 16 * 5 * 36 + 80 * 4


@pytest.mark.parametrize("frames", [False, True], ids=["images", "frames"])
def test_neurobench_measures_what_we_do(frames: bool) -> None:
    pytest.importorskip("neurobench.models")
    x = torch.randn(8, *([T] if frames else []), 3, 8, 8)
    steps = x.transpose(0, 1) if frames else x.expand(T, *x.shape)
    network = settled(unpadded(LIF), steps)
    ledger = Ledger()
    with torch.no_grad():
        classes = Meter(ledger)(network, steps).steps.mean(0).argmax(-1)
    labels = torch.where(torch.arange(8) < 6, classes, (classes + 1) % 4)
    model = neurobench_model(network, T)
    assert torch.equal(model(x), classes)
    found = benchmark(model, x, labels)
    assert found["ClassificationAccuracy"] == pytest.approx(6 / 8)
    assert found["ActivationSparsity"] == pytest.approx(1 - ledger.mean_rate())
    operations = found["SynapticOperations"]
    assert operations["Dense"] == T * MACS
    last = 4 * float(ledger.spikes[network[5]].sum()) / 8  # a spike of the last neurons meets one weight for each class
    assert last < operations["Effective_ACs"] < operations["Dense"] - operations["Effective_MACs"]
    assert operations["Effective_MACs"] == T * 36 * 4 * 27, "the images are no spikes"


def test_neurobench_takes_an_ann() -> None:
    pytest.importorskip("neurobench.models")
    x = torch.randn(8, 3, 8, 8)
    network = settled(unpadded(Rectifier), x[None])
    operations = benchmark(neurobench_model(network, 1), x, torch.zeros(8, dtype=torch.long))["SynapticOperations"]
    assert operations["Effective_ACs"] == 0
    assert 36 * 4 * 27 < operations["Effective_MACs"] < operations["Dense"] == MACS
    with pytest.raises(ValueError, match=r"^T is 0: give a number of time steps"):
        neurobench_model(network, 0)


# documents --------------------------------------------------------------------------------------------------------------


def test_the_documents_examples_run_where_the_libraries_are(tmp_path: Path) -> None:
    jelly(), pytest.importorskip("neurobench.models")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "other-libraries.md").read_text(), re.DOTALL)
    assert len(blocks) >= 2
    file = tmp_path / "example.py"
    file.write_text("\n".join(blocks))
    run_path(str(file))
