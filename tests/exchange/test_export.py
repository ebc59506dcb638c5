"""Networks leave and come back: NIR graphs, programs, ONNX models and weights alone, with the same spikes or logits."""

from __future__ import annotations

import collections
import json
import math
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

import spikerate as library
from spikerate import BPTT, IF, LIF, AdaptiveDspike, Staged, preact_resnet18, resnet18, sew_resnet18, vggsnn
from spikerate.cli.main import main
from spikerate.data import Units, load
from spikerate.exchange.export import Inference, as_program, export
from spikerate.gradients.temperature import temperatures
from spikerate.measure.evaluate import over_time
from spikerate.models.fold import fold_batch_norm
from spikerate.neuron import Rectifier
from spikerate.runs.config import Model, Neuron, Run
from spikerate.runs.experiment import begin
from spikerate.runs.presets import preset
from spikerate.runs.record import RunFolder
from spikerate.runs.trained import Card, Trained, read_trained
from spikerate.system.files import pack_tensors, read_tensors
from support.networks import Functional

nir = pytest.importorskip("nir")
from spikerate.exchange.nir import DT, from_nir, pack_nir, read_nir, to_nir  # noqa: E402

Spikerate = Callable[..., CompletedProcess[str]]
HARD = partial(LIF, decay=0.5, threshold=0.3, v_reset=0.0)
NETWORKS = {
    "resnet18": resnet18,
    "preact-resnet18": preact_resnet18,
    "sew-resnet18": sew_resnet18,
    "vggsnn": partial(vggsnn, size=16),
}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=list(NETWORKS))


def lived_in(network: nn.Module, *shape: int) -> nn.Module:
    """With statistics of batch norm that are not those it was born with; in evaluation mode."""
    network.train()
    for _ in range(3):
        BPTT()(network, torch.randn(3, 4, *shape))
    return network.eval()


def spikes_of(network: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Path of each neuron layer, dots as underscores -> spikes [T, B, ...]; and the output's steps."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, output: found.__setitem__(name.replace(".", "_"), output.steps)

    hooks = [m.register_forward_hook(note(name)) for name, m in network.named_modules() if isinstance(m, LIF)]
    with torch.no_grad():
        steps = BPTT()(network, x).steps
    for hook in hooks:
        hook.remove()
    return found, steps


def through_file(graph: Any, folder: Path) -> Any:
    file = folder / "net.nir"
    file.write_bytes(pack_nir(graph))
    return read_nir(file)


def assert_same_graph(one: Any, other: Any) -> None:
    """Names, edges and parameters; time constants to float64's rounding, all else exactly."""
    assert one.nodes.keys() == other.nodes.keys()
    assert sorted(one.edges) == sorted(other.edges)
    for name, node in one.nodes.items():
        mine, theirs = node.to_dict(), other.nodes[name].to_dict()
        assert mine.keys() == theirs.keys()
        assert mine["type"] == theirs["type"]
        for field in mine.keys() - {"type", "metadata"}:
            a, b = np.asarray(mine[field]), np.asarray(theirs[field])
            assert a.shape == b.shape
            assert np.allclose(a, b, rtol=1e-12, atol=0) if field in ("tau", "r") else np.array_equal(a, b)


# NIR, there and back -----------------------------------------------------------------------------------------------------


@every_network
def test_nir_and_back_gives_the_same_spikes_and_the_same_graph(make: Any, tmp_path: Path) -> None:
    network = lived_in(make(width=2, activation=HARD), 3, 16, 16)
    graph = through_file(to_nir(network, (3, 16, 16)), tmp_path)
    assert graph.metadata == {"dt": DT, "reset": "zero"}
    again = from_nir(graph)
    x = torch.randn(4, 3, 3, 16, 16)
    before, logits = spikes_of(fold_batch_norm(network), x)
    after, logits_again = spikes_of(again, x)
    assert before.keys() == after.keys()
    assert sum(int(s.sum()) for s in before.values()) > 1000
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits, logits_again)
    assert_same_graph(graph, to_nir(again, (3, 16, 16)))
    unfolded, logits_unfolded = spikes_of(network, x)
    differing = sum(int((unfolded[name] != before[name]).sum()) for name in before)
    assert differing <= 1e-4 * sum(s.numel() for s in before.values())
    assert torch.allclose(logits_unfolded, logits, atol=1e-4) or differing


