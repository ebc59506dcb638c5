"""Neurons in place of activations that a module calls as functions in its forward, as `F.relu(x)`."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from functools import cache, partial
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from spikerate.signal import Signal

FUNCTIONS = (
    torch.relu,
    torch.relu_,
    F.celu,
    F.elu,
    F.elu_,
    F.gelu,
    F.hardswish,
    F.leaky_relu,
    F.leaky_relu_,
    F.mish,
    F.relu,
    F.relu6,
    F.selu,
    F.silu,
)
"""The activations of hidden layers. Those that are gates too, as the sigmoid, are not replaced where they are functions."""
PLACE = "functional_neurons"
"""The submodule that holds the neurons of a module's own calls."""
_NAMES = frozenset(function.__name__ for function in FUNCTIONS)


def with_neurons(module: nn.Module, neuron: Callable[[], nn.Module]) -> bool:
    """Give a module, in place, a neuron for each activation that its own code calls as a function; whether there is one.

    From then on `module(x)` calls the first of them where the code calls an activation for the first time, and so on; where
    there are more calls than places in the code, as in a loop, the last one serves them, each call as a layer of its own.
    The neurons are in `module.functional_neurons`, and so in `modules()`, `parameters()` and `state_dict()`.
    """
    count = call_sites(module)
    if count == 0:
        return False
    module.add_module(PLACE, nn.ModuleList(neuron() for _ in range(count)).train(module.training))
    kind: Any = type(module)
    module.__class__ = _firing(kind)
    return True


def call_sites(module: nn.Module) -> int:
    """The number of places where a module's class calls an activation on something, and of activations among its attributes.

    Calls of its submodules, `self.relu(x)`, do not count, nor what functions outside of the class do. It is at least the
    number of places that one forward comes by.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return 0
    own = [kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.")]
    members = [getattr(f, "__func__", f) for kind in own for name, f in vars(kind).items() if name != "__init__"]
    functions = [inspect.unwrap(f) for f in members if isinstance(f, FunctionType)]
    kept = [value.func if isinstance(value, partial) else value for value in vars(module).values()]
    return sum(_calls(f.__code__, f.__globals__) for f in functions) + sum(any(f is g for g in FUNCTIONS) for f in kept)


def _calls(code: CodeType, names: dict[str, Any]) -> int:
    """How often code loads an activation, by the names of functions or from what the global names stand for."""
    count, before = 0, None
    for step in dis.get_instructions(code):
        if step.opname == "EXTENDED_ARG":
            continue
        of_self = before == "self" or (isinstance(before, tuple) and before[-1] == "self")
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            count += step.argval in _NAMES and not of_self
        elif step.opname == "LOAD_GLOBAL":
            count += any(names.get(step.argval) is function for function in FUNCTIONS)
        before = step.argval
    return count + sum(_calls(inner, names) for inner in code.co_consts if isinstance(inner, CodeType))


class _Firing(TorchFunctionMode):
    """Within a forward: the activations that its code calls as functions are neurons.

    Args:
        neurons: in the order of the calls.
        signals: whether the forward was called with signals; then what is done to tensors, by a neuron for instance, stays.
    """

    def __init__(self, neurons: Iterator[nn.Module], signals: bool) -> None:
        super().__init__()
        self.neurons = list(neurons)
        self.signals = signals

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(func is function for function in FUNCTIONS) or (self.signals and isinstance(args[0], Tensor)):
            return func(*args, **(kwargs or {}))
        neuron = self.neurons[0]
        self.neurons = self.neurons[1:] or self.neurons
        return neuron(args[0])


@cache
def _firing(kind: Any) -> Any:
    """A class of modules that is another one, but for the neurons in its forward."""

    class Firing(kind):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            given = pytree.tree_leaves((args, kwargs), is_leaf=lambda y: isinstance(y, Signal))
            with _Firing(self.get_submodule(PLACE).children(), not any(isinstance(y, Tensor) for y in given)):
                return super().forward(*args, **kwargs)

        def __reduce__(self) -> Any:
            return _empty, (kind,), self.__dict__

    Firing.__name__, Firing.__qualname__, Firing.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    Firing.__doc__ = kind.__doc__
    return Firing


def _empty(kind: Any) -> Any:
    """A module of a class of `_firing`, for pickle and `copy`, which fill it."""
    made = _firing(kind)
    return made.__new__(made)
