"""Networks as graphs of the Neuromorphic Intermediate Representation (NIR), and such graphs as networks."""

from __future__ import annotations

import io
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

import h5py
import nir
import numpy as np
import torch
from torch import fx, nn

from spikerate.models.fold import fold_batch_norm
from spikerate.models.graph import layer_graph
from spikerate.models.staged import on_meta
from spikerate.neuron import LIF, Rectifier
from spikerate.signal import Signal

DT = 1e-4
"""Seconds of a time step. NIR's equations are continuous; this is the step that snnTorch takes when it reads them."""

Shape = tuple[int, ...]


def to_nir(
    network: nn.Module, in_shape: Sequence[int], dt: float = DT, metadata: Mapping[str, str | int | float] | None = None
) -> nir.NIRGraph:
    """The NIR graph of a network in evaluation mode, its batch norm folded into the layers before.

    NIR's `tau dv/dt = (v_leak - v) + R I` in steps of `dt` (Euler) is our `v[t] = decay u[t-1] + I[t]` with
    `tau = dt / (1 - decay)`, `R = tau / dt`, `v_leak = 0`; a neuron without leak becomes an `IF` with `R = 1`, one unit of
    charge for each unit of input, as readers take it. NIR fires above the threshold and we at it, so what is written is
    the next smaller float32. An addition becomes edges that meet. A node is named after its module.

    Args:
        network: [B, C, H, W] or [B, C, L] -> any shape.
        in_shape: of one sample at one step, without B.
        dt: seconds of a time step; it stands in the graph's metadata, and beside it that the reset is not by subtraction.
        metadata: further entries of it.

    Raises:
        ValueError: NIR has no node for an operation; the sentence has its module path, the reason and the way out. A soft
            reset is one of them.

    Reference: Pedersen et al., Neuromorphic intermediate representation, Nature Communications 2024.
    """
    folded = fold_batch_norm(network)
    graph = layer_graph(folded)
    shapes = _shapes(folded, graph, in_shape)
    nodes: dict[str, nir.NIRNode] = {}
    edges: list[tuple[str, str]] = []
    sources: dict[fx.Node, tuple[str, ...]] = {}
    for call in graph.nodes:
        given = tuple(s for value in (call.args if _is_sum(call) else call.all_input_nodes) for s in sources[value])
        if _is_sum(call):
            if len(set(given)) < len(given):
                raise ValueError(f"{_place(call)} adds something to itself, which NIR has no edges for: use a convolution")
            sources[call] = given
        elif call.op == "call_module" and isinstance(folded.get_submodule(call.target), _NOTHING):
            sources[call] = given
        else:
            name = "input" if call.op == "placeholder" else call.name
            nodes[name] = _node(call, folded, shapes, dt)
            edges += [(source, name) for source in given]
            sources[call] = (name,)
    try:
        return nir.NIRGraph(nodes, edges, {"dt": dt, "reset": "zero", **(metadata or {})})
    except ValueError as error:
        raise ValueError(f"NIR can't hold the network's shapes: {error}") from error


def from_nir(graph: nir.NIRGraph, dt: float | None = None, reset: Literal["zero", "subtract"] | None = None) -> nn.Module:
    """The network of a NIR graph: layers of `torch.nn` and `LIF` under the names of the nodes, to be run by any rule.

    The inverse of `to_nir`, exact for what it has written. Where a node scales its input otherwise than by 1, threshold
    and reset are scaled instead.

    Args:
        graph: with one input and one output, without cycles.
        dt: seconds of a time step; by default what the metadata say, or `DT`.
        reset: what a spike does to the membrane, which NIR's nodes do not say: "zero" sets it to the node's `v_reset`
            (0 in most files), "subtract" takes the threshold off it, as snnTorch does by default. By default what the
            metadata say, as `to_nir` writes them; where they say nothing, it is "zero", with a warning.

    Raises:
        ValueError: a node or an edge of another kind, named; or neurons of one node that differ; or `reset` is neither.
    """
    dt, subtracts = _time_step(graph, dt), _subtracts(graph, reset)
    graph.validate_structure()
    sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        sources[target].append(source)
    try:
        order = list(TopologicalSorter(sources).static_order())
    except CycleError as error:
        raise ValueError(
            f"the NIR graph has a cycle ({' -> '.join(error.args[1])}): spikerate has no recurrent layers"
        ) from error
    ends = [[name for name in order if isinstance(graph.nodes[name], kind)] for kind in (nir.Input, nir.Output)]
    if [len(found) for found in ends] != [1, 1]:
        raise ValueError(f"the NIR graph has the inputs {ends[0]} and the outputs {ends[1]}: spikerate takes one of each")
    (first,), (last,) = ends
    network = Wired(
        {name: _layer(name, graph.nodes[name], dt) for name in order if name not in (first, last)}, sources, first, last
    )
    for layer in network.modules():
        if isinstance(layer, LIF) and subtracts:
            layer.v_reset = None
    _shapes(network, layer_graph(network), [int(n) for n in graph.nodes[first].input_type["input"]])
    return network.eval()


