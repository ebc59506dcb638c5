"""Has the C library keep large blocks of memory that are freed, instead of giving them back to the operating system."""

from __future__ import annotations

import ctypes
import functools
import os
import platform

import torch

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""The numbers of these parameters in glibc's malloc.h."""
_LARGEST = 2**30
"""Blocks of up to so many bytes are kept."""
_CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Variables of the environment by which users choose how memory is kept, or another allocator."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # called while a rule is compiled
def keep_large_blocks() -> bool:
    """Keep freed blocks of memory, as large as a train [T, B, ...] is, for the next layer; returns whether it is so now.

    glibc maps blocks above 32 MiB afresh each time, and the operating system fills their pages with zeros one by one, at
    the first touch. A forward pass at T = 8 does that for each layer. Kept blocks cost some memory, since they lie less
    densely. Where one of the variables above is set, or the C library is another one, nothing changes.
    """
    return _kept()


@functools.cache
def _kept() -> bool:
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _CHOSEN):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, 2 * _LARGEST - 1))
