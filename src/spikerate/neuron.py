"""The leaky integrate-and-fire neuron, and the rectifier of an ANN."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from spikerate.signal import State
from spikerate.surrogate import Sigmoid, Surrogate
from spikerate.system.ranges import check_number, check_plain, check_positive


class _SaysAnew:
    """A base of neurons whose subclasses say anew what holds of all their neurons, since what they add may be otherwise."""

    binary: ClassVar[bool]
    elementwise: ClassVar[bool]

    def __init_subclass__(cls, **how: Any) -> None:
        super().__init_subclass__(**how)
        for name in ("binary", "elementwise"):
            if name not in vars(cls):
                setattr(cls, name, False)


class LIF(_SaysAnew, nn.Module):
    """Leaky integrate-and-fire neurons, one for each element of the input; time is the hidden axis of a `Signal`.

        v[t] = decay * u[t-1] + input[t],   s[t] = H(v[t] - threshold),   u[0] = 0
        u[t] = v[t] - threshold * s[t]                        soft reset (`v_reset=None`)
        u[t] = v[t] * (1 - s[t]) + v_reset * s[t]             hard reset (`v_reset` a number)

    The input is not scaled by the decay, and the resting potential is 0. Membrane potentials are computed in float32 or
    wider, spikes have the type of the input.

    Args:
        decay: fraction of the membrane potential that remains after one step, in (0, 1]; by default 0.2. It is snnTorch's
            `beta` (`Leaky(beta=decay, reset_delay=False)`).
        tau: membrane time constant in steps, > 1, as an alternative to `decay`: `decay = 1 - 1 / tau`. It is
            SpikingJelly's `tau` with `decay_input=False` (whose hard reset is equal for `v_reset=0` only).
        threshold: the membrane potential at which a spike is fired, > 0.
        v_reset: None for the soft reset (subtract the threshold), a number < threshold for the hard reset.
        detach_reset: whether the reset is a constant for the gradient, as in the papers.
        surrogate: the derivative of the step function.

    Raises:
        ValueError: a parameter is out of range or not a plain number (it can't be learned), or both `decay` and `tau` are
            given.
        TypeError: called on a tensor instead of a `Signal`.

    Attributes:
        binary: whether spikes are 0 or 1, so that a byte can hold one.
        elementwise: whether neurons know nothing of each other (`spikerate.signal.Neuron`). Both are False in a subclass
            that does not set them again: its spikes may have other values, and its neurons may see each other.

    Reference: Yu et al., NeurIPS 2024, section 3 (`decay=0.2`, `threshold=1`, soft reset, detached).
    """

    elementwise: ClassVar[bool] = True
    binary: ClassVar[bool] = True

    def __init__(
        self,
        decay: float | None = None,
        tau: float | None = None,
        threshold: float = 1.0,
        v_reset: float | None = None,
        detach_reset: bool = True,
        surrogate: Surrogate = Sigmoid(),
    ) -> None:
        super().__init__()
        own = type(self).__name__
        for name, value in {"decay": decay, "tau": tau, "threshold": threshold, "v_reset": v_reset}.items():
            if value is not None or name == "threshold":
                check_plain(f"{own}.{name}", value)
        if not isinstance(surrogate, Surrogate):
            raise ValueError(
                f"{own}.surrogate is {surrogate!r}: give a surrogate such as Sigmoid(), or a Surrogate of your own"
            )
        if isinstance(surrogate, nn.Module) and any(True for _ in surrogate.parameters()):
            raise ValueError(
                f"{own}.surrogate is {type(surrogate).__name__} with learnable parameters, which would get no gradient: "
                "give it plain numbers or buffers"
            )
        if decay is not None and tau is not None:
            raise ValueError(f"{own} got decay={decay} and tau={tau}: give one of them, decay = 1 - 1 / tau")
        if tau is not None and not (tau > 1 and math.isfinite(tau)):
            raise ValueError(f"{own}.tau is {tau}: give a finite number of steps above 1, or decay=1 for no leak")
        self.decay = 1 - 1 / tau if tau is not None else 0.2 if decay is None else decay
        if not 0 < self.decay <= 1:
            raise ValueError(f"{own}.decay is {decay}: give a number in (0, 1]")
        check_positive(f"{own}.threshold", threshold)
        if v_reset is not None:
            check_number(f"{own}.v_reset", v_reset)
        if v_reset is not None and v_reset >= threshold:
            raise ValueError(f"{own}.v_reset is {v_reset}: give None (soft reset) or a number below threshold={threshold}")
        self.threshold = threshold
        self.v_reset = v_reset
        self.detach_reset = detach_reset
        self.surrogate = surrogate

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Raise `ValueError`, since a parameter that is set as an attribute later would get no gradient either."""
        check_plain(f"{type(self).__name__}.{name}", param)

    def forward(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            raise TypeError(
                f"{type(self).__name__} got a plain tensor, which has no time axis: call the network by a rule, "
                "BPTT()(network, x)"
            )
        return x.fire(self)

    def extra_repr(self) -> str:
        reset = "soft" if self.v_reset is None else self.v_reset
        detached = ", detached" if self.detach_reset else ""
        return f"decay={self.decay:g}, threshold={self.threshold:g}, reset={reset}{detached}, {self.surrogate}"

    @torch.no_grad()
    def spikes(self, inputs: Tensor) -> Tensor:
        """Spikes [T, B, ...] without gradient, for the input currents [T, B, ...] and membranes that start at 0."""
        spikes: list[Tensor] = []
        v = None
        for current in inputs:
            v = self._charge(None if v is None else self._reset(v, spikes[-1]), current)
            spikes.append(self._fired(v).to(current.dtype))
        return stack(spikes)

    def unroll(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Spikes with the gradient through every step.

        Args:
            inputs: input currents [T, B, ...].
            state: the membrane potential u after the previous steps [B, ...]; None at the start.

        Returns:
            spikes [T, B, ...] and the membrane potential after the last step [B, ...].
        """
        spikes = []
        for current in inputs:
            v = self._charge(state, current)
            s = self._fire(v)
            spikes.append(s.to(current.dtype))
            state = self._settled(v, s)
        assert state is not None
        return stack(spikes), state

    @torch.no_grad()
    def trace(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Spikes without gradient, and the sum over time that determines the gain of the rate.

        `gain = E_t[slope(v[t]) reach[t]]`, `reach[t] = 1 + (d v[t] / d v[t-1]) reach[t-1]`, `reach[1] = 1`. The reach is the
        derivative of the membrane potential with respect to an input that is the same at every step (Yu et al., NeurIPS
        2024, E[kappa] and its traces).

        Args:
            inputs: input currents [T, B, ...].
            state: (membrane potential u, carried reach, summed spikes, summed gain) after the previous steps, each [B, ...];
                the reach is a number if it is the same for all neurons. None at the start.

        Returns:
            spikes [T, B, ...] and the state after the last step. Its last two are sums over all steps so far: of the spikes,
            and of `slope * reach`.
        """
        return self._traced(inputs, [1.0] * len(inputs), state)

    def _traced(self, inputs: Tensor, drives: Sequence[float], state: State | None) -> tuple[Tensor, State]:
        """As `trace`, of a gain for a change of the currents by `drives[t]` at step t instead of by 1 at every step."""
        spikes: list[Tensor] = []
        u, carried, count, total = state or (None, 0.0, None, None)
        for current, drive in zip(inputs, drives, strict=True):
            v = self._charge(u, current)
            s = self._fired(v)
            slope = self._slope(v)
            reach = drive + carried
            count = s if count is None else count + s
            total = slope * reach if total is None else _plus(total, slope, reach)
            spikes.append(s.to(current.dtype))
            carried = self._passed_on(v, s, slope) * reach
            u = self._reset(v, s)
        return stack(spikes), (u, carried, count, total)

    @torch.no_grad()
    def slopes(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Spikes without gradient, and the surrogate's slope at each step, for a gradient that does not go through time.

        Args:
            inputs: input currents [T, B, ...].
            state: the membrane potential u after the previous steps [B, ...]; None at the start.

        Returns:
            spikes and slopes [T, B, ...], and the membrane potential after the last step [B, ...].
        """
        spikes, slopes = [], []
        for current in inputs:
            v = self._charge(state, current)
            s = self._fired(v)
            spikes.append(s.to(current.dtype))
            slopes.append(self._slope(v).to(current.dtype))
            state = self._reset(v, s)
        assert state is not None
        return stack(spikes), stack(slopes), state

    def _charge(self, u: Tensor | None, current: Tensor) -> Tensor:
        if u is None:
            return current.to(torch.promote_types(current.dtype, torch.float32))
        return torch.add(current, u, alpha=self.decay)  # one pass over memory

    def _fired(self, v: Tensor) -> Tensor:
        """The spikes of membrane potentials, without a graph and in their type."""
        return (v >= self.threshold).to(v.dtype)

    def _slope(self, v: Tensor) -> Tensor:
        """The derivative that is used in place of that of `_fired`."""
        return self.surrogate.slope(v - self.threshold)

    def _fire(self, v: Tensor) -> Tensor:
        """The spikes of membrane potentials, with their gradient."""
        return self.surrogate.spike(v - self.threshold)

    def _reset(self, v: Tensor, s: Tensor) -> Tensor:
        if self.v_reset is None:
            return torch.sub(v, s, alpha=self.threshold)
        return v * (1 - s) + self.v_reset * s

    def _settled(self, v: Tensor, s: Tensor) -> Tensor:
        """The membrane potential after a step, with its gradient: that of the reset too, unless it is detached."""
        return self._reset(v, s.detach() if self.detach_reset else s)

    def _passed_on(self, v: Tensor, s: Tensor, slope: Tensor) -> Tensor | float:
        """d v[t+1] / d v[t]."""
        if self.v_reset is None:
            return self.decay if self.detach_reset else self.decay * (1 - self.threshold * slope)
        kept = 1 - s if self.detach_reset else 1 - s + (self.v_reset - v) * slope
        return self.decay * kept

    def _after_reset(self, v: Tensor, s: Tensor, reach: Any, gained: Tensor) -> Any:
        """d u[t] / d p of anything p through v[t] and s[t], where d v[t] / d p is `reach` and d s[t] / d p is `gained`."""
        own, through = (reach, -self.threshold) if self.v_reset is None else ((1 - s) * reach, self.v_reset - v)
        return own if self.detach_reset else own + through * gained


class Rectifier(_SaysAnew, nn.Module):
    """The activation of an ANN as a neuron without memory: `s[t] = max(0, input[t])`. At T = 1 the network is an ANN.

    On a tensor instead of a `Signal` it is `F.relu`.
    """

    elementwise: ClassVar[bool] = True

    def forward(self, x: Any) -> Any:
        return F.relu(x) if isinstance(x, Tensor) else x.fire(self)

    @torch.no_grad()
    def spikes(self, inputs: Tensor) -> Tensor:
        """The rectified inputs [T, B, ...] without a graph."""
        return _rectified(inputs)

    def unroll(self, inputs: Tensor, state: None) -> tuple[Tensor, None]:
        """The rectified inputs [T, B, ...] with gradient; there is no state."""
        return _rectified(inputs), state

    @torch.no_grad()
    def trace(self, inputs: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The rectified inputs [T, B, ...] without a graph; so far their sum, and how often each unit was active."""
        outputs = _rectified(inputs)
        total, active = outputs.sum(0, dtype=torch.promote_types(inputs.dtype, torch.float32)), (inputs > 0).sum(0)
        return outputs, (total, active) if state is None else (state[0] + total, state[1] + active)

    @torch.no_grad()
    def slopes(self, inputs: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
        """The rectified inputs without a graph, and the slope of each, both [T, B, ...]; there is no state."""
        return _rectified(inputs), (inputs > 0).to(inputs.dtype), state


class NeuronSettings(ABC):
    """The neuron of all layers of a run. One of your own is a frozen dataclass that inherits from this.

    Attributes:
        spiking: whether the network spikes; else it is an ANN, at T = 1.
    """

    spiking: ClassVar[bool] = True

    @abstractmethod
    def build(self) -> nn.Module:
        """A new layer of such neurons, which has the methods of `spikerate.signal.Neuron`."""


class StepNeuron(nn.Module, ABC):
    """A layer of neurons that is written as one time step; what the rules ask for follows from that by autograd.

    Neurons may have several states, as a membrane and a synaptic current. For steps s[t], z[t] = f(I[t], z[t-1]) of spikes s
    and states z, z[0] given, the gain of the rate is the mean over the steps of d s[t] / d c, for a current c that is added
    at every step:

        d s[t] / d c = (ds/dI)[t] + sum_k (ds/dz_k)[t] d z_k[t-1] / d c,   and so for z[t],   d z[0] / d c = 0

    Neurons must not depend on each other, and have no parameters that are learned. States are computed in float32 or wider,
    spikes have the type of the input. It costs more than `LIF`, which has its equations by hand, and is compiled under
    `BPTT` only.
    """

    elementwise: ClassVar[bool] = False

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Raise `ValueError`: a parameter would get no gradient."""
        check_plain(f"{type(self).__name__}.{name}", param)

    @abstractmethod
    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step, of operations that autograd knows; the spike by `Surrogate.spike`, which has a slope.

        Args:
            current: input [B, ...], in float32 or wider.
            state: that of the step before, [B, ...] or a tuple of such; None at the start.

        Returns:
            spikes [B, ...], and the state; of several the membrane potential comes first.
        """

    def forward(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            raise TypeError(
                f"{type(self).__name__} got a plain tensor, which has no time axis: call the network by a rule, "
                "BPTT()(network, x)"
            )
        return x.fire(self)

    @torch.no_grad()
    def spikes(self, inputs: Tensor) -> Tensor:
        """Spikes [T, B, ...] without a graph, of the input currents [T, B, ...] from the start."""
        return self.unroll(inputs, None)[0]

    def unroll(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Spikes [T, B, ...] with the gradient through every step, and the state after the last one."""
        spikes = []
        for current in wide(inputs).unbind(0):
            s, state = self.step(current, state)
            spikes.append(s.to(inputs.dtype))
        return stack(spikes), state

    def trace(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Spikes without a graph, and (state, its derivatives, summed spikes, theirs), by the current of all steps."""
        self._check_not_compiled()
        before, moved, count, total = state or (None, (), 0, 0)
        known, form = pytree.tree_flatten(before)
        moved = moved if isinstance(moved, tuple) else (moved,) * len(known)
        with torch.enable_grad():
            currents = wide(inputs.detach())
            more = torch.zeros_like(currents[0]).requires_grad_()
            shifted = [z + way * more for z, way in zip(known, moved, strict=False)]
            spikes, after = self.unroll(currents + more, None if before is None else pytree.tree_unflatten(shifted, form))
            (gained,) = torch.autograd.grad(spikes.sum(), more, retain_graph=True)
            moved = tuple(_derivative(z, more) for z in pytree.tree_leaves(after))
        state = pytree.tree_map(Tensor.detach, after), moved, count + spikes.detach().sum(0), total + gained
        return spikes.detach().to(inputs.dtype), state

    def slopes(self, inputs: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Spikes without a graph and the slope of each [T, B, ...], and the state after the last step."""
        self._check_not_compiled()
        spikes: list[Tensor] = []
        slopes: list[Tensor] = []
        for current in wide(inputs).unbind(0):
            with torch.enable_grad():
                own = current.detach().requires_grad_()
                s, after = self.step(own, state)
                slopes += torch.autograd.grad(s.sum(), own)
            spikes.append(s.detach())
            state = pytree.tree_map(Tensor.detach, after)
        return stack(spikes).to(inputs.dtype), stack(slopes).to(inputs.dtype), state

    def _check_not_compiled(self) -> None:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"{type(self).__name__} is written as one step, whose slopes and gain autograd finds, which can't be "
                "compiled: run the rule as it is, or compile BPTT()"
            )


def _rectified(inputs: Tensor) -> Tensor:
    """`F.relu` in the form that compiles to the fastest code: in channels-last order, without a mask."""
    x = inputs.flatten(0, 1)
    return torch.where(x <= 0, 0, x).unflatten(0, inputs.shape[:2])


def wide(inputs: Tensor) -> Tensor:
    """In float32, or what is wider."""
    return inputs.to(torch.promote_types(inputs.dtype, torch.float32))


def _derivative(z: Tensor, more: Tensor) -> Tensor:
    """d z / d more, both [B, ...] of neurons that do not see each other; 0 of what has no graph."""
    return torch.autograd.grad(z.sum(), more, retain_graph=True)[0] if z.requires_grad else torch.zeros_like(z)


def _plus(total: Tensor, slope: Tensor, reach: Tensor | float) -> Tensor:
    """`total + slope * reach`, in one pass over memory."""
    return torch.addcmul(total, slope, reach) if isinstance(reach, Tensor) else torch.add(total, slope, alpha=reach)


def stack(steps: list[Tensor]) -> Tensor:
    """Stack the tensors [B, ...] of T steps to [T, B, ...]; keeps their memory format, unlike `torch.stack`."""
    return torch.cat(steps).unflatten(0, (len(steps), -1))


def IF(
    threshold: float = 1.0,
    v_reset: float | None = None,
    detach_reset: bool = True,
    surrogate: Surrogate = Sigmoid(),
) -> LIF:
    """Integrate-and-fire neurons: `LIF` without leak (`decay=1`)."""
    return LIF(decay=1.0, threshold=threshold, v_reset=v_reset, detach_reset=detach_reset, surrogate=surrogate)
