"""Averages of a network's weights during training: one that only follows them, and one that they return to."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from spikerate.models import Synchronized
from spikerate.rules import BPTT
from spikerate.runs.optim import OptimizerFactory
from spikerate.system.modes import autocast


def follow(average: nn.Module, network: nn.Module, optim: OptimizerFactory, step: int, steps: int) -> None:
    """Update the average after step 0, 1, ... of a run of `steps` steps, in place.

    With `optim.ema` it follows the network after every step. With `optim.lookahead` it moves towards the network after each
    so many steps, and the network goes on from there (Zhang et al., NeurIPS 2019, arXiv 1907.08610, Algorithm 1). The state
    of the optimisers stays.
    """
    if optim.lookahead is None:
        update_average(average, network, optim.ema_at(step))
    elif (step + 1) % optim.lookahead == 0:
        update_average(average, network, optim.kept_at(step, steps))
        with torch.no_grad():
            for own, slow in zip(network.parameters(), average.parameters(), strict=True):
                own.copy_(slow)


def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the parameters of `average` towards the network's, in place: decay * average + (1 - decay) * network."""
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(network.parameters()), 0)


def estimate_statistics(average: nn.Module, network: nn.Module, batches: Iterable[Tensor], precision: str = "fp32") -> None:
    """Set the batch-norm statistics of `average` to those measured under its own weights.

    They are means over the batches. The running statistics of `network` can't replace them, since they belong to other
    weights. The other buffers are copied from `network`.

    Args:
        average: a copy of the network with other weights; it is left in training mode.
        batches: inputs [T, B, ...], of the kind that the network is trained on.
        precision: that of the run, fp32 or bf16.
    """
    norms = [m for m in average.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | Synchronized)]
    momenta = [norm.momentum for norm in norms]
    average.eval()  # without dropout and branches
    with torch.no_grad():
        for own, value in zip(average.buffers(), network.buffers(), strict=True):
            own.copy_(value)
        for k, x in enumerate(batches):
            for norm in norms:
                norm.train()
                norm.momentum = 1 / (k + 1)  # makes the running statistics the mean over all batches so far
            with autocast(x.device, precision):
                BPTT()(average, x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    average.train()
