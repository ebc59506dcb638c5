"""Operations on signals: the verb of each torch function, and of each method of a tensor, that a signal can go through.

They are written in the words of `Signal`, so that they are the same for every kind of it, and fill the table in which
signals look for them.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spikerate import autograd
from spikerate.signal import METHODS, VERBS, Normalization, Signal, no_rule


def _conv(f: Callable[..., Tensor]) -> Callable[..., Signal]:
    def verb(
        x: Signal,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Signal:
        def conv(t: Tensor) -> Tensor:
            return f(t, weight, bias, stride, padding, dilation, groups)

        _check_kernel(x, weight)
        space = weight.dim() - 2
        strides, dilations = ([n] * space if isinstance(n, int) else list(n) for n in (stride, dilation))
        reaches = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
        if isinstance(padding, str):
            paddings = [reach // 2 if padding == "same" else 0 for reach in reaches]
        else:
            paddings = [padding] * space if isinstance(padding, int) else list(padding)
        # "same" adds one more zero at the end of an axis with an odd reach; F.pad takes the last axis first.
        uneven = [reach % 2 for reach in reversed(reaches)] if padding == "same" else []
        border = [zeros for more in uneven for zeros in (0, more)] if any(uneven) else []
        return x.affine(conv, at_rate=autograd.Convolution(weight, bias, strides, paddings, dilations, groups, border))

    return verb


def _transposed(f: Callable[..., Tensor]) -> Callable[..., Signal]:
    def verb(
        x: Signal,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
    ) -> Signal:
        _check_kernel(x, weight)
        space = weight.dim() - 2
        given = (stride, padding, dilation, output_padding)
        strides, paddings, dilations, more = ([n] * space if isinstance(n, int) else list(n) for n in given)
        return x.affine(
            lambda t: f(t, weight, bias, stride, padding, output_padding, groups, dilation),
            at_rate=autograd.Convolution(weight, bias, strides, paddings, dilations, groups, [], True, more),
        )

    return verb


def _check_kernel(x: Signal, weight: Tensor) -> None:
    if x.dim() != weight.dim():
        raise ValueError(
            f"a convolution with kernel {list(weight.shape)} got a signal of shape {list(x.shape)} (without time): give "
            "the rule an input [T, B, C, ...]; for static images [B, C, ...], x.expand(T, *x.shape)"
        )


def _linear(x: Signal, weight: Tensor, bias: Tensor | None = None) -> Signal:
    return x.affine(lambda t: F.linear(t, weight, bias), at_rate=autograd.Linear(weight, bias))


def _pool(f: Callable[..., Tensor], space: int) -> Callable[..., Signal]:
    def verb(x: Signal, *args: Any, **kwargs: Any) -> Signal:
        _check_space(f, space, x)
        return x.affine(lambda t: f(t, *args, **kwargs))

    return verb


def _max_pool(f: Callable[..., Tensor], space: int) -> Callable[..., Signal]:
    def verb(x: Signal, *args: Any, **kwargs: Any) -> Signal:
        _check_space(f, space, x)
        return x.nonlinear(lambda t: f(t, *args, **kwargs))

    return verb


def _check_space(f: Callable[..., Tensor], space: int, x: Signal) -> None:
    if x.dim() <= space:
        raise TypeError(no_rule(f"{f.__name__} of a signal of {x.dim()} axes, the batch's among them,"))


def _flatten(x: Signal, start_dim: int = 0, end_dim: int = -1) -> Signal:
    _check_axes("flatten", x.dim(), start_dim)
    return x.affine(lambda t: t.flatten(start_dim, end_dim))


def _together(f: Callable[..., Tensor], new_axes: int) -> Callable[..., Signal]:
    """`torch.cat` or `torch.stack` of signals, and of tensors [B, ...] or [1, ...] that all steps have."""

    def verb(tensors: Sequence[Any], dim: int = 0) -> Signal:
        if isinstance(tensors, Signal) or not all(isinstance(x, Signal | Tensor) for x in tensors):
            raise TypeError(no_rule(f"{f.__name__} with something that is no signal"))
        signals = [x for x in tensors if isinstance(x, Signal)]
        first = signals[0]
        _check_axes(f.__name__, first.dim() + new_axes, dim)
        if any(x.dim() != first.dim() for x in tensors):
            raise TypeError(no_rule(f"{f.__name__} of signals and tensors of unlike numbers of axes"))
        parts = [None if isinstance(x, Signal) else _beside(f.__name__, first, x) for x in tensors]

        def together(*ts: Tensor) -> Tensor:
            steps, n = iter(ts), len(ts[0])
            whole = [next(steps) if part is None else part(ts[0]) for part in parts]
            return f([t.expand(n, *t.shape[1:]) for t in whole], dim)

        return first.affine(together, *signals[1:])

    return verb


def _check_axes(name: str, n: int, *axes: int) -> None:
    """Raise `TypeError` if one of the `axes` (of n) is the batch axis, since an operation along it would mix samples."""
    if 0 in axes or -n in axes:
        raise TypeError(no_rule(f"{name} along axis 0, which mixes the samples of a batch,"))


# Sums and multiples: of a signal and a number or a tensor that is the same at all steps, and of two signals.


def _operand(name: str, x: Signal, other: Any) -> Callable[[Tensor], Any]:
    """What stands beside the steps [N, ...] of a signal: a number, or a tensor as `_beside` gives it."""
    if isinstance(other, Tensor):
        return _beside(name, x, other)
    if not isinstance(other, numbers.Real):
        raise TypeError(no_rule(f"{name} what is no signal, no tensor and no number"))
    return lambda t: other


def _beside(name: str, x: Signal, other: Tensor) -> Callable[[Tensor], Tensor]:
    """A tensor [B, ...], [1, ...] or of fewer axes beside steps [N, ...], where N is B, or T B with the samples last."""
    if other.dim() > x.dim():
        raise TypeError(no_rule(f"{name} a tensor of {other.dim()} axes to a signal of {x.dim()}"))
    if other.dim() < x.dim() or len(other) == 1:
        return lambda t: other
    if len(other) != x.samples:
        raise ValueError(
            f"{name}: a tensor {list(other.shape)} stands beside a signal {list(x.shape)} without time: its first axis is "
            "that of the batch, so give as many samples, or 1"
        )
    return lambda t: other.repeat(len(t) // len(other), *[1] * (other.dim() - 1))


def _add(x: Signal, other: Any, alpha: float = 1) -> Signal:
    if isinstance(other, Signal):
        _check_alike("adding", x, other)
        return x.affine(lambda a, b: torch.add(a, b, alpha=alpha), other)
    at = _operand("adding", x, other)
    return x.affine(lambda t: torch.add(t, at(t), alpha=alpha))


def _sub(x: Signal, other: Any, alpha: float = 1) -> Signal:
    if isinstance(other, Signal):
        _check_alike("subtracting", x, other)
        return x.affine(lambda a, b: torch.sub(a, b, alpha=alpha), other)
    at = _operand("subtracting", x, other)
    return x.affine(lambda t: torch.sub(t, at(t), alpha=alpha))


def _rsub(x: Signal, other: Any, alpha: float = 1) -> Signal:
    at = _operand("subtracting from", x, other)
    return x.affine(lambda t: torch.rsub(t, at(t), alpha=alpha))


def _mul(x: Signal, other: Any) -> Signal:
    if isinstance(other, Signal):
        _check_alike("multiplying", x, other)
        _check_fit("multiplying", x, other, zip(x.shape[1:], other.shape[1:], strict=True))
        return x.product(lambda a, b: torch.mul(a, b), other, autograd.Product("...", "...", "..."))
    at = _operand("multiplying by", x, other)
    return x.affine(lambda t: torch.mul(t, at(t)))


def _div(x: Signal, other: Any, *, rounding_mode: str | None = None) -> Signal:
    if rounding_mode is not None:
        raise TypeError(no_rule("dividing with rounding"))
    at = _operand("dividing by", x, other)
    return x.affine(lambda t: torch.div(t, at(t)))


def _check_alike(name: str, x: Signal, y: Signal) -> None:
    """Signals of unlike numbers of axes would be broadcast along those of time and the batch."""
    if x.dim() != y.dim():
        raise TypeError(no_rule(f"{name} signals of {x.dim()} and {y.dim()} axes"))


# Products of two signals, whose axes are counted without time, too.


def _matrices(f: Callable[..., Tensor]) -> Callable[..., Signal]:
    """The product of matrices [..., i, j] and [..., j, k] of each sample."""
    name = f.__name__.removeprefix("linalg_")

    def verb(x: Signal, other: Any) -> Signal:
        if isinstance(other, Tensor) and name == "matmul":
            return _by_matrix(x, other)
        if not isinstance(other, Signal):
            raise TypeError(no_rule(f"{name} with something that is no signal"))
        if min(x.dim(), other.dim()) < 3:
            raise TypeError(no_rule(f"{name} of signals of {x.dim()} and {other.dim()} axes, the batch's among them,"))
        _check_alike(f"{name} of", x, other)
        _check_fit(name, x, other, zip(x.shape[1:-2], other.shape[1:-2], strict=True), x.shape[-1] == other.shape[-2])
        return x.product(lambda a, b: f(a, b), other, autograd.Product("...ij", "...jk", "...ik"))

    return verb


def _by_matrix(x: Signal, other: Tensor) -> Signal:
    """Matrices [B, ..., i, j] of a signal by one [j, k] of all samples, as a linear layer, or by [..., j, k]."""
    if other.dim() == 2:
        return _linear(x, other.T)
    _check_matrices(x, other)
    at = _beside("matmul by", x, other)
    return x.affine(lambda t: t @ at(t))


def _from_left(x: Signal, other: Any) -> Signal:
    """A tensor [..., i, j] by the matrices [B, ..., j, k] of a signal."""
    if not isinstance(other, Tensor):
        raise TypeError(no_rule("matmul with something that is no signal"))
    _check_matrices(x, other)
    at = _beside("matmul from", x, other)
    return x.affine(lambda t: at(t) @ t)


def _check_matrices(x: Signal, other: Tensor) -> None:
    if x.dim() < 3 or other.dim() < 2:
        raise TypeError(no_rule(f"matmul of a signal of {x.dim()} and a tensor of {other.dim()} axes"))


def _attention(
    q: Signal, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, **more: Any
) -> Signal:
    """`F.scaled_dot_product_attention` of three signals, [B, ..., N, d], without mask and dropout."""
    scale = more.pop("scale", None)
    if attn_mask is not None or dropout_p or is_causal or any(more.values()):
        raise TypeError(no_rule("scaled_dot_product_attention with a mask, dropout or grouped queries"))
    product = METHODS["matmul"]
    scores = product(q, _transpose(k, -2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return product(_softmax(scores, -1), v)  # type: ignore[no-any-return]


def _einsum(equation: str, *operands: Any) -> Signal:
    """`torch.einsum` of two signals; the first axis of both and of the output is the batch."""
    given = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    if len(given) != 2 or not all(isinstance(x, Signal) for x in given):
        raise TypeError(no_rule("einsum of anything but two signals"))
    x, other = given
    inputs, arrow, after = equation.replace(" ", "").partition("->")
    terms = [_axes(term) for term in inputs.split(",")]
    if len(terms) != 2:
        raise ValueError(f"einsum of {equation!r} is for {len(terms)} operands, and two signals were given")
    first, second = terms
    once = sorted(axis for axis in first + second if axis != "..." and (first + second).count(axis) == 1)
    output = _axes(after) if arrow else [*["..."] * ("..." in first + second), *once]
    if set(output) - {*first, *second}:
        raise ValueError(f"einsum of {equation!r} has axes in its output that are in no operand")
    sizes, others = (_sizes(equation, term, y) for term, y in zip(terms, given, strict=True))
    if any(len(set(axes)) < len(axes) for axes in (first, second, output)):
        raise TypeError(no_rule(f"einsum of {equation!r}, with an axis twice,"))
    if not (output and first[0] == second[0] == output[0] and next(iter(sizes)) == next(iter(others))):
        raise TypeError(no_rule(f"einsum of {equation!r}, which mixes the samples of a batch,"))
    unlike = {axis for axis in {*sizes} ^ {*others} if axis.startswith("...")} and "..." in first and "..." in second
    if unlike or ({*first} ^ {*second}) - {*output}:
        raise TypeError(no_rule(f"einsum of {equation!r}, which sums or broadcasts an axis that one operand has alone,"))
    _check_fit("einsum", x, other, [(size, others[axis]) for axis, size in [*sizes.items()][1:] if axis in others])
    at_rate = autograd.Product("".join(first), "".join(second), "".join(output))
    return x.product(lambda a, b: torch.einsum(equation, a, b), other, at_rate)


def _axes(term: str) -> list[str]:
    """The axes that a term of einsum names."""
    before, dots, after = term.partition("...")
    return [*before, *([dots] if dots else []), *after]


def _sizes(equation: str, term: Sequence[str], x: Signal) -> dict[str, int]:
    """Each axis of an operand of einsum -> its size; those of "..." are numbered from the last."""
    free = x.dim() - len(term) + ("..." in term)
    if free < 0 or (free > 0 and "..." not in term):
        raise ValueError(f"einsum of {equation!r} has another number of axes than a signal of {list(x.shape)} without time")
    named: list[str] = []
    for axis in term:
        named += [f"...{free - k}" for k in range(free)] if axis == "..." else [axis]
    return dict(zip(named, x.shape, strict=True))


def _check_fit(name: str, x: Signal, y: Signal, pairs: Iterable[tuple[int, int]], fits: bool = True) -> None:
    """Raise `ValueError` unless samples are as many, and all pairs of sizes are equal or have a 1, which is broadcast."""
    if not fits or x.samples != y.samples or any(m != n and 1 not in (m, n) for m, n in pairs):
        raise ValueError(
            f"{name} got signals of {list(x.shape)} and {list(y.shape)} without time, whose sizes do not go together: give "
            "sizes that are equal, or 1 where an axis is broadcast"
        )


# What moves, takes out or averages elements of a sample, whose axes are counted without time.


def _each(f: Callable[..., Tensor]) -> Callable[..., Signal]:
    """A function without axes."""
    return lambda x, *args, **kwargs: x.affine(lambda t: f(t, *args, **kwargs))


def _to(x: Signal, *args: Any, **kwargs: Any) -> Signal:
    if not x.train.new_empty(0).to(*args, **kwargs).is_floating_point():
        raise TypeError(no_rule("to, with a type that is not floating point,"))
    return x.affine(lambda t: t.to(*args, **kwargs))


def _item(x: Signal, index: Any) -> Signal:
    """`x[index]`, with the batch axis whole; of tensors and lists as an index one, and without numbers beside it."""
    given = index if isinstance(index, tuple) else (index,)
    wanted = [i for i in given if i is not Ellipsis]
    if len(wanted) < len(given):
        at = next(k for k, i in enumerate(given) if i is Ellipsis)
        gap = x.dim() - sum(i is not None for i in wanted)
        wanted[at:at] = [slice(None)] * gap
    many = [i for i in wanted if isinstance(i, Tensor | list)]
    plain = all(isinstance(i, slice | None | Tensor | list) or type(i) is int for i in wanted)
    one_dimensional = all(isinstance(i, list) or i.dim() == 1 for i in many)
    single = not many or (len(many) == 1 and one_dimensional and not any(type(i) is int for i in wanted))
    if not (wanted[:1] == [slice(None)] and plain and single):
        raise TypeError(
            no_rule(f"indexing by [{', '.join(map(_spoken, given))}], which has no : for axis 0 or is not plain,")
        )
    where = tuple(wanted)
    return x.affine(lambda t: t[where])


def _spoken(index: Any) -> str:
    if isinstance(index, slice):
        return ":".join("" if n is None else str(n) for n in (index.start, index.stop))
    return "..." if index is Ellipsis else f"a {type(index).__name__}" if isinstance(index, Tensor | Signal) else str(index)


def _reshape(x: Signal, *shape: Any) -> Signal:
    sizes = _numbers(shape)
    if not all(isinstance(n, int | torch.SymInt) for n in sizes):
        raise TypeError(no_rule("view as another type"))
    first, *rest = sizes
    elements, known_ones = math.prod(x.shape[1:]), math.prod([n for n in rest if n != -1])
    if first != len(x) and (first != -1 or known_ones != elements or -1 in rest):
        raise TypeError(no_rule(f"reshaping to {sizes}, which mixes the samples of a batch,"))
    if known_ones == 0 or (elements % known_ones if -1 in rest else elements != known_ones):
        raise ValueError(
            f"a signal of {list(x.shape)} without time can't be reshaped to {sizes}: the elements are not as many"
        )
    return x.affine(lambda t: t.reshape(len(t), *rest))


def _numbers(given: Sequence[Any]) -> list[Any]:
    """The numbers of f(1, 2, 3) or f((1, 2, 3))."""
    return list(given[0] if len(given) == 1 and isinstance(given[0], Sequence) else given)


def _permute(x: Signal, *dims: Any) -> Signal:
    order = _numbers(dims)
    if order[:1] not in ([0], [-x.dim()]):
        raise TypeError(no_rule(f"permute to {order}, which moves the samples of a batch to another axis,"))
    return x.affine(lambda t: t.permute(order))


def _transpose(x: Signal, dim0: int, dim1: int) -> Signal:
    _check_axes("transpose", x.dim(), dim0, dim1)
    return x.affine(lambda t: t.transpose(dim0, dim1))


def _movedim(x: Signal, source: Any, destination: Any) -> Signal:
    _check_axes("movedim", x.dim(), *_numbers((source,)), *_numbers((destination,)))
    return x.affine(lambda t: t.movedim(source, destination))


def _unflatten(x: Signal, dim: int, sizes: Sequence[int]) -> Signal:
    _check_axes("unflatten", x.dim(), dim)
    return x.affine(lambda t: t.unflatten(dim, sizes))


def _squeeze(x: Signal, *dim: Any) -> Signal:
    axes = _numbers(dim)
    if not axes:
        raise TypeError(no_rule("squeeze without an axis, which takes that of a batch of one too,"))
    _check_axes("squeeze", x.dim(), *axes)
    return x.affine(lambda t: t.squeeze(axes))


def _unsqueeze(x: Signal, dim: int) -> Signal:
    _check_axes("unsqueeze", x.dim() + 1, dim)
    return x.affine(lambda t: t.unsqueeze(dim))


def _select(x: Signal, dim: int, index: int) -> Signal:
    _check_axes("select", x.dim(), dim)
    return x.affine(lambda t: t.select(dim, index))


def _narrow(x: Signal, dim: int, start: int, length: int) -> Signal:
    _check_axes("narrow", x.dim(), dim)
    return x.affine(lambda t: t.narrow(dim, start, length))


def _split(x: Signal, split_size: int | Sequence[int], dim: int = 0) -> tuple[Signal, ...]:
    _check_axes("split", x.dim(), dim)
    parts = torch.empty(x.shape, device="meta").split(split_size, dim)
    sizes = [part.shape[dim] for part in parts]
    return tuple(_narrow(x, dim, sum(sizes[:k]), size) for k, size in enumerate(sizes))


def _chunk(x: Signal, chunks: int, dim: int = 0) -> tuple[Signal, ...]:
    _check_axes("chunk", x.dim(), dim)
    return _split(x, max(1, -(-x.shape[dim] // chunks)), dim)


def _unbind(x: Signal, dim: int = 0) -> tuple[Signal, ...]:
    _check_axes("unbind", x.dim(), dim)
    return tuple(_select(x, dim, k) for k in range(x.shape[dim]))


def _largest(f: Callable[..., Tensor]) -> Callable[..., Signal]:
    """The maximum or the minimum over axes of a sample."""

    def verb(x: Signal, dim: Any = (), keepdim: bool = False) -> Signal:
        axes = [] if dim is None else _numbers((dim,))
        _check_axes(f.__name__, x.dim(), *(axes or [0]))
        return x.nonlinear(lambda t: f(t, axes, keepdim))

    return verb


def _over_axes(f: Callable[..., Tensor]) -> Callable[..., Signal]:
    """The sum or the mean over axes of a sample."""

    def verb(x: Signal, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Signal:
        axes = [0] if dim is None else _numbers((dim,))
        _check_axes(f.__name__, x.dim(), *(axes or [0]))
        return x.affine(lambda t: f(t, axes, keepdim, dtype=dtype))

    return verb


def _roll(x: Signal, shifts: Any, dims: Any = None) -> Signal:
    axes = [0] if dims is None else _numbers((dims,))
    _check_axes("roll", x.dim(), *axes)
    return x.affine(lambda t: t.roll(shifts, dims))


def _flip(x: Signal, *dims: Any) -> Signal:
    axes = _numbers(dims)
    _check_axes("flip", x.dim(), *axes)
    return x.affine(lambda t: t.flip(axes))


def _repeat(x: Signal, *sizes: Any) -> Signal:
    times = _numbers(sizes)
    if len(times) != x.dim() or times[0] != 1:
        raise TypeError(no_rule(f"repeat by {times}, which has no 1 for axis 0 or more axes,"))
    return x.affine(lambda t: t.repeat(times))


def _expand(x: Signal, *sizes: Any) -> Signal:
    wanted = _numbers(sizes)
    if len(wanted) != x.dim() or wanted[0] not in (-1, len(x)):
        raise TypeError(no_rule(f"expand to {wanted}, which changes axis 0 or has more axes,"))
    return x.affine(lambda t: t.expand(-1, *wanted[1:]))


def _index_select(x: Signal, dim: int, index: Tensor) -> Signal:
    _check_axes("index_select", x.dim(), dim)
    return x.affine(lambda t: t.index_select(dim, index))


def _masked_fill(x: Signal, mask: Tensor, value: float) -> Signal:
    at = _beside("masked_fill of", x, mask)
    return x.affine(lambda t: t.masked_fill(at(t), value))


# What is not linear within a sample: normalisation by its own statistics, gates, maxima.


def _gate(f: Callable[..., Tensor]) -> Callable[..., Signal]:
    """An elementwise function that is smooth, and no neuron."""

    def verb(x: Signal, inplace: bool = False) -> Signal:
        return x.nonlinear(lambda t: f(t))  # in place it would change the steps that other layers see

    return verb


def _softmax(x: Signal, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Signal:
    axis = 0 if dim is None else dim
    _check_axes("softmax", x.dim(), axis)
    return x.nonlinear(lambda t: torch.softmax(t, axis, dtype))


def _layer_norm(
    x: Signal,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Signal:
    norm = autograd.SampleNorm(_last_axes("layer_norm", x, normalized_shape), eps, True, _scaled(weight, bias))
    return x.nonlinear(lambda t: F.layer_norm(t, normalized_shape, weight, bias, eps), norm)


def _rms_norm(x: Signal, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Signal:
    least = torch.finfo(x.dtype).eps if eps is None else eps  # torch's own
    norm = autograd.SampleNorm(_last_axes("rms_norm", x, normalized_shape), least, False, _scaled(weight, None))
    return x.nonlinear(lambda t: F.rms_norm(t, normalized_shape, weight, eps), norm)


def _last_axes(name: str, x: Signal, normalized_shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """[N, ...] -> [N, ..., n], with the axes of a normalisation as one."""
    if len(normalized_shape) >= x.dim():
        raise TypeError(no_rule(f"{name} over axis 0, which mixes the samples of a batch,"))
    return lambda t: t.flatten(-len(normalized_shape))


def _scaled(weight: Tensor | None, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Multiplication by a weight, and addition of a bias."""

    def then(t: Tensor) -> Tensor:
        t = t if weight is None else t * weight
        return t if bias is None else t + bias

    return then


