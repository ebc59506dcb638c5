"""Conversion of networks to graphs of the Neuromorphic Intermediate Representation (NIR), and back."""

from __future__ import annotations

import io
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
import torch
from torch import fx, nn

from spikerate.learnable import PLIF, ParametricLIF
from spikerate.models.fold import fold_batch_norm
from spikerate.models.graph import layer_graph
from spikerate.models.staged import on_meta
from spikerate.neuron import LIF, Rectifier
from spikerate.readout import Readout
from spikerate.signal import Signal
from spikerate.synaptic import Synaptic
from spikerate.system.hdf5 import opened

DT = 1e-4
"""Seconds of a time step. NIR's equations are in continuous time; snnTorch assumes this step when it reads them."""

Shape = tuple[int, ...]


def to_nir(
    network: nn.Module, in_shape: Sequence[int], dt: float = DT, metadata: Mapping[str, str | int | float] | None = None
) -> nir.NIRGraph:
    """The NIR graph of a network in evaluation mode, with batch norm folded into the layers before it.

    NIR's `tau dv/dt = (v_leak - v) + R I` in Euler steps of `dt` is our `v[t] = decay u[t-1] + I[t]` with
    `tau = dt / (1 - decay)`, `R = tau / dt`, `v_leak = 0`. A neuron without leak becomes an `IF` with `R = 1`, as readers
    expect. A neuron of NIR fires above the threshold and ours at it, so the next smaller float32 is written. An addition
    becomes several edges into one node. Nodes are named after their modules.

    Args:
        network: [B, C, H, W] or [B, C, L] -> any shape.
        in_shape: shape of one sample at one step, without B.
        dt: seconds of a time step; it is written into the graph's metadata, together with the kind of reset.
        metadata: further entries of the metadata.

    Raises:
        ValueError: NIR has no node for an operation, or for a soft reset; the message has the module path, the reason and
            what to do.

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
    """The network of a NIR graph: layers of `torch.nn` and `LIF`, named after the nodes. It runs by any rule.

    It is the exact inverse of `to_nir`. If a node scales its input by another factor than 1, threshold and reset are scaled
    instead.

    Args:
        graph: a graph with one input and one output, without cycles.
        dt: seconds of a time step; by default that in the metadata, or `DT`.
        reset: what a spike does to the membrane, which NIR's nodes do not tell: "zero" sets it to the node's `v_reset`
            (0 in most files), "subtract" subtracts the threshold, as snnTorch does by default. By default the entry in
            the metadata, which `to_nir` writes; without one it is "zero", with a warning.

    Raises:
        ValueError: a node or an edge is not supported (the message names it), the neurons of a node have different
            parameters, or `reset` is unknown.
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
    """Read the graph in a NIR file.

    Raises:
        ValueError: the file is missing or broken, or has a node that spikerate does not support.
    """
    try:
        with opened(Path(path)) as file:
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


def pack_nir(graph: nir.NIRGraph) -> bytes:
    """The content of a NIR file (HDF5)."""
    content = io.BytesIO()
    nir.write(content, graph)
    return content.getvalue()


class Wired(nn.Module):
    """A network of named layers; the input of each layer is the sum of the outputs of its sources.

    Args:
        layers: name -> layer, in the order of their calls.
        sources: name of a layer -> names of the layers before it, or of the input.
        first, last: names of the input and of the output.

    Raises:
        ValueError: a module can't have one of the names.
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
    """Runs a graph, and records the shape [...] of each call's output, without B."""

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
            raise ValueError(
                f"{_place(n)} can't be exported, since NIR has no node for it: it returns a {type(value).__name__}, not a "
                "signal, so export a program (.pt2) instead"
            )
        self.found[n] = tuple(value.shape[1:])
        return value


def _shapes(network: nn.Module, graph: fx.Graph, in_shape: Sequence[int]) -> dict[fx.Node, Shape]:
    """The output shape of each call, from a run of one step of one sample on the meta device."""
    ghost, x = on_meta(network, in_shape)
    interpreter = _Shapes(ghost, graph)
    interpreter.run(x)
    return interpreter.found


