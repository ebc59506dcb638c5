"""The environment card: on what machine and with what software a figure was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("spikerate", "torch", "kornia", "numpy", "pillow", "safetensors", "tyro", "rich", "pooch")


def environment() -> dict[str, Any]:
    """Hardware and software as JSON types."""
    card: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    return card | {"packages": versions()}


def versions() -> dict[str, str | None]:
    """Package -> installed version, None where it is not there."""
    return {name: _version(name) for name in _PACKAGES}


def cpu_flags() -> set[str]:
    """The processor's flags that make bfloat16 fast; empty where the system does not tell."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()
    return words & {"avx512_bf16", "amx_bf16", "amx_tile"}


def compiler_problem(device: torch.device) -> str | None:
    """Why torch.compile can't work for this device, in words; None where nothing speaks against it."""
    if device.type != "cpu":
        return None if _version("triton") else "Triton is not installed"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        return "there is no C++ compiler (install g++ or clang)"
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
