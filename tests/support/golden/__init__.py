"""The gradients of the published implementations: numbers only, part of the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from support.networks import golden_name

T = 4


class Golden:
    """A network with the weights of a file of numbers, which its results are compared with."""

    def __init__(self, name: str, network: nn.Module) -> None:
        with np.load(Path(__file__).parent / f"{name}.npz") as arrays:
            self.arrays = {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
        self.network = network.double()
        self.network.load_state_dict({n: self["init/" + golden_name(n)] for n in network.state_dict()})
        self.x = self["x"].expand(T, *self["x"].shape)

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def check(self, actual: Tensor, name: str) -> None:
        expected = self[name]
        error = (actual.detach() - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        assert error < 1e-6, f"{name}: relative error {error:.1e}"

    def check_step(self) -> None:
        for name, p in self.network.named_parameters():
            assert p.grad is not None, name
            self.check(p.grad, "grad/" + golden_name(name))
        for name, buffer in self.network.named_buffers():
            if not name.endswith("num_batches_tracked"):
                self.check(buffer, "after/" + golden_name(name))
