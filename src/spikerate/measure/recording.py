"""Recordings: what the neurons of named layers get, hold and fire, while a network runs by any rule."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from spikerate.measure.meter import holds, watched
from spikerate.signal import Neuron, Signal
from spikerate.stream import Calls, Wrapped, named_modules


@dataclass(frozen=True)
class Activity:
    """What was recorded of a layer of neurons, without a graph.

    Attributes:
        spikes: [T, B, ...].
        currents: the input of the neurons, [T, B, ...].
        membranes: their potential u after each step, the reset included, [T, B, ...]; a tuple of such where the state of a
            neuron is one of several tensors, None of a neuron without memory.
    """

    spikes: Tensor
    currents: Tensor
    membranes: Any


@dataclass
class _Layer:
    """What is known of a layer so far, in pieces along time."""

    spikes: list[Tensor] = field(default_factory=list)
    currents: list[Tensor] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)

    def whole(self) -> Activity:
        known = None if self.states[-1] is None else pytree.tree_map(lambda *steps: torch.stack(steps), *self.states)
        return Activity(torch.cat(self.spikes), torch.cat(self.currents), known)


class Recording(Wrapped, Mapping[str, Activity]):
    """A network that is recorded while a rule runs it, and what was recorded: layer -> `Activity`; made by `record`.

    Args:
        network: the network.
        layers: module paths of neurons, or of modules that contain them; all neurons if empty.
    """

    def __init__(self, network: Callable[[Signal], Any], layers: tuple[str, ...]) -> None:
        super().__init__(network)
        self.open = True
        self._layers = layers
        self._known: dict[str, _Layer] = {}
        all_of_them = [path for path, module in named_modules(network) if isinstance(module, Neuron)]
        neurons = [path for path in all_of_them if not any(path != outer and holds(outer, path) for outer in all_of_them)]
        for layer in layers:
            if not any(holds(layer, path) for path in neurons):
                near = difflib.get_close_matches(layer, neurons, n=3, cutoff=0.3) or neurons[:3]
                hint = f"the nearest are {near}" if near else "the network has no module that is one"
                raise ValueError(f"record got {layer!r}, where there is no neuron of the network: {hint}")

    def __call__(self, x: Signal) -> Any:
        if not self.open:
            raise RuntimeError("a recording ended with its `with` block: call the network itself, or record again")
        calls = Calls(self.network)

        def look(neuron: Neuron, inputs: Signal, spikes: Signal) -> None:
            path, name = calls.of(neuron)
            if not self._layers or any(holds(layer, path) for layer in self._layers):
                self._note(name, neuron, inputs, spikes)

        return watched(self.network, look)(x)

    def __getitem__(self, layer: str) -> Activity:
        return self._known[layer].whole()

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    @torch.no_grad()
    def _note(self, name: str, neuron: Neuron, inputs: Signal, spikes: Signal) -> None:
        """Add the steps of a chunk. No rule keeps the membranes of each step, so the neuron runs once more for them."""
        known = self._known.setdefault(name, _Layer())
        currents, tape = inputs.expanded().detach(), inputs.tape
        if known.spikes and known.spikes[-1].shape[1:] != spikes.shape:
            raise ValueError(
                f"{name!r} was recorded with spikes {list(known.spikes[-1].shape[1:])} (without time), and now has "
                f"{list(spikes.shape)}: record calls of one batch and input size together, others by a `record` of their own"
            )
        begun = None if tape.memory is None else tape.memory.before(name)
        state = begun if tape.first else known.states[-1]
        for current in currents.unbind(0):
            _, state = neuron.unroll(current.unsqueeze(0), state)
            known.states.append(state)
        known.spikes.append(spikes.expanded().detach())
        known.currents.append(currents)


@contextmanager
def record(network: Callable[[Signal], Any], *layers: str) -> Iterator[Recording]:
    """Record spikes, input currents and membranes of layers of neurons, while a network runs by any rule.

        with record(network, "stages.stage1", "head.2") as recorded:
            out = RateBP()(recorded, x)                      # in place of the network
        recorded["stages.stage1.0.neuron1"].membranes        # [T, B, ...]

    Output and gradients are those of the network. Several calls in the block are recorded one after another along T: windows
    of a stream (`Rule.continued`) thus as one. The second call of a module within a forward pass is "path, call 2". What is
    recorded is in memory, T times a layer's activations for each of the three; the recorded neurons run twice.

    Args:
        network: a network; of a function of signals, which has no paths, give no layers.
        layers: module paths of neurons, or of modules that contain them; none for all neurons.

    Raises:
        ValueError: there is no neuron at one of the paths; calls in the block have batches or inputs of other shapes.
        RuntimeError: the recording is called after the block.
    """
    recording = Recording(network, layers)
    try:
        yield recording
    finally:
        recording.open = False