def read_nir(path: str | Path) -> nir.NIRGraph:
    """The graph of a NIR file.

    Raises:
        ValueError: the file is missing or broken, or has a node that spikerate does not know.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is no NIR graph: there is no such file, or it is a folder or a device")
    try:
        with h5py.File(path) as file:
            _check_inside(file, 2**28 + 100 * Path(path).stat().st_size)
            kinds = {name: node["type"][()].decode() for name, node in file["node"]["nodes"].items()}
    except (OSError, KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is no NIR graph, or truncated: {error}") from error
    for name, kind in kinds.items():
        if kind not in {known.__name__ for known in (*_LAYERS, nir.Input, nir.Output)}:
            raise ValueError(f"{path}: {_unknown(name, kind)}")
    try:
        return nir.read(path)
    except (
        OSError,
        LookupError,
        ValueError,
        TypeError,
        ArithmeticError,
        AttributeError,
        AssertionError,
        RuntimeError,
    ) as error:
        raise ValueError(f"{path} is a NIR graph that does not fit together: {error!r}") from error


def _check_inside(file: h5py.File, most: int) -> None:
    """Raise `ValueError` unless all that a file holds is in it, once, and no larger than `most` bytes when it is unpacked.

    HDF5 has links to other files, data sets whose values are read from other files, and groups inside themselves. A
    stranger's graph could so take a file of this machine for weights, which then stand in the network.
    """
    groups: list[tuple[str, h5py.Group]] = [("", file)]
    seen, size = set(), 0
    while groups:
        path, group = groups.pop()
        for name in group:
            place = f"{path}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{place} in it is a link to another place, which is not followed")
            found = group[name]
            if found.id in seen:
                raise ValueError(f"{place} in it has another name too: a graph has no loops")
            seen.add(found.id)
            if isinstance(found, h5py.Group):
                groups.append((place, found))
                continue
            if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
                raise ValueError(f"the values of {place} in it are in another file, which is not read")
            size += found.nbytes
            if size > most:
                raise ValueError(f"{place} in it is larger than the file can be meant to hold: {size:,} bytes in all")


def pack_nir(graph: nir.NIRGraph) -> bytes:
    """The content of a NIR file (HDF5)."""
    content = io.BytesIO()
    nir.write(content, graph)
    return content.getvalue()


class Wired(nn.Module):
    """Layers by name, each of which is given the sum of what its sources give.

    Args:
        layers: in the order of their calls.
        sources: name -> names of layers, or of the input.
        first, last: names of the input and of the output.

    Raises:
        ValueError: a name that a module can't have.
    """

    def __init__(self, layers: Mapping[str, nn.Module], sources: Mapping[str, Sequence[str]], first: str, last: str) -> None:
        super().__init__()
        self._first, self._ends = first, tuple(sources[last])
        self._wires = [(name, name.replace(".", "_"), tuple(sources[name])) for name in layers]
        for name, attribute, _ in self._wires:
            if attribute in self._modules:
                raise ValueError(f"two nodes of the NIR graph are called {attribute}, but for dots: rename one")
            try:
                self.add_module(attribute, layers[name])
            except KeyError as error:
                raise ValueError(f"a node of the NIR graph is called {name!r}, which a layer can't be: rename it") from error

    def forward(self, x: Any) -> Any:
        values = {self._first: x}
        for name, attribute, sources in self._wires:
            values[name] = self.get_submodule(attribute)(_total(values, sources))
        return _total(values, self._ends)


def _total(values: Mapping[str, Any], sources: Sequence[str]) -> Any:
    return reduce(operator.add, (values[source] for source in sources))


# Shapes and places -----------------------------------------------------------------------------------------------------


class _Shapes(fx.Interpreter):
    """Notes the shape [...] without B of what each call gives."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(network, graph=graph)
        self.extra_traceback = False
        self.found: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{_place(n)} can't be run on the samples: {str(error).splitlines()[0]}") from error
        if not isinstance(value, Signal):
            raise ValueError(f"{_place(n)} gives a {type(value).__name__}, and no signal")
        self.found[n] = tuple(value.shape[1:])
        return value