@settings(max_examples=30, deadline=None)
@given(
    decay=st.floats(0.01, 0.99) | st.just(1.0),
    threshold=st.floats(0.0625, 100, width=32),
    reset=st.floats(-10, 0, width=32),
    dt=st.sampled_from([DT, 1e-3, 1.0]),
)
def test_a_neuron_comes_back_as_it_was(decay: float, threshold: float, reset: float, dt: float) -> None:
    neuron = LIF(decay=decay, threshold=threshold, v_reset=reset)
    graph = to_nir(nn.Sequential(neuron), (3,), dt)
    assert isinstance(graph.nodes["_0"], nir.IF if decay == 1 else nir.LIF)
    (again,) = (m for m in from_nir(graph).modules() if isinstance(m, LIF))
    assert (again.threshold, again.v_reset) == (threshold, reset)
    assert np.float32(again.decay) == np.float32(decay)


def by_the_equation(node: Any, currents: np.ndarray[Any, Any], dt: float) -> np.ndarray[Any, Any]:
    """Spikes of `tau dv/dt = (v_leak - v) + R I` by Euler's method in float64, fired above the threshold."""
    v, spikes = np.zeros(currents.shape[1:]), []
    for current in currents:
        v = v + (dt / node.tau * (node.v_leak - v + node.r * current) if isinstance(node, nir.LIF) else node.r * current)
        fired = v > node.v_threshold
        v = np.where(fired, node.v_reset, v)
        spikes.append(fired)
    return np.array(spikes)


