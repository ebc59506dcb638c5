"""The cost of a network: multiply-accumulates of each of its parts."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spikerate.models.branches import Branched
from spikerate.models.staged import Staged, on_meta, stage_shapes


def branch_macs(network: nn.Module, in_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of all branches of a `Branched` network for one sample; 0 for another network."""
    if not isinstance(network, Branched):
        return 0
    ghost = copy.deepcopy(network.branches).to("meta").eval()
    shapes = dict(zip(network.body.stages, stage_shapes(network.body, in_shape), strict=True))
    return sum(_counted(branch, torch.empty(shapes[name], device="meta"))[1] for name, branch in ghost.items())


def step_macs(network: nn.Module, in_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of any network without branches for one time step of one sample; counted as by `macs`."""
    return _counted(*on_meta(network, in_shape))[1]


def macs(body: Staged, in_shape: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-accumulates of a spiking network for one time step of one sample, in convolutions and linear layers.

    They are dense operations, as on a GPU: zeros count. The network runs on the meta device, without computing.

    Args:
        body: the network.
        in_shape: shape (C, H, W) of one input sample.

    Returns:
        "stem", the names of the stages, "head" -> count, in the order of execution.
    """
    ghost, x = on_meta(body, in_shape)
    counts = {}
    for name, part in (("stem", ghost.stem), *ghost.stages.items(), ("head", ghost.head)):
        x, counts[name] = _counted(part, x)
    return counts


def _counted(part: nn.Module, x: Any) -> tuple[Any, int]:
    """The output of a part of a network, and the multiply-accumulates that it took."""
    with FlopCounterMode(display=False) as counter:
        y = part(x)
    return y, int(counter.get_total_flops()) // 2
