"""The neuron: its equation, its gradient through time, and its gain."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spikerate import IF, LIF, ATan, Dspike, FastSigmoid, Rectangular, Sigmoid, Surrogate, Triangular

SURROGATES = [Sigmoid(4.0), ATan(2.0), Triangular(1.0), Rectangular(1.0), FastSigmoid(5.0), Dspike(3.0)]
RESETS: list[dict[str, Any]] = [
    {"v_reset": v_reset, "detach_reset": detach} for v_reset, detach in itertools.product([None, 0.0, -0.3], [True, False])
]


@dataclass(frozen=True)
class Smooth(Surrogate):
    """The surrogate's own primitive in place of the step, so that its gradient is the true one."""

    inner: Any

    def slope(self, x: Tensor) -> Tensor:
        return self.inner.slope(x)

    def spike(self, x: Tensor) -> Tensor:
        return self.inner.primitive(x)


def currents(T: int = 5, n: int = 40) -> Tensor:
    return torch.randn(T, n, dtype=torch.float64) * 0.8 + 0.6


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_slope_is_the_derivative_of_the_primitive(surrogate: Any) -> None:
    x = torch.linspace(-1.7, 1.7, 341, dtype=torch.float64) + 1e-4
    h = 1e-6
    numeric = (surrogate.primitive(x + h) - surrogate.primitive(x - h)) / (2 * h)
    assert torch.allclose(surrogate.slope(x), numeric, atol=1e-6)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_spike_is_the_step_with_the_slope(surrogate: Surrogate) -> None:
    x = torch.tensor([-0.4, -1e-9, 0.0, 0.3], dtype=torch.float64, requires_grad=True)
    s = surrogate.spike(x)
    assert s.tolist() == [0, 0, 1, 1]
    (grad,) = torch.autograd.grad(s.sum(), x)
    assert torch.equal(grad, surrogate.slope(x.detach()))


def test_dspike_goes_from_0_to_1_and_has_the_published_peaks() -> None:
    ends = torch.tensor([-0.5, 0.5], dtype=torch.float64)
    for b in (0.01, 1.0, 3.0, 30.0):
        assert torch.allclose(Dspike(b).primitive(ends), torch.tensor([0.0, 1.0], dtype=torch.float64))
    zero = torch.zeros(())
    assert [round(float(Dspike(b).slope(zero)), 2) for b in (1.0, 3.0)] == [1.08, 1.66]
    assert float(Dspike(3.0).slope(torch.tensor(0.6))) == 0


def test_a_surrogate_of_ones_own_is_two_lines() -> None:
    class Gaussian(Surrogate):
        def slope(self, x: Tensor) -> Tensor:
            return torch.exp(-x.square())

    x = currents().requires_grad_()
    spikes, _ = LIF(surrogate=Gaussian()).unroll(x, None)
    assert torch.autograd.grad(spikes.sum(), x)[0].abs().sum() > 0


@pytest.mark.parametrize("reset", [r for r in RESETS if not r["detach_reset"]], ids=str)
@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_gradcheck_with_the_primitive_as_forward(surrogate: Any, reset: dict[str, Any]) -> None:
    neuron = LIF(decay=0.7, threshold=0.9, surrogate=Smooth(surrogate), **reset)
    x = currents(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: neuron.unroll(x, None)[0], (x,), atol=1e-5)


def by_the_equation(neuron: LIF, x: list[float]) -> list[float]:
    """One neuron in plain Python, written from the equation in its docstring."""
    u, spikes = 0.0, []
    for current in x:
        v = neuron.decay * u + current
        s = 1.0 if v >= neuron.threshold else 0.0
        u = v - neuron.threshold * s if neuron.v_reset is None else v * (1 - s) + neuron.v_reset * s
        spikes.append(s)
    return spikes


@pytest.mark.parametrize("reset", RESETS, ids=str)
def test_unroll_and_trace_fire_by_the_equation(reset: dict[str, Any]) -> None:
    neuron = LIF(decay=0.6, threshold=0.8, **reset)
    x = currents()
    unrolled, _ = neuron.unroll(x, None)
    traced, _ = neuron.trace(x, None)
    expected = torch.tensor([by_the_equation(neuron, x[:, k].tolist()) for k in range(x.shape[1])], dtype=torch.float64).T
    assert torch.equal(unrolled, expected)
    assert torch.equal(traced, expected)
    assert 0 < expected.mean() < 1


