"""Finite-difference gradients against the naive loop, and what they leave as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikerate import BPTT, LIF, Dspike, resnet18
from spikerate.gradients.finite_difference import Elements, Few, derivatives, untouched, variant_rates, weights
from spikerate.neuron import Rectifier
from support.networks import small_network

LABELS = torch.tensor([0, 1, 2, 0, 1])


def loss(rate: Tensor) -> Tensor:
    return F.cross_entropy(rate, LABELS)


def images(T: int = 3, constant: bool = True) -> Tensor:
    x = torch.rand(5, 2, 6, 6, dtype=torch.float64)
    return x.expand(T, *x.shape) if constant else torch.rand(T, *x.shape, dtype=torch.float64)


def naive(network: nn.Module, weight: nn.Parameter, x: Tensor, epsilon: float = 0.1) -> Tensor:
    """The paper's formula, element by element."""
    found = torch.zeros_like(weight).flatten()
    elements = weight.data.view(-1)
    for i in range(len(elements)):
        before = elements[i].clone()
        losses = []
        for sign in (1, -1):
            elements[i] = before + sign * epsilon
            with untouched(network) as again, torch.no_grad():
                again()
                losses.append(loss(BPTT()(network, x).rate))
        elements[i] = before
        found[i] = (losses[0] - losses[1]) / (2 * epsilon)
    return found.view_as(weight)


def pooled(neuron: Callable[[], nn.Module]) -> nn.Sequential:
    conv = nn.Conv2d(2, 3, 3, padding=1)
    first = [conv, nn.BatchNorm2d(3), nn.MaxPool2d(2), neuron(), nn.Dropout(0.3), nn.Flatten()]
    return nn.Sequential(*first, nn.Linear(27, 4), nn.BatchNorm1d(4), neuron(), nn.Linear(4, 3))


def hard() -> LIF:
    return LIF(0.6, threshold=0.7, v_reset=-0.1, surrogate=Dspike(3.0))


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("make", "neuron"), [(small_network, LIF), (pooled, hard), (pooled, Rectifier)])
def test_the_naive_loop(make: Any, neuron: Any, training: bool, constant: bool) -> None:
    network = make(neuron).double()
    x = images(1 if neuron is Rectifier else 3, constant)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
        nn.init.constant_(norm.bias, 0.5)  # the neurons fire, in evaluation too
        norm.running_var.fill_(0.1)
    network.train(training)
    for weight in weights(network).values():
        expected = naive(network, weight, x)
        assert expected.abs().max() > 0
        for at_once in (None, 7):
            found = derivatives(network, weight, x, loss, Elements(weight.shape), at_once=at_once)
            torch.testing.assert_close(found.view_as(weight), expected, rtol=0, atol=1e-12)


def test_a_layer_inside_a_residual_block() -> None:
    """The shortcut has not met the moved weight, and has to follow it."""
    network = resnet18(3, 2, 2).double()
    x = images(2)
    for name in ("stages.stage2.0.conv1", "stages.stage2.0.shortcut.0", "head.2"):
        weight = weights(network)[name]
        found = derivatives(network, weight, x, loss, Elements(weight.shape), at_once=5)
        torch.testing.assert_close(found.view_as(weight), naive(network, weight, x), rtol=0, atol=1e-12)


def test_nothing_is_left_behind() -> None:
    network = pooled(LIF).double()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x, stream = images(), torch.get_rng_state()
    weight = weights(network)["0"]
    derivatives(network, weight, x, loss, Elements(weight.shape))
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_variants_run_together_and_nothing_is_kept_for_a_backward_pass() -> None:
    network, calls = small_network().double(), []
    weight = weights(network)["0"]

    def counted(*args: Any) -> Tensor:
        rates = variant_rates(*args)
        assert not rates.requires_grad
        calls.append(len(rates))
        return rates

    derivatives(network, weight, images(), loss, Elements(weight.shape), at_once=60, rates=counted)
    assert weight.numel() == 72
    assert calls == [60, 60, 60]


def test_parts_add_up() -> None:
    network = small_network().double()
    weight = weights(network)["3"]
    directions = Few(weight.shape, 10, torch.Generator().manual_seed(1))
    x = images()
    whole, *parts = (
        derivatives(network, weight, x, loss, directions, wanted=part)
        for part in (slice(0, 10), slice(0, 4), slice(4, 9), slice(9, 10), slice(5, 5))
    )
    torch.testing.assert_close(whole, sum(parts), rtol=0, atol=1e-12)


def test_all_random_directions_together_are_the_gradient() -> None:
    gradient = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    every = Few(gradient.shape, 48, torch.Generator().manual_seed(1))
    torch.testing.assert_close(every.gradient(every.along(gradient)), gradient, rtol=0, atol=1e-5)
    few = Few(gradient.shape, 5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(few.along(few.gradient(few.along(gradient))), few.along(gradient) * 48 / 5, rtol=0, atol=1e-4)
    mean = torch.stack([f.gradient(f.along(gradient)) for k in range(600) if (f := Few(gradient.shape, 5, seeded(k)))]).mean(
        0
    )
    assert (mean - gradient).norm() < 0.2 * gradient.norm()
    assert torch.equal(few.part(slice(0, 5)), Few(gradient.shape, 5, torch.Generator().manual_seed(1)).part(slice(0, 5)))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_what_is_refused() -> None:
    network = small_network().double()
    weight = weights(network)["0"]
    with pytest.raises(ValueError, match="epsilon is 0: give a positive number"):
        derivatives(network, weight, images(), loss, Elements(weight.shape), epsilon=0)
    stranger = nn.Parameter(torch.ones(3, 2))
    with pytest.raises(ValueError, match="belongs to no convolution or linear layer of the network"):
        derivatives(network, stranger, images(), loss, Elements(stranger.shape))
    with pytest.raises(ValueError, match="no convolution or linear layer that the signal goes through"):
        variant_rates(network, images(), stranger, torch.zeros(2, 3, 2))
    for n in (0, 73):
        with pytest.raises(ValueError, match=f"{n} directions for a weight of 72 elements: give 1 to 72"):
            Few(weight.shape, n, seeded(0))