def _shapes(network: nn.Module, graph: fx.Graph, in_shape: Sequence[int]) -> dict[fx.Node, Shape]:
    """By a run of one step of one sample on the meta device, where nothing is computed."""
    ghost, x = on_meta(network, in_shape)
    interpreter = _Shapes(ghost, graph)
    interpreter.run(x)
    return interpreter.found


def _place(call: fx.Node) -> str:
    """The module path of a call; of a function, that of the module in which it is called, and its name."""
    if call.op == "call_module":
        return str(call.target)
    stack = [path for path in call.meta.get("nn_module_stack", {}) if path]
    name = call.target if isinstance(call.target, str) else call.target.__name__
    return f"{name} in {stack[-1] if stack else 'the network'}"


def _is_sum(call: fx.Node) -> bool:
    plain = len(call.args) == 2 and all(isinstance(value, fx.Node) for value in call.args) and not call.kwargs
    return call.op == "call_function" and call.target in (operator.add, torch.add) and plain


# A layer's node ----------------------------------------------------------------------------------------------------------


def _node(call: fx.Node, network: nn.Module, shapes: Mapping[fx.Node, Shape], dt: float) -> nir.NIRNode:
    after = shapes[call]
    if call.op == "placeholder":
        return nir.Input(input_type=np.array(after))
    before = shapes[call.all_input_nodes[0]]
    if call.op == "output":
        return nir.Output(output_type=np.array(after))
    if (call.op, call.target) in _FLATTENS:
        return _flatten(nn.Flatten(*_axes(*call.args, **call.kwargs)), before, dt)  # type: ignore[arg-type]
    layer = network.get_submodule(str(call.target)) if call.op == "call_module" else None
    if type(layer) not in _NODES:
        what = f"{_place(call)} ({type(layer).__name__})" if layer is not None else _place(call)
        raise ValueError(f"{what} can't be exported, NIR has no node for it: {_instead(layer)}")
    try:
        node = _NODES[type(layer)](layer, before, dt)
        _check_shapes(node, before, after)
    except ValueError as error:
        raise ValueError(f"{_place(call)} ({type(layer).__name__}) can't be exported: {error}") from error
    return node


def _instead(layer: nn.Module | None) -> str:
    if layer is None:
        return "of functions it has + and flatten alone; call the module of that name, if there is one"
    if isinstance(layer, Rectifier):
        return "the network is an ANN, which goes into .pt2 and .onnx"
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return "put it right after a convolution or a linear layer, which it can be folded into"
    return "use the layers listed in spikerate.exchange.nir (convolution, linear, average pooling, flatten, add, LIF)"


def _check_shapes(node: nir.NIRNode, before: Shape, after: Shape) -> None:
    """Raise `ValueError` where NIR's own rule for the shapes of a node is another; it knows no groups, for instance."""
    for theirs, ours in ((node.input_type["input"], before), (node.output_type["output"], after)):
        if theirs is not None and tuple(theirs) != ours:
            raise ValueError(
                f"NIR takes its shape for {[int(n) for n in theirs]}, and it is {list(ours)}; its rule knows no groups "
                "and no kernels that are not square"
            )


def _array(x: torch.Tensor) -> np.ndarray[Any, Any]:
    return x.detach().cpu().contiguous().numpy()


def _conv(layer: nn.Conv1d | nn.Conv2d, before: Shape, dt: float) -> nir.NIRNode:
    bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias
    weights = _array(layer.weight), _array(bias)
    if isinstance(layer, nn.Conv1d):
        padding = layer.padding if isinstance(layer.padding, str) else layer.padding[0]
        return nir.Conv1d(before[-1], weights[0], layer.stride[0], padding, layer.dilation[0], layer.groups, weights[1])
    return nir.Conv2d(before[1:], weights[0], layer.stride, layer.padding, layer.dilation, layer.groups, weights[1])