@given(
    seed=st.integers(0, 2**31),
    T=st.integers(1, 6),
    decay=st.floats(0.05, 1.0),
    threshold=st.floats(0.3, 2.0),
    reset=st.sampled_from(RESETS),
    surrogate=st.sampled_from(SURROGATES),
)
@settings(max_examples=60, deadline=None)
def test_gain_is_the_brute_force_sum_over_paths(
    seed: int, T: int, decay: float, threshold: float, reset: dict[str, Any], surrogate: Surrogate
) -> None:
    torch.manual_seed(seed)
    neuron = LIF(decay, None, threshold, surrogate=surrogate, **reset)
    x = currents(T, 7)
    spikes, state = neuron.trace(x, None)
    v = torch.empty_like(x)
    u = torch.zeros_like(x[0])
    for t in range(T):
        v[t] = decay * u + x[t]
        s = spikes[t]
        u = v[t] - threshold * s if neuron.v_reset is None else v[t] * (1 - s) + neuron.v_reset * s
    slope = surrogate.slope(v - threshold)

    def one_step(t: int) -> Tensor:
        """d v[t+1] / d v[t], by differentiating the equation by hand."""
        ds = torch.zeros_like(slope[t]) if neuron.detach_reset else slope[t]
        if neuron.v_reset is None:
            return decay * (1 - threshold * ds)
        return decay * ((1 - spikes[t]) - v[t] * ds + neuron.v_reset * ds)

    total = torch.zeros_like(x[0])
    for source in range(T):
        for target in range(source, T):
            path = slope[target].clone()
            for t in range(source, target):
                path = path * one_step(t)
            total += path
    assert torch.allclose(state[-1], total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reset", RESETS, ids=str)
def test_gain_is_the_derivative_of_the_rate_by_a_shift_of_all_steps(reset: dict[str, Any]) -> None:
    """All steps moved together move the rate by the gain: that is what the rate's gradient stands for."""
    neuron, x = LIF(decay=0.5, **reset), currents()
    shift = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    _, state = neuron.trace(x, None)
    (grad,) = torch.autograd.grad(neuron.unroll(x + shift, None)[0].mean(0).sum(), shift)
    assert torch.allclose(grad, state[-1] / len(x), rtol=1e-9)


@pytest.mark.parametrize("reset", RESETS, ids=str)
def test_state_carries_a_run_on(reset: dict[str, Any]) -> None:
    neuron = LIF(decay=0.8, **reset)
    x = currents(6)
    whole, state = neuron.trace(x, None)
    first, carried = neuron.trace(x[:2], None)
    second, end = neuron.trace(x[2:], carried)
    assert torch.equal(whole, torch.cat([first, second]))
    assert torch.equal(state[-1], end[-1])
    first, u = neuron.unroll(x[:2], None)
    second, _ = neuron.unroll(x[2:], u)
    assert torch.equal(whole, torch.cat([first, second]))


def test_membranes_are_wide_and_spikes_of_the_inputs_type() -> None:
    x = currents().to(torch.bfloat16)
    for spikes, state in (LIF().unroll(x, None), LIF().trace(x, None)):
        assert spikes.dtype == torch.bfloat16
        assert (state if isinstance(state, Tensor) else state[0]).dtype == torch.float32


def test_tau_and_decay_and_no_leak() -> None:
    assert LIF(tau=1.25).decay == pytest.approx(0.2)
    assert LIF().decay == 0.2
    assert IF().decay == 1.0
    assert "decay=1, threshold=1, reset=soft, detached" in repr(IF())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"decay": 0.2, "tau": 1.25}, "give one of them"),
        ({"decay": 0.0}, r"LIF.decay is 0.0: give a number in \(0, 1\]"),
        ({"decay": 1.5}, "LIF.decay is 1.5"),
        ({"decay": math.nan}, "LIF.decay is nan"),
        ({"tau": 1.0}, "LIF.tau is 1.0"),
        ({"threshold": 0.0}, "LIF.threshold is 0.0"),
        ({"v_reset": 1.0}, "LIF.v_reset is 1.0"),
        ({"v_reset": -math.inf}, "LIF.v_reset is -inf"),
    ],
)
def test_parameters_out_of_range(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LIF(**arguments)


VALUES = [nn.Parameter(torch.tensor(0.5)), torch.tensor(0.5), torch.rand(3), "0.5", 1j]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_what_is_no_number_is_refused_by_every_field(value: Any) -> None:
    """A tensor would be a learnable neuron, whose gradient most rules don't have."""
    for field in ("decay", "tau", "threshold", "v_reset"):
        with pytest.raises(ValueError, match=rf"^LIF\.{field} is a .*: give a plain number"):
            LIF(**{field: value})
    for field in ("threshold", "v_reset"):
        with pytest.raises(ValueError, match=rf"^LIF\.{field} is a "):
            IF(**{field: value})
    for kind in (Sigmoid, ATan, Triangular, Rectangular, FastSigmoid, Dspike):
        for field in dataclasses.fields(kind):
            with pytest.raises(ValueError, match=rf"^{kind.__name__}\.{field.name} is a .*: give a plain number"):
                kind(**{field.name: value})


def test_learnable_parts_of_a_neuron_are_refused() -> None:
    class Learnable(nn.Module, Surrogate):
        def __init__(self) -> None:
            super().__init__()
            self.alpha = nn.Parameter(torch.ones(()))

        def slope(self, x: Tensor) -> Tensor:
            return self.alpha * x

    with pytest.raises(ValueError, match=r"^LIF.surrogate is Learnable with learnable parameters"):
        LIF(surrogate=Learnable())
    with pytest.raises(ValueError, match=r"^LIF.surrogate is 'sigmoid': give a surrogate"):
        LIF(surrogate="sigmoid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^LIF.threshold is a Parameter: give a plain number"):
        LIF().threshold = nn.Parameter(torch.ones(()))  # type: ignore[assignment]
    numbers = np.float32(0.5), np.float64(0.5), 1
    assert [LIF(decay=number).decay for number in numbers] == [0.5, 0.5, 1]


@pytest.mark.parametrize("kind", [Sigmoid, ATan, Triangular, Rectangular, FastSigmoid, Dspike])
def test_surrogates_refuse_a_width_that_is_none(kind: Any) -> None:
    for width in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match=kind.__name__):
            kind(width)


def test_a_plain_tensor_has_no_time() -> None:
    with pytest.raises(TypeError, match="call the network by a rule"):
        LIF()(torch.rand(2, 3))
