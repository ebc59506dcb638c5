"""Operations that networks of others have: values against a loop over the steps, gradients, and samples that stay apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikerate import BPTT, LIF, OTTT, SLTT, RateBP, spiking
from spikerate.gradients.finite_difference import variant_rates
from spikerate.measure.meter import Ledger, Meter, Tally
from support.networks import Functional, gradients

B, C, N = 3, 4, 6
RATES = [RateBP(), RateBP(chunk=1), RateBP(chunk=2)]
RULES: list[Any] = [BPTT(), BPTT(checkpoint=True), BPTT(chunk=2), SLTT(), OTTT(chunk=1), *RATES]


class Beside(nn.Module):
    """A function of the input and a parameter."""

    def __init__(self, f: Callable[[Any, Tensor], Any], *shape: int) -> None:
        super().__init__()
        self.f, self.p = f, nn.Parameter(torch.randn(shape) + 1.5)

    def forward(self, x: Any) -> Any:
        return self.f(x, self.p)


def per_sample() -> Tensor:
    return torch.arange(1.0, B + 1).view(B, 1, 1, 1).double()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv3d": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, (1, 3, 3), padding="same")),
    "transposed": lambda: nn.ConvTranspose2d(C, 3, 3, stride=2, padding=1, output_padding=1),
    "transposed, groups": lambda: nn.ConvTranspose2d(C, 4, 2, stride=2, groups=2, bias=False, dilation=2),
    "transposed1d": lambda: nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(C, 2, 4, stride=3)),
    "transposed3d": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.ConvTranspose3d(2, 1, 2)),
    "pools 3d": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.AvgPool3d((1, 2, 2)), nn.MaxPool3d(2, 1), nn.AdaptiveAvgPool3d(1)
    ),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample((9, 5), mode="bilinear", align_corners=True),
    "shuffle": lambda: nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2)),
    "layer norm": lambda: nn.LayerNorm((C, N, N)),
    "layer norm of channels": lambda: Functional(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (C,)).permute(0, 3, 1, 2)),
    "rms norm": lambda: nn.RMSNorm(N),
    "group norm": lambda: nn.GroupNorm(2, C),
    "instance norm": lambda: nn.InstanceNorm2d(C, affine=True),
    "softmax": lambda: nn.Softmax(-1),
    "gates": lambda: Functional(lambda x: x.sigmoid() + F.hardsigmoid(x) * 2 + torch.tanh(x).amax(1, keepdim=True)),
    "amin": lambda: Functional(lambda x: x.amin((2, 3))),
    "position": lambda: Beside(lambda x, p: x + p, 1, C, N, N),
    "position on the left": lambda: Beside(lambda x, p: p - x, C, 1, N),
    "scale": lambda: Beside(lambda x, p: p * x / (p * p + 1), C, 1, 1),
    "numbers of each sample": lambda: Functional(
        lambda x: x * per_sample()[: len(x)].to(x.dtype) if len(x) == B else x * 1.0
    ),
    "matrix": lambda: Beside(lambda x, p: x @ p, N, 2),
    "matrices": lambda: Beside(lambda x, p: x @ p, C, N, 2),
    "matrix from the left": lambda: Beside(lambda x, p: p @ x, 2, N),
    "token": lambda: Beside(lambda x, p: torch.cat([p.expand(len(x), -1, -1), x.flatten(2)], 1), 1, 1, N * N),
    "token of one": lambda: Beside(lambda x, p: torch.stack([x.flatten(2), p.expand(len(x), -1, -1)], 2), 1, C, N * N),
    "moves": lambda: Functional(lambda x: x.roll(1, 2).flip(3).repeat(1, 2, 1, 1).index_select(1, torch.tensor([0, 5, 1]))),
    "expand": lambda: Functional(lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1)),
    "masked": lambda: Functional(lambda x: x.masked_fill(torch.eye(N).bool(), 0.5)),
}
LAYERS["attention"] = lambda: Functional(lambda x: F.scaled_dot_product_attention(x, x.flip(2), 2 * x))
LAYERS["attention, scaled"] = lambda: Functional(lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.1))
COMPOSED = {"attention", "attention, scaled", "gates"}
"""What follows a nonlinear operation or a product sees the mean of its values, and not its value at the mean."""
NORMS = {name for name in LAYERS if name.split(" of ")[0].endswith(" norm")}


def around(layer: nn.Module) -> nn.Sequential:
    """Neurons before the layer and after it, and a linear head."""
    body = nn.Sequential(nn.Conv2d(2, C, 3, padding=1), LIF(threshold=0.3), layer, LIF(threshold=0.3), nn.Flatten())
    with torch.no_grad():
        n = BPTT()(body, torch.rand(1, 1, 2, N, N)).shape[1]
    return nn.Sequential(*body, nn.Linear(n, 3)).double()


def images(T: int) -> Tensor:
    return 2 * torch.randn(T, B, 2, N, N, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_each_step_has_the_value_of_the_tensor_operation(name: str) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name]().double(), torch.randn(4, B, C, N, N, dtype=torch.float64)
    with torch.no_grad():
        alone = torch.stack([layer(step) for step in x])
        for rule in RULES:
            found = rule(layer, x)
            torch.testing.assert_close(found.steps, alone)
            torch.testing.assert_close(found.rate, alone.mean(0))
        for constant in (BPTT(), RateBP()):
            torch.testing.assert_close(constant(layer, x[:1].expand(3, *x.shape[1:])).rate, alone[0])


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_bptts_at_one_step_under_every_rule(name: str) -> None:
    torch.manual_seed(1)
    network, x = around(LAYERS[name]()), images(1)
    wanted = gradients(network, BPTT()(network, x).rate.square().sum())
    assert any(bool(g.any()) for key, g in wanted.items() if key.startswith("0."))
    for rule in RULES:
        found = gradients(network, rule(network, x).rate.square().sum())
        for key, g in wanted.items():
            torch.testing.assert_close(found[key], g, msg=lambda m, key=key, rule=rule: f"{rule}, {key}: {m}")


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in NORMS])  # see test_sample_norms
def test_over_time_the_gradient_is_that_of_the_operation_at_the_rate(name: str) -> None:
    """RateBP, whole and in chunks: of the input's rate, and of the parameters."""
    torch.manual_seed(2)
    layer = LAYERS[name]().double()
    x = torch.randn(3, B, C, N, N, dtype=torch.float64)
    if name in COMPOSED:
        x = x[:1].repeat(3, 1, 1, 1, 1)  # where steps are alike, the mean of the values is the value at the mean
    probe = torch.randn_like(layer(x[0]))
    rate = x.mean(0).requires_grad_()
    parameters = list(layer.parameters())
    wanted = torch.autograd.grad((layer(rate) * probe).sum(), [rate, *parameters])
    for rule in RATES:
        more = torch.zeros_like(rate).requires_grad_()
        found = torch.autograd.grad((rule(layer, x + more).rate * probe).sum(), [more, *parameters])
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"numbers of each sample"}))
def test_samples_stay_apart(name: str) -> None:
    torch.manual_seed(3)
    layer, x = LAYERS[name]().double(), torch.randn(2, B, C, N, N, dtype=torch.float64)
    for rule in (BPTT(), RateBP()):
        whole = rule(layer, x).rate
        for k in range(B):
            torch.testing.assert_close(rule(layer, x[:, k : k + 1]).rate[0], whole[k])


