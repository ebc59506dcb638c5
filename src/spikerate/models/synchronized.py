"""Synchronised batch normalisation: statistics over the batches of all processes that train together."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from spikerate.autograd import Total
from spikerate.signal import Normalization, Signal


class Synchronized(nn.Module):
    """Replaces a batch norm, and takes over its parameters and buffers under the same names."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, total: Total) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.eps, self.momentum, self.total = norm.eps, norm.momentum or 0.0, total
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Any) -> Any:
        mean, var = self.running_mean, self.running_var
        if not self.training:
            return nn.functional.batch_norm(x, mean, var, self.weight, self.bias, False, self.momentum, self.eps)
        self.num_batches_tracked.add_(1)
        norm = Normalization(self.weight, self.bias, mean, var, self.momentum, self.eps, self.total)
        return x.normalize(norm) if isinstance(x, Signal) else norm(x.unsqueeze(0), 1)[0].squeeze(0)

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor


def synchronize_batch_norm(network: nn.Module, total: Total) -> nn.Module:
    """Let every batch norm of a network normalise the batches of all processes as one batch.

    Two processes with half a batch each then compute the same as one process with the whole batch, under every rule. The
    network is changed in place; the names of its parameters and buffers stay.

    Args:
        total: sums a tensor over the processes, without gradient.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            network.set_submodule(name, Synchronized(module, total))
    return network
