"""Piece 3: several processes and NCCL, as far as one card goes.

python ranks.py --device cuda --out FILE         starts the processes itself
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from figures import Figures
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spikerate import BPTT, LIF, RateBP

RULES = {"rate": RateBP(), "rate, chunk=1": RateBP(chunk=1), "bptt": BPTT()}


class Run(nn.Module):
    """A network run by a rule: x [T, B, ...] -> logits [B, K]."""

    def __init__(self, network: nn.Module, rule: Any) -> None:
        super().__init__()
        self.network, self.rule = network, rule

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self.network, x).rate


def network(device: torch.device) -> nn.Module:
    """Without batch norm, whose statistics each process takes of its own part."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3, padding=1), LIF(0.5, threshold=0.3), nn.Conv2d(8, 8, 3, stride=2), LIF(0.5, threshold=0.2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).double().to(device)


def batch(device: torch.device) -> tuple[Tensor, Tensor]:
    """Of all processes together."""
    torch.manual_seed(1)
    return (torch.rand(3, 8, 2, 8, 8, dtype=torch.float64) * 3).to(device), (torch.arange(8) % 3).to(device)


def worker(backend: str, device: torch.device, compiled: bool) -> None:
    """One process: the averaged gradients of its part of the batch are those of the whole batch."""
    distributed.init_process_group(backend, timeout=datetime.timedelta(seconds=40))
    rank, n = distributed.get_rank(), distributed.get_world_size()
    try:
        for name, rule in RULES.items():
            x, y = batch(device)
            alone = Run(network(device), rule)
            F.cross_entropy(alone(x), y).backward()
            ready = torch.compile(rule, fullgraph=True, dynamic=False) if compiled else rule
            together = DistributedDataParallel(Run(network(device), ready))
            own = slice(rank * 8 // n, (rank + 1) * 8 // n)
            F.cross_entropy(together(x[:, own]), y[own]).backward()
            for a, b in zip(alone.parameters(), together.module.parameters(), strict=True):
                assert a.grad is not None and b.grad is not None
                torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12)
            if rank == 0:
                print(f"{name}: equal", flush=True)
    finally:
        distributed.destroy_process_group()


def start(backend: str, n: int, device: str, compiled: bool = False) -> list[str]:
    """What the processes say, or an error with their last words."""
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    own = [__file__, "--worker", backend, "--device", device, *(["--compiled"] if compiled else [])]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *own], capture_output=True, text=True, timeout=150, env=env)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line or "NCCL" in line or "Duplicate" in line]
        raise RuntimeError("; ".join(lines[:4])[:600] or done.stderr[-600:])
    return done.stdout.splitlines()


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, torch.device(args.device), args.compiled)
        return
    figures, gpu = Figures(args.out), args.device == "cuda"
    backend = "nccl" if gpu else "gloo"
    figures.attempt(f"{backend}, 1 process", lambda: start(backend, 1, args.device))
    figures.attempt(f"gloo, 2 processes on one {args.device}", lambda: start("gloo", 2, args.device))
    if not args.small:
        figures.attempt(f"{backend}, 1 process, compiled", lambda: start(backend, 1, args.device, True))
    if gpu:
        figures.attempt("nccl, 2 processes on one card (it refuses)", lambda: start("nccl", 2, args.device))


if __name__ == "__main__":
    main()
