"""Training rules: each chooses the kind of signal that enters the network, which decides where the gradient goes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from spikerate import operations  # noqa: F401 - fills the table of signals
from spikerate.recompute import Recomputed
from spikerate.signal import RateCoded, Signal, Spatial, Tape, Traced, Unrolled, is_constant
from spikerate.stream import State, Stream, named_modules
from spikerate.system.allocator import keep_large_blocks
from spikerate.system.ranges import MOST_STEPS, check_plain

Network = Callable[[Signal], Any]
"""A signal -> a signal, or several in tuples, lists and dicts."""


class Rule(ABC):
    """How a network is run and where its gradient goes. One of your own is a frozen dataclass that inherits from this.

    Attributes:
        per_step: whether a loss on each step (`steps` of the output) has a gradient; else only one on the `rate` has.
    """

    per_step: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, network: Network, x: Tensor) -> Any:
        """Run the network on x [T, B, ...], floating point; returns its output, a `Signal`, or several of them.

        `forward` does it for a kind of signal, in chunks where wanted.
        """

    def continued(self, network: Network, x: Tensor, state: State | None = None, detach: bool = True) -> tuple[Any, State]:
        """Run a window of a stream: the membranes start from where those of the window before ended.

            out, state = BPTT().continued(network, x)            # the first window
            out, state = BPTT().continued(network, x, state)     # the next one

        In evaluation mode the spikes of a stream do not depend on where it is cut. In training, batch norm normalises and
        dropout draws anew in each window. What the gradient of a window is made of:

        | rule | gradient |
        | --- | --- |
        | `BPTT`, `detach=True` | truncated backpropagation: through the window, with membranes at its start as constants |
        | `BPTT`, `detach=False` | through all windows so far, whose graphs stay in memory: that of the whole stream |
        | `SLTT`, `OTTT` | that of these steps in the whole stream, since none goes through time; OTTT's traces go on |
        | `RateBP` | that of the rates of the window, with membranes at its start as constants |

        Args:
            network: a network, or function of signals.
            x: window [T, B, ...] of any length T >= 1, floating point.
            state: what the call before returned; None at the start of a stream.
            detach: whether the state that is returned has no graph.

        Returns:
            the output as of the call, of these T steps; and the state, a dictionary for `torch.save`: module path ->
            membrane potential u [B, ...] after the last step (a tuple, where a neuron has several; under `OTTT` also the
            trace of the input of each layer with weights). The second call of a module in a forward pass is "path, call 2".

        Raises:
            ValueError: the state is none, or of another batch size, network, rule, type or device; others as of the call.
            TypeError, RuntimeError: as of the call; there is no activation checkpointing in a stream.
        """
        check_input(x)
        stream = Stream(network, x, state)
        output = self(stream, x)
        return output, stream.state(detach)

    @abstractmethod
    def passes(self, T: int) -> float:
        """What a training step of T time steps costs, in forward passes of one time step; a backward pass counts two."""


@dataclass(frozen=True)
class BPTT(Rule):
    """Backpropagation through time: the gradient goes through every time step.

    `chunk=None` runs layer by layer, each over all T steps, with batch-norm statistics over steps, batch and space;
    `chunk=1` runs step by step, with statistics and running averages for each step; `chunk=n` runs n steps at a time.
    The gradient is exact, but time and memory of the backward pass grow with T. Use it if the timing of spikes carries
    information.

    `checkpoint=True` keeps spikes only, as bits, and computes what lies between the neurons again in the backward pass: the
    same gradients in a fraction of the memory, for one more forward pass. It is for `chunk=None`, and is not compiled.

    Call: `BPTT()(network, x)` with x [T, B, ...], floating point; returns the network's output, a `Signal` with
    `steps` [T, B, K] and `rate` [B, K]. A network with several outputs returns a tuple, list or dict of them, possibly
    nested, and so does the call. Of a tensor among them, as an ordinary branch computes it from `tap`, the value of the
    last chunk is returned.

    Raises:
        ValueError: `chunk` is less than 1, or given together with `checkpoint`, x is not [T, B, ...], or the network runs
            other layers in one chunk than in another, or returns other outputs.
        TypeError: the network has an operation without a rule.
        RuntimeError: a second derivative is asked for, a part of the network is in a reentrant checkpoint, or the rule is
            compiled together with `checkpoint`.
    """

    chunk: int | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_chunk("BPTT", self.chunk)
        if self.checkpoint and self.chunk is not None:
            raise ValueError(
                f"BPTT.checkpoint is True and BPTT.chunk is {self.chunk}: give chunk=None, since membranes kept between "
                "chunks would take the memory that checkpoints save"
            )

    def __call__(self, network: Network, x: Tensor) -> Any:
        if self.checkpoint and torch.compiler.is_compiling():
            raise RuntimeError(
                "BPTT(checkpoint=True) can't be compiled, since the compiler decides itself what it computes again: use "
                "BPTT() under torch.compile"
            )
        recomputed = self.checkpoint and torch.is_grad_enabled()
        return forward(network, x, Recomputed if recomputed else Unrolled, self.chunk)

    def continued(self, network: Network, x: Tensor, state: State | None = None, detach: bool = True) -> tuple[Any, State]:
        """As of every rule; not with `checkpoint`."""
        if self.checkpoint:
            raise ValueError(
                "BPTT.checkpoint is True: continue a stream by BPTT(), whose memory grows with the window only, since "
                "states that are kept would take the memory that checkpoints save"
            )
        return super().continued(network, x, state, detach)

    def passes(self, T: int) -> float:
        return (4 if self.checkpoint else 3) * T


@dataclass(frozen=True)
class SLTT(Rule):
    """Spatial learning through time: the gradient of each step goes through the layers but not through time.

    The membrane potential at the beginning of a step counts as a constant, so the gradient of a step does not depend on
    earlier steps. `chunk` as for `BPTT`; the paper normalises step by step, `chunk=1`. Weights are updated once, after all
    T steps, so memory grows with T as for `BPTT`; the backward pass through the neurons is cheaper.

    Call and errors: as `BPTT`. Reference: Meng et al., ICCV 2023.
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        check_chunk("SLTT", self.chunk)

    def __call__(self, network: Network, x: Tensor) -> Any:
        return forward(network, x, Spatial, self.chunk)

    def passes(self, T: int) -> float:
        return 3 * T


