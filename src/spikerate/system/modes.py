"""How a network is run for a while: in the precision of a run, or in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which layers compute in bfloat16 where `precision` is "bf16"; with "fp32" it changes nothing.

    Autocast remembers the weights that it has cast, those without a graph too, until the context is left.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Have a network in training or evaluation mode, and put it back into the mode that it was in."""
    before = network.training
    network.train(training)
    try:
        yield
    finally:
        network.train(before)
