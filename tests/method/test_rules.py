"""Training rules: gradients against autograd and the paper's equations, and what each keeps and computes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from spikerate import (
    BPTT,
    IF,
    LIF,
    OTTT,
    SLTT,
    ATan,
    Branched,
    Dspike,
    RateBP,
    Sigmoid,
    deepconv_branches,
    resnet18,
    resnet19,
    vgg11,
)
from support.networks import gradients, saved_bytes, small_network

RESETS: list[tuple[float | None, bool]] = [(None, True), (None, False), (0.0, True), (0.0, False)]


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name in a:
        error = float((a[name] - b[name]).abs().max() / b[name].abs().max().clamp(min=1e-12))
        assert error < tolerance, f"{name}: relative error {error:.1e}"


def labels(B: int) -> Tensor:
    return torch.arange(B) % 3


@given(
    seed=st.integers(0, 2**31),
    B=st.integers(2, 5),
    reset=st.sampled_from(RESETS),
    decay=st.floats(0.1, 1.0),
    surrogate=st.sampled_from([Sigmoid(), Dspike(2.0)]),
)
@settings(max_examples=25, deadline=None)
def test_rate_equals_bptt_at_one_step(
    seed: int, B: int, reset: tuple[float | None, bool], decay: float, surrogate: Any
) -> None:
    torch.manual_seed(seed)
    network = small_network(lambda: LIF(decay, None, 0.6, *reset, surrogate)).double()
    x = torch.rand(1, B, 2, 6, 6, dtype=torch.float64)
    rate, bptt = (gradients(network, F.cross_entropy(rule(network, x).rate, labels(B))) for rule in (RateBP(), BPTT()))
    assert_close(rate, bptt)


@given(seed=st.integers(0, 2**31), T=st.integers(1, 6), chunk=st.sampled_from([None, 1, 2]))
@settings(max_examples=25, deadline=None)
def test_rate_equals_bptt_on_affine_networks_at_any_T(seed: int, T: int, chunk: int | None) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4).eval(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ).double()
    x = torch.rand(T, 4, 2, 6, 6, dtype=torch.float64)
    rate, bptt = (
        gradients(network, F.cross_entropy(rule(network, x).rate, labels(4))) for rule in (RateBP(chunk), BPTT(chunk))
    )
    assert_close(rate, bptt)


@given(
    seed=st.integers(0, 2**31),
    T=st.integers(1, 5),
    reset=st.sampled_from(RESETS),
    static=st.booleans(),
    more=st.integers(0, 2),
)
@settings(max_examples=25, deadline=None)
def test_a_chunk_of_all_steps_is_no_chunk(
    seed: int, T: int, reset: tuple[float | None, bool], static: bool, more: int
) -> None:
    torch.manual_seed(seed)
    network = small_network(lambda: LIF(0.5, None, 0.6, *reset)).double()
    x = torch.rand(3, 2, 6, 6).double().expand(T, 3, 2, 6, 6) if static else torch.rand(T, 3, 2, 6, 6).double()
    for kind in (RateBP, BPTT):
        a, b = (
            gradients(network, F.cross_entropy(rule(network, x).rate, labels(3))) for rule in (kind(T + more), kind(None))
        )
        assert_close(a, b, 1e-15)


@given(seed=st.integers(0, 2**31), T=st.integers(2, 6), chunk=st.integers(1, 4), reset=st.sampled_from(RESETS))
@settings(max_examples=25, deadline=None)
def test_without_batch_statistics_every_chunk_gives_the_same(
    seed: int, T: int, chunk: int, reset: tuple[float | None, bool]
) -> None:
    torch.manual_seed(seed)
    network = small_network(lambda: LIF(0.5, None, 0.3, *reset)).double().eval()
    x = torch.rand(T, 3, 2, 6, 6, dtype=torch.float64)
    for kind in (RateBP, BPTT):
        parts, whole = kind(chunk)(network, x), kind()(network, x)
        assert torch.allclose(parts.steps, whole.steps)
        assert torch.allclose(parts.rate, whole.rate)
        assert_close(
            gradients(network, F.cross_entropy(parts.rate, labels(3))),
            gradients(network, F.cross_entropy(whole.rate, labels(3))),
        )


def by_the_paper(network: nn.Sequential, x: Tensor, y: Tensor, decay: float, threshold: float) -> dict[str, Tensor]:
    """Rate-based backpropagation of conv - BN - LIF - conv - BN - LIF - pool - linear, in slow loops from the equations."""
    conv1, bn1, _, conv2, bn2, _, pool, _, linear = network
    T = len(x)
    alpha = 4.0

    def normalize(c: list[Tensor], bn: Any) -> tuple[list[Tensor], Tensor, Tensor]:
        every = torch.stack(c)
        mean = every.mean((0, 1, 3, 4))
        var = ((every - mean.view(-1, 1, 1)) ** 2).mean((0, 1, 3, 4))
        scale = (bn.weight / (var + bn.eps).sqrt()).view(-1, 1, 1)
        return [(one - mean.view(-1, 1, 1)) * scale + bn.bias.view(-1, 1, 1) for one in c], mean, var

    def fire(c: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Spikes, and E[kappa] by the paper's running mean g_t = ((t-1) g_{t-1} + s'(u_t) rho_t) / t."""
        u, rho, g, spikes = torch.zeros_like(c[0]), torch.zeros_like(c[0]), torch.zeros_like(c[0]), []
        for t, current in enumerate(c, start=1):
            u = decay * u + current
            p = torch.sigmoid(alpha * (u - threshold))
            rho = 1 + decay * rho
            g = ((t - 1) * g + alpha * p * (1 - p) * rho) / t
            spikes.append((u >= threshold).double())
            u = u - threshold * spikes[-1]
        return spikes, g

    def mean(a: list[Tensor]) -> Tensor:
        return sum(a[1:], a[0]) / T

    def bn_backward(grad: Tensor, c: Tensor, mu: Tensor, var: Tensor, bn: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Through the statistics of the rate: value of the variance from the spikes, gradient of the rate's."""
        n = c.numel() / c.shape[1]
        axes, view = (0, 2, 3), (1, -1, 1, 1)
        centred = c - mu.view(view)
        invstd = (var + bn.eps) ** -0.5
        hat = centred * invstd.view(view)
        d_hat = grad * bn.weight.view(view)
        d_var = (d_hat * centred).sum(axes) * -0.5 * invstd**3
        d_mu = -(d_hat * invstd.view(view)).sum(axes)
        d_c = d_hat * invstd.view(view) + d_var.view(view) * 2 * centred / n + d_mu.view(view) / n
        return d_c, (grad * hat).sum(axes), grad.sum(axes)

    with torch.no_grad():
        c1 = [conv1(x[t]) for t in range(T)]
        z1, mu1, var1 = normalize(c1, bn1)
        s1, gain1 = fire(z1)
        c2 = [conv2(s) for s in s1]
        z2, mu2, var2 = normalize(c2, bn2)
        s2, gain2 = fire(z2)
        rate2 = mean(s2)
        pooled = pool(rate2).flatten(1)
        logits = linear(pooled)
        d_logits = (logits.softmax(1) - F.one_hot(y, 3)) / len(y)
        d_rate2 = (d_logits @ linear.weight).view(len(y), -1, 1, 1).expand_as(rate2) / pool.kernel_size**2
        d_c2, d_w2, d_b2 = bn_backward(d_rate2 * gain2, mean(c2), mu2, var2, bn2)
        rate1, space = mean(s1), (conv2.stride, conv2.padding)
        d_rate1 = torch.nn.grad.conv2d_input(rate1.shape, conv2.weight, d_c2, *space)
        d_c1, d_w1, d_b1 = bn_backward(d_rate1 * gain1, mean(c1), mu1, var1, bn1)
        return {
            "0.weight": torch.nn.grad.conv2d_weight(x.mean(0), conv1.weight.shape, d_c1, conv1.stride, conv1.padding),
            "1.weight": d_w1,
            "1.bias": d_b1,
            "3.weight": torch.nn.grad.conv2d_weight(rate1, conv2.weight.shape, d_c2, *space),
            "4.weight": d_w2,
            "4.bias": d_b2,
            "8.weight": d_logits.T @ pooled,
            "8.bias": d_logits.sum(0),
        }


@pytest.mark.parametrize("T", [1, 2, 5])
def test_rate_gradient_is_the_papers(T: int) -> None:
    network = small_network(lambda: LIF(0.4, threshold=0.7)).double()
    x, y = torch.rand(T, 6, 2, 6, 6, dtype=torch.float64), labels(6)
    ours = gradients(network, F.cross_entropy(RateBP()(network, x).rate, y))
    assert_close(ours, by_the_paper(network, x, y, 0.4, 0.7))


def test_input_gets_its_gradient() -> None:
    network = small_network().double()
    x = torch.rand(1, 3, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    grads = [torch.autograd.grad(rule(network, x).rate.square().sum(), x)[0] for rule in (RateBP(), BPTT())]
    assert torch.allclose(*grads)
    x = torch.rand(3, 3, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    for rule in (RateBP(), RateBP(chunk=1), BPTT(chunk=1)):
        assert torch.autograd.grad(rule(network, x).rate.sum(), x)[0].shape == x.shape


def test_bytes_saved_for_backward_on_resnet18() -> None:
    network, image = resnet18(width=8), torch.rand(2, 3, 32, 32)
    rate = [saved_bytes(RateBP(), network, image.expand(T, *image.shape)) for T in (1, 2, 4, 8)]
    assert len(set(rate)) == 1, rate
    single = [saved_bytes(RateBP(chunk=1), network, image.expand(T, *image.shape)) for T in (2, 4, 8)]
    assert len(set(single)) == 1, single
    bptt = [saved_bytes(BPTT(), network, image.expand(T, *image.shape)) for T in (2, 4, 6, 8)]
    slopes = [b - a for a, b in itertools.pairwise(bptt)]
    assert len(set(slopes)) == 1, bptt
    assert bptt[-1] > 3.5 * bptt[0]


def test_rate_saves_no_more_than_three_values_per_neuron() -> None:
    """The rate, the mean before batch norm and the gain, once each; an ANN keeps two."""
    network, image = resnet18(width=8), torch.rand(2, 3, 32, 32)
    ann = resnet18(width=8, activation="relu")
    kept = saved_bytes(RateBP(), network, image.expand(4, *image.shape))
    assert kept < 1.6 * saved_bytes(lambda net, x: net(x[0]), ann, image.expand(1, *image.shape))


def test_the_rate_pass_costs_the_backward_of_one_step() -> None:
    network, image = resnet18(width=8), torch.rand(2, 3, 32, 32)

    def flops(T: int) -> int:
        with FlopCounterMode(display=False) as counter:
            RateBP()(network, image.expand(T, *image.shape)).rate.sum().backward()
        return int(counter.get_total_flops())

    counts = [flops(T) for T in (1, 2, 3)]
    assert counts[2] - counts[1] == counts[1] - counts[0], "a step more costs a forward pass more"
    forward = counts[1] - counts[0]
    assert counts[0] < 3.01 * (forward + flops_of_stem(network, image))


def flops_of_stem(network: nn.Module, image: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        BPTT()(network.stem, image.expand(1, *image.shape))
    return int(counter.get_total_flops())


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return checkpoint(self.inner, x, use_reentrant=False)


def test_activation_checkpointing_works_whole_and_is_refused_in_chunks() -> None:
    inner = nn.Sequential(nn.Conv2d(2, 2, 1), LIF(threshold=0.2)).double()
    x = torch.rand(4, 3, 2, 5, 5, dtype=torch.float64)
    for kind in (RateBP, BPTT):
        plain = gradients(inner, kind()(inner, x).rate.square().sum())
        assert_close(
            {f"inner.{k}": v for k, v in plain.items()},
            gradients(Checkpointed(inner), kind()(Checkpointed(inner), x).rate.square().sum()),
        )
        loss = kind(chunk=2)(Checkpointed(inner), x).rate.square().sum()
        with pytest.raises(RuntimeError, match="use chunk=None together with activation checkpointing"):
            loss.backward()


def test_a_forward_pass_leaves_nothing_behind() -> None:
    network = small_network().double().eval()
    x = torch.rand(3, 2, 2, 6, 6, dtype=torch.float64)
    for rule in (BPTT(), RateBP(), BPTT(chunk=1), RateBP(chunk=2)):
        assert torch.equal(rule(network, x).steps, rule(network, x).steps)


@pytest.mark.parametrize("kind", [BPTT, RateBP])
def test_bad_chunk_and_bad_input(kind: Any) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}.chunk is 0: give a number of steps >= 1"):
        kind(chunk=0)
    for x in (torch.rand(3, 4), torch.zeros(0, 2, 3), torch.ones(2, 3, 4, dtype=torch.long)):
        with pytest.raises(ValueError, match="give floating point"):
            kind()(nn.Identity(), x)


MODELS = {
    "resnet19": lambda: resnet19(width=4),
    "branched": lambda: Branched(body := vgg11(width=4), deepconv_branches(body, (3, 16, 16), 10)),
}


@pytest.mark.parametrize(
    ("rule", "model"),
    [*itertools.product([BPTT(), BPTT(chunk=1), RateBP(), RateBP(chunk=1)], ["branched"]), (RateBP(), "resnet19")],
    ids=str,
)
def test_the_training_forward_is_one_graph(model: str, rule: BPTT | RateBP) -> None:
    torch.compiler.reset()
    network = MODELS[model]()
    image = torch.rand(2, 3, 16, 16)
    x = image.expand(2, *image.shape)
    traced = torch.compile(rule, fullgraph=True, backend="eager")(network, x)
    again = rule(network, x)
    for a, b in zip((*traced.exits, traced.rate), (*again.exits, again.rate), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        a.sum().backward(retain_graph=True)


def assert_compiles(rule: Any, T: int, neurons: list[nn.Module], backend: str) -> None:
    """Compiled code has the gradients of the eager rule, in a network with these neurons.

    "aot_eager" takes the same graphs as "inductor", and leaves out what takes longest: making code of them.
    """
    first, *between = neurons
    start, *rest = small_network(lambda: first)
    layers = [layer for n in between for layer in (nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), n)]
    network = nn.Sequential(start, *rest[:2], *layers, *rest[2:]).double()
    x = torch.rand(T, 4, 2, 6, 6, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(rule, fullgraph=True, dynamic=False, backend=backend)
    assert_close(*(gradients(network, run(network, x).rate.square().sum()) for run in (compiled, rule)))


UNROLLED = [(BPTT(chunk=1), 2), (RateBP(chunk=1), 2), (RateBP(chunk=2), 3), (SLTT(), 2), (OTTT(), 2)]


@pytest.mark.parametrize(("rule", "T"), UNROLLED, ids=str)
def test_compiled_code_has_the_eager_gradients(rule: Any, T: int) -> None:
    assert_compiles(rule, T, [LIF(0.5, v_reset=0.0, detach_reset=False)], "aot_eager")


@pytest.mark.parametrize(("rule", "T"), [(RateBP(), 1), (RateBP(), 3), (BPTT(), 3)], ids=str)
def test_every_kind_of_neuron_compiles(rule: BPTT | RateBP, T: int) -> None:
    kinds = [
        LIF(),
        LIF(v_reset=-0.5),
        LIF(detach_reset=False),
        IF(surrogate=ATan()),
        LIF(0.5, v_reset=0.0, detach_reset=False),
    ]
    assert_compiles(rule, T, kinds, "inductor" if T == 3 and isinstance(rule, RateBP) else "aot_eager")


def test_bf16_autocast_stays_near_float32() -> None:
    network, image = resnet18(width=8), torch.rand(8, 3, 16, 16)
    x = image.expand(4, *image.shape)
    for rule in (RateBP(), BPTT()):
        with torch.autocast("cpu", torch.bfloat16):
            out = rule(network, x)
        grads = gradients(network, out.rate.float().square().sum())
        assert out.rate.dtype == torch.bfloat16
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads.values())
        exact = rule(network, x).rate
        assert F.cosine_similarity(out.rate.float(), exact).mean() > 0.9