def test_a_finite_difference_goes_through_them() -> None:
    network = around(nn.Sequential(nn.ConvTranspose2d(C, C, 3, padding=1), nn.GroupNorm(1, C), LAYERS["position"]()))
    x = images(2)
    weight = network[0].weight
    change = torch.randn(2, *weight.shape, dtype=torch.float64)
    with torch.no_grad():
        found = variant_rates(network, x, weight, change)
        for k in range(2):
            weight += change[k]
            torch.testing.assert_close(found[k], BPTT()(network, x).rate)
            weight -= change[k]


def test_the_operations_of_a_transposed_convolution_are_counted() -> None:
    """Each input value reaches kernel^2 x outputs values where stride = kernel: counted where both are not 0."""
    layer, x = nn.ConvTranspose2d(C, 5, 2, stride=2), (torch.rand(2, B, C, N, N) < 0.3).float()
    tally = Tally.of(nn.Sequential(layer))
    with torch.no_grad():
        Meter(Ledger(), tally)(nn.Sequential(layer), x)
    energy = tally.energy(B, 2)
    assert energy.layers["0"].acs == pytest.approx(float(x.sum()) * 4 * 5 / B)
    assert energy.dense == 2 * C * N * N * 4 * 5


def test_a_tensor_of_another_batch_is_refused() -> None:
    for f in (lambda x: x + torch.ones(2, C, N, N), lambda x: torch.cat([x, torch.ones(2, C, N, N)], 1)):
        with pytest.raises(ValueError, match=r"\[2, 4, 6, 6\] stands beside a signal \[3, 4, 6, 6\] without time"):
            BPTT()(Functional(f), torch.rand(2, B, C, N, N))


def test_the_gate_of_squeeze_and_excitation_stays_a_gate() -> None:
    class Excitation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, C, 3), nn.Conv2d(C, C, 1)

        def forward(self, x: Any) -> Any:
            x = F.relu(self.conv(x))
            return (x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))).flatten(1)

    snn = spiking(Excitation(), partial(LIF, threshold=0.3)).double()
    assert sum(isinstance(m, LIF) for m in snn.modules()) == 1
    x = images(3)
    steps = BPTT()(snn, x).steps
    assert 0 < float(steps.detach().max()) < 1


class Depth(nn.Module):
    """Stochastic depth as other libraries have it: samples lose a branch at random."""

    def forward(self, x: Any) -> Any:
        return x * torch.empty(len(x), 1, 1, 1).bernoulli_(0.5)


def test_a_random_tensor_beside_a_signal_is_one_of_the_whole_forward_pass_or_refused() -> None:
    x = torch.rand(4, 64, 2, 3, 3)
    whole = RateBP()(Depth(), x)
    torch.testing.assert_close(whole.rate, whole.steps.mean(0))
    for network in (Depth(), nn.Sequential(Depth(), nn.Conv2d(2, 2, 1))):
        with pytest.raises(ValueError, match="make random choices once per forward pass, or use chunk=None"):
            RateBP(chunk=2)(network, x)


def test_a_random_weight_is_refused_in_chunks_in_a_program_too() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Any) -> Any:
            return F.conv2d(x, torch.rand(3, 2, 1, 1))

    x, compiled = torch.rand(4, 2, 2, 3, 3), torch.compile(Noisy(), backend="aot_eager")
    RateBP()(compiled, x)
    for network in (Noisy(), compiled):
        with pytest.raises((ValueError, RuntimeError), match="make random choices once per forward pass"):
            RateBP(chunk=2)(network, x)