@dataclass(frozen=True)
class OTTT(Rule):
    """Online training through time: as `SLTT`, but the gradient of the weights uses traces of the inputs.

    `d L / d W = sum_t g[t] a[t]^T`, `a[t] = decay a[t-1] + input[t]`, where g[t], the gradient with respect to the input
    current of step t, goes through the layers only. `chunk` and memory as for `SLTT`; weights are updated once, after all
    steps.

    Args:
        decay: decay of the traces, in (0, 1]; use that of the neurons.

    Call and errors: as `BPTT`. Reference: Xiao et al., NeurIPS 2022. The authors replace batch norm by a normalisation of
    the weights; here batch norm stays, and its gradient at a step uses that step only.
    """

    chunk: int | None = None
    decay: float = 0.2

    def __post_init__(self) -> None:
        check_chunk("OTTT", self.chunk)
        check_plain("OTTT.decay", self.decay)
        if not 0 < self.decay <= 1:
            raise ValueError(f"OTTT.decay is {self.decay}: give the decay of the neurons, in (0, 1]")

    def __call__(self, network: Network, x: Tensor) -> Any:
        return forward(network, x, partial(Traced, decay=self.decay), self.chunk)

    def passes(self, T: int) -> float:
        return 3 * T


@dataclass(frozen=True)
class RateBP(Rule):
    """Rate-based backpropagation: a forward pass of spikes without graph, and one backward pass through the firing rates.

    `dL/dc = dL/dr * gain`, `dL/dr' = W^T dL/dc`, `dL/dW = dL/dc r'^T` with the rates `r = E_t[s]`, the mean currents
    `c = W r'` and each neuron's `gain` (`LIF.trace`). Time and memory of the backward pass do not depend on T.
    Equal to BPTT at T = 1; for T > 1 an approximation, for networks that code by rate. Do not use it if the timing of
    spikes carries information.

    `chunk=None` is the multi-step form (rate_M), `chunk=1` the single-step form (rate_S), `chunk=n` runs n steps at a
    time: memory for activations grows with the chunk, and batch norm normalises each chunk separately. Its running
    statistics are updated once per chunk. Chunks cost one more pass, of the rates, instead of sums that would be carried.

    Call and errors as for `BPTT`. Activation checkpointing works with `chunk=None` only (`RuntimeError`).

    Reference: Yu, Liu, Wang, Li, Wang: Advancing Training Efficiency of Deep Spiking Neural Networks through Rate-based
    Backpropagation, NeurIPS 2024, arXiv 2410.11488. The authors' code runs every layer a second time on the rates; here
    the value is known from the spikes, and only the gradient is computed. Their code divides the loss by T: see
    `loss_scale` of `Run.optim`.
    """

    chunk: int | None = None
    per_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_chunk("RateBP", self.chunk)

    def __call__(self, network: Network, x: Tensor) -> Any:
        check_input(x)
        rate = x[0] if is_constant(x) else x.mean(0)
        return forward(network, x, partial(RateCoded, average=rate), self.chunk, graphs="last")

    def passes(self, T: int) -> float:
        return T + 2 + (self.chunk is not None and self.chunk < T)


