"""Networks that spikerate has not, and things that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from spikerate import Learnable, ParametricLIF, Recurrent, Staged

Neuron = Callable[[], nn.Module]


@dataclass(frozen=True)
class Small:
    width: int = 8

    def __call__(self, num_classes: int, in_shape: tuple[int, int, int], neuron: Neuron) -> nn.Module:
        first = nn.Sequential(nn.Conv2d(in_shape[0], self.width, 3, padding=1), nn.BatchNorm2d(self.width), neuron())
        second = nn.Sequential(nn.Conv2d(self.width, 2 * self.width, 3, 2, 1), nn.BatchNorm2d(2 * self.width), neuron())
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * self.width, num_classes))
        return Staged(nn.Identity(), {"first": first, "second": second}, head)


def flat(num_classes: int, in_shape: tuple[int, int, int], neuron: Neuron) -> nn.Module:
    pixels = in_shape[0] * in_shape[1] * in_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), neuron(), nn.Linear(16, num_classes))


def looped(num_classes: int, in_shape: tuple[int, int, int], neuron: Neuron) -> nn.Module:
    """Spikes that come back, which have no gradient through their rates."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Recurrent(nn.Linear(8, 8), neuron()), nn.Linear(8, num_classes))


def late(num_classes: int, in_shape: tuple[int, int, int], neuron: Neuron) -> nn.Module:
    """A reset that is learned, which only later steps see."""
    kind = ParametricLIF(v_reset=Learnable(-0.1))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), kind, nn.Linear(8, num_classes))


class Wavy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


def wavy(num_classes: int, in_shape: tuple[int, int, int], neuron: Neuron) -> nn.Module:
    """An operation without a rule."""
    return nn.Sequential(nn.Flatten(), Wavy(), nn.Linear(64, num_classes))


def few(num_classes: int, in_shape: tuple[int, int, int], neuron: Neuron) -> nn.Module:
    """Logits of other classes."""
    return flat(num_classes - 1, in_shape, neuron)


def none(num_classes: int, in_shape: tuple[int, int, int], neuron: Neuron) -> str:
    return "a network"


def lost(num_classes: int, in_shape: tuple[int, int, int], neuron: Neuron) -> nn.Module:
    return nn.Linear(in_shape[3], num_classes)


def other(classes: int) -> nn.Module:
    """Other arguments."""
    return nn.Linear(64, classes)


width = 3
