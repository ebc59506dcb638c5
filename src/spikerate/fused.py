"""Elementwise work on trains, fused into one pass over memory: compiled once for each number of steps, used by eager code.

Between two convolutions a spiking network does nothing but small elementwise steps over [T, B, ...]: charge, compare, slope,
reset, sums over time. Run one by one, each is a pass over memory, and together they cost more than the convolutions. Here a
function of flat trains [T, N] is compiled by `torch.compile` for any N, so that a handful of kernels serve all layers, all
batch sizes, training and evaluation. Where there is no compiler, the same function runs eagerly; the tests compare both.

`TORCH_COMPILE_DISABLE=1` in the environment turns it off, as it turns off all of `torch.compile`.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode

from spikerate.system.environment import compiler_problem

_WORTH = 2**20
"""Elements of a train from which on a compiled kernel is worth its compilation; smaller ones stay in the cache."""
_IN_CACHE = 2**17
"""Neurons of a layer that are run together where nothing is compiled, so that their temporary values fit into the cache."""
_LONGEST = 16
"""Steps that one kernel unrolls."""
_VARIANTS = 256
"""Kernels of one function: numbers of steps, types, neurons, with and without a state before."""
_log = logging.getLogger(__name__)


@dataclass
class Way:
    """How a pass was run, for who runs it a second time: whether compiled; None before the first time."""

    compiled: bool | None = None


@dataclass(frozen=True)
class Order:
    """The order in which a train [T, B, ...] lies in memory.

    Attributes:
        axes: its axes, time first, then those with the largest stride.
    """

    axes: tuple[int, ...]

    @classmethod
    def of(cls, train: Tensor) -> Order | None:
        """The order of a train whose elements lie side by side in memory; None where there are gaps between them."""
        strides = train.stride()
        axes = tuple(sorted(range(1, train.dim()), key=lambda axis: (-strides[axis], axis)))
        dense = 1
        for axis in reversed(axes):
            if train.shape[axis] != 1 and strides[axis] != dense:
                return None
            dense *= train.shape[axis]
        return cls((0, *axes)) if len(train) == 1 or strides[0] == dense else None

    def flat(self, train: Tensor) -> Tensor:
        """[T, B, ...] -> [T, N], a view."""
        return train.permute(self.axes).flatten(1)

    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """[T, N] -> [T, B, ...] of the shape of `like` but for T, a view."""
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return flat.unflatten(1, [like.shape[axis] for axis in self.axes[1:]]).permute(inverse)


def run(
    f: Callable[[Any, Tensor, Any], Any],
    subject: Any,
    train: Tensor,
    T: int,
    state: Any = None,
    spent: Any = None,
    way: Way | None = None,
) -> Any:
    """`f(subject, steps, state)` of the steps of a train, as one pass over memory where that is possible and pays.

    Args:
        f: elementwise over all axes but the first: neither their number nor their order means anything to it.
        subject: what `f` works with, a neuron for instance.
        train: [T, B, ...], or [1, B, ...] where it is constant.
        T: the number of steps.
        state: tensors [B, ...] and numbers in (nested) tuples and dicts, or None.
        spent: the tuple of such in `state` that the last of what `f` returns takes the place of; it may be overwritten.
        way: that of an earlier call, to be gone again, or a new one.

    Returns:
        what `f` returns, tensors [T, B, ...] and [B, ...] in (nested) tuples and dicts.
    """
    way = way or Way()
    again = way.compiled is not None
    pays = way.compiled if again else _pays(train, T, type(subject))
    order = Order.of(train) if pays else None
    way.compiled = order is not None
    if order is None:
        return _eager(f, subject, train.expand(T, *train.shape[1:]), state, spent)
    try:
        # Again, a counter of operations that has come since would lead another way.
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS), _disable_current_modes() if again else nullcontext():
            flat = _compiled(f)(subject, _any_size(order.flat(train)), T, _flattened(state, order, train))
    except Exception as error:  # of the compiler, of any kind; an error of `f` itself is raised again by the eager call
        if again:
            raise
        _give_up(train.device.type, subject, error)
        way.compiled = False
        return _eager(f, subject, train.expand(T, *train.shape[1:]), state, spent)
    return _restored(flat, order, train)


def _eager(f: Callable[[Any, Tensor, Any], Any], subject: Any, steps: Tensor, state: Any, spent: Any) -> Any:
    """`f` of a few samples at a time on a CPU, so that its temporary values stay in the cache and take no memory.

    The compiler, which makes one pass over memory of it, and GPUs get all samples at once, and so does autograd.
    """
    graph = torch.is_grad_enabled() and (steps.requires_grad or _learns(subject))
    if graph or torch.compiler.is_compiling() or steps.device.type != "cpu" or steps[0].numel() <= _IN_CACHE:
        return f(subject, steps, state)
    size = max(1, _IN_CACHE // steps[0, 0].numel())
    out: Any = None
    for start in range(0, steps.shape[1], size):
        few = slice(start, start + size)
        done = f(subject, steps[:, few], _samples(state, few))
        if out is None:
            out = _room(done, steps) if spent is None else (*_room(done[:-1], steps), _over(spent, done[-1], steps))
        _write(done, out, few, steps.dim())
    return out


def _samples(state: Any, few: slice) -> Any:
    """A state of a few of the samples."""
    return pytree.tree_map(lambda one: one[few] if _of_each(one) else one, state)


def _room(done: Any, steps: Tensor) -> Any:
    """Room for what `f` returns of all samples, in the memory format of the steps [T, B, ...]; from what it did of a few."""

    def room(one: Any) -> Any:
        if not _of_each(one):
            return one
        empty = torch.empty_like(steps[0], dtype=one.dtype)
        if one.dim() < steps.dim():
            return empty
        return empty.new_empty_strided((len(one), *empty.shape), (empty.numel(), *empty.stride()))

    return pytree.tree_map(room, done)


def _over(spent: tuple[Any, ...], state: tuple[Any, ...], steps: Tensor) -> tuple[Any, ...]:
    """Room for a state in the memory of the one before, where that is of the same type."""

    def over(old: Any, new: Any) -> Any:
        return old if _of_each(old) and _of_each(new) and old.dtype == new.dtype else _room(new, steps)

    return pytree.tree_map(over, spent, state)


def _write(done: Any, out: Any, few: slice, dim: int) -> None:
    """Write what `f` did of a few samples, tensors of `dim` axes with time and of one less without, to its place."""
    for part, whole in zip(pytree.tree_leaves(done), pytree.tree_leaves(out), strict=True):
        if _of_each(part):
            (whole[:, few] if part.dim() == dim else whole[few]).copy_(part)


def _learns(subject: Any) -> bool:
    """Whether a gradient is asked for by the values of a layer of neurons."""
    return isinstance(subject, nn.Module) and any(value.requires_grad for value in subject.parameters())


def _of_each(value: Any) -> TypeGuard[Tensor]:
    """Whether a part of a state is a tensor [B, ...], with a value for each neuron."""
    return isinstance(value, Tensor) and value.dim() > 0


def _pays(train: Tensor, T: int, kind: type) -> bool:
    if torch.compiler.is_compiling() or T > _LONGEST or T * train[0].numel() < _WORTH:
        return False
    device = train.device.type
    if device not in ("cpu", "cuda") or (device, kind) in _given_up or not _works(device):
        return False
    return _get_current_dispatch_mode() is None  # a counter of operations, for instance, has to see each of them


_given_up: set[tuple[str, type]] = set()
"""Devices and kinds of subjects for which the compiler has failed."""


def _give_up(device: str, subject: Any, error: Exception) -> None:
    _given_up.add((device, type(subject)))
    # Perhaps the compiler is older than the processor: what is compiled from now on tries the instructions out.
    torch._inductor.cpu_vec_isa.valid_vec_isa_list.cache_clear()
    name = "the mean over time" if subject is None else type(subject).__name__
    _log.warning("%s is not compiled, so that its steps take longer: %s", name, str(error).split("\n")[0])


@functools.cache
def _works(device: str) -> bool:
    if compiler_problem(torch.device(device)) or os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return False
    # Said of the gains that are carried from chunk to chunk; it means nothing.
    warnings.filterwarnings("ignore", message="bf16 and fp16 are mixed")
    _log.warning("compiling the passes between the layers: seconds, once")
    _trust_the_processor()
    return True


def _trust_the_processor() -> None:
    """Take the instruction sets that the processor names; PyTorch would compile and load a program for each of them.

    That takes as long as all else until the first step. `TORCHINDUCTOR_VEC_ISA_OK` in the environment overrules it.
    """
    from torch._inductor import config, cpu_vec_isa  # here, since the compiler takes a second to import

    if config.cpp.vec_isa_ok is None:
        with config.patch({"cpp.vec_isa_ok": True}):
            cpu_vec_isa.valid_vec_isa_list()  # which keeps its answer


@functools.cache
def _compiled(f: Callable[[Any, Tensor, Any], Any]) -> Callable[..., Any]:
    # dynamic=False, with N marked as dynamic: by itself the compiler would make T dynamic, too, when it changes.
    return torch.compile(_on_flat(f), fullgraph=True, dynamic=False)


def _on_flat(f: Callable[[Any, Tensor, Any], Any]) -> Callable[..., Any]:
    """`f` of the steps of a flat train [T, N] or [1, N]."""

    def on_flat(subject: Any, train: Tensor, T: int, state: Any) -> Any:
        return f(subject, train.expand(T, -1), state)

    return on_flat


def _any_size(flat: Tensor) -> Tensor:
    torch._dynamo.mark_dynamic(flat, flat.dim() - 1)
    return flat


def _flattened(state: Any, order: Order, train: Tensor) -> Any:
    """Tensors [B, ...] of a state as [N], and numbers as tensors.

    A number would be compiled into the kernel, and each chunk has another one.
    """

    def flattened(one: Any) -> Any:
        if isinstance(one, float):
            # `torch.full` fills it on the device, where `torch.tensor` would wait for a copy.
            return torch.full((), one, dtype=torch.promote_types(train.dtype, torch.float32), device=train.device)
        return _any_size(order.flat(one.unsqueeze(0))[0]) if _of_each(one) else one

    return pytree.tree_map(flattened, state)


def _restored(flat: Any, order: Order, like: Tensor) -> Any:
    """Tensors [T, N] as [T, B, ...], and [N] as [B, ...]."""

    def restored(one: Any) -> Any:
        if not _of_each(one):
            return one
        return order.unflat(one, like) if one.dim() == 2 else order.unflat(one.unsqueeze(0), like)[0]

    return pytree.tree_map(restored, flat)
