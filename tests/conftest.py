"""Shared fixtures: the folder of golden numbers and real data, which must be there in CI."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from processes import Processes

ROOT = Path(__file__).resolve().parents[1]


def shared(name: str) -> Path:
    """A folder beside the checkout; its tests skip where it is missing, and fail in CI."""
    folder = ROOT.parent / "shared" / name
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{folder} is missing in CI")
        pytest.skip(f"{folder} is not here")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    return shared("golden")


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 (JPEG) in its official layout."""
    out = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, shared("data") / "unpack.py", out, "cifar10"], check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    started = Processes()
    yield started
    started.close()


@pytest.fixture
def spikerate(processes: Processes, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in an empty folder, as a user does."""
    return functools.partial(processes.run, cwd=tmp_path)