def _place(call: fx.Node) -> str:
    """The module path of a call; for a function its name and the path of the module that calls it."""
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
        raise ValueError(f"{what} can't be exported, since NIR has no node for it: {_instead(layer)}")
    try:
        node = _NODES[type(layer)](layer, before, dt)
        _check_shapes(node, before, after)
    except ValueError as error:
        raise ValueError(f"{_place(call)} ({type(layer).__name__}) can't be exported: {error}") from error
    return node


def _instead(layer: nn.Module | None) -> str:
    if layer is None:
        return "of functions only + and flatten are supported; use the module of that name, if there is one"
    if isinstance(layer, Rectifier):
        return "the network is an ANN; export it to .pt2 or .onnx"
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return "put it right after a convolution or a linear layer, so that it can be folded into that"
    return "use the layers listed in spikerate.exchange.nir (convolution, linear, average pooling, flatten, add, LIF)"


def _check_shapes(node: nir.NIRNode, before: Shape, after: Shape) -> None:
    """Raise `ValueError` if NIR computes other shapes for a node; it does not support groups, for instance."""
    for theirs, ours in ((node.input_type["input"], before), (node.output_type["output"], after)):
        if theirs is not None and tuple(theirs) != ours:
            raise ValueError(
                f"NIR computes the shape {[int(n) for n in theirs]} for it instead of {list(ours)}; it supports neither "
                "groups nor kernels that are not square"
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
        raise ValueError(f"its last windows at {list(before[1:])} are incomplete (ceil_mode), which NIR does not support")
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
        raise ValueError(f"its windows at {list(before[1:])} have different sizes, which NIR does not support")
    return nir.AvgPool2d(size, size, np.zeros(2, int))


def _flatten(layer: nn.Flatten, before: Shape, dt: float) -> nir.NIRNode:
    """A flatten node; NIR counts axes without the batch axis."""
    rank = len(before)
    start, end = layer.start_dim % (rank + 1) - 1, layer.end_dim % (rank + 1) - 1
    return nir.Flatten(np.array(before), start, -1 if end == rank - 1 else end)


def _axes(x: Any, start_dim: int = 0, end_dim: int = -1) -> tuple[int, int]:
    """The axes of a call of flatten."""
    return start_dim, end_dim


def _neuron(layer: LIF, before: Shape, dt: float) -> nir.NIRNode:
    threshold, reset = _threshold_and_reset(layer, before)
    decay = _of_each(layer.decay, before)
    if (decay == 1).all():
        return nir.IF(np.ones(before), threshold, reset)
    if (decay == 1).any():
        raise ValueError("some of its neurons leak and others do not, for which NIR has two kinds: give each a layer")
    tau = dt / (1 - decay)  # in float64: decay = 1 - dt / tau loses digits
    return nir.LIF(tau, tau / dt, np.zeros(before), threshold, reset)


def _synaptic(layer: Synaptic, before: Shape, dt: float) -> nir.NIRNode:
    threshold, reset = _threshold_and_reset(layer, before)
    tau, tau_of_current = (_time_constant(decay, before, dt) for decay in (layer.decay, layer.alpha))
    return nir.CubaLIF(tau_of_current, tau, tau / dt, np.zeros(before), threshold, reset, tau_of_current / dt)


def _integrator(layer: Readout, before: Shape, dt: float) -> nir.NIRNode:
    if layer.output != "mean":
        raise ValueError(
            f"its output is {layer.output!r}, and NIR's leaky integrator gives the membrane at each step: export "
            "Readout(output='mean') with these weights, and take the last value or the maximum outside"
        )
    tau = _time_constant(layer.decay, before, dt)
    return nir.LI(tau, tau / dt, np.zeros(before))


def _threshold_and_reset(layer: LIF, before: Shape) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if layer.v_reset is None:
        raise ValueError(
            "NIR resets the membrane to a value, and this neuron subtracts its threshold (soft reset): train with "
            "--neuron.v-reset 0, as the preset digits-esd-hard does"
        )
    threshold = np.nextafter(_of_each(layer.threshold, before).astype(np.float32), np.float32(-np.inf))
    return threshold, _of_each(layer.v_reset, before).astype(np.float32)


def _time_constant(decay: float, before: Shape, dt: float) -> np.ndarray[Any, Any]:
    """tau of all neurons, in float64."""
    if decay == 1:
        raise ValueError("this node of NIR has a leak, and the layer has none: give a decay below 1")
    return np.full(before, dt / (1 - decay))


def _of_each(value: Any, before: Shape) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A value of the neurons for each of them."""
    values = value.detach().cpu().double().numpy() if isinstance(value, torch.Tensor) else np.float64(value)
    return np.broadcast_to(values, before).copy()


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
    PLIF: _neuron,
    ParametricLIF: _neuron,
    Synaptic: _synaptic,
    Readout: _integrator,
}
"""Type of a layer -> (layer, shape [...] of its input without B, time step) -> NIR node."""


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
    given = graph.metadata.get("dt", DT) if dt is None else dt
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"the time step dt of the NIR graph is {given!r}: give seconds > 0")
    return seconds


def _subtracts(graph: nir.NIRGraph, reset: str | None) -> bool:
    kind = graph.metadata.get("reset") if reset is None else reset
    kind = kind.decode() if isinstance(kind, bytes) else kind
    if reset is not None and reset not in ("zero", "subtract"):
        raise ValueError(f"reset is {reset!r}: give zero or subtract, or None for what the file says")
    if kind in ("zero", "subtract"):
        return bool(kind == "subtract")
    if any(isinstance(node, nir.LIF | nir.IF | nir.CubaLIF) for node in graph.nodes.values()):
        warnings.warn(
            "the NIR graph does not say whether a spike resets the membrane or subtracts the threshold from it: a reset to "
            "v_reset is assumed; give reset='subtract' for a network of snnTorch's default neurons, or reset='zero'",
            stacklevel=3,
        )
    return False


def _numbers(x: Any) -> Any:
    """Integer parameters of a convolution or pooling, or its padding by name."""
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
    decay, scale = _leak("tau", node.tau, node.r, node, dt)
    return _of_neuron(partial(LIF, decay), scale, node)


def _of_current_based(node: nir.CubaLIF, dt: float) -> nn.Module:
    decay, scale = _leak("tau_mem", node.tau_mem, node.r, node, dt)
    alpha, scale_of_current = _leak("tau_syn", node.tau_syn, node.w_in, node, dt)
    return _of_neuron(partial(Synaptic, decay, alpha), scale * scale_of_current, node)


def _of_integrator(node: nir.LI, dt: float) -> nn.Module:
    decay, scale = _leak("tau", node.tau, node.r, node, dt)
    if not math.isclose(scale, 1, rel_tol=1e-6):
        raise ValueError(f"its input is scaled by {scale:g}, and that of a Readout is not: scale the weights before it")
    return Readout(decay)


def _leak(name: str, taus: Any, scales: Any, node: nir.LIF | nir.LI | nir.CubaLIF, dt: float) -> tuple[float, float]:
    """The decay of a potential or current of a node, and what it scales its input by."""
    if np.any(node.v_leak):
        raise ValueError("v_leak is not 0, but spikerate's neurons leak to 0")
    tau = _same(name, taus)
    if not 0 < tau < math.inf:
        raise ValueError(f"its {name} is {tau:g}: the time constant must be > 0 seconds")
    return 1 - dt / tau, _same("the factor of their input", scales) * dt / tau


def _of_if(node: nir.IF, dt: float) -> nn.Module:
    return _of_neuron(partial(LIF, 1.0), _same("r", node.r), node)


def _of_neuron(kind: Callable[..., LIF], scale: float, node: nir.LIF | nir.IF | nir.CubaLIF) -> nn.Module:
    if not scale > 0:
        raise ValueError(f"its input is scaled by {scale:g}, which is not positive")
    # Exactly 1 if it is so within float32, in which other libraries write r and tau.
    scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale
    threshold = np.nextafter(np.float32(_same("v_threshold", node.v_threshold) / scale), np.float32(np.inf))
    return kind(threshold=float(threshold), v_reset=_same("v_reset", node.v_reset) / scale)


def _same(name: str, values: Any) -> float:
    """The value that all neurons of a node share."""
    found = np.unique(values)
    if len(found) != 1:
        raise ValueError(f"its neurons differ in {name}, but all neurons of a LIF have the same value")
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
    nir.LI: _of_integrator,
    nir.CubaLIF: _of_current_based,
}
"""Type of a NIR node -> (node, time step) -> layer."""