def _linear(layer: nn.Linear, before: Shape, dt: float) -> nir.NIRNode:
    weight = _array(layer.weight)
    return nir.Linear(weight) if layer.bias is None else nir.Affine(weight, _array(layer.bias))


def _pool(layer: nn.AvgPool2d, before: Shape, dt: float) -> nir.NIRNode:
    size, stride, padding = (np.broadcast_to(n, 2).copy() for n in (layer.kernel_size, layer.stride, layer.padding))
    if layer.ceil_mode and ((before[1:] + 2 * padding - size) % stride).any():
        raise ValueError(f"its last windows at {list(before[1:])} are incomplete (ceil_mode), and NIR has whole ones only")
    if not layer.count_include_pad and padding.any():
        raise ValueError("NIR counts the padding in an average: give count_include_pad=True")
    if layer.divisor_override not in (None, 1):
        raise ValueError("NIR has no divisor_override")
    kind = nir.AvgPool2d if layer.divisor_override is None else nir.SumPool2d
    return kind(size, stride, padding)


def _adaptive(layer: nn.AdaptiveAvgPool2d, before: Shape, dt: float) -> nir.NIRNode:
    asked = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size, layer.output_size)
    after = [want or side for want, side in zip(asked, before[1:], strict=True)]
    size, rest = np.divmod(before[1:], after)
    if rest.any():
        raise ValueError(f"its windows at {list(before[1:])} are not all of one size, as NIR's are")
    return nir.AvgPool2d(size, size, np.zeros(2, int))


def _flatten(layer: nn.Flatten, before: Shape, dt: float) -> nir.NIRNode:
    """NIR's axes begin after that of the samples."""
    rank = len(before)
    start, end = layer.start_dim % (rank + 1) - 1, layer.end_dim % (rank + 1) - 1
    return nir.Flatten(np.array(before), start, -1 if end == rank - 1 else end)


def _axes(x: Any, start_dim: int = 0, end_dim: int = -1) -> tuple[int, int]:
    """The axes of a call of flatten."""
    return start_dim, end_dim


def _neuron(layer: LIF, before: Shape, dt: float) -> nir.NIRNode:
    if layer.v_reset is None:
        raise ValueError(
            "NIR resets the membrane to a value, and this neuron subtracts its threshold (soft reset): train with "
            "--neuron.v-reset 0, as the preset digits-esd-hard does"
        )
    threshold = np.full(before, np.nextafter(np.float32(layer.threshold), np.float32(-np.inf)))
    reset = np.full(before, np.float32(layer.v_reset))
    if layer.decay == 1:
        return nir.IF(np.ones(before), threshold, reset)
    # In float64: decay = 1 - dt / tau loses digits.
    tau = np.full(before, dt / (1 - layer.decay))
    return nir.LIF(tau, tau / dt, np.zeros(before), threshold, reset)


_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_FLATTENS = (("call_function", torch.flatten), ("call_method", "flatten"))
_NODES: dict[type, Callable[[Any, Shape, float], nir.NIRNode]] = {
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.Flatten: _flatten,
    LIF: _neuron,
}
"""The node of each layer, which is given the shape [...] of its input without B, and the time step."""


# A node's layer ----------------------------------------------------------------------------------------------------------


def _layer(name: str, node: nir.NIRNode, dt: float) -> nn.Module:
    if type(node) not in _LAYERS:
        raise ValueError(_unknown(name, type(node).__name__))
    try:
        return _LAYERS[type(node)](node, dt)
    except (ValueError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"the node {name} ({type(node).__name__}) of the NIR graph can't be imported: {why}") from error


def _unknown(name: str, kind: str) -> str:
    known = ", ".join(sorted(k.__name__ for k in _LAYERS))
    return f"the node {name} of the NIR graph is a {kind}, which spikerate has no layer for: it knows {known}"


def _time_step(graph: nir.NIRGraph, dt: float | None) -> float:
    told = graph.metadata.get("dt", DT) if dt is None else dt
    try:
        seconds = float(told)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"the time step dt of the NIR graph is {told!r}: give seconds > 0")
    return seconds