def _group_norm(
    x: Signal, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Signal:
    norm = _of_groups(x, num_groups, weight, bias, eps)
    return x.nonlinear(lambda t: F.group_norm(t, num_groups, weight, bias, eps), norm)


def _of_groups(x: Signal, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> autograd.SampleNorm:
    """The normalisation of groups of channels."""
    channel = (-1, *[1] * (x.dim() - 2))
    then = _scaled(*(None if p is None else p.view(channel) for p in (weight, bias)))
    return autograd.SampleNorm(lambda t: t.reshape(len(t), groups, -1), eps, True, then)


def _instance_norm(
    x: Signal,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Signal:
    if running_mean is not None or running_var is not None or not use_input_stats:
        raise TypeError(no_rule("instance_norm with running statistics"))
    norm = _of_groups(x, x.shape[1], weight, bias, eps)
    return x.nonlinear(lambda t: F.instance_norm(t, None, None, weight, bias, True, momentum, eps), norm)


def _pad(x: Signal, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Signal:
    if mode != "constant" or len(pad) > 2 * (x.dim() - 1):
        raise TypeError(no_rule(f"pad with mode {mode!r}" if mode != "constant" else "pad along axis 0"))
    return x.affine(lambda t: F.pad(t, pad, mode, value))


def _batch_norm(
    x: Signal,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Signal:
    if training:
        return x.normalize(Normalization(weight, bias, running_mean, running_var, momentum, eps))
    return x.affine(lambda t: F.batch_norm(t, running_mean, running_var, weight, bias, False, momentum, eps))


def _dropout(f: Callable[..., Tensor]) -> Callable[..., Signal]:
    """Dropout with the same mask at all steps; a mask for each step would be noise that the rate does not see."""

    def verb(x: Signal, p: float = 0.5, training: bool = True, inplace: bool = False) -> Signal:
        if not training or p == 0:
            return x

        x.tape.meet("a dropout", p)
        mask = x.tape.recall()
        if mask is None:
            mask = f(torch.ones_like(x.train[0, : x.samples]), p, True)
        x.tape.keep(mask)
        return x.affine(lambda t: (t.unflatten(0, (-1, mask.shape[0])) * mask).flatten(0, 1))

    return verb


def operation(verb: Literal["affine", "product", "nonlinear"]) -> Callable[[Callable[..., Tensor]], Callable[..., Any]]:
    """Make a function of tensors one of signals too, by the verb that it is: the rule of an operation of your own.

        @operation("nonlinear")
        def swish(x, beta=1.0):
            return x * torch.sigmoid(beta * x)

    The function maps [N, ...] to [N, ...], sample by sample: time is in N. The first argument is the signal; an "affine"
    function of several takes them all first, and a "product" two. What follows, numbers or parameters, is handed on.

    "affine" is what commutes with the mean over time, f(mean(x)) = mean(f(x)): it is linear up to a constant, in all its
    signals together. "product" is what is linear in each of two signals, as their product is. "nonlinear" is all else
    without memory. What happens to each kind of signal:

    | signal | affine | product, nonlinear |
    | --- | --- | --- |
    | `Unrolled` (BPTT, inference), `Spatial` (SLTT), finite differences | f of every step, with its gradient | the same |
    | `Traced` (OTTT) | as that; parameters in f see the input itself, and not its trace | the same |
    | `RateCoded` (RateBP) | value and gradient of f(rate) | value: the mean of f(steps); gradient: of f at the rates |

    A constant signal is computed once. The count of operations and the energy have convolutions, linear layers and products
    of two signals only, so what else f multiplies is not in them. In chunks, what f has beside the signals must be the same
    in every chunk.

    Raises:
        ValueError: the verb is another one.
    """
    if verb not in ("affine", "product", "nonlinear"):
        raise ValueError(f"the verb of an operation is {verb!r}: give 'affine', 'product' or 'nonlinear'")

    def decorate(f: Callable[..., Tensor]) -> Callable[..., Any]:
        @wraps(f)
        def either(x: Any, *rest: Any, **settings: Any) -> Any:
            if not isinstance(x, Signal):
                return f(x, *rest, **settings)
            others = tuple(itertools.takewhile(lambda y: isinstance(y, Signal), rest))
            plain = rest[len(others) :]
            if verb == "affine":
                return x.affine(lambda *ts: f(*ts, *plain, **settings), *others)
            if verb == "product":
                if len(others) != 1:
                    raise TypeError(no_rule(f"{f.__name__}, which is a product of two signals, of {1 + len(others)},"))
                return x.product(lambda a, b: f(a, b, *plain, **settings), others[0])
            if others:
                raise TypeError(no_rule(f"{f.__name__}, which is nonlinear, of several signals"))
            return x.nonlinear(lambda t: f(t, *plain, **settings))

        return either

    return decorate


VERBS |= {
    F.conv1d: _conv(F.conv1d),
    F.conv2d: _conv(F.conv2d),
    F.conv3d: _conv(F.conv3d),
    F.conv_transpose1d: _transposed(F.conv_transpose1d),
    F.conv_transpose2d: _transposed(F.conv_transpose2d),
    F.conv_transpose3d: _transposed(F.conv_transpose3d),
    F.linear: _linear,
    F.avg_pool1d: _pool(F.avg_pool1d, 1),
    F.avg_pool2d: _pool(F.avg_pool2d, 2),
    F.avg_pool3d: _pool(F.avg_pool3d, 3),
    F.adaptive_avg_pool1d: _pool(F.adaptive_avg_pool1d, 1),
    F.adaptive_avg_pool2d: _pool(F.adaptive_avg_pool2d, 2),
    F.adaptive_avg_pool3d: _pool(F.adaptive_avg_pool3d, 3),
    F.interpolate: _pool(F.interpolate, 1),
    F.pixel_shuffle: _pool(F.pixel_shuffle, 3),
    F.pixel_unshuffle: _pool(F.pixel_unshuffle, 3),
    F.channel_shuffle: _pool(F.channel_shuffle, 2),
    F.max_pool1d: _max_pool(F.max_pool1d, 1),
    F.max_pool2d: _max_pool(F.max_pool2d, 2),
    F.max_pool3d: _max_pool(F.max_pool3d, 3),
    F.adaptive_max_pool1d: _max_pool(F.adaptive_max_pool1d, 1),
    F.adaptive_max_pool2d: _max_pool(F.adaptive_max_pool2d, 2),
    F.adaptive_max_pool3d: _max_pool(F.adaptive_max_pool3d, 3),
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.softmax: _softmax,
    F.hardsigmoid: _gate(F.hardsigmoid),
    F.scaled_dot_product_attention: _attention,
    F.dropout: _dropout(F.dropout),
    F.dropout1d: _dropout(F.dropout1d),
    F.dropout2d: _dropout(F.dropout2d),
    F.dropout3d: _dropout(F.dropout3d),
    F.pad: _pad,
    torch.cat: _together(torch.cat, 0),
    torch.concat: _together(torch.cat, 0),
    torch.concatenate: _together(torch.cat, 0),
    torch.stack: _together(torch.stack, 1),
    torch.einsum: _einsum,
    torch.linalg.matmul: _matrices(torch.linalg.matmul),
}

METHODS |= {
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "multiply": _mul,
    "matmul": _matrices(torch.matmul),
    "bmm": _matrices(torch.bmm),
    "__rmatmul__": _from_left,
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    "neg": _each(torch.neg),
    "negative": _each(torch.neg),
    "positive": _each(torch.positive),
    "clone": _each(torch.clone),
    "detach": _each(torch.detach),
    "contiguous": _each(Tensor.contiguous),
    "bfloat16": _each(Tensor.bfloat16),
    "half": _each(Tensor.half),
    "float": _each(Tensor.float),
    "double": _each(Tensor.double),
    "to": _to,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "view": _reshape,
    "reshape": _reshape,
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "swapdims": _transpose,
    "movedim": _movedim,
    "moveaxis": _movedim,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "select": _select,
    "narrow": _narrow,
    "split": _split,
    "chunk": _chunk,
    "unbind": _unbind,
    "roll": _roll,
    "flip": _flip,
    "repeat": _repeat,
    "expand": _expand,
    "index_select": _index_select,
    "masked_fill": _masked_fill,
    "amax": _largest(torch.amax),
    "amin": _largest(torch.amin),
    "softmax": _softmax,
    "sigmoid": _gate(torch.sigmoid),
    "tanh": _gate(torch.tanh),
    "mean": _over_axes(torch.mean),
    "sum": _over_axes(torch.sum),
    "__getitem__": _item,
    "numel": lambda x: math.prod(x.shape),
    "is_floating_point": lambda x: True,
}
# The function of that name in torch has the same.
VERBS |= {vars(torch)[name]: verb for name, verb in METHODS.items() if name in vars(torch)}
