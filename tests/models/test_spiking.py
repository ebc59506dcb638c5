"""Ordinary networks made spiking: what is replaced, what is refused, and that the result trains."""

from __future__ import annotations

import contextlib
import functools
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from spikerate import BPTT, LIF, Branched, RateBP, Staged, deepconv_branches, spiking
from spikerate.models.convert import CONTAINERS, check_layers
from support.networks import gradients


class UsersBlock(nn.Module):
    """A block in torchvision's manner: one activation module called twice, and an addition in place."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if i != o else None

    def forward(self, x: Any) -> Any:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class UsersNetwork(nn.Module):
    """Stem, layers and head as attributes, joined in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = UsersBlock(4, 4, 1), UsersBlock(4, 6, 2)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x: Any) -> Any:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(x, 1))


def trains(network: nn.Module, x: Tensor) -> None:
    """Both rules agree on its values, and rate-based backpropagation reaches every weight."""
    rate, bptt = RateBP()(network, x), BPTT()(network, x)
    assert torch.allclose(rate.rate, bptt.rate, atol=1e-5)
    found = gradients(network, F.cross_entropy(rate.rate, torch.arange(x.shape[1])))
    assert all(g.isfinite().all() for g in found.values())
    assert sum(g.abs().sum() for g in found.values()) > 0


def test_a_users_network_becomes_spiking() -> None:
    ann = UsersNetwork()
    before = {k: v.clone() for k, v in ann.state_dict().items()}
    snn = spiking(ann)
    x = torch.rand(3, 2, 3, 16, 16)
    trains(snn, x)
    assert list(snn.state_dict()) == list(before)
    assert all(torch.equal(before[k], v) for k, v in ann.state_dict().items()), "the original is left alone"
    assert not {id(p) for p in ann.parameters()} & {id(p) for p in snn.parameters()}
    assert not any(isinstance(m, nn.ReLU) for m in snn.modules())
    assert not any(isinstance(m, LIF) for m in ann.modules())
    assert ann(x[0]).shape == (2, 5)


@pytest.mark.parametrize("rule", [RateBP(), RateBP(chunk=1), BPTT(chunk=2)], ids=str)
def test_a_shared_neuron_fires_as_separate_ones(rule: Any) -> None:
    snn = spiking(UsersNetwork(), partial(LIF, threshold=0.5))
    separate = Staged(
        nn.Sequential(snn.conv1, snn.bn1, LIF(threshold=0.5), snn.maxpool),
        {"layer1": Separate(snn.layer1), "layer2": Separate(snn.layer2)},
        nn.Sequential(snn.avgpool, nn.Flatten(), snn.fc),
    )
    x = torch.rand(3, 2, 3, 16, 16)
    assert torch.equal(rule(snn, x).steps, rule(separate, x).steps)


class Separate(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block, self.first, self.second = block, LIF(threshold=0.5), LIF(threshold=0.5)

    def forward(self, x: Any) -> Any:
        b = self.block
        y = b.bn2(b.conv2(self.first(b.bn1(b.conv1(x)))))
        return self.second(y + (x if b.downsample is None else b.downsample(x)))


def test_a_users_network_between_stages_takes_branches() -> None:
    snn = spiking(UsersNetwork())
    stem = nn.Sequential(snn.conv1, snn.bn1, snn.relu, snn.maxpool)
    head = nn.Sequential(snn.avgpool, nn.Flatten(), snn.fc)
    body = Staged(stem, {"layer1": snn.layer1, "layer2": snn.layer2}, head)  # type: ignore[dict-item]
    network = Branched(body, deepconv_branches(body, (3, 16, 16), 5, residual=True))
    x = torch.rand(2, 2, 3, 16, 16)
    out = RateBP()(network, x)
    assert [e.shape for e in out.exits] == [(2, 5)]
    given = gradients(network, out.exits[0].square().sum())
    assert given["body.stem.0.weight"].abs().sum() > 0
    assert torch.equal(BPTT()(body.eval(), x).steps, BPTT()(snn.eval(), x).steps)


def test_every_elementwise_activation_becomes_a_neuron() -> None:
    others = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
    arguments = {"Threshold": (0.1, 0.0)}
    for name in set(nn.modules.activation.__all__) - others:
        activation = getattr(nn, name)(*arguments.get(name, ()))
        snn: Any = spiking(nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)).eval(), lambda: LIF(decay=0.5))
        assert isinstance(snn[1], LIF) and snn[1].decay == 0.5 and not snn[1].training
        assert BPTT()(snn, torch.rand(2, 3, 3)).rate.shape == (3, 2)
    assert isinstance(spiking(nn.ReLU()), LIF)


