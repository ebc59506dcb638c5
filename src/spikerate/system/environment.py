"""The environment card: the hardware and software that a result was measured with."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("spikerate", "torch", "kornia", "numpy", "pillow", "safetensors", "tyro", "rich", "pooch", "matplotlib")


def now() -> str:
    """Date and time in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def fingerprint(record: Any) -> str:
    """A short hash of JSON types, equal for equal content."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def source() -> dict[str, str | None]:
    """The git commit that spikerate runs from, and a hash of uncommitted changes; None outside a git checkout."""
    folder = Path(__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "diff": None}
    diff = _git(folder, "diff", "HEAD") or ""
    commit = (_git(folder, "rev-parse", "HEAD") or "").strip()
    return {"commit": commit, "diff": hashlib.sha256(diff.encode()).hexdigest()[:16] if diff else None}


def _git(folder: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def joules() -> float | None:
    """The energy counter of the processors in joules (Linux powercap, RAPL); None if it can't be read."""
    try:
        counters = sorted(Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj"))
        return sum(int(file.read_text()) for file in counters) / 1e6 if counters else None
    except OSError:
        return None


def card() -> dict[str, Any]:
    """Hardware and software as JSON types."""
    card: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpus": [
            f"{p.name}, {p.total_memory / 2**30:.0f} GiB"
            for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    return card | {"packages": versions()}


def versions() -> dict[str, str | None]:
    """Package -> installed version, or None if it is not installed; torch with its build, as 2.13.0+cpu."""
    return {name: _version(name) for name in _PACKAGES} | {"torch": str(torch.__version__)}


def cpu_flags() -> set[str]:
    """The flags of the processor that make bfloat16 fast; empty if the system does not list its flags."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()
    return words & {"avx512_bf16", "amx_bf16", "amx_tile"}


def compiler_problem(device: torch.device) -> str | None:
    """Why torch.compile can't work for this device, as a phrase; None if no problem is found."""
    if device.type != "cpu" and not _version("triton"):
        return "Triton is not installed"
    # On a GPU, too: Triton compiles what starts its kernels.
    language, variable, names = ("C++", "CXX", ("g++", "clang++")) if device.type == "cpu" else ("C", "CC", ("gcc", "clang"))
    if not any(shutil.which(name) for name in (os.environ.get(variable, names[0]), *names)):
        return f"there is no {language} compiler (install {names[0]} or clang)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "the headers of Python are not installed (python3-dev)"
    return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
