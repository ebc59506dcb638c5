"""Autograd functions with a known value: the forward pass returns it, the backward pass is that of the operation.

Besides the spikes, the firing rate goes through every layer, and its value after a layer is the mean of the layer's outputs.
So a layer is never computed at the rate, only differentiated there. Each function saves what its gradient needs, and
nothing of size T.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes that share a batch."""


class Counts:
    """Spikes counted in one byte each, from which a train or a rate follows to the last bit: what layers keep of an input.

    Args:
        of: the train [T, B, ...] of zeros and ones, or the rate [B, ...].
        steps: over which the spikes are counted; 1 for a train.
        data: uint8, the counts of the rate [B, ...]; those of a train, [T x B, ...], are made when they are first asked for.
    """

    def __init__(self, of: Tensor, steps: int = 1, data: Tensor | None = None) -> None:
        self._of = weakref.ref(of)
        self._data = data
        self.steps = steps
        self.dtype = of.dtype

    def are_of(self, tensor: Tensor) -> bool:
        """Whether they are counts of this tensor, and not of one that somebody put in its place."""
        return self._of() is tensor

    @property
    def data(self) -> Tensor:
        if self._data is None:
            of = self._of()
            assert of is not None
            self._data = of.detach().to(torch.uint8).flatten(0, 1)
        return self._data


def kept_as(counts: Counts | None, input: Tensor) -> Counts | None:
    """The counts if they are of this input, and can be kept instead of it."""
    usable = counts is not None and counts.are_of(input) and not torch.compiler.is_compiling() and not transformed()
    return counts if usable else None


_Kind = tuple[int, torch.dtype, torch.dtype]
"""Of counts that are kept: over how many steps; the type of the tensor that was counted, and that of the layer's input."""


def _input(kept: Tensor, kind: _Kind | None) -> Tensor:
    """What a layer was given, from what it has kept."""
    if kind is None:
        return kept
    steps, counted, dtype = kind
    if steps == 1:
        return kept.to(dtype)
    return (kept.to(torch.promote_types(counted, torch.float32)) / steps).to(counted).to(dtype)


