"""Streams: calls of a rule that go on from each other, and the names of the layers that have a state between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spikerate.signal import Signal

State = dict[str, Any]
"""Module path -> what a layer goes on from: a tensor [B, ...], or a tuple of them."""
OUTSIDE = "a neuron that is no module of the network"


class Wrapped(ABC):
    """A network that runs another one, and does something beside it; asked for its modules, it has those of that one."""

    def __init__(self, network: Callable[[Signal], Any]) -> None:
        self.network = network

    @abstractmethod
    def __call__(self, x: Signal) -> Any:
        """Run the network."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        return named_modules(self.network)


def named_modules(network: Callable[[Signal], Any]) -> Iterator[tuple[str, nn.Module]]:
    """The paths and modules of a network; none if it is a function."""
    return iter(network.named_modules() if isinstance(network, nn.Module | Wrapped) else ())


class Calls:
    """The names of the layers that run in a forward pass: their module paths; of a second call of one, "path, call 2".

    Args:
        network: whose modules are named. A layer is one of them, or a parameter of one.
    """

    def __init__(self, network: Callable[[Signal], Any]) -> None:
        self._paths: dict[Any, str] = {}
        for path, module in named_modules(network):
            self._paths |= dict.fromkeys((module, *module.parameters(recurse=False)), path)
        self._met: dict[str, int] = {}

    def clear(self) -> None:
        """A forward pass, or a chunk of one, begins."""
        self._met.clear()

    @property
    def paths(self) -> list[str]:
        """The paths of the layers that have run."""
        return list(self._met)

    def of(self, layer: Any) -> tuple[str, str]:
        """Path and name of the layer that runs now."""
        path = self._paths.get(layer, OUTSIDE)
        self._met[path] = self._met.get(path, 0) + 1
        return path, path if self._met[path] == 1 else f"{path}, call {self._met[path]}"


class Stream(Wrapped):
    """A network whose layers go on from what the call before has left, for one call of a rule.

    Args:
        network: the network.
        x: input [T, B, ...].
        before: the state that the call before has returned; None at the start of a stream.

    Raises:
        ValueError: the state is none, or of another batch size; in the call of the network, of other shapes or types.
    """

    def __init__(self, network: Callable[[Signal], Any], x: Tensor, before: Mapping[str, Any] | None) -> None:
        super().__init__(network)
        if before is not None and not isinstance(before, Mapping):
            raise ValueError(
                f"the state is a {type(before).__name__}: give the dictionary that `continued` returned with the output, or "
                "None at the start of a stream"
            )
        for name, tensor in _tensors(before or {}):
            if tensor.dim() == 0 or len(tensor) != x.shape[1]:
                raise ValueError(
                    f"the state of {name!r} is {list(tensor.shape)}, and the input has a batch of {x.shape[1]}: a stream "
                    "goes on with the same samples, so give as many, or state=None to start anew"
                )
        self._before = before or {}
        self._after: State = {}
        self._begins = before is None
        self._recalled, self._kept = Calls(network), Calls(network)
        self._ended = False

    def __call__(self, x: Signal) -> Any:
        self._recalled.clear()
        self._kept.clear()
        x.tape.memory = self
        return self.network(x)

    def recall(self, layer: Any, train: Tensor) -> Any:
        """The state that a layer starts from.

        Raises:
            ValueError: it has not the shape, type or device that belongs to the input [T or 1, B, ...] of the layer.
            RuntimeError: the layer runs again after the call, as under activation checkpointing.
        """
        if self._ended:
            raise RuntimeError(
                "a layer ran again after the forward pass, but one whose state goes on can run only once: use no activation "
                "checkpointing in a stream"
            )
        _, name = self._recalled.of(layer)
        state = self.before(name)
        wide = torch.promote_types(train.dtype, torch.float32)
        for _, tensor in _tensors({name: state}):
            given = f"{_kind(tensor.dtype)} on {tensor.device}"
            if tensor.device != train.device or (tensor.is_floating_point() and tensor.dtype not in (train.dtype, wide)):
                raise ValueError(
                    f"the state of {name!r} is {given}, and the network computes in {_kind(wide)} on {train.device} there: "
                    "move both to one device and type, or give state=None to start anew"
                )
            if tensor.shape != train.shape[1:]:
                raise ValueError(
                    f"the state of {name!r} is {list(tensor.shape)}, and its input {list(train.shape[1:])} (without time): "
                    "it is of another network or input size, so give the state of this one, or None to start anew"
                )
        return state

    def keep(self, layer: Any, state: Any) -> None:
        """Keep the state of a layer at the end of the call; None of one that has none."""
        _, name = self._kept.of(layer)
        if state is not None:
            self._after[name] = state

    def before(self, name: str) -> Any:
        """The state that the layer of that name starts from; None at the start of a stream."""
        return self._before.get(name)

    def state(self, detach: bool) -> State:
        """What the next call goes on from, in memory of its own.

        Raises:
            ValueError: the call before had other layers.
        """
        self._ended = True
        if not self._begins and self._before.keys() != self._after.keys():
            strange, missing = self._before.keys() - self._after.keys(), self._after.keys() - self._before.keys()
            differ = [f"has {sorted(strange)}, which no layer asks for"] * bool(strange)
            differ += [f"lacks {sorted(missing)}"] * bool(missing)
            raise ValueError(
                f"the state {' and '.join(differ)}: it is of another network or rule, so give the state of this one, or "
                "None to start anew"
            )
        return {name: pytree.tree_map_only(Tensor, _owned(detach), state) for name, state in self._after.items()}


def _owned(detach: bool) -> Callable[[Tensor], Tensor]:
    """A copy: what a layer leaves may be a view of all steps, or of an input that its owner writes on."""
    return lambda tensor: (tensor.detach() if detach else tensor).clone()


def _tensors(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor):
                yield name, leaf


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
