"""Wrappers of torch around a network that gives a `Signal`, in several processes of torchrun: they average the gradients."""

from __future__ import annotations

import copy
import os
import runpy
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from spikerate import BPTT, LIF, OTTT, SLTT, RateBP
from support.networks import small_network

RULES = [RateBP(), RateBP(chunk=1), BPTT(), BPTT(chunk=1), SLTT(), OTTT(chunk=2)]


def sharded(network: nn.Sequential) -> nn.Module:
    fully_shard(network[3])
    return fully_shard(network)


WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "static graph": lambda network: DistributedDataParallel(network, static_graph=True),
    "unused parameters": lambda network: DistributedDataParallel(network, find_unused_parameters=True),
    "fully_shard": sharded,
    "fsdp": lambda network: FullyShardedDataParallel(network, device_id=torch.device("cpu"), use_orig_params=True),
}


def whole(kind: str, wrapped: Any, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients as they are on one process."""
    if kind == "fully_shard":
        return [p.grad.full_tensor() for p in parameters]  # type: ignore[union-attr]
    if kind != "fsdp":
        return [p.grad for p in parameters if p.grad is not None]
    with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
        return [p.grad.clone() for p in parameters if p.grad is not None]


def main() -> None:
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    network = small_network(lambda: LIF(threshold=0.3)).double().eval()
    x, labels = torch.rand(3, 2 * ranks, 2, 6, 6, dtype=torch.float64) * 2, torch.arange(2 * ranks) % 3
    own = slice(2 * rank, 2 * rank + 2)
    for rule in RULES:
        expected = torch.autograd.grad(F.cross_entropy(rule(network, x).rate, labels), list(network.parameters()))
        for kind, wrap in WRAPPERS.items():
            inner = copy.deepcopy(network)
            wrapped = wrap(inner)
            for _ in range(2):  # a static graph is other in its first step
                wrapped.zero_grad()
                F.cross_entropy(rule(wrapped, x[:, own]).rate, labels[own]).backward()
                found = whole(kind, wrapped, inner.parameters())
                assert len(found) == len(expected)
                for a, b in zip(found, expected, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=lambda m, c=(rule, kind): f"{c}: {m}")


if __name__ == "__main__":
    runpy.run_path(sys.argv[1], run_name="__main__")
    # By a file: what the example's group left in torchrun's store would mislead another one.
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    group = Path("group").resolve().as_uri()
    distributed.init_process_group("gloo", group, timedelta(seconds=60), world_size=ranks, rank=rank)
    main()
    distributed.barrier()
    # Without Python's end, in which threads of the wrappers that still run would abort the process.
    sys.stdout.flush()
    os._exit(0)
