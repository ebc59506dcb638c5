"""Large blocks of memory are kept: counted in pages that the operating system has to bring."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from spikerate import LIF, RateBP

_BLOCK = 48 * 2**20
_PAGES = f"""
import resource, torch
from torch import nn
from spikerate import LIF, RateBP
RateBP()(nn.Sequential(nn.Linear(2, 2), LIF()), torch.rand(1, 1, 2))
def use():
    return torch.ones({_BLOCK}, dtype=torch.uint8)[0].item()
for _ in range(4):  # where the first block lies, and whether the second one fits there, is by chance
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_large_blocks_are_brought_a_few_times_and_then_reused() -> None:
    def faults(**more: str) -> int:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))} | more
        done = subprocess.run([sys.executable, "-c", _PAGES], env=env, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults() < 100 < 4000 < faults(MALLOC_MMAP_THRESHOLD_=str(2**20))  # which the user has chosen


def test_a_rule_that_is_compiled_whole_keeps_blocks_too() -> None:
    network = nn.Sequential(nn.Linear(2, 2), LIF())
    x = torch.rand(3, 1, 2)
    compiled = torch.compile(RateBP(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(network, x).rate, RateBP()(network, x).rate)