def test_an_activation_at_several_places_of_the_tree() -> None:
    shared, other = nn.ReLU(), nn.ReLU()
    net = nn.Sequential(nn.Linear(3, 3), shared, nn.Sequential(nn.Linear(3, 3), shared), other, nn.Linear(3, 2))
    snn: Any = spiking(net)
    assert isinstance(snn[1], LIF) and snn[1] is snn[2][1] and snn[3] is not snn[1]
    trains(snn, torch.rand(2, 2, 3))
    assert net[1] is shared


SETTINGS: dict[str, tuple[Any, ...]] = {
    "BatchNorm": (4,),
    "ConstantPad": (1, 2.0),
    "Conv": (4, 5, 3),
    "Dropout": (0.5,),
    "Linear": (4, 3),
    "Unflatten": (1, (2, 2)),
    "ZeroPad": (1,),
    "AdaptiveAvgPool": (2,),
    "AdaptiveMaxPool": (2,),
    "AvgPool": (2,),
    "MaxPool": (2,),
    "ChannelShuffle": (2,),
    "GroupNorm": (2, 4),
    "InstanceNorm": (4,),
    "LayerNorm": (4,),
    "PixelShuffle": (2,),
    "PixelUnshuffle": (2,),
    "RMSNorm": (4,),
    "Softmax": (-1,),
    "Upsample": (None, 2),
    "Upsampling": (None, 2),
}


SPACE = {"PixelShuffle": 2, "PixelUnshuffle": 2, "ChannelShuffle": 2, "Upsample": 2}
"""Axes after the channels, where the name of the layer does not end in it."""


@functools.cache
def let_through() -> list[type[nn.Module]]:
    """The layers of torch's that `spiking` takes, by asking it about a module that has nothing of a layer but its class."""
    kinds = {k for k in vars(nn).values() if isinstance(k, type) and issubclass(k, nn.Module) and "Lazy" not in k.__name__}
    found = []
    for kind in sorted(kinds - {nn.Module, *CONTAINERS}, key=lambda k: k.__name__):
        args = next((args for name, args in SETTINGS.items() if kind.__name__.startswith(name)), ())
        with contextlib.suppress(TypeError):
            check_layers(kind(*args))
            found.append(kind)
    return found


@pytest.mark.parametrize("kind", let_through(), ids=lambda kind: kind.__name__)
def test_a_layer_that_is_let_through_gives_what_it_gives_each_step(kind: type[nn.Module]) -> None:
    name = kind.__name__
    layer = kind(*next((args for start, args in SETTINGS.items() if name.startswith(start)), ())).eval()
    space = {"1d": 1, "2d": 2, "3d": 3}.get(name[-2:], SPACE.get(name, 0))
    x = torch.rand(2, 3, 4, *(6,) * space)
    steps = BPTT()(layer, x).steps
    assert_close(steps, torch.stack([layer(step) for step in x]))


def test_layers_are_let_through_that_have_a_verb() -> None:
    names = {kind.__name__ for kind in let_through()}
    assert names >= {
        "Conv1d",
        "Conv2d",
        "BatchNorm2d",
        "MaxPool2d",
        "Flatten",
        "Unflatten",
        "Identity",
        "ZeroPad2d",
        "Dropout",
    }
    assert names >= {"Conv3d", "ConvTranspose2d", "LayerNorm", "RMSNorm", "InstanceNorm2d", "Softmax", "Upsample"}
    assert not names & {"MultiheadAttention", "ReLU", "ReflectionPad2d", "LocalResponseNorm", "GRU", "Bilinear"}


