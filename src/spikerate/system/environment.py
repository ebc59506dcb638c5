"""The environment card: on what machine and with what software a figure was made."""

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
    """A short name of JSON types: the same for the same content."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def source() -> dict[str, str | None]:
    """The git commit that spikerate runs from, and a hash of what was changed since; None outside a checkout."""
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
    """What the processors have used since some moment, by Linux's powercap (RAPL); None where the machine does not tell."""
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
    """Package -> installed version, None where it is not there; of torch what it says itself, with its build: 2.13.0+cpu."""
    return {name: _version(name) for name in _PACKAGES} | {"torch": str(torch.__version__)}


def cpu_flags() -> set[str]:
    """The processor's flags that make bfloat16 fast; empty where the system does not tell."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()
    return words & {"avx512_bf16", "amx_bf16", "amx_tile"}


def compiler_problem(device: torch.device) -> str | None:
    """Why torch.compile can't work for this device, in words; None where nothing speaks against it."""
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