@pytest.mark.parametrize("decay", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("reset", [0.0, -0.5])
def test_what_is_written_obeys_nirs_equation(decay: float, reset: float) -> None:
    neuron = LIF(decay=decay, v_reset=reset)
    currents = torch.randint(-1, 3, (20, 500)) / 2  # many come to the threshold exactly
    node = to_nir(nn.Sequential(neuron), (500,)).nodes["_0"]
    expected = by_the_equation(node, currents.numpy(), DT)
    assert np.array_equal(neuron.spikes(currents).numpy().astype(bool), expected)
    assert 0.1 < expected.mean() < 0.9


def one(node: Any, n: int) -> Any:
    return nir.NIRGraph.from_list(nir.Input(np.array([n])), node, nir.Output(np.array([n])))


@pytest.mark.parametrize(
    "node",
    [
        nir.LIF(np.full(50, 3e-3), np.ones(50), np.zeros(50), np.full(50, 0.2), np.full(50, -0.1)),
        nir.LIF(np.full(50, 2e-3), np.full(50, 7.0), np.zeros(50), np.full(50, 1.5)),
        nir.IF(np.full(50, 3.0), np.full(50, 2.0), np.full(50, 0.5)),
    ],
    ids=["lif", "lif-r", "if-r"],
)
def test_neurons_of_others_that_scale_their_input(node: Any) -> None:
    currents = torch.rand(40, 50)
    network = from_nir(one(node, 50), dt=1e-3)
    spikes = BPTT()(network, currents.unsqueeze(1)).steps[:, 0]
    expected = by_the_equation(node, currents.double().numpy(), 1e-3)
    assert np.array_equal(spikes.numpy().astype(bool), expected)
    assert expected.any()


class Odd(nn.Module):
    """All that an export knows, in one network, under awkward names: [B, 2, 8, 8] -> [B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.output, self.input = nn.Conv2d(2, 4, 3, 2, "valid"), HARD()
        self.twice = IF(v_reset=-1.0, threshold=0.5)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.total = nn.AvgPool2d(2, 1, divisor_override=1)
        self.even, self.drop = nn.AdaptiveAvgPool2d((1, None)), nn.Dropout(0.5)
        self.last = nn.Linear(8, 3, bias=False)

    def forward(self, x: Any) -> Any:
        x = self.drop(self.input(self.output(x)))
        x = torch.add(self.twice(self.a(x) + self.b(x)), x)
        x = self.even(self.total(x)).flatten(2)
        return self.last(self.twice(torch.flatten(x, start_dim=1, end_dim=-1)))


def test_every_operation_that_nir_knows(tmp_path: Path) -> None:
    network = Odd().eval()
    graph = through_file(to_nir(network, (2, 8, 8), metadata={"T": 5}), tmp_path)
    assert graph.metadata == {"dt": DT, "reset": "zero", "T": 5}
    kinds = collections.Counter(type(node).__name__ for node in graph.nodes.values())
    assert kinds == collections.Counter(
        ["Input", *["Conv2d"] * 3, "LIF", *["IF"] * 2, "SumPool2d", "AvgPool2d", *["Flatten"] * 2, "Linear", "Output"]
    )
    again = from_nir(graph)
    x = torch.randn(5, 3, 2, 8, 8)
    assert torch.equal(spikes_of(network, x)[1], spikes_of(again, x)[1])
    assert_same_graph(graph, to_nir(again, (2, 8, 8)))


def test_signals_over_one_axis(tmp_path: Path) -> None:
    norms = nn.Sequential(nn.Conv1d(2, 3, 3, 2), nn.BatchNorm1d(3), HARD(), nn.Conv1d(3, 3, 2, padding="same"), HARD())
    head = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), HARD())
    network = lived_in(nn.Sequential(*norms, *head), 2, 10)
    x = torch.randn(4, 3, 2, 10)
    again = from_nir(through_file(to_nir(network, (2, 10)), tmp_path))
    assert torch.equal(spikes_of(fold_batch_norm(network), x)[1], spikes_of(again, x)[1])


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (
            LIF(),
            r"inner.1 \(LIF\) can't be exported: NIR resets .* \(soft reset\): train with --neuron.v-reset 0, as .* digits",
        ),
        (Rectifier(), r"inner.1 \(Rectifier\) can't be exported, since NIR has no node for it: the network is an ANN"),
        (nn.MaxPool2d(2), r"inner.1 \(MaxPool2d\) can't be exported, since NIR has no node"),
        (nn.BatchNorm2d(2), r"inner.1 \(BatchNorm2d\) can't be exported, .*: put it right after a convolution"),
        (nn.AvgPool2d(3, ceil_mode=True), r"inner.1 \(AvgPool2d\) .*: its last windows at \[8, 8\] are incomplete"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "count_include_pad=True"),
        (nn.AvgPool2d(2, divisor_override=3), "NIR has no divisor_override"),
        (nn.AdaptiveAvgPool2d(3), r"its windows at \[8, 8\] have different sizes"),
        (
            nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
            r"inner.1 can't be run on the samples: pad with mode .circular. has no rule",
        ),
        (
            nn.Conv2d(2, 2, 3, groups=2),
            r"inner.1 \(Conv2d\) can't be exported: NIR computes the shape \[1, 8, 8\].* groups",
        ),
        (nn.Conv2d(2, 2, (1, 3)), r"NIR computes the shape \[2, 8, 8\] for it instead of \[2, 8, 6\]"),
        (nn.Conv2d(3, 2, 3), r"inner.1 can't be run on the samples: [Ii]nvalid channel"),
        (
            Functional(lambda x: F.avg_pool2d(x, 2)),
            "avg_pool2d in inner.1 can't be exported, .* use the module of that name",
        ),
        (Functional(lambda x: torch.cat([x, x], 1)), "cat in inner.1 can't be exported"),
        (Functional(lambda x: x + x), "add in inner.1 adds something to itself"),
        (Functional(lambda x: torch.add(x, x, alpha=2)), "add in inner.1 can't be exported"),
        (Functional(lambda x: x.relu()), "relu in inner.1 can't be run on the samples: relu has no rule"),
        (Functional(lambda x: (x, x)), "output in the network can.t be exported.*returns a tuple"),
        (Functional(lambda x: x if x.sum() > 0 else x + x), "can't be listed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_nir_has_no_node_for_is_named_with_its_path(layer: nn.Module, words: str) -> None:
    network = nn.Sequential()
    network.add_module("inner", nn.Sequential(nn.Identity(), layer))
    with pytest.raises(ValueError, match=words) as error:
        to_nir(network, (2, 8, 8))
    assert "\n" not in str(error.value)


def test_shapes_that_nir_refuses() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Any) -> Any:
            return x + self.pool(x)

    with pytest.raises(ValueError, match=r"NIR can't hold the network's shapes: .*output"):
        to_nir(nn.Sequential(Broadcast(), HARD()), (2, 8, 8))


# NIR of others -----------------------------------------------------------------------------------------------------------


def neuron(n: int = 2, **changed: Any) -> Any:
    values = {"tau": np.full(n, 2e-4), "r": np.full(n, 2.0), "v_leak": np.zeros(n), "v_threshold": np.ones(n)}
    return nir.LIF(**values | changed)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (
            nir.Scale(np.ones(2)),
            "the node scale of the NIR graph is a Scale, which spikerate has no layer for: it knows Affine",
        ),
        (neuron(tau=np.array([2e-4, 3e-4])), r"the node lif \(LIF\) .*: its neurons differ in tau"),
        (neuron(v_leak=np.ones(2)), "v_leak is not 0"),
        (neuron(tau=np.full(2, 1e-4)), "LIF.decay is 0.0: give a number"),
        (neuron(tau=np.zeros(2)), "its tau is 0: the time constant must be > 0 seconds"),
        (neuron(r=np.full(2, -1.0)), "its input is scaled by -0.5"),
        (neuron(v_threshold=-np.ones(2)), "LIF.threshold is -0.99"),
        (nir.Linear(np.ones((2, 2, 2))), r"the node linear \(Linear\) .* can't be imported: too many values"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nir.NIRNode) else "",
)
def test_nodes_that_spikerate_has_no_layer_for(node: Any, words: str, tmp_path: Path) -> None:
    shape = node.input_type["input"]
    graph = nir.NIRGraph.from_list(nir.Input(shape), node, nir.Output(node.output_type["output"]))
    with pytest.raises(ValueError, match=words) as error:
        from_nir(graph, reset="zero")
    assert "\n" not in str(error.value)
    if isinstance(node, nir.Scale):
        with pytest.raises(ValueError, match=rf"net.nir: {words}"):
            through_file(graph, tmp_path)


def graph_of(edges: list[tuple[str, str]], **more: Any) -> Any:
    layers = {"input": nir.Input(np.array([2])), "a": neuron(), "b": neuron(), "output": nir.Output(np.array([2]))}
    return nir.NIRGraph(layers | more, edges, type_check=False)


def test_graphs_that_do_not_fit() -> None:
    line = [("input", "a"), ("a", "b"), ("b", "output")]
    x = torch.rand(3, 1, 2)
    assert BPTT()(from_nir(graph_of(line)), x).steps.shape == (3, 1, 2)
    with pytest.raises(ValueError, match=r"has a cycle \(.*a.*\): spikerate has no recurrent layers"):
        from_nir(graph_of([*line, ("b", "a")]))
    with pytest.raises(ValueError, match=r"has the inputs \['input', 'other'\] and the outputs \['output'\]"):
        from_nir(graph_of([*line, ("other", "b")], other=nir.Input(np.array([2]))))
    with pytest.raises(ValueError, match=r"called 'forward', which a layer can't be: rename it"):
        from_nir(graph_of([*line[:2], ("b", "forward"), ("forward", "output")], forward=neuron()))
    with pytest.raises(ValueError, match=r"two nodes of the NIR graph are called c_d, but for dots"):
        from_nir(
            graph_of([*line[:2], ("b", "c.d"), ("c.d", "c_d"), ("c_d", "output")], **{"c.d": neuron(), "c_d": neuron()})
        )
    with pytest.raises(ValueError, match="'nowhere' which does not exist"):
        from_nir(graph_of([*line, ("nowhere", "b")]))
    with pytest.raises(ValueError, match=r"b can't be run on the samples: .*dim"):
        from_nir(graph_of(line, b=nir.Linear(np.ones((2, 3)))))
    with pytest.raises(ValueError, match=r"b can't be run on the samples: Dimension out of range"):
        from_nir(graph_of(line, b=nir.Flatten({"input": np.array([2])}, -9, -1)))
    with pytest.raises(ValueError, match=r"the node b \(Affine\) .* can't be imported: .* size mismatch for bias"):
        from_nir(graph_of(line, b=nir.Affine(np.ones((2, 2)), np.ones(3))))
    for dt in (0.0, -1.0, float("nan"), "soon"):
        with pytest.raises(ValueError, match=r"the time step dt of the NIR graph is .*: give seconds > 0"):
            from_nir(graph_of(line), dt)  # type: ignore[arg-type]


def test_files_that_are_no_nir_graph(tmp_path: Path) -> None:
    import h5py

    whole = pack_nir(to_nir(nn.Sequential(nn.Linear(2, 2), HARD()), (2,)))
    file = tmp_path / "net.nir"
    for content, words in (
        (None, "net.nir is no NIR graph, or truncated: the file does not exist"),
        (b"", "is no NIR graph, or truncated"),
        (whole[: len(whole) // 2], "is no NIR graph, or truncated"),
    ):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ValueError, match=words) as error:
            read_nir(file)
        assert "\n" not in str(error.value)
    file.write_bytes(whole)
    with h5py.File(file, "a") as content:
        content["node/nodes/_0/type"][()] = "Quantum"
    with pytest.raises(ValueError, match=r"net.nir: the node _0 of the NIR graph is a Quantum"):
        read_nir(file)
    for spoil in ("node/nodes/_0/weight", "node/edges"):
        file.write_bytes(whole)
        with h5py.File(file, "a") as content:
            del content[spoil]
        with pytest.raises(ValueError, match=r"net.nir is a NIR graph that does not fit together"):
            read_nir(file)
    file.write_bytes(pack_nir(to_nir(nn.Sequential(nn.Conv2d(1, 1, 1), HARD()), (1, 2, 2))))
    with h5py.File(file, "a") as content:
        content["node/nodes/_0/stride"][...] = 0
    with pytest.raises(ValueError, match=r"net.nir is a NIR graph that does not fit together"):
        read_nir(file)


def test_what_a_nir_file_has_elsewhere_or_twice_is_not_read(tmp_path: Path) -> None:
    import h5py

    whole = pack_nir(to_nir(nn.Sequential(nn.Linear(2, 2), HARD()), (2,)))
    file, other, place = tmp_path / "net.nir", tmp_path / "other.bin", "node/nodes/_0/weight"
    other.write_bytes(np.ones((2, 2), np.float32).tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as content:
        content["x"] = np.ones((2, 2), np.float32)
    virtual = h5py.VirtualLayout((2, 2), np.float32)
    virtual[:] = h5py.VirtualSource(tmp_path / "other.h5", "x", (2, 2))
    spoil: dict[str, Callable[[Any], Any]] = {
        "is a link to another place": lambda f: f.__setitem__(place, h5py.ExternalLink(tmp_path / "other.h5", "x")),
        "weight in it is a link": lambda f: f.__setitem__(place, h5py.SoftLink("/node/nodes/_0/bias")),
        "in another file, which is not read": lambda f: f.create_dataset(
            place, (2, 2), np.float32, external=[(str(other), 0, h5py.h5f.UNLIMITED)]
        ),
        "weight in it are in another file": lambda f: f.create_virtual_dataset(place, virtual),
        "also has another name": lambda f: f.__setitem__("node/nodes/_0/again", f["node"]),
        "unpacks to more than": lambda f: f.create_dataset(place, (10**6, 10**6), np.float32, chunks=(1000, 1000)),
    }
    for words, change in spoil.items():
        file.write_bytes(whole)
        with h5py.File(file, "a") as content:
            del content[place]
            change(content)
        with pytest.raises(ValueError, match=rf"net.nir is no NIR graph, or truncated: .*{words}") as error:
            read_nir(file)
        assert "\n" not in str(error.value)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="is a folder or a device"):
            read_nir(path)


def test_a_graph_of_snntorch_does_not_say_whether_its_reset_subtracts() -> None:
    snntorch = pytest.importorskip("snntorch")
    exporter = pytest.importorskip("snntorch.export_nir")
    of_all = {"beta": torch.full((6,), 0.9), "threshold": torch.ones(6), "reset_delay": False}
    layer, neurons, x = nn.Linear(4, 6), snntorch.Leaky(**of_all), 2 * torch.rand(20, 1, 4)
    graph = exporter.export_to_nir(nn.Sequential(layer, snntorch.Leaky(**of_all, init_hidden=True)), x[0, 0])
    membrane, theirs = neurons.init_leaky(), []
    for frame in x:
        spikes, membrane = neurons(layer(frame), membrane)
        theirs.append(spikes)
    assert torch.equal(BPTT()(from_nir(graph, reset="subtract"), x).steps, torch.stack(theirs))
    with pytest.warns(UserWarning, match="does not say whether a spike resets .* give reset='subtract'"):
        hard = from_nir(graph)
    counts = [int(BPTT()(network, x).steps.sum()) for network in (hard, from_nir(graph, reset="zero"))]
    assert counts[0] == counts[1] < torch.stack(theirs).sum()
    with pytest.raises(ValueError, match="reset is 'none': give zero or subtract"):
        from_nir(graph, reset="none")  # type: ignore[arg-type]


# NIR in another simulator --------------------------------------------------------------------------------------------------


def in_snntorch(graph: Any, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """As `spikes_of`, by snnTorch, whose reader takes samples one at a time."""
    snntorch = pytest.importorskip("snntorch")
    reader = pytest.importorskip("snntorch.import_nir")
    found: dict[str, list[Tensor]] = collections.defaultdict(list)
    outputs = []
    for sample in x.unbind(1):
        network = reader.import_from_nir(graph)
        for name, module in network.named_modules():
            if isinstance(module, snntorch.Leaky):
                module.register_forward_hook(lambda m, inputs, output, name=name: found[name].append(output))
        with torch.no_grad():
            outputs.append(torch.stack([network(frame)[0] for frame in sample]))
    steps = {name: torch.stack(all_of).unflatten(0, (x.shape[1], len(x))).transpose(0, 1) for name, all_of in found.items()}
    return steps, torch.stack(outputs, 1)


@every_network
def test_snntorch_reads_the_graph_and_spikes_the_same(make: Any, tmp_path: Path) -> None:
    network = lived_in(make(width=2, activation=HARD), 3, 16, 16)
    x = torch.randn(4, 2, 3, 16, 16)
    theirs, logits_there = in_snntorch(through_file(to_nir(network, (3, 16, 16)), tmp_path), x)
    ours, logits = spikes_of(fold_batch_norm(network), x)
    assert ours.keys() == theirs.keys()
    assert sum(int((ours[name] != theirs[name]).sum()) for name in ours) == 0
    assert sum(int(s.sum()) for s in ours.values()) > 1000
    assert torch.allclose(logits, logits_there, atol=1e-5)


# Programs and ONNX -----------------------------------------------------------------------------------------------------


def tiny(recorded: bool = False) -> Trained:
    """Not trained, but spiking: samples [1, 8, 8], T = 3, five classes."""
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), HARD())
    stage = nn.Sequential(nn.Conv2d(4, 4, 3), HARD(), nn.MaxPool2d(2))
    body = Staged(stem, {"stage": stage}, nn.Sequential(nn.Flatten(), nn.Linear(36, 5)))
    lived_in(body, 1, 8, 8)
    card = Card(Model(), Neuron(), False, 3, (1, 8, 8), recorded, tuple("abcde"), Units((0.3,), (0.7,), 16.0))
    return Trained(body, card)


def logits_of(trained: Trained, samples: Tensor) -> Tensor:
    units = trained.card.units
    with torch.no_grad():
        return BPTT()(trained.network, over_time(units.normalize(units.scale(samples)), trained.card.T)).rate


@pytest.mark.parametrize("recorded", [False, True], ids=["images", "frames"])
def test_a_program_of_any_batch_gives_the_same_logits(recorded: bool, tmp_path: Path) -> None:
    trained = tiny(recorded)
    export(trained, tmp_path / "net.pt2")
    facts = {"spikerate": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=facts)
    assert json.loads(facts["spikerate"])["network"]["classes"] == list("abcde")
    for batch in (1, 2, 7):
        samples = torch.randint(0, 17, (batch, *trained.card.sample_shape)).float()
        logits = program.module()(samples)
        expected = logits_of(trained, samples)
        assert torch.allclose(logits, expected, rtol=0, atol=1e-6)
        assert torch.equal(logits.argmax(1), expected.argmax(1))
    with zipfile.ZipFile(tmp_path / "net.pt2") as content:
        written = b"".join(content.read(name) for name in content.namelist() if name.endswith(".json"))
    assert str(Path(library.__file__).parent).encode() not in written, "no paths of this machine"


def test_inference_has_the_values_of_bptt_and_leaves_the_network_alone() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), LIF(), nn.Flatten(), nn.Linear(48, 2)).eval()
    x = torch.rand(3, 2, 6, 6) * 3
    assert torch.equal(Inference(network, 4)(x), BPTT()(network, over_time(x, 4)).rate)
    program = as_program(Inference(network, 4), (2, 6, 6))
    assert not [n for n in program.graph.nodes if "sigmoid" in str(n.target)], "no slopes of a gradient"
    with pytest.raises(TypeError, match="relu has no rule"):
        as_program(Inference(nn.Sequential(network, nn.ReLU()), 4), (2, 6, 6))


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    trained, file = tiny(), tmp_path_factory.mktemp("onnx") / "net.onnx"
    export(trained, file)
    return trained, file


@pytest.mark.parametrize("engine", ["reference", "onnxruntime"])
def test_onnx_gives_the_same_logits(engine: str, onnx_model: tuple[Trained, Path]) -> None:
    trained, file = onnx_model
    if engine == "reference":
        run = pytest.importorskip("onnx.reference").ReferenceEvaluator(str(file)).run
    else:
        run = pytest.importorskip("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"]).run
    for batch in (1, 2, 9):
        samples = torch.randint(0, 17, (batch, 1, 8, 8)).float()
        expected = logits_of(trained, samples)
        (logits,) = run(["logits"], {"samples": samples.numpy()})
        np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-5)
        assert np.array_equal(logits.argmax(1), expected.argmax(1).numpy())


def test_an_onnx_file_says_what_it_is(onnx_model: tuple[Trained, Path]) -> None:
    import onnx

    trained, file = onnx_model
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert json.loads({p.key: p.value for p in model.metadata_props}["spikerate"]) == trained.facts()
    (samples,), (logits,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in samples.type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["batch", 5]
    assert str(Path(library.__file__).parent).encode() not in file.read_bytes()


@pytest.mark.parametrize(("suffix", "package"), [("nir", "nir"), ("onnx", "onnxscript")])
def test_without_its_package_an_export_says_what_to_install(
    suffix: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "spikerate.exchange.nir")
    with pytest.raises(ValueError, match=rf"takes the package {package}: pip install 'spikerate\[{suffix}\]'"):
        export(tiny(), tmp_path / f"net.{suffix}")
    assert not list(tmp_path.iterdir())


# Weights alone, and the command line -----------------------------------------------------------------------------------


def begun(path: Path, run: Run) -> RunFolder:
    """A run folder as training leaves it, but for the training."""
    folder = begin(path, run, load(run.data, run.T), {})
    for name in ("best", "last"):
        network = lived_in(run.build(10, (1, 8, 8)), 1, 8, 8)
        folder.save_weights(name, network, {})
    return folder


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`run` in the working folder, and nothing else there."""
    monkeypatch.chdir(tmp_path)
    run = preset("digits-esd-hard").run
    return begun(Path("run"), replace(run, model=Model("resnet20", 2), T=1)).path


def test_weights_alone_give_the_network_back(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run", "net.safetensors"]) == 0
    assert "spikerate.load('net.safetensors') returns the network" in capsys.readouterr().out
    state = torch.random.get_rng_state()
    network, of_run = library.load("net.safetensors"), library.load(Path("run"))
    assert torch.equal(state, torch.random.get_rng_state()), "the generator is left alone"
    assert isinstance(network, Staged)
    assert not network.training
    weights, weights_of_run = network.state_dict(), of_run.state_dict()
    assert weights.keys() == weights_of_run.keys()
    assert all(torch.equal(weights[name], weights_of_run[name]) for name in weights)
    x = torch.rand(2, 3, 1, 8, 8)
    assert torch.equal(BPTT()(network, x).rate, BPTT()(of_run, x).rate)
    with safe_open("net.safetensors", framework="pt") as file:
        names, facts = list(file.keys()), json.loads(file.metadata()["facts"])
    assert not [name for name in names if "branch" in name]
    assert (facts["format"], facts["spikerate"]) == (1, version("spikerate"))
    trained = read_trained(Path("net.safetensors"))
    assert trained.card == read_trained(run_folder).card
    assert trained.card.classes == tuple("0123456789")
    assert (trained.card.T, trained.card.neuron, trained.card.shape) == (1, Neuron(v_reset=0.0), (1, 8, 8))
    assert main(["export", "run", "last.safetensors", "--weights", "last"]) == 0
    last = library.load("last.safetensors").state_dict()
    assert not torch.equal(last["head.2.weight"], weights["head.2.weight"])


def test_a_run_becomes_a_nir_graph_and_a_program(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = read_trained(run_folder)
    units, images = trained.card.units, torch.randint(0, 17, (3, 1, 8, 8)).float()
    assert main(["export", "run", "net.nir"]) == 0
    assert "input: [1, 8, 8] at each of 1 time steps" in capsys.readouterr().out
    graph = read_nir("net.nir")
    assert json.loads(graph.metadata["spikerate"])["network"]["units"]["std"] == list(units.std)
    x = over_time(units.normalize(units.scale(images)), 4)
    with torch.no_grad():
        assert torch.equal(BPTT()(from_nir(graph), x).rate, BPTT()(fold_batch_norm(trained.network), x).rate)
    plain = begun(Path("plain"), replace(preset("digits-rate").run, model=Model("vgg11", 2), T=1))
    assert main(["export", "plain", "net.pt2"]) == 0
    assert "input: [B, 1, 8, 8] in float32" in capsys.readouterr().out
    program = torch.export.load("net.pt2").module()
    assert torch.allclose(program(images), logits_of(read_trained(plain.path), images), rtol=0, atol=1e-6)


def test_export_as_a_user_types_it(spikerate: Spikerate, run_folder: Path) -> None:
    done = spikerate("export", "run", "net.nir")
    assert done.returncode == 0, done.stderr
    assert "net.nir" in done.stdout
    again = spikerate("export", "run", "net.nir")
    assert again.returncode == 2
    assert again.stderr == "spikerate: net.nir already exists: give another name, or remove it\n"


def test_what_the_command_refuses(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(words: str, run: str = "run", file: str = "net.nir") -> None:
        before = sorted(Path().rglob("*"))
        assert main(["export", run, file]) == 2
        told = capsys.readouterr().err
        assert words in told
        assert told.count("\n") == 1
        assert sorted(Path().rglob("*")) == before, "nothing is written"

    def altered(change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads(record)
        change(content)
        (run_folder / "run.json").write_text(json.dumps(content))

    record, best = (run_folder / "run.json").read_text(), run_folder / "best.safetensors"
    Path("here.nir").write_text("mine")
    refused("here.nir already exists: give another name", file="here.nir")
    Path("link.nir").symlink_to("nowhere")
    refused("link.nir already exists: give another name", file="link.nir")
    refused("/proc/net.nir can't be written", file="/proc/net.nir")
    refused("net.tar does not end in .nir, .pt2, .onnx, .safetensors", file="net.tar")
    refused("the folder gone does not exist", file="gone/net.nir")
    refused("nothing does not exist: give the folder of a run", run="nothing")
    refused("contains no run (no run.json)", run=".")
    refused("here.nir can't be read", run="here.nir")
    assert main(["export", "here.nir", "net.onnx", "--weights", "last"]) == 2
    assert "here.nir is a file, which has only one set of weights" in capsys.readouterr().err
    refused("best.safetensors has weights but does not describe the network", run="run/best.safetensors")
    altered(lambda r: r["run"]["neuron"].update(v_reset=None))
    refused("stem.2 (LIF) can't be exported: NIR resets the membrane to a value")
    altered(lambda r: r["run"]["model"].update(width=3))
    refused("best.safetensors is of another network")
    altered(lambda r: r.update(format=1))
    refused("is not of format 2: use the version of spikerate that wrote it")
    for forged in ({"std": [0]}, {"mean": [math.nan]}, {"unit": math.inf}, {"shape": [math.inf, 8, 8]}):
        altered(lambda r: r["data"].update(forged))  # noqa: B023
        refused("does not describe the samples")
    altered(lambda r: r["run"]["neuron"].update(decay=10**400))
    refused("run.neuron.decay is 1000")
    (run_folder / "run.json").write_text(record[: len(record) // 2])
    refused("can't be read as JSON")
    (run_folder / "run.json").write_text(record)
    best.write_bytes(best.read_bytes()[:-100])
    refused("best.safetensors can't be read")
    best.unlink()
    refused("best.safetensors does not exist: the run has not finished its first epoch, or the file was removed")


def test_files_of_weights_that_are_no_network(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    export(read_trained(run_folder), file)
    tensors, facts = read_tensors(file)

    def refused(words: str, content: bytes) -> None:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=words) as error:
            library.load(file)
        assert "\n" not in str(error.value)

    whole = file.read_bytes()
    refused("can't be read .* truncated", whole[:-1])
    refused("is damaged: its checksum is wrong", whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(
        "is not of format 1: spikerate 9.9 has written it", pack_tensors(tensors, facts | {"format": 2, "spikerate": "9.9"})
    )
    for change, words in (
        ({"T": 0}, "does not describe its network: its numbers are impossible"),
        ({"T": "four"}, "does not describe its network: network.T is 'four'"),
        ({"shape": [1, 8]}, "does not describe its network: network.shape"),
        ({"model": {"type": "Model"}}, "has no field 'name'"),
    ):
        refused(words, pack_tensors(tensors, facts | {"network": facts["network"] | change}))
    wider = facts["network"] | {"model": facts["network"]["model"] | {"width": 3}}
    refused("is of another network", pack_tensors(tensors, facts | {"network": wider}))


def test_the_temperature_of_an_adaptive_surrogate_comes_along(tmp_path: Path) -> None:
    run = preset("digits-dspike").run
    folder = begun(tmp_path / "run", replace(run, model=Model("resnet20", 2)))
    trained = read_trained(folder.path)
    for module in trained.network.modules():
        if isinstance(module, AdaptiveDspike):
            module.temperature.fill_(3.5)
    (tmp_path / "net.safetensors").write_bytes(trained.pack())
    network = library.load(tmp_path / "net.safetensors")
    assert set(temperatures(network).values()) == {3.5}