def test_layers_that_a_signal_can_not_go_through_are_all_named() -> None:
    block = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2), "act": nn.GELU(), "up": nn.LPPool2d(2, 2)})
    network = nn.ModuleDict(
        {"layer3": block, "norm": nn.LocalResponseNorm(4), "fc": nn.Linear(4, 2), "s": nn.LogSoftmax(-1)}
    )
    with pytest.raises(TypeError) as error:
        spiking(network)
    said = str(error.value)
    refused = "layer3.attn (MultiheadAttention), layer3.up (LPPool2d), norm (LocalResponseNorm), s (LogSoftmax): use"
    assert f"can't go through {refused}" in said
    assert "out_proj" not in said and "Linear)" not in said and "\n" not in said
    with pytest.raises(TypeError, match=r"through the module \(GLU\)"):
        spiking(nn.GLU())


def test_a_layer_built_on_a_forbidden_one_is_forbidden_and_one_of_the_users_own_is_not() -> None:
    class Norm2d(nn.LocalResponseNorm):
        pass

    class Conv(nn.Conv2d):
        pass

    class Mean(nn.Module):
        def forward(self, x: Any) -> Any:
            return F.adaptive_avg_pool2d(x, 1).flatten(1)

    with pytest.raises(TypeError, match=r"0 \(Norm2d\)"):
        spiking(nn.Sequential(Norm2d(4), nn.ReLU()))
    conv = nn.utils.parametrizations.weight_norm(Conv(3, 4, 3))
    trains(spiking(nn.Sequential(conv, nn.ReLU(), Mean(), nn.Linear(4, 2))), torch.rand(2, 2, 3, 6, 6))


def test_layers_whose_settings_or_hooks_a_signal_does_not_serve_are_refused_by_name() -> None:
    def hooked(register: str) -> nn.Module:
        linear = nn.Linear(3, 3)
        getattr(linear, register)(lambda *args: None)
        return linear

    layers = {
        "reflected": nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        "circular": nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"),
        "pooled": nn.MaxPool2d(2, return_indices=True),
        "full": hooked("register_full_backward_hook"),
        "pre": hooked("register_full_backward_pre_hook"),
        "old": hooked("register_backward_hook"),
        "ahead": hooked("register_forward_hook"),
        "act": nn.ReLU(),
    }
    with pytest.raises(TypeError) as error:
        spiking(nn.ModuleDict(layers))
    said = str(error.value)
    for words in (
        "reflected (Conv2d with padding_mode='reflect')",
        "circular (Conv1d with padding_mode='circular')",
        "pooled (MaxPool2d with return_indices)",
        *(f"{name} (Linear with a backward hook, which would never be called" for name in ("full", "pre", "old")),
    ):
        assert words in said
    assert "ahead (" not in said and "act" not in said
    calls: list[Any] = []
    network = nn.Sequential(layers["ahead"], layers["act"])
    layers["ahead"].register_forward_hook(lambda module, args, out: calls.append(out))
    assert BPTT()(spiking(network), torch.rand(2, 2, 3)).rate.shape == (2, 3) and len(calls) == 1


def test_a_network_without_activations() -> None:
    with pytest.raises(ValueError, match="Sequential has no activation that"):
        spiking(nn.Sequential(nn.Linear(3, 3), nn.Flatten()))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("library", ["timm", "torchvision.models"])
def test_residual_networks_of_other_libraries(library: str, name: str) -> None:
    try:
        models = pytest.importorskip(library, exc_type=ImportError)
    except RuntimeError as error:  # torchvision built for another torch
        pytest.skip(f"{library}: {error}")
    network = models.create_model(name, num_classes=5) if library == "timm" else getattr(models, name)(num_classes=5)
    snn = spiking(network)
    assert list(snn.state_dict()) == list(network.state_dict())
    trains(snn, torch.rand(2, 2, 3, 32, 32))
