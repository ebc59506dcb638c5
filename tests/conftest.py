"""Shared fixtures: real data where it lies beside the checkout, and the command line as a process."""

from __future__ import annotations

import fcntl
import functools
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before PyTorch comes, and for all that the tests start: processes of two threads each would wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
# Workers that the tests start import `support` as the tests do.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])

import pytest
import torch

from support import ROOT
from support.processes import Processes


def real(name: str) -> Path:
    """A file of real data, which may lie beside the checkout and is no part of it: its tests skip in a plain clone."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no real data beside the checkout: {folder} is not there")
    return folder / "data" / name


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a data set -> a folder with it in its official layout, unpacked once for all of pytest's processes."""
    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def unpacked(name: str) -> Path:
        out = common / f"real-{name}"
        with out.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not out.exists():
                command = [sys.executable, real("unpack.py"), out, name]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return out

    return unpacked


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


@pytest.fixture
def run_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run an example in an empty folder; here, since a process of its own would take seconds to import torch."""

    def run(code: str) -> None:
        file = tmp_path / "example.py"
        file.write_text(code)
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(file))

    return run