def _subtracts(graph: nir.NIRGraph, reset: str | None) -> bool:
    told = graph.metadata.get("reset") if reset is None else reset
    told = told.decode() if isinstance(told, bytes) else told
    if reset is not None and reset not in ("zero", "subtract"):
        raise ValueError(f"reset is {reset!r}: give zero or subtract, or None for what the file says")
    if told in ("zero", "subtract"):
        return bool(told == "subtract")
    if any(isinstance(node, nir.LIF | nir.IF) for node in graph.nodes.values()):
        warnings.warn(
            "the NIR graph does not say whether a spike resets the membrane or subtracts the threshold from it: it is taken "
            "for a reset to v_reset; give reset='subtract' for a network of snnTorch's default neurons, or reset='zero'",
            stacklevel=3,
        )
    return False


def _numbers(x: Any) -> Any:
    """Whole numbers of a convolution or pooling, or its padding by name."""
    return x if isinstance(x, str) else tuple(int(n) for n in np.atleast_1d(x))


def _of_conv(node: nir.Conv1d | nir.Conv2d, dt: float) -> nn.Module:
    kind: Any = nn.Conv1d if isinstance(node, nir.Conv1d) else nn.Conv2d
    outputs, inputs, *size = node.weight.shape
    stride, padding, dilation = (_numbers(n) for n in (node.stride, node.padding, node.dilation))
    groups = int(node.groups)
    return _filled(kind(inputs * groups, outputs, size, stride, padding, dilation, groups), node.weight, node.bias)


def _of_linear(node: nir.Linear | nir.Affine, dt: float) -> nn.Module:
    outputs, inputs = node.weight.shape
    bias = node.bias if isinstance(node, nir.Affine) else None
    return _filled(nn.Linear(inputs, outputs, bias is not None), node.weight, bias)


def _filled(layer: nn.Module, weight: Any, bias: Any) -> nn.Module:
    values = {"weight": weight, "bias": bias}
    layer.load_state_dict({name: torch.as_tensor(value) for name, value in values.items() if value is not None})
    return layer


def _of_average(node: nir.AvgPool2d, dt: float) -> nn.Module:
    return nn.AvgPool2d(_numbers(node.kernel_size), _numbers(node.stride), _numbers(node.padding))


def _of_sum(node: nir.SumPool2d, dt: float) -> nn.Module:
    return nn.AvgPool2d(_numbers(node.kernel_size), _numbers(node.stride), _numbers(node.padding), divisor_override=1)


def _of_flatten(node: nir.Flatten, dt: float) -> nn.Module:
    start, end = (int(n) + (n >= 0) for n in (node.start_dim, node.end_dim))
    return nn.Flatten(start, end)


def _of_lif(node: nir.LIF, dt: float) -> nn.Module:
    if np.any(node.v_leak):
        raise ValueError("v_leak is not 0, and spikerate's membranes leak to 0")
    tau = _same("tau", node.tau)
    if not 0 < tau < math.inf:
        raise ValueError(f"its tau is {tau:g}: the time constant is seconds > 0")
    return _of_neuron(1 - dt / tau, _same("r", node.r) * dt / tau, node)


def _of_if(node: nir.IF, dt: float) -> nn.Module:
    return _of_neuron(1.0, _same("r", node.r), node)


def _of_neuron(decay: float, scale: float, node: nir.LIF | nir.IF) -> nn.Module:
    if not scale > 0:
        raise ValueError(f"its input is scaled by {scale:g}, which is not positive")
    # 1 up to float32, in which other writers keep r and tau.
    scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale
    threshold = np.nextafter(np.float32(_same("v_threshold", node.v_threshold) / scale), np.float32(np.inf))
    return LIF(decay=decay, threshold=float(threshold), v_reset=_same("v_reset", node.v_reset) / scale)


def _same(name: str, values: Any) -> float:
    """The value that all neurons of a node have."""
    found = np.unique(values)
    if len(found) != 1:
        raise ValueError(f"its neurons differ in {name}, and a LIF has one value for all")
    return float(found[0])


_LAYERS: dict[type[nir.NIRNode], Callable[[Any, float], nn.Module]] = {
    nir.Conv1d: _of_conv,
    nir.Conv2d: _of_conv,
    nir.Linear: _of_linear,
    nir.Affine: _of_linear,
    nir.AvgPool2d: _of_average,
    nir.SumPool2d: _of_sum,
    nir.Flatten: _of_flatten,
    nir.LIF: _of_lif,
    nir.IF: _of_if,
}
"""The layer of each node, which is given the time step."""