class _Last(Function):
    """Passes gradients on unchanged, and refuses second derivatives in its own backward pass.

    Called with the gradients, then with all tensors that they depend on, so that every second derivative goes through it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(number: int, *grads_and_origins: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if grad is None else grad.view_as(grad) for grad in grads_and_origins[:number])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(_NO_SECOND)


_NO_SECOND = (
    "a spiking network has no second derivative: a spike's derivative is a surrogate, and a rate's value is not that of "
    "what its gradient goes through, so use backward() and autograd.grad without create_graph=True, and no grad of a grad"
)


def _last(grads: tuple[Tensor | None, ...], *origins: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of a backward pass, protected against second derivatives.

    Raises:
        RuntimeError: a graph of the backward pass is asked for by `create_graph=True` (`torch.func` always asks for one).
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return grads
    if not transformed():
        raise RuntimeError(_NO_SECOND)
    return _Last.apply(len(grads), *grads, *origins)  # type: ignore[no-untyped-call]


def _apply(kind: type[Function], *inputs: Any) -> Tensor:
    """`kind.apply` without its slow search for default arguments."""
    if torch.compiler.is_compiling():
        return kind.apply(*inputs)
    try:
        return kind.apply(*inputs) if transformed() else super(Function, kind).apply(*inputs)  # type: ignore[misc]
    except NotImplementedError as error:
        raise NotImplementedError(
            "spikerate has no derivatives in forward mode (torch.func.jvp, jacfwd, hessian): use grad, vjp or jacrev"
        ) from error


def transformed() -> bool:
    """Whether this runs inside a transformation of `torch.func`."""
    return torch._C._are_functorch_transforms_active()


class _Scale(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, input: Tensor, gain: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, input, gain = inputs
        ctx.dtype = input.dtype
        # The input is kept only if a second derivative could be asked for without create_graph=True.
        ctx.save_for_backward(gain, *[input] * transformed())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gain, *inputs = ctx.saved_tensors
        (result,) = _last(((grad * gain).to(ctx.dtype),), grad, *inputs)
        return None, result, None


class _Linear(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: Tensor | None, input: Tensor, weight: Tensor, bias: Tensor | None, data: Tensor | None, counts: _Kind | None
    ) -> Tensor:
        return F.linear(input, weight, bias) if value is None else value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, input, weight, _, data, ctx.counts = inputs
        ctx.save_for_backward(input if data is None else data, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight = ctx.saved_tensors
        input = _input(kept, ctx.counts)
        rows = grad.flatten(0, -2)
        _, need_input, need_weight, need_bias, *_ = ctx.needs_input_grad
        grads = (
            grad @ weight if need_input else None,
            rows.T @ input.flatten(0, -2) if need_weight else None,
            rows.sum(0) if need_bias else None,
        )
        return None, *_last(grads, grad, input, weight), None, None


class _Convolution(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: Tensor | None,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        data: Tensor | None,
        counts: _Kind | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> Tensor:
        if value is not None:
            return value.view_as(value)
        geometry = (stride, padding, dilation, transposed, output_padding, groups)
        return torch.ops.aten.convolution(input, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, input, weight, _, data, ctx.counts, *ctx.geometry = inputs
        ctx.save_for_backward(input if data is None else data, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight = ctx.saved_tensors
        input = _input(kept, ctx.counts)
        wanted = ctx.needs_input_grad[1:4]
        grads = torch.ops.aten.convolution_backward(grad, input, weight, [grad.shape[1]], *ctx.geometry, wanted)
        return None, *_last(grads, grad, input, weight), *[None] * 8


class _Product(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, a: Tensor, b: Tensor, first: str, second: str, output: str) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, a, b, *ctx.axes = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        first, second, output = ctx.axes
        _, need_a, need_b, *_ = ctx.needs_input_grad
        grads = (
            _as_wide_as(a, torch.einsum(f"{output},{second}->{first}", grad, b)) if need_a else None,
            _as_wide_as(b, torch.einsum(f"{first},{output}->{second}", a, grad)) if need_b else None,
        )
        return None, *_last(grads, grad, a, b), None, None, None


def _as_wide_as(operand: Tensor, grad: Tensor) -> Tensor:
    """The gradient of an operand of which axes of length 1 were broadcast, or were multiplied by a broadcast axis."""
    spread = [axis for axis, size in enumerate(operand.shape) if size == 1 < grad.shape[axis]]
    return (grad.sum(spread, keepdim=True) if spread else grad).expand(operand.shape)


class _Normalize(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: Tensor,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        eps: float,
        total: Total | None,
    ) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, input, weight, _, mean, invstd, ctx.eps, ctx.total = inputs
        ctx.save_for_backward(input, weight, mean, invstd)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, invstd = ctx.saved_tensors
        g = grad.to(input.dtype)
        if ctx.total is not None:
            grads = _normalize_backward_of_all(g, input, weight, mean, invstd, ctx.total)
        else:
            grads = torch.ops.aten.native_batch_norm_backward(
                g, input, weight, None, None, mean, invstd, True, ctx.eps, ctx.needs_input_grad[1:4]
            )
        wanted = tuple(g if need else None for g, need in zip(grads, ctx.needs_input_grad[1:4], strict=True))
        return None, *_last(wanted, grad, input, weight), *[None] * 4


def _normalize_backward_of_all(
    grad: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, total: Total
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the input, the weight and the bias if the batch is distributed over processes."""
    kept, others = (1, -1, *[1] * (input.dim() - 2)), [0, *range(2, input.dim())]
    g = grad.to(mean.dtype)
    x = (input.to(mean.dtype) - mean.view(kept)) * invstd.view(kept)
    of_bias, of_weight = g.sum(others), (g * x).sum(others)
    size = g.new_full((1,), g.numel() // g.shape[1])
    sums = total(torch.cat([of_bias, of_weight, size]))
    mean_grad, mean_product = (sums[:-1] / sums[-1]).chunk(2)
    slope = invstd if weight is None else invstd * weight
    grad_input = (g - mean_grad.view(kept) - x * mean_product.view(kept)) * slope.view(kept)
    return grad_input.to(input.dtype), of_weight, of_bias


class _WithoutGradient(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(steps: Tensor, rate: Tensor) -> Tensor:
        return steps.view_as(steps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        warnings.warn(
            "a loss uses the steps of a signal under RateBP, whose gradient goes through the rate only, so that this part "
            "of the loss trains nothing: use the rate (for those of layers, spikerate.FiringRates), or BPTT",
            stacklevel=1,
        )
        return None, None


def without_gradient(steps: Tensor, rate: Tensor) -> Tensor:
    """`steps` without gradient, with a warning if a backward pass reaches them; `rate` makes autograd track them."""
    return _apply(_WithoutGradient, steps, rate)


def scale(value: Tensor, input: Tensor, gain: Tensor) -> Tensor:
    """`value`, with the gradient `gain * d input`. All have the same shape; `value` and `gain` are constants."""
    return _apply(_Scale, value, input, gain)


@dataclass(frozen=True, eq=False)
class Linear:
    """(value [B, ..., O], input [B, ..., I]) -> `value`, with the gradient of `F.linear(input, weight, bias)`.

    Without a value, that of `F.linear(input, weight, bias)`. `counts` are kept instead of the input that they are of.
    """

    weight: Tensor
    bias: Tensor | None

    def takes(self, input: Tensor) -> bool:
        """Whether the layer can be computed of it without a value."""
        return _computes(input, self.weight)

    def __call__(self, value: Tensor | None, input: Tensor, counts: Counts | None = None) -> Tensor:
        dtype = _dtype(value, input)
        weight, bias = self.weight.to(dtype), _cast(self.bias, dtype)
        return _apply(_Linear, value, input.to(dtype), weight, bias, *_kept(counts, dtype))


@dataclass(frozen=True, eq=False)
class Convolution:
    """(value [B, O, ...], input [B, C, ...]) -> `value`, with the gradient of the convolution of `input`.

    Without a value, that of the convolution. `counts` are kept instead of the input that they are of.

    Attributes:
        weight: [O, C / groups, ...]; of a transposed convolution [C, O / groups, ...].
        border: further zeros around the input, in the format of `F.pad`; empty for none.
        transposed: whether it is the transposed convolution, whose output is larger where the stride is above 1.
        output_padding: what the output of a transposed convolution has more at the end of each axis; empty for nothing.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    border: Sequence[int]
    transposed: bool = False
    output_padding: Sequence[int] = ()

    def takes(self, input: Tensor) -> bool:
        """Whether the layer can be computed of it without a value."""
        return _computes(input, self.weight)

    def __call__(self, value: Tensor | None, input: Tensor, counts: Counts | None = None) -> Tensor:
        dtype = _dtype(value, input)
        weight, bias = self.weight.to(dtype), _cast(self.bias, dtype)
        data, kind = _kept(counts, dtype)
        if self.border:
            input, data = F.pad(input, self.border), None if data is None else F.pad(data, self.border)
        more = self.output_padding or [0] * len(self.stride)
        geometry = (self.stride, self.padding, self.dilation, self.transposed, more, self.groups)
        return _apply(_Convolution, value, input.to(dtype), weight, bias, data, kind, *geometry)


@dataclass(frozen=True, eq=False)
class Product:
    """(value, a, b) -> `value`, with the gradients of a product of a and b: for z = A B these are g B^T and A^T g.

    Attributes:
        first, second, output: axes as in `torch.einsum`: "...ij", "...jk", "...ik" are those of a product of matrices. An
            axis of an operand is one of the other or of the output, and comes once in it.
    """

    first: str
    second: str
    output: str

    def __call__(self, value: Tensor, a: Tensor, b: Tensor) -> Tensor:
        first, second = a.to(value.dtype), b.to(value.dtype)
        if second is first:  # the square of a signal; the compiler takes each tensor only once
            second = second.view_as(second)
        return _apply(_Product, value, first, second, self.first, self.second, self.output)


Layer = Linear | Convolution
"""A layer with weights as a function with a known value."""


@dataclass(frozen=True)
class SampleNorm:
    """Normalisation over axes of each sample, `y[t] = (x[t] - mean[t]) invstd[t]`, as a function of the rate of x.

    Where x moves by d at every step, y[t] moves by `invstd[t] (d - E[d] - y[t] E[y[t] d])`, where E is the mean over the
    elements that are normalised together. The mean of this over time is taken with the means of `invstd` and of y, so that
    what is left out is how they vary together, and at one step nothing is. The deviation of the rate is no measure: it is
    smaller than that of the steps, since a rate varies less than spikes do.

    Attributes:
        together: [N, ...] -> [N, ..., n], a view in which the last axis has what is normalised together.
        eps: added to the variance.
        centred: whether the mean is subtracted.
        then: what follows, affine and sample by sample: the weight and the bias.
    """

    together: Callable[[Tensor], Tensor]
    eps: float
    centred: bool
    then: Callable[[Tensor], Tensor]

    def means(self, train: Tensor) -> tuple[Tensor, Tensor]:
        """The means over time of y, [B, ...], and of `invstd`, [B, ..., 1], of a train [T, B, ...]."""
        x = self._less_mean(train.flatten(0, 1))
        invstd = (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        y, invstd = (z.unflatten(0, train.shape[:2]).mean(0) for z in (x * invstd, invstd))
        return y.reshape(train.shape[1:]), invstd

    def __call__(self, output: Tensor, rate: Tensor, invstd: Tensor) -> Tensor:
        """`then` of `output` [B, ...], with the gradient at `rate` [B, ...]."""
        x, y = self._less_mean(rate), self.together(output)
        path = ((x - y * (x * y).mean(-1, keepdim=True)) * invstd).reshape(rate.shape)
        return self.then(output + (path - path.detach()))

    def _less_mean(self, x: Tensor) -> Tensor:
        x = self.together(x.to(torch.promote_types(x.dtype, torch.float32)))
        return x - x.mean(-1, keepdim=True) if self.centred else x


def normalize(
    value: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    eps: float,
    total: Total | None = None,
) -> Tensor:
    """`value` [B, C, ...], with the gradient of batch normalisation at `input` [B, C, ...].

    `mean` [C] is that of `input`. `invstd` [C] may come from a larger variance than that of `input`; the excess is a
    constant, and the gradient goes through the variance of `input`:
    `d input = weight invstd (g - E[g] - x E[g x])`, `x = (input - mean) invstd`. With `total`, the means E are those over
    the batches of all processes.
    """
    return _apply(_Normalize, value, input, weight, bias, mean, invstd, eps, total)


def _dtype(value: Tensor | None, input: Tensor) -> torch.dtype:
    """The type that a layer computes in."""
    if value is not None:
        return value.dtype
    return torch.get_autocast_dtype(input.device.type) if autocast(input) else input.dtype


def autocast(input: Tensor) -> bool:
    """Whether layers compute in another type than that of their tensors; on the meta device they can't."""
    kind = input.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _computes(input: Tensor, weight: Tensor) -> bool:
    """Whether torch's own layer would compute in the type of `_dtype`; of other types it says itself what is wrong."""
    if autocast(input):
        return torch.float64 not in (input.dtype, weight.dtype)
    return input.dtype == weight.dtype


def _kept(counts: Counts | None, dtype: torch.dtype) -> tuple[Tensor | None, _Kind | None]:
    """The counts that are kept, and their kind."""
    return (None, None) if counts is None else (counts.data, (counts.steps, counts.dtype, dtype))


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)