def forward(
    network: Network,
    x: Tensor,
    kind: Callable[..., Signal],
    chunk: int | None = None,
    graphs: Literal["all", "last"] = "all",
) -> Any:
    """The output of a network for x [T, B, ...] as signals of a kind: all that a rule does, but to choose the kind.

    Args:
        kind: makes a signal of (train, constant, T, tape), as a class of signals does, with what else it has by `partial`.
        chunk: time steps that run at once through the whole network; None for all T.
        graphs: the chunks that have an autograd graph.

    Raises:
        ValueError, TypeError, RuntimeError: as `BPTT`.
    """
    check_input(x)
    if x.device.type == "cpu":
        keep_large_blocks()
    outputs = []
    watches = _watch_backward_hooks(network)
    try:
        for train, constant, T, tape in _chunks(x, chunk):
            with torch.set_grad_enabled((tape.last or graphs == "all") and torch.is_grad_enabled()):
                output = network(kind(train, constant, T, tape))
            if not (tape.whole or torch.compiler.is_compiling()):
                signals = pytree.tree_leaves(output, is_leaf=lambda y: isinstance(y, Signal))
                tape.meet("the output", [y.number for y in signals if isinstance(y, Signal)])
            outputs.append(output)
    finally:
        for watch in watches:
            watch.remove()
    return _join(outputs)


def _watch_backward_hooks(network: Network) -> list[RemovableHandle]:
    """Hooks that raise an error if a module with a backward hook returns a signal, since torch would not call that hook."""
    if torch.compiler.is_compiling():
        return []
    hooked = (m for _, m in named_modules(network) if m._backward_hooks or m._backward_pre_hooks)
    return [module.register_forward_hook(_refuse_signal) for module in hooked]


def _refuse_signal(module: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, Signal):
        raise ValueError(
            f"there is a backward hook on a {type(module).__name__} that returns a signal, but torch calls it for tensors "
            "only: register a forward hook, and in it output.tap().register_hook(...) under RateBP, "
            "output.train.register_hook(...) under other rules"
        )


def _chunks(x: Tensor, chunk: int | None) -> Iterator[tuple[Tensor, bool, int, Tape]]:
    """The fields of a signal for each chunk of x [T, B, ...], with tapes that share their slots."""
    parts = x.split(chunk or len(x))
    constant = is_constant(x)
    tape = Tape(len(x), whole=len(parts) == 1)
    for k, part in enumerate(parts):
        if k > 0:
            tape = tape.following(last=k == len(parts) - 1)
        yield part[:1] if constant else part, constant, len(part), tape
        tape.close()


def _join(outputs: list[Any]) -> Any:
    """The output of the network over all chunks: signals with the steps of all chunks, tensors of the last one."""
    if len(outputs) == 1:
        return outputs[0]
    leaves, kinds = zip(*(pytree.tree_flatten(y, is_leaf=_is_signal) for y in outputs), strict=True)
    if any(kind != kinds[-1] for kind in kinds):
        raise ValueError(
            f"the network returns a {type(outputs[0]).__name__} in the first chunk of steps, and other outputs in the last, "
            "which can't be joined: return the same outputs in each"
        )
    return pytree.tree_unflatten([_joined(of_chunks) for of_chunks in zip(*leaves, strict=True)], kinds[-1])


def _joined(chunks: Sequence[Any]) -> Any:
    if not all(map(_is_signal, chunks)):
        return chunks[-1]
    return chunks[-1].joined(chunks[:-1])


def _is_signal(y: Any) -> bool:
    return isinstance(y, Signal)


def check_chunk(rule: str, chunk: int | None) -> None:
    """Raise `ValueError`, naming the rule, unless `chunk` is a number of time steps, or None."""
    if chunk is not None and not 1 <= chunk <= MOST_STEPS:
        raise ValueError(
            f"{rule}.chunk is {chunk}: give a number of steps >= 1, and {MOST_STEPS:,} at most, or None for all T at once"
        )


def check_input(x: Tensor) -> None:
    """Raise `ValueError` unless x is [T, B, ...] in floating point."""
    if not isinstance(x, Tensor):
        raise ValueError(f"the input is a {type(x).__name__}: give a tensor [T, B, ...] in floating point")
    if x.dim() < 3 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(
            f"the input is {x.dtype} of shape {list(x.shape)}: give floating point [T, B, ...] with T >= 1; "
            "for static images [B, ...], x.expand(T, *x.shape)"
        )
