"""Neurons with a tensor for a parameter, or a parameter that is learned with the weights."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from spikerate.neuron import LIF, StepNeuron, stack, wide
from spikerate.signal import Learns, Moved, RuleRefused
from spikerate.surrogate import Sigmoid, Surrogate


@dataclass(frozen=True)
class Learnable:
    """A value of a layer of neurons that is learned with the weights.

    Attributes:
        value: at the start. A number is one value for the layer. A tensor has one for each channel or neuron: its shape goes
            with that of a sample by broadcasting, so [C, 1, 1] is one for each channel of images [B, C, H, W].
    """

    value: float | Tensor


Value = float | Tensor | Learnable
"""A number; a tensor whose shape goes with that of a sample [...] by broadcasting; or what such a value is at the start."""


class ParametricLIF(LIF, Learns):
    """`LIF` neurons whose decay, threshold and reset are each a number, a tensor, or learned.

    What is learned stays in its range whatever the optimiser does:

        decay = sigmoid(w_decay),   threshold = softplus(w_threshold),   v_reset = threshold - softplus(w_v_reset)

    The gradient of a value p: under `BPTT` through every step; under `SLTT` and `OTTT` that of each step, with the membrane
    before it as a constant, so that a reset has none and is refused; under `RateBP`

        d rate / d p = E_t[slope(v[t]) (e[t] - [p is threshold])],   e[t] = decay d u[t-1] / d p + [p is decay] u[t-1]

    where e[t] is d v[t] / d p, and `d u[t] / d p` follows from the equation of the reset. It is exact for one layer. At T=1
    neither decay nor reset does anything, and they have no gradient. With a value for each channel or neuron, and under
    `SLTT` and `OTTT`, one step after the other is run eagerly, which takes longer.

    Args:
        decay: in (0, 1]; learned, in (0, 1).
        threshold: > 0.
        v_reset: None for the soft reset; else below the threshold, and not above 0 where only the threshold is learned.
        detach_reset: whether the reset is a constant for the gradient.
        surrogate: the derivative of the step function.

    Raises:
        ValueError: a value is out of its range; in a call, its shape does not go with that of a sample.
        RuleRefused: the reset is learned, and the rule is `SLTT` or `OTTT`.

    Attributes:
        decay, threshold, v_reset: what they are now, as numbers or tensors with the gradient of what is learned.

    Reference: Fang et al., "Incorporating learnable membrane time constant", ICCV 2021, equations 7 and 8, for the decay.
    """

    binary: ClassVar[bool] = True

    def __init__(
        self,
        decay: Value = Learnable(0.5),
        threshold: Value = 1.0,
        v_reset: Value | None = None,
        detach_reset: bool = True,
        surrogate: Surrogate = Sigmoid(),
    ) -> None:
        self._values: dict[str, Any] = {}
        super().__init__(detach_reset=detach_reset, surrogate=surrogate)
        name = type(self).__name__
        self._put("decay", decay, torch.logit, _within(f"{name}.decay", decay, 0.0, 1.0, "in (0, 1]"))
        self._put("threshold", threshold, _before_softplus, _within(f"{name}.threshold", threshold, 0.0, None, "> 0"))
        if v_reset is None:
            self.v_reset = None
            return
        start = _tensor(f"{name}.v_reset", v_reset)
        gap = _tensor(f"{name}.threshold", threshold) - start
        highest = 0 if isinstance(threshold, Learnable) and not isinstance(v_reset, Learnable) else None
        if not bool((gap > 0).all()) or (highest is not None and bool((start > highest).any())):
            where = "a value below the threshold" + (", and not above 0 where that is learned" if highest == 0 else "")
            raise ValueError(f"{name}.v_reset is {_told(v_reset)}: give None (soft reset) or {where}")
        self._put("v_reset", v_reset, lambda _: _before_softplus(gap), start)

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        """Whether all neurons have the same values, so that their places in a sample need not be known."""
        return all(value.dim() == 0 for value in (*self.parameters(), *self.buffers()))

    @property  # type: ignore[override]
    def decay(self) -> Any:
        w = self._parameters.get("w_decay")
        return self._plain("decay") if w is None else torch.sigmoid(w)

    @decay.setter
    def decay(self, value: Any) -> None:
        self._values["decay"] = value

    @property  # type: ignore[override]
    def threshold(self) -> Any:
        w = self._parameters.get("w_threshold")
        return self._plain("threshold") if w is None else F.softplus(w)

    @threshold.setter
    def threshold(self, value: Any) -> None:
        self._values["threshold"] = value

    @property  # type: ignore[override]
    def v_reset(self) -> Any:
        w = self._parameters.get("w_v_reset")
        return self._plain("v_reset") if w is None else self.threshold - F.softplus(w)

    @v_reset.setter
    def v_reset(self, value: Any) -> None:
        self._values["v_reset"] = value

    @property
    def learned(self) -> dict[str, Tensor]:
        names = ("decay", "threshold", "v_reset")
        return {name: getattr(self, name) for name in names if f"w_{name}" in self._parameters}

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Raise `ValueError` for a parameter that is none of the neuron's own."""
        if name not in ("w_decay", "w_threshold", "w_v_reset"):
            super().register_parameter(name, param)
        nn.Module.register_parameter(self, name, param)

    def forward(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            _check_shapes(self, {name: getattr(self, name) for name in ("decay", "threshold", "v_reset")}, x.shape[1:])
        return super().forward(x)

    def extra_repr(self) -> str:
        learned = self.learned
        told = []
        for name, label in (("decay", "decay"), ("threshold", "threshold"), ("v_reset", "reset")):
            value = getattr(self, name)
            shown = "soft" if value is None else _told(value)
            told.append(f"{label}={shown}{' learned' if name in learned else ''}")
        detached = ", detached" if self.detach_reset else ""
        return f"{', '.join(told)}{detached}, {self.surrogate}"

    def at_once(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        if "v_reset" in self.learned:
            raise RuleRefused(
                f"the v_reset of a {type(self).__name__} is learned, and acts on later steps alone, which SLTT and OTTT do "
                "not see: train it by BPTT or RateBP, or give a number"
            )
        spikes = []
        for current in inputs.unbind(0):
            v = self._charge(state, current)
            s = self._fire(v)
            spikes.append(s.to(current.dtype))
            state = self._reset(v, s).detach()
        assert state is not None
        return stack(spikes), state

    @torch.no_grad()
    def trace(self, inputs: Tensor, state: Moved | None) -> tuple[Tensor, Moved]:
        spikes: list[Tensor] = []
        names = ("current", *self.learned)
        u, after, count, sums = state or (None, {}, 0.0, {})
        # Where the call before left only its membrane, or nothing, nothing has been moved yet.
        after, sums = ({name: of.get(name, 0.0) for name in names} for of in (after, sums))
        for current in inputs.unbind(0):
            v = self._charge(u, current)
            s, slope = self._fired(v), self._slope(v)
            by_itself = {"current": 1.0, "decay": 0.0 if u is None else u}
            for name in names:
                e = self.decay * after[name] + by_itself.get(name, 0.0)
                moved = slope * (e - float(name == "threshold"))
                sums[name] = sums[name] + moved
                after[name] = self._after_reset(v, s, e, moved) + self._in_reset(name, s)
            count = count + s
            u = self._reset(v, s)
            spikes.append(s.to(current.dtype))
        assert u is not None
        return stack(spikes), (u, after, count, sums)

    def _in_reset(self, name: str, s: Tensor) -> Tensor | float:
        """The part of d u / d p in which the value p stands in the equation of the reset itself."""
        if self.v_reset is None:
            return -s if name == "threshold" else 0.0
        return s if name == "v_reset" else 0.0

    def _charge(self, u: Tensor | None, current: Tensor) -> Tensor:
        return super()._charge(None, current) + (0 if u is None else self.decay * u)

    def _reset(self, v: Tensor, s: Tensor) -> Tensor:
        if self.v_reset is None:
            return v - self.threshold * s
        return v * (1 - s) + self.v_reset * s

    def _put(self, name: str, value: Value, inverse: Callable[[Tensor], Tensor], start: Tensor) -> None:
        """Set a value: what is learned as a parameter, a tensor as a buffer, a number as it is."""
        if isinstance(value, Learnable):
            device = start.device if isinstance(value.value, Tensor) else torch.empty(0).device
            setattr(self, f"w_{name}", nn.Parameter(inverse(start).to(device)))
        elif isinstance(value, Tensor):
            self.register_buffer(f"{name}_of_each", value.detach().clone())
        else:
            self._values[name] = value

    def _plain(self, name: str) -> Any:
        """A value that is not learned."""
        each = self._buffers.get(f"{name}_of_each")
        return self._values[name] if each is None else each


class PLIF(ParametricLIF):
    """`LIF` neurons with a decay that is learned, one for the layer (PLIF): `ParametricLIF` with `Learnable(decay)`.

    Args:
        decay: at the start, in (0, 1). The others as for `LIF`.

    Raises:
        ValueError: a parameter is out of range.

    Reference: Fang et al., ICCV 2021, equations 7 and 8. There the decay is 1 - sigmoid(w), the same with the sign of w
    changed, and the input may be scaled by sigmoid(w); here it is not.
    """

    binary: ClassVar[bool] = True
    elementwise = ParametricLIF.elementwise

    def __init__(
        self,
        decay: float = 0.5,
        threshold: float = 1.0,
        v_reset: float | None = None,
        detach_reset: bool = True,
        surrogate: Surrogate = Sigmoid(),
    ) -> None:
        super().__init__(Learnable(decay), threshold, v_reset, detach_reset, surrogate)


class LearningStepNeuron(StepNeuron, Learns):
    """As `StepNeuron`, a layer of neurons that is written as one time step, with parameters that are learned.

    A parameter's shape goes with that of a sample [...] by broadcasting. `step` keeps it in its range by how it uses it:

        class Adaptive(LearningStepNeuron):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.zeros(()))

            def step(self, current, state):
                u, a = state or (0.0, 0.0)
                v = 0.5 * u + current
                s = Sigmoid().spike(v - 1 - 0.2 * a)
                return s, (v - s.detach(), torch.sigmoid(self.w) * a + s)

    The gradient of a parameter p is by every rule as that of a value of `ParametricLIF`. Under `RateBP` it is the mean over
    the steps of d s[t] / d p, by the recursion that `StepNeuron` has for a current; autograd finds it as if each neuron had
    a p of its own.

    Raises:
        ValueError: in a call, a parameter's shape does not go with that of a sample.
    """

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        nn.Module.register_parameter(self, name, param)

    @property
    def learned(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())

    def forward(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            _check_shapes(self, self.learned, x.shape[1:])
        return super().forward(x)

    def at_once(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        spikes = []
        for current in wide(inputs).unbind(0):
            s, state = self.step(current, state)
            state = pytree.tree_map(Tensor.detach, state)
            spikes.append(s.to(inputs.dtype))
        return stack(spikes), state

    def trace(self, inputs: Tensor, state: Moved | None) -> tuple[Tensor, Moved]:
        self._check_not_compiled()
        before, after, count, sums = state or (None, {}, 0.0, {})
        with torch.enable_grad():
            currents = wide(inputs.detach())
            added = {name: torch.zeros_like(currents[0]).requires_grad_() for name in ("current", *self.learned)}
            begun = None
            if before is not None:
                known, form = pytree.tree_flatten(before)
                moved = [sum(way[k] * added[name] for name, way in after.items()) for k in range(len(known))]
                begun = pytree.tree_unflatten([z + m for z, m in zip(known, moved, strict=True)], form)
            own = {f"neuron.{name}": value.detach() + added[name] for name, value in self.learned.items()}
            spikes, ended = functional_call(_Unrolled(self), own, (currents + added["current"], begun))
            gained = _derivatives(spikes, added)
            left = [_derivatives(z, added) for z in pytree.tree_leaves(ended)]
        sums = {name: sums.get(name, 0.0) + gain for name, gain in gained.items()}
        carried = {name: tuple(of[name] for of in left) for name in added}
        held = pytree.tree_map(Tensor.detach, ended)
        return spikes.detach().to(inputs.dtype), (held, carried, count + spikes.detach().sum(0), sums)


class _Unrolled(nn.Module):
    """The steps of a neuron as the call of a module, of which `functional_call` takes other parameters."""

    def __init__(self, neuron: StepNeuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.neuron.unroll(inputs, state)


def _derivatives(z: Tensor, added: dict[str, Tensor]) -> dict[str, Tensor]:
    """d z / d of each, [B, ...], of neurons that do not see each other; over all steps, where z is of many."""
    if not z.requires_grad:
        return {name: torch.zeros_like(more) for name, more in added.items()}
    found = torch.autograd.grad(z.sum(), list(added.values()), retain_graph=True, materialize_grads=True)
    return dict(zip(added, found, strict=True))


def _check_shapes(neuron: nn.Module, values: Mapping[str, Any], sample: torch.Size) -> None:
    """Raise `ValueError` where a value of a neuron does not go with a sample."""
    for name, value in values.items():
        if isinstance(value, Tensor) and not _goes_with(value.shape, sample):
            raise ValueError(
                f"{type(neuron).__name__}.{name} has the shape {list(value.shape)}, which does not go with a sample "
                f"of {list(sample)} by broadcasting: give [C, 1, 1] for one value a channel of images"
            )


def _within(name: str, value: Value, least: float, most: float | None, told: str) -> Tensor:
    """The value, or that at the start, as a tensor, above `least` and, where it is not learned, up to `most`."""
    start = _tensor(name, value)
    learned = isinstance(value, Learnable)
    high = True if most is None else bool(((start < most) if learned else (start <= most)).all())
    if not (bool((start > least).all()) and high and bool(start.isfinite().all())):
        between = "between 0 and 1, where a learned decay can begin" if learned and most is not None else told
        raise ValueError(f"{name} is {_told(value)}: give a number {between}, or a tensor of them")
    return start


def _tensor(name: str, value: Value) -> Tensor:
    plain = value.value if isinstance(value, Learnable) else value
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real | Tensor):
        raise ValueError(f"{name} is {plain!r}: give a number, a tensor, or Learnable(...) of one")
    if isinstance(plain, nn.Parameter):
        raise ValueError(f"{name} is a parameter: give Learnable(tensor), which keeps it in its range")
    # On the CPU: its range is checked here, and where the default device is meta a tensor has no values.
    return plain.detach().clone() if isinstance(plain, Tensor) else torch.tensor(float(plain), device="cpu")


def _told(value: Any) -> str:
    plain = value.value if isinstance(value, Learnable) else value
    if isinstance(plain, Tensor) and plain.numel() != 1:
        return f"{list(plain.shape)} from {float(plain.detach().min()):g} to {float(plain.detach().max()):g}"
    return f"{float(plain.detach() if isinstance(plain, Tensor) else plain):g}"


def _goes_with(shape: torch.Size, sample: torch.Size) -> bool:
    """Whether a value of a shape broadcasts to a sample."""
    return len(shape) <= len(sample) and all(m in (1, n) for m, n in zip(reversed(shape), reversed(sample), strict=False))


def _before_softplus(value: Tensor) -> Tensor:
    """The inverse of softplus."""
    return value + torch.log(-torch.expm1(-value))
