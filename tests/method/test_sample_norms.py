"""Layer, RMS, group and instance norm over time: the gradient of the rate divides by what the steps were divided by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikerate import BPTT, RateBP

B, C, N, T = 2, 12, 4, 5
Grouped = Callable[[Tensor], Tensor]
NORMS: dict[str, tuple[Callable[[], nn.Module], Grouped, bool]] = {
    "layer": (lambda: nn.LayerNorm((C, N, N)), lambda x: x.flatten(1).unsqueeze(1), True),
    "layer, last axis": (lambda: nn.LayerNorm(N), lambda x: x.flatten(1, 2), True),
    "rms": (lambda: nn.RMSNorm((N, N), eps=1e-3), lambda x: x.flatten(2), False),
    "rms, torch's eps": (lambda: nn.RMSNorm((C, N, N)), lambda x: x.flatten(1).unsqueeze(1), False),
    "group": (lambda: nn.GroupNorm(3, C), lambda x: x.reshape(len(x), 3, -1), True),
    "instance": (lambda: nn.InstanceNorm2d(C, affine=True), lambda x: x.flatten(2), True),
}
RULES: list[Any] = [RateBP(), RateBP(chunk=1), RateBP(chunk=2)]


def spikes(seed: int) -> Tensor:
    torch.manual_seed(seed)
    chance = torch.rand(B, C, N, N)
    return (torch.rand(T, B, C, N, N) < chance).double()


def shifted(layer: nn.Module, x: Tensor, probe: Tensor, rule: Any) -> list[Tensor]:
    """The gradients of the output's rate by a shift of all steps, and by the parameters."""
    more = torch.zeros_like(x[0]).requires_grad_()
    return list(torch.autograd.grad((rule(layer, x + more).rate * probe).sum(), [more, *layer.parameters()]))


def with_random_weights(make: Callable[[], nn.Module]) -> nn.Module:
    layer = make().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 1.0)
    return layer


@pytest.mark.parametrize("name", NORMS)
def test_the_gradient_is_the_written_out_one(name: str) -> None:
    make, grouped, centred = NORMS[name]
    x, layer = spikes(1), with_random_weights(make)
    eps = torch.finfo(torch.float64).eps if layer.eps is None else layer.eps
    probe = torch.randn_like(x[0])
    plain = make().double()  # its weights are 1 and its biases 0
    with torch.no_grad():
        normal = torch.stack([plain(step) for step in x]).mean(0)
    # What the parameters see is the mean of the normalised steps; what comes to it from behind is g.
    seen = normal.clone().requires_grad_()
    behind = affine_part(layer, seen)
    g, *of_parameters = torch.autograd.grad((behind * probe).sum(), [seen, *layer.parameters()])

    def less_mean(z: Tensor) -> Tensor:
        return z - z.mean(-1, keepdim=True) if centred else z

    invstd = torch.stack([(less_mean(grouped(s)).square().mean(-1, keepdim=True) + eps).rsqrt() for s in x]).mean(0)
    y, d = grouped(normal), grouped(g)
    wanted = (less_mean(d) - y * (y * d).mean(-1, keepdim=True)) * invstd
    for rule in RULES:
        found, *others = shifted(layer, x, probe, rule)
        torch.testing.assert_close(found, wanted.reshape(found.shape))
        for a, b in zip(others, of_parameters, strict=True):
            torch.testing.assert_close(a, b)


def affine_part(layer: nn.Module, y: Tensor) -> Tensor:
    """The weight and the bias of a norm alone."""
    weight, bias = layer.weight, getattr(layer, "bias", None)
    if isinstance(layer, nn.GroupNorm | nn.InstanceNorm2d):
        weight, bias = weight.view(-1, 1, 1), bias.view(-1, 1, 1)
    return y * weight if bias is None else y * weight + bias


@pytest.mark.parametrize("name", NORMS)
def test_it_is_as_long_as_bptts_and_points_where_it_does(name: str) -> None:
    """That at the rate is far off: too long, since a rate varies less than spikes; too short where some steps are silent."""
    make = NORMS[name][0]
    x, layer = spikes(2), with_random_weights(make)
    probe = torch.randn_like(x[0])
    wanted = torch.cat([g.flatten() for g in shifted(layer, x, probe, BPTT())[:1]])
    for rule in RULES:
        found = shifted(layer, x, probe, rule)[0].flatten()
        assert float(found.norm() / wanted.norm()) == pytest.approx(1, abs=0.1)
        assert float(torch.cosine_similarity(found, wanted, dim=0)) > 0.95
    rate = x.mean(0).requires_grad_()
    (at_the_rate,) = torch.autograd.grad((layer(rate) * probe).sum(), rate)
    assert float(at_the_rate.norm() / wanted.norm()) != pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", NORMS)
def test_half_precision_and_autocast_keep_the_type(name: str) -> None:
    layer, x = NORMS[name][0](), spikes(3).bfloat16()
    for rule in RULES:
        with torch.autocast("cpu", torch.bfloat16):
            found = rule(layer, x)
        assert found.rate.dtype == found.train.dtype
        torch.testing.assert_close(found.rate.float(), found.steps.float().mean(0), atol=0.03, rtol=0.03)
