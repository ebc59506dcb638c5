"""Networks that the tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spikerate import LIF, Branched, DeepConv, Signal, Staged


class GoldenBlock(nn.Module):
    """A block under the parameter names of the golden numbers."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.lif1, self.lif2 = LIF(), LIF()
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Any) -> Any:
        return self.lif2(self.bn2(self.conv2(self.lif1(self.bn1(self.conv1(x))))) + self.shortcut(x))


def golden_network() -> Staged:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), LIF())
    stages = {"layer1": GoldenBlock(8, 8, 1), "layer2": GoldenBlock(8, 16, 2), "layer3": GoldenBlock(16, 32, 2)}
    return Staged(stem, stages, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)))


def golden_branched() -> Branched:
    def head() -> list[nn.Module]:
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]

    branch1 = nn.Sequential(DeepConv(8, 16), DeepConv(16, 32), *head())
    return Branched(golden_network(), {"layer1": branch1, "layer2": nn.Sequential(DeepConv(16, 32), *head())})


def golden_name(name: str) -> str:
    """The name of a parameter of ours in the golden files."""
    for ours, theirs in (
        ("body.", ""),
        ("stages.", ""),
        ("stem.", "conv0."),
        ("head.2", "classifier"),
        ("branches.layer1.", "branch1."),
        ("branches.layer2.", "branch2."),
    ):
        name = name.replace(ours, theirs)
    return name


def small_network(neuron: Any = LIF, classes: int = 3) -> nn.Sequential:
    """A convolutional network of two layers that fires at random input: [B, 2, 6, 6] -> [B, classes]."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        neuron(),
        nn.Conv2d(4, 5, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(5),
        neuron(),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(5, classes),
    )


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Signal) -> Signal:
        return x + self.layers(x)


class Concatenated(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Signal) -> Signal:
        return torch.cat([layer(x) for layer in self.layers], dim=1)


def every_layer(c: int, neuron: Callable[[], nn.Module]) -> list[nn.Module]:
    """Each layer of the allow-list, from [B, c, 8, 8] to [B, 3]."""
    return [
        nn.Conv2d(c, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        neuron(),
        nn.Dropout(0.3),
        Residual(nn.Conv2d(4, 4, 3, padding="same", groups=2, bias=False), nn.BatchNorm2d(4, affine=False), neuron()),
        nn.MaxPool2d(2),
        nn.Identity(),
        Concatenated(nn.Conv2d(4, 2, 1, dilation=2), nn.Conv2d(4, 3, 1)),
        nn.BatchNorm2d(5, track_running_stats=False),
        neuron(),
        nn.AvgPool2d(2),
        nn.Dropout2d(0.2),
        nn.AdaptiveMaxPool2d(2),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Linear(10, 6),
        neuron(),
        nn.Linear(6, 3),
    ]


class Attention(nn.Module):
    """Spiking self-attention without softmax: [B, C, N] -> [B, C, N], for N tokens of C channels.

    For each head `q (k^T v)`, here with channels before tokens; that of keys and values comes first, as it is smaller.
    """

    def __init__(self, channels: int, heads: int, neuron: Any = LIF) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.keys, self.values, self.out = (
            nn.Sequential(nn.Conv1d(channels, channels, 1, bias=False), nn.BatchNorm1d(channels), neuron()) for _ in range(4)
        )
        self.neuron = neuron()

    def forward(self, x: Any) -> Any:
        q, k, v = (part(x).unflatten(1, (self.heads, -1)) for part in (self.queries, self.keys, self.values))
        # Of `@` between objects that are no tensors the compiler knows nothing.
        mixed = torch.matmul(torch.matmul(v, k.transpose(-2, -1)), q)
        return self.out(self.neuron(mixed.flatten(1, 2) * 0.5))


def attention_network(channels: int = 8, neuron: Any = LIF, classes: int = 3, inputs: int = 2, heads: int = 2) -> nn.Module:
    """A transformer of spikes with two blocks: [B, inputs, H, W] -> [B, classes]."""

    def block() -> list[nn.Module]:
        wide = 2 * channels
        layers: list[nn.Module] = [nn.Conv1d(channels, wide, 1, bias=False), nn.BatchNorm1d(wide), neuron()]
        layers += [nn.Conv1d(wide, channels, 1, bias=False), nn.BatchNorm1d(channels), neuron()]
        return [Residual(Attention(channels, heads, neuron)), Residual(*layers)]

    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        neuron(),
        nn.Flatten(2),
        *block(),
        *block(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    )


class Functional(nn.Module):
    """A function of signals as a module."""

    def __init__(self, f: Callable[[Any], Any]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Any) -> Any:
        return self.f(x)


class Probe(nn.Module):
    """Hands its signal on, and keeps it."""

    signal: Signal

    def forward(self, x: Signal) -> Signal:
        self.signal = x
        return x


def saved_bytes(rule: Callable[[nn.Module, Tensor], Any], network: nn.Module, x: Tensor) -> int:
    """What the graph keeps for backward, each storage once, parameters and input not counted."""
    own = {p.untyped_storage().data_ptr() for p in [*network.parameters(), *network.buffers(), x]}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given out a second time

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = rule(network, x)
    del out
    return sum(storage.nbytes() for storage in kept.values())


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Parameter name -> gradient of a loss."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True), strict=True))
